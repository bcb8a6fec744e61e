//! Errors of the end users' routes.

use axum::{http::StatusCode, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::failure;

/// An error of the end users' routes, as the Venice document has it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlainError {
    error: String,
}

impl PlainError {
    pub(super) fn new(error: impl Into<String>) -> Self {
        Self { error: error.into() }
    }

    pub(super) fn with(self, status: StatusCode) -> Response {
        failure(status, self)
    }
}
