//! What is kept of an account, and how a secret is kept: as its hash.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tollgate_core::time::Timestamp;

/// An account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// The domain.
    pub domain: String,
    /// Its id, unique in the domain.
    pub id: String,
    /// Grows with every change; that of a new account is later than any of one that was deleted before.
    pub version: u64,
    /// The name of its tier.
    pub tier: String,
    /// What it has to spend, by currency; shown, never judged by.
    #[serde(default)]
    pub balances: IndexMap<String, f64>,
    /// Its own limits, by name.
    #[serde(default)]
    pub overrides: IndexMap<String, OverrideRecord>,
    /// Its keys, by id, oldest first.
    #[serde(default)]
    pub keys: IndexMap<String, KeyRecord>,
    /// When it was made.
    #[serde(with = "time")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[serde(with = "time")]
    pub changed_at: Timestamp,
    /// What a later version knows of it besides, kept as it is.
    #[serde(flatten)]
    pub later: serde_json::Map<String, serde_json::Value>,
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The hash of the secret.
    pub hash: KeyHash,
    /// The secret before the last rotation, while it is still good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousSecret>,
    /// What the key may do.
    pub kind: KeyKind,
    /// How the secret begins, for people to know it by.
    pub prefix: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was made.
    #[serde(with = "time")]
    pub created_at: Timestamp,
    /// When it ends.
    #[serde(with = "time::option", default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was withdrawn.
    #[serde(with = "time::option", default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// When it got its present secret, if that is not its first.
    #[serde(with = "time::option", default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Timestamp>,
    /// Its own limits, by name.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub overrides: IndexMap<String, OverrideRecord>,
    /// What a later version knows of it besides, kept as it is.
    #[serde(flatten)]
    pub later: serde_json::Map<String, serde_json::Value>,
}

/// A secret that is going out of use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviousSecret {
    /// Its hash.
    pub hash: KeyHash,
    /// Until when it is good.
    #[serde(with = "time")]
    pub good_until: Timestamp,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Call, and read what concerns itself.
    Inference,
    /// Also read what concerns the whole account.
    Admin,
}

/// A limit of one account or key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverrideRecord {
    /// The limit as it was written, in the form of policy files.
    pub written: serde_json::Value,
    /// When it stops to apply.
    #[serde(with = "time::option", default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl KeyRecord {
    /// The hashes of the secrets that this key has, the present one first.
    pub fn secrets(&self) -> impl Iterator<Item = &KeyHash> {
        std::iter::once(&self.hash).chain(self.previous.as_ref().map(|previous| &previous.hash))
    }

    /// Whether the key is good at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }
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

    /// As stores write it.
    pub(super) fn encoded(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// Shows nothing: a hash in a log is one step of an attack.
impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash")
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.encoded())
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(D::Error::custom)?;
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| D::Error::custom("not a SHA-256"))
    }
}

/// Times as whole milliseconds.
mod time {
    use serde::{Deserialize, Deserializer, Serializer};
    use tollgate_core::time::Timestamp;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(time.as_ms())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        u64::deserialize(from).map(Timestamp::from_ms)
    }

    pub(super) mod option {
        use serde::{Deserialize, Deserializer, Serialize, Serializer};
        use tollgate_core::time::Timestamp;

        #[expect(clippy::ref_option, reason = "serde's signature")]
        pub(in super::super) fn serialize<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
            time.map(Timestamp::as_ms).serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
            Option::<u64>::deserialize(from).map(|ms| ms.map(Timestamp::from_ms))
        }
    }
}
