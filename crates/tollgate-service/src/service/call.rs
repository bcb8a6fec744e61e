//! Requests to the service, their bounds, and the errors of a call.

use smallvec::SmallVec;
use tokio::time::Instant;
use tollgate_core::{store::StoreError, text::has_hidden};
use tollgate_policy::{
    MissingAttribute, ResolveError, UsageError,
    dialect::{Rendered, UnknownDialect},
    uploads::{InvalidUpload, Upload},
};

use crate::{incidents, scope::DomainScope};

/// The maximum length of the name of a domain, account, key or attribute, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// The maximum number of units in a usage, and of attributes.
pub const MAX_ENTRIES: usize = 16;

/// The caller, as the call names it.
#[derive(Clone, Copy)]
pub enum CallerRef<'a> {
    /// By the secret of a key.
    Secret(&'a str),
    /// By the id of a key.
    KeyId(&'a str),
    /// By the name of an account.
    Account(&'a str),
}

/// A call, decoded but not yet checked.
pub struct Call<'a> {
    /// The domains in which the calling service may act.
    pub scope: &'a DomainScope,
    /// The domain; if empty, the only one in scope.
    pub domain: &'a str,
    /// The caller.
    pub caller: CallerRef<'a>,
    /// The called resource.
    pub resource: &'a str,
    /// The usage of the call, by unit.
    pub usage: SmallVec<[(&'a str, u64); 4]>,
    /// Values of attributes in scopes, other than account, key and resource.
    pub attributes: SmallVec<[(&'a str, &'a str); 2]>,
    /// The dialect of the response; if empty, the domain's.
    pub dialect: &'a str,
    /// The upload of the call.
    pub upload: Option<Upload<'a>>,
    /// The id with which repeated calls are charged once; none if empty.
    pub request_id: &'a str,
    /// The deadline of the caller, if it has one.
    pub deadline: Option<Instant>,
    /// Whether a failure of the store is rendered in the dialect too.
    pub render: bool,
}

/// A request for a caller's limits.
pub struct ListRequest<'a> {
    /// The domains in which the calling service may act.
    pub scope: &'a DomainScope,
    /// The domain; if empty, the only one in scope.
    pub domain: &'a str,
    /// The caller whose limits are listed.
    pub caller: CallerRef<'a>,
    /// Values of attributes in scopes, other than account, key and resource.
    pub attributes: SmallVec<[(&'a str, &'a str); 2]>,
    /// The page token of the previous response; empty for the first page.
    pub page_token: &'a str,
    /// The maximum number of resources on the page.
    pub page_size: usize,
}

/// Why a call was not decided.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The call is invalid. The text begins with the name of the field.
    #[error("{0}")]
    Invalid(String),
    /// There is no such domain.
    #[error("domain: there is no domain {name:?}; there is: {available}")]
    UnknownDomain {
        /// The name in the call.
        name: String,
        /// The names in scope.
        available: String,
    },
    /// The domain is not in the scope of the calling service, whether or not it exists.
    #[error("domain: the caller may not act in {name:?}")]
    Forbidden {
        /// The name in the call.
        name: String,
    },
    /// There is no such reservation, or it has ended.
    #[error("reservation_id: there is no such reservation, or it has expired; what it charged stays charged")]
    NoReservation,
    /// The reservation was already ended in another way.
    #[error("reservation_id: the reservation was already {state} at {time}")]
    Ended {
        /// `settled` or `cancelled`.
        state: &'static str,
        /// The time of its end.
        time: tollgate_core::time::Timestamp,
    },
    /// The call was not decided before its deadline.
    #[error("the call took too long; whether it was charged is not known")]
    TimedOut,
    /// The deadline had passed before the call was processed.
    #[error("the deadline has passed; nothing was charged")]
    Expired,
    /// The store did not decide. Its message is only logged; [`CallError::message`] contains the id of the log entry.
    #[error("{}", incidents::reason(.0))]
    Store(#[from] StoreError),
    /// The same, for a call that is rendered.
    #[error("{}", incidents::reason(&.0.error))]
    RenderedStore(Box<RenderedFailure>),
    /// The policy does not have the resource.
    #[error(transparent)]
    UnknownResource(ResolveError),
}

/// A failure of the store, and the answer to it for the platform's customers.
#[derive(Debug)]
pub struct RenderedFailure {
    /// The failure.
    pub error: StoreError,
    /// The answer.
    pub rendered: Rendered,
}

impl From<ResolveError> for CallError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::UnknownResource => Self::UnknownResource(error),
            ResolveError::InvalidResource | ResolveError::UnknownTier => Self::Invalid(error.to_string()),
        }
    }
}

impl From<UsageError> for CallError {
    fn from(error: UsageError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<MissingAttribute> for CallError {
    fn from(error: MissingAttribute) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<UnknownDialect> for CallError {
    fn from(error: UnknownDialect) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<InvalidUpload> for CallError {
    fn from(error: InvalidUpload) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl CallError {
    /// Whether the call itself is invalid.
    pub fn is_caller_error(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::UnknownDomain { .. } | Self::Forbidden { .. } | Self::UnknownResource(_) => true,
            Self::NoReservation
            | Self::Ended { .. }
            | Self::TimedOut
            | Self::Expired
            | Self::Store(_)
            | Self::RenderedStore(_) => false,
        }
    }

    /// The message for the caller.
    pub fn message(&self) -> String {
        match self {
            Self::Store(error) => incidents::describe(error),
            Self::RenderedStore(failure) => incidents::describe(&failure.error),
            error => error.to_string(),
        }
    }

    /// The response for the platform's customers, if the call is rendered and the store did not decide it.
    pub fn rendered(&self) -> Option<&Rendered> {
        match self {
            Self::RenderedStore(failure) => Some(&failure.rendered),
            _ => None,
        }
    }

    /// The error of an invalid field.
    pub fn field(name: impl std::fmt::Display, problem: impl std::fmt::Display) -> Self {
        Self::Invalid(format!("{name}: {problem}"))
    }
}

pub(super) fn check_optional_name(field: &str, name: &str) -> Result<(), CallError> {
    if name.is_empty() { Ok(()) } else { check_name(field, name) }
}

/// Checks a name: not empty, not too long, and without control or invisible characters.
pub fn check_name(field: &str, name: &str) -> Result<(), CallError> {
    check_text(field, name, MAX_NAME_BYTES)
}

/// `field` is formatted only for an error.
pub(super) fn check_text(field: impl std::fmt::Display, text: &str, max_bytes: usize) -> Result<(), CallError> {
    if text.is_empty() || text.len() > max_bytes || has_hidden(text) {
        return Err(CallError::field(
            field,
            format_args!("must have 1 to {max_bytes} bytes and no control or invisible characters"),
        ));
    }
    Ok(())
}
