//! The format of the secrets of API keys. `tollgate-core` hashes and compares them.

use rand::{Rng, distr::Alphanumeric};

pub use tollgate_core::api_key::KeyHash;

const PREFIX: &str = "tg_";
const BODY: usize = 32;
const CHECKSUM: usize = 6;
const BASE_62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Maximum length of a secret in a call, in bytes.
pub const MAX_SECRET_BYTES: usize = 512;

/// A new secret: `tg_`, 32 random characters, and a checksum of 6 characters, so that a mistyped or invented key is
/// recognised without a lookup.
pub fn generate() -> String {
    let body: String = rand::rng().sample_iter(Alphanumeric).take(BODY).map(char::from).collect();
    let start = format!("{PREFIX}{body}");
    let checksum = checksum(&start);
    start + &checksum
}

/// Whether a secret can be a key: its checksum is right, or it is not in Tollgate's format. Keys that a platform
/// imports may have any format.
pub fn is_plausible(secret: &str) -> bool {
    let Some(body) = secret.strip_prefix(PREFIX) else { return true };
    let cut = secret.len().saturating_sub(CHECKSUM);
    body.len() == BODY + CHECKSUM
        && secret.is_char_boundary(cut)
        && secret.split_at(cut).1 == checksum(secret.split_at(cut).0)
}

fn checksum(of: &str) -> String {
    let mut rest = crc32fast::hash(of.as_bytes()) as usize;
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = BASE_62[rest % 62];
        rest /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_are_plausible_and_mistyped_ones_are_not() {
        let secret = generate();
        assert_eq!(secret.len(), 41);
        assert!(is_plausible(&secret));
        let mut mistyped = secret.clone().into_bytes();
        mistyped[10] = if mistyped[10] == b'a' { b'b' } else { b'a' };
        assert!(!is_plausible(std::str::from_utf8(&mistyped).unwrap()));
        assert!(!is_plausible("tg_short"));
        assert!(!is_plausible("tg_ééééééééééééééééééé"));
        assert!(is_plausible("sk-a-platform-s-own"));
    }

    #[test]
    fn the_checksum_of_a_known_key() {
        // Computed with zlib's crc32 in another language.
        assert!(is_plausible(concat!("tg_demoVeniceKey", "ForLoopbackUseOnly04QjPeg")));
    }
}
