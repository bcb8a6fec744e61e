//! Secrets of API keys: how they look, how they are hashed, how they are compared.

use rand::{Rng, distr::Alphanumeric};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "tg_";
const BODY: usize = 32;
const CHECKSUM: usize = 6;
const BASE_62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The longest secret a caller may present, in bytes.
pub(crate) const MAX_SECRET_BYTES: usize = 512;

/// The SHA-256 of a secret, all that is ever stored. A secret of 190 random bits needs no salt and no
/// slow hash.
#[derive(Clone, Copy)]
pub(crate) struct KeyHash([u8; 32]);

/// Shows nothing: a hash in a log is one step of an attack.
impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash")
    }
}

impl KeyHash {
    pub(crate) fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash that `to_text` wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            // `from_str_radix` would take a sign.
            let digits = pair.iter().all(u8::is_ascii_hexdigit).then_some(pair)?;
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(hash))
    }

    /// The bytes that policies keep.
    pub(crate) const fn bytes(self) -> [u8; 32] {
        self.0
    }

    /// Where to look for it.
    pub(crate) fn bucket(&self) -> [u8; 8] {
        let mut bucket = [0; 8];
        bucket.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        bucket
    }

    /// Compares in constant time.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// `sha256:` and 64 hexadecimal digits, as policy files have it.
    pub(crate) fn to_text(self) -> String {
        use std::fmt::Write;
        self.0.iter().fold("sha256:".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// A new secret: `tg_`, 32 random characters, and a checksum of 6, so that a mistyped or made-up key is
/// known as such without a look-up.
pub(crate) fn generate() -> String {
    let body: String = rand::rng().sample_iter(Alphanumeric).take(BODY).map(char::from).collect();
    let start = format!("{PREFIX}{body}");
    let checksum = checksum(&start);
    start + &checksum
}

/// Whether a secret could be a key at all. Keys that a platform brings along need not look like ours.
pub(crate) fn is_plausible(secret: &str) -> bool {
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
