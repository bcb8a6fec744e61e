//! Errors of the end users' routes.

use axum::{http::StatusCode, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::json_response;

/// An error of the end users' routes, as the Venice document has it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlainError {
    error: String,
}

impl PlainError {
    pub(super) fn new(error: impl Into<String>) -> Self {
        Self { error: error.into() }
    }

    pub(super) fn response(self, status: StatusCode) -> Response {
        json_response(status, self)
    }
}
