//! Errors of `/v1` and `/admin/v1`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::decision::RenderedBody;

/// An error of `/v1` and `/admin/v1`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// An error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// A code for programs: `invalid_argument`, `not_found`, `unavailable`, `resource_exhausted` …
    pub code: Cow<'static, str>,
    /// A sentence for people; if the request is wrong, it starts with the name of the field.
    pub message: String,
    /// The answer for the platform's own caller, if the call requested it and the store did not decide the call.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    pub rendered: Option<RenderedBody>,
}

impl ErrorBody {
    /// An error with this code and message.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { error: ErrorDetail { code: code.into(), message: message.into(), rendered: None } }
    }
}
