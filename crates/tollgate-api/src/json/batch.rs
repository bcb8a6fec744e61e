//! Many calls at once.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{call::CallBody, decision::DecisionBody, error::ErrorDetail};

/// Many calls.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchBody {
    /// Each call is parsed separately, so that an invalid call does not affect the others.
    #[schema(value_type = Vec<CallBody>, min_items = 1, max_items = 256)]
    pub calls: Vec<Box<RawValue>>,
}

/// The results of the calls.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResultBody {
    /// One for each call, in the order of the calls.
    pub results: Vec<CallResultBody>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "nearly every result is the large one")]
pub enum CallResultBody {
    /// A decision; a refusal is a decision too.
    Decision(DecisionBody),
    /// The error that `/v1/consume` would have returned.
    Error(ErrorDetail),
}
