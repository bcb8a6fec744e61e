//! Estimates: the amounts that reservations take before the usage is known.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Word, count::Count, names};

/// By unit, the inputs whose sum is the estimate. It is at most the limit itself, so that no call is refused
/// permanently because of an estimate.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("propertyNames" = names("Word"), "maxProperties" = 16))]
pub(crate) struct Estimates(pub(crate) IndexMap<String, Vec<Input>>);

/// A number that comes with the call, such as the length of a prompt.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the file's names")]
pub(crate) struct Input {
    /// Its name among the inputs of the call, such as `max_tokens`.
    pub(crate) input: Word,
    /// Its value if the call does not have it; 0 unless given.
    #[serde(default)]
    pub(crate) default: Count,
    /// More than this counts as this.
    #[serde(default)]
    #[schemars(with = "Count")]
    pub(crate) at_most: Option<Count>,
}
