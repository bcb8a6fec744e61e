//! The ids of reservations, as callers hold them.
//!
//! A token contains what is needed to find the record, and no proof. The record decides what the token may do: it names
//! its account, and [`Token::is_bound_to`] compares domain and account with the token. So a token that is assembled
//! from parts of others names no reservation.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng;
use tollgate_core::claim::{Partition, ReservationId};
use tollgate_policy::Policy;

const PREFIX: &str = "rs_";
const DOMAIN: usize = 8;

/// Which domain, which partition, which reservation: 36 bytes, of which 16 are random, and so 51 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    domain: [u8; DOMAIN],
    pub(super) home: Partition,
    pub(super) id: ReservationId,
}

impl Token {
    pub(super) fn new(domain: &str, home: Partition, id: ReservationId) -> Self {
        Self { domain: tag(domain), home, id }
    }

    /// An id that cannot be guessed: 128 bits of the thread's generator, which is cryptographic.
    pub(super) fn generate() -> ReservationId {
        ReservationId(rand::rng().random())
    }

    pub(super) fn to_text(self) -> String {
        let bytes = [&self.domain[..], &self.home.bytes(), &self.id.0].concat();
        let mut text = PREFIX.to_owned();
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// The token of a text; `None` if it cannot be one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; DOMAIN + 12 + 16];
        let written = URL_SAFE_NO_PAD.decode_slice(text.strip_prefix(PREFIX)?, &mut bytes).ok()?;
        if written != bytes.len() {
            return None;
        }
        let (domain, rest) = bytes.split_first_chunk::<DOMAIN>()?;
        let (home, rest) = rest.split_first_chunk::<12>()?;
        let (id, _) = rest.split_first_chunk::<16>()?;
        Some(Self { domain: *domain, home: Partition::from_bytes(*home), id: ReservationId(*id) })
    }

    /// Whether it is one of this account's, in the domain of this policy. The partition is a hash of both.
    pub(super) fn is_bound_to(&self, policy: &Policy, account: &str) -> bool {
        self.is_of(policy.domain()) && self.home == policy.account_partition(account)
    }

    /// Whether it is of the domain of this name.
    pub(super) fn is_of(&self, domain: &str) -> bool {
        self.domain == tag(domain)
    }
}

fn tag(domain: &str) -> [u8; DOMAIN] {
    let mut tag = [0; DOMAIN];
    tag.iter_mut().zip(Partition::of([domain, "reservations"]).bytes()).for_each(|(to, from)| *to = from);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_nothing_else_is_one() {
        let token = Token::new("venice", Partition::of(["account"]), Token::generate());
        let text = token.to_text();
        assert_eq!((text.len(), Token::parse(&text)), (51, Some(token)));
        assert!(token.is_of("venice") && !token.is_of("deapi"));
        let long = format!("{text}A");
        for bad in ["", "rs_", "rs_AAAA", &text[..50], &long, &text[3..], "rs_é", &text.replace('_', " ")] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }
}
