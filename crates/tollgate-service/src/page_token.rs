//! Page tokens: the position at which the next page of a list begins. A token is bound to its list (kind, domain,
//! account and key), so that a token of another list is refused. Each page is authorized by the caller's own
//! credentials, so the binding needs no secret.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

const BINDING_BYTES: usize = 12;
/// The maximum length of a token: the binding and a name of 128 bytes.
const MAX_TOKEN_BYTES: usize = (BINDING_BYTES + 128) * 4 / 3 + 2;

/// A list with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List<'a> {
    /// The limits of a caller.
    Limits {
        /// The domain.
        domain: &'a str,
        /// The account's id.
        account: &'a str,
        /// The key's id, if the caller has one.
        key: Option<&'a str>,
    },
    /// The accounts of a domain.
    Accounts {
        /// The domain.
        domain: &'a str,
    },
    /// The keys of an account.
    Keys {
        /// The domain.
        domain: &'a str,
        /// The account's id.
        account: &'a str,
    },
}

impl List<'_> {
    /// The token of the page that begins after `position`.
    pub fn token(self, position: &str) -> String {
        URL_SAFE_NO_PAD.encode([&self.binding(position)[..], position.as_bytes()].concat())
    }

    /// The position in a token of this list; `None` for any other text.
    pub fn position(self, token: &str) -> Option<String> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (binding, position) = bytes.split_first_chunk::<BINDING_BYTES>()?;
        let position = std::str::from_utf8(position).ok()?;
        (*binding == self.binding(position)).then(|| position.to_owned())
    }

    fn binding(self, position: &str) -> [u8; BINDING_BYTES] {
        let parts = match self {
            Self::Limits { domain, account, key: None } => ["limits", domain, account, ""],
            Self::Limits { domain, account, key: Some(key) } => ["limits of a key", domain, account, key],
            Self::Accounts { domain } => ["accounts", domain, "", ""],
            Self::Keys { domain, account } => ["keys", domain, account, ""],
        };
        let mut hasher = Sha256::new();
        for part in parts.into_iter().chain([position]) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut binding = [0; BINDING_BYTES];
        binding.iter_mut().zip(hasher.finalize()).for_each(|(to, from)| *to = from);
        binding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails if only the position is bound.
    #[test]
    fn a_token_is_valid_only_for_its_list() {
        let lists = |domain, account, key| {
            [
                List::Limits { domain, account, key: None },
                List::Limits { domain, account, key: Some(key) },
                List::Accounts { domain },
                List::Keys { domain, account },
            ]
        };
        let all: Vec<List<'_>> = [("shop", "a", "k"), ("shop", "b", "k"), ("other", "a", "k"), ("shop", "a", "l")]
            .into_iter()
            .flat_map(|(domain, account, key)| lists(domain, account, key))
            .collect();
        for (index, list) in all.iter().enumerate() {
            for position in ["0", "50", "", "ein Konto", &"x".repeat(128)] {
                let token = list.token(position);
                for (other_index, other) in all.iter().enumerate() {
                    let expected = (list == other).then_some(position);
                    let parsed = other.position(&token);
                    assert_eq!(parsed.as_deref(), expected, "{index} in {other_index}: {token}");
                }
                for bad in [&token[1..], &format!("{token}A"), &token.replace(&token[..1], "_"), position] {
                    assert!(bad == token || list.position(bad).is_none(), "{bad}");
                }
            }
        }
    }
}
