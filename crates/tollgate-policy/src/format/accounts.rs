//! A policy's rules for accounts and keys in the store.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Name, Word};

/// An event, such as a payment, that moves an account from one tier to another at once.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promotion {
    /// The type of the event, such as `payment`.
    pub on: Word,
    /// The tier that it moves accounts from.
    pub from: Name,
    /// The tier that it moves them to.
    pub to: Name,
}

/// The limits of API keys.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keys {
    /// How many keys of an account may be good at once; 500 unless given.
    #[serde(default)]
    #[schemars(with = "MaxActive")]
    pub max_active: Option<MaxActive>,
}

/// From 1 to 1000.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct MaxActive(#[schemars(range(min = 1, max = 1000))] pub usize);
