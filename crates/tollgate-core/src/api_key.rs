//! API keys: their kinds, and the hash that replaces their secret after the look-up.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The rights of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Make calls, and read the key's own limits.
    Inference,
    /// Also read the data of the whole account.
    Admin,
}

/// The SHA-256 of a secret, all that is ever stored. A secret of 190 random bits needs no salt and no
/// slow hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of `secret`.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// The hash that was stored as these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Where to look for it.
    pub fn bucket(&self) -> [u8; 8] {
        let mut bucket = [0; 8];
        bucket.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        bucket
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// `sha256:` and 64 hexadecimal digits, as policy files have it.
    pub fn to_text(self) -> String {
        use std::fmt::Write;
        self.0.iter().fold("sha256:".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The hash that [`KeyHash::to_text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
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
    pub const fn bytes(self) -> [u8; 32] {
        self.0
    }
}

/// Shows nothing: a hash in a log is one step of an attack.
impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash")
    }
}
