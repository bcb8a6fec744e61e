//! Calls, as `/v1` reads them.

use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    entries::Entries,
    number::{WholeNumber, whole_number},
};

/// A call to be decided.
// Not `Debug`, because it may contain a secret.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CallBody {
    /// The policy's domain. May be left out if the token has only one domain.
    #[serde(default)]
    pub domain: String,
    pub caller: CallerBody,
    /// The resource that is called: a model or an endpoint.
    #[schema(min_length = 1, max_length = 128)]
    pub resource: String,
    /// The usage by unit, each from 0 to 2^53 - 1. `requests` is 1 if absent.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    pub usage: Entries<WholeNumber>,
    /// Values of the attributes in the policy's scopes other than account, `api_key` and resource, such as `ip`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub attributes: Entries<String>,
    /// An idempotency key. All calls with the same id within its lifetime (10 minutes by default) are charged once, on
    /// any node, and get the answer of the first admission. The same id with a different call is an error. For
    /// `consume` and `reserve`.
    #[serde(default)]
    #[schema(max_length = 128)]
    pub request_id: String,
    /// The dialect of `rendered`; that of the domain if absent.
    #[serde(default)]
    #[schema(max_length = 128)]
    pub dialect: String,
    /// Whether the answer has `rendered`.
    #[serde(default)]
    pub render: bool,
    /// The upload of the call, checked against the policy's upload limits.
    #[serde(default)]
    #[schema(value_type = UploadBody)]
    pub upload: Option<UploadBody>,
}

/// An upload.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadBody {
    /// `image`, `audio`, `video`, or a media type such as `audio/wav`.
    #[schema(min_length = 1, max_length = 128)]
    pub media_type: String,
    /// Its size in bytes.
    #[serde(default, deserialize_with = "whole_number")]
    pub bytes: u64,
    /// Playing time in seconds, rounded up.
    #[serde(default, deserialize_with = "whole_number")]
    pub duration_seconds: u64,
}

/// The caller: one of the three.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallerBody {
    /// The secret of an API key.
    ApiKey(String),
    /// The id of an API key.
    ApiKeyId(String),
    /// An account; no quota of a key applies.
    Account(String),
}
