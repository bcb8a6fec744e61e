//! The HTTP and the gRPC code of each failure, in one place, so that they cannot differ.

use axum::http::StatusCode;
use tollgate_core::store::StoreError;
use tollgate_service::service::CallError;
use tonic::Code;

use crate::auth::AuthError;

/// A kind of failure in the terms of each protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailureCode {
    pub(crate) http: StatusCode,
    pub(crate) grpc: Code,
    /// For programs that read JSON.
    pub(crate) word: &'static str,
    /// Whether the node itself is overloaded, so that the same call may pass soon: `Retry-After` over HTTP, pushback
    /// over gRPC.
    pub(crate) retry_soon: bool,
}

impl FailureCode {
    const fn new(http: StatusCode, grpc: Code, word: &'static str) -> Self {
        Self { http, grpc, word, retry_soon: false }
    }

    pub(crate) const INVALID: Self = Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, "invalid_argument");
    pub(crate) const NOT_FOUND: Self = Self::new(StatusCode::NOT_FOUND, Code::NotFound, "not_found");
    pub(crate) const FORBIDDEN: Self = Self::new(StatusCode::FORBIDDEN, Code::PermissionDenied, "permission_denied");
    pub(crate) const ENDED: Self = Self::new(StatusCode::CONFLICT, Code::FailedPrecondition, "failed_precondition");
    pub(crate) const LATE: Self = Self::new(StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, "deadline_exceeded");
    pub(crate) const UNAVAILABLE: Self = Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "unavailable");
    /// A bound of the caller is reached: its counters, or its failed logins. Waiting a second does not help.
    pub(crate) const EXHAUSTED: Self =
        Self::new(StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, "resource_exhausted");
    pub(crate) const OVERLOADED: Self = Self { retry_soon: true, ..Self::EXHAUSTED };
    /// The body did not arrive in time.
    pub(crate) const SLOW_BODY: Self =
        Self::new(StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, "deadline_exceeded");
    pub(crate) const TOO_LARGE: Self = Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::OutOfRange, "payload_too_large");
    pub(crate) const UNSUPPORTED: Self =
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "unsupported_media_type");

    pub(crate) const UNAUTHENTICATED: Self =
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, "unauthenticated");
    /// gRPC has no hosts to choose from.
    pub(crate) const WRONG_HOST: Self =
        Self::new(StatusCode::MISDIRECTED_REQUEST, Code::InvalidArgument, "misdirected_request");

    /// That of a failed authentication. How long too many failures keep a caller out is in the error itself.
    pub(crate) const fn of_auth(error: &AuthError) -> Self {
        match error {
            AuthError::Missing(_) | AuthError::Unknown(_) | AuthError::UnknownCertificate | AuthError::NoAdmins => {
                Self::UNAUTHENTICATED
            }
            AuthError::TooManyFailures { .. } => Self::EXHAUSTED,
            AuthError::WrongHost => Self::WRONG_HOST,
        }
    }

    /// That of a call that was not decided.
    pub(crate) const fn of(error: &CallError) -> Self {
        match error {
            CallError::Invalid(_) | CallError::UnknownResource(_) => Self::INVALID,
            CallError::UnknownDomain { .. } | CallError::NoReservation => Self::NOT_FOUND,
            CallError::Forbidden { .. } => Self::FORBIDDEN,
            CallError::Ended { .. } => Self::ENDED,
            CallError::Late | CallError::Expired => Self::LATE,
            CallError::Store(error) => Self::of_store(error),
            CallError::RenderedStore(failure) => Self::of_store(&failure.error),
        }
    }

    /// That of a failure of the store.
    const fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::Overloaded(_) => Self::OVERLOADED,
            StoreError::CounterCapReached(_) => Self::EXHAUSTED,
            StoreError::Unreachable(_) | StoreError::Indeterminate(_) | StoreError::Refused(_) => Self::UNAVAILABLE,
        }
    }
}
