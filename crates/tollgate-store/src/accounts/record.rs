//! The record of an account in the store. Of a secret only the hash is stored.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use tollgate_core::{
    api_key::{KeyHash, KeyKind},
    time::Timestamp,
};

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
    /// Its balances, by currency; shown, and never used for decisions.
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
    /// Fields of a later version, kept unchanged.
    #[serde(flatten)]
    pub later: serde_json::Map<String, serde_json::Value>,
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The hash of the secret.
    #[serde(with = "hash")]
    pub hash: KeyHash,
    /// The secret before the last rotation, while it is still good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousSecret>,
    /// The rights of the key.
    #[serde(with = "StoredKeyKind")]
    pub kind: KeyKind,
    /// How the secret begins, for people to know it by.
    pub prefix: String,
    /// Its description.
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
    /// Fields of a later version, kept unchanged.
    #[serde(flatten)]
    pub later: serde_json::Map<String, serde_json::Value>,
}

/// A secret that is going out of use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviousSecret {
    /// Its hash.
    #[serde(with = "hash")]
    pub hash: KeyHash,
    /// Until when it is good.
    #[serde(with = "time")]
    pub good_until: Timestamp,
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

/// As stores write it.
pub(super) fn encoded(hash: &KeyHash) -> String {
    URL_SAFE_NO_PAD.encode(hash.bytes())
}

/// The kinds of keys as they are written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "KeyKind", rename_all = "snake_case")]
enum StoredKeyKind {
    Inference,
    Admin,
}

/// Hashes as [`encoded`] writes them.
pub(super) mod hash {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use tollgate_core::api_key::KeyHash;

    pub(super) fn serialize<S: Serializer>(hash: &KeyHash, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::encoded(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<KeyHash, D::Error> {
        let bytes = URL_SAFE_NO_PAD.decode(String::deserialize(from)?).map_err(D::Error::custom)?;
        <[u8; 32]>::try_from(bytes).map(KeyHash::from_bytes).map_err(|_| D::Error::custom("not a SHA-256"))
    }

    /// Lists of them.
    pub(in super::super) mod list {
        use serde::{Deserialize, Deserializer, Serialize, Serializer};
        use tollgate_core::api_key::KeyHash;

        /// One of a list.
        #[derive(Serialize, Deserialize)]
        struct Item(#[serde(with = "super")] KeyHash);

        pub(in super::super::super) fn serialize<S: Serializer>(hashes: &[KeyHash], to: S) -> Result<S::Ok, S::Error> {
            to.collect_seq(hashes.iter().copied().map(Item))
        }

        pub(in super::super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Vec<KeyHash>, D::Error> {
            Ok(Vec::<Item>::deserialize(from)?.into_iter().map(|Item(hash)| hash).collect())
        }
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
