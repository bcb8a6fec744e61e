//! The accounts and keys that a policy file brings along.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Hash, Name, Override, Time, names};

/// The accounts and keys that the file brings along.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bootstrap {
    /// The accounts.
    #[serde(default)]
    #[schemars(length(max = 10000))]
    pub accounts: Vec<Account>,
}

/// An account.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Account {
    /// Its id, unique in the file.
    pub id: Name,
    /// Its tier, from `tiers`.
    pub tier: Name,
    /// Its own limits.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub overrides: Vec<Override>,
    /// Its balances, by currency; only shown to the account, never used for decisions.
    #[serde(default)]
    #[schemars(extend("propertyNames" = names("Label"), "maxProperties" = 16))]
    pub balances: IndexMap<String, f64>,
    /// Its keys.
    #[serde(default)]
    #[schemars(length(max = 500))]
    pub keys: Vec<Key>,
}

/// An API key. The secret itself is never in a file.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// Its id, unique in the file.
    pub id: Name,
    /// The hash of the secret.
    pub hash: Hash,
    /// Its rights: make calls (`inference`), or also read data of the whole account (`admin`).
    pub kind: Kind,
    /// When it expires.
    #[serde(default)]
    #[schemars(with = "Time")]
    pub expires_at: Option<Time>,
    /// Whether it was revoked.
    #[serde(default)]
    pub revoked: bool,
    /// Its own limits; they never touch those of its account.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub overrides: Vec<Override>,
    /// Only valid on a node with the embedded store and the policy it came with.
    #[serde(default)]
    pub demo: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Inference,
    Admin,
}
