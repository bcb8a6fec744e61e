//! The ids of reservations, as callers see them.
//!
//! A token contains what is needed to find the record, but no signature. The record contains its account, and
//! [`Token::is_bound_to`] compares domain and account with the token. So a token that is assembled from parts of other
//! tokens is bound to no reservation.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng;
use tollgate_core::claim::{Partition, ReservationId};
use tollgate_policy::Policy;

const PREFIX: &str = "rs_";
const DOMAIN_TAG_BYTES: usize = 8;

/// The domain, partition and id of a reservation: 36 bytes, of which 16 are random, or 51 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    domain: [u8; DOMAIN_TAG_BYTES],
    pub(super) home: Partition,
    pub(super) id: ReservationId,
}

impl Token {
    pub(super) fn new(domain: &str, home: Partition, id: ReservationId) -> Self {
        Self { domain: domain_tag(domain), home, id }
    }

    /// An id of 128 bits from a cryptographic generator.
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
        let mut bytes = [0; DOMAIN_TAG_BYTES + 12 + 16];
        let length = URL_SAFE_NO_PAD.decode_slice(text.strip_prefix(PREFIX)?, &mut bytes).ok()?;
        if length != bytes.len() {
            return None;
        }
        let (domain, rest) = bytes.split_first_chunk::<DOMAIN_TAG_BYTES>()?;
        let (home, rest) = rest.split_first_chunk::<12>()?;
        let (id, _) = rest.split_first_chunk::<16>()?;
        Some(Self { domain: *domain, home: Partition::from_bytes(*home), id: ReservationId(*id) })
    }

    /// Whether it belongs to this account in the domain of this policy. The partition is a hash of both.
    pub(super) fn is_bound_to(&self, policy: &Policy, account: &str) -> bool {
        self.is_in_domain(policy.domain()) && self.home == policy.account_partition(account)
    }

    /// Whether its reservation is in this domain.
    pub(super) fn is_in_domain(&self, domain: &str) -> bool {
        self.domain == domain_tag(domain)
    }
}

fn domain_tag(domain: &str) -> [u8; DOMAIN_TAG_BYTES] {
    let mut tag = [0; DOMAIN_TAG_BYTES];
    tag.iter_mut().zip(Partition::of([domain, "reservations"]).bytes()).for_each(|(to, from)| *to = from);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_of_a_token_is_parsed_as_a_token() {
        let token = Token::new("venice", Partition::of(["account"]), Token::generate());
        let text = token.to_text();
        assert_eq!((text.len(), Token::parse(&text)), (51, Some(token)));
        assert!(token.is_in_domain("venice") && !token.is_in_domain("deapi"));
        let long = format!("{text}A");
        for bad in ["", "rs_", "rs_AAAA", &text[..50], &long, &text[3..], "rs_é", &text.replace('_', " ")] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }
}
