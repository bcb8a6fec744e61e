//! The HTTP and the gRPC code of each error, in one place, so that REST and gRPC agree.

use axum::http::StatusCode;
use tollgate_core::store::StoreError;
use tollgate_service::service::CallError;
use tonic::Code;

use crate::auth::AuthError;

/// A kind of error, with its code in each protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailureCode {
    pub(crate) http: StatusCode,
    pub(crate) grpc: Code,
    /// Its name in JSON.
    pub(crate) name: &'static str,
    /// Whether the node itself is overloaded, so that a retry may soon succeed: `Retry-After` over HTTP, pushback over
    /// gRPC.
    pub(crate) is_overload: bool,
}

impl FailureCode {
    const fn new(http: StatusCode, grpc: Code, name: &'static str) -> Self {
        Self { http, grpc, name, is_overload: false }
    }

    pub(crate) const INVALID: Self = Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, "invalid_argument");
    pub(crate) const NOT_FOUND: Self = Self::new(StatusCode::NOT_FOUND, Code::NotFound, "not_found");
    pub(crate) const FORBIDDEN: Self = Self::new(StatusCode::FORBIDDEN, Code::PermissionDenied, "permission_denied");
    pub(crate) const ENDED: Self = Self::new(StatusCode::CONFLICT, Code::FailedPrecondition, "failed_precondition");
    pub(crate) const TIMED_OUT: Self =
        Self::new(StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, "deadline_exceeded");
    pub(crate) const UNAVAILABLE: Self = Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "unavailable");
    /// A bound of the caller itself: its number of counters, or of failed logins. A retry after a second fails again.
    pub(crate) const EXHAUSTED: Self =
        Self::new(StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, "resource_exhausted");
    pub(crate) const OVERLOADED: Self = Self { is_overload: true, ..Self::EXHAUSTED };
    /// The body did not arrive in time.
    pub(crate) const SLOW_BODY: Self =
        Self::new(StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, "deadline_exceeded");
    pub(crate) const TOO_LARGE: Self = Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::OutOfRange, "payload_too_large");
    pub(crate) const UNSUPPORTED: Self =
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "unsupported_media_type");

    pub(crate) const UNAUTHENTICATED: Self =
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, "unauthenticated");
    /// Only REST checks the host.
    pub(crate) const WRONG_HOST: Self =
        Self::new(StatusCode::MISDIRECTED_REQUEST, Code::InvalidArgument, "misdirected_request");

    /// The code of a failed authentication.
    pub(crate) const fn of_auth(error: &AuthError) -> Self {
        match error {
            AuthError::Missing(_) | AuthError::Unknown(_) | AuthError::UnknownCertificate | AuthError::NoAdmins => {
                Self::UNAUTHENTICATED
            }
            AuthError::TooManyFailures { .. } => Self::EXHAUSTED,
            AuthError::WrongHost => Self::WRONG_HOST,
        }
    }

    /// The code of a call that was not decided.
    pub(crate) const fn of(error: &CallError) -> Self {
        match error {
            CallError::Invalid(_) | CallError::UnknownResource(_) => Self::INVALID,
            CallError::UnknownDomain { .. } | CallError::NoReservation => Self::NOT_FOUND,
            CallError::Forbidden { .. } => Self::FORBIDDEN,
            CallError::Ended { .. } => Self::ENDED,
            CallError::TimedOut | CallError::Expired => Self::TIMED_OUT,
            CallError::Store(error) => Self::of_store(error),
            CallError::RenderedStore(failure) => Self::of_store(&failure.error),
        }
    }

    /// The code of a failure of the store.
    const fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::Overloaded(_) => Self::OVERLOADED,
            StoreError::CounterCapReached(_) => Self::EXHAUSTED,
            StoreError::Unreachable(_) | StoreError::Indeterminate(_) | StoreError::Refused(_) => Self::UNAVAILABLE,
        }
    }
}
