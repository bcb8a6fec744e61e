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

/// The longest domain, account, key id or attribute name, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// The most units in a usage, and the most attributes.
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
    /// Where the calling service may act.
    pub within: &'a DomainScope,
    /// The policy's domain; the only one in scope if empty.
    pub domain: &'a str,
    /// The caller.
    pub caller: CallerRef<'a>,
    /// The called resource.
    pub resource: &'a str,
    /// The usage of the call, by unit.
    pub usage: SmallVec<[(&'a str, u64); 4]>,
    /// Values of attributes in scopes, other than account, key and resource.
    pub attributes: SmallVec<[(&'a str, &'a str); 2]>,
    /// The dialect of the answer; the domain's if empty.
    pub dialect: &'a str,
    /// The upload of the call.
    pub upload: Option<Upload<'a>>,
    /// Names the call, so that it is charged once however often it comes; none if empty.
    pub request_id: &'a str,
    /// By when it is to be decided, if that is known.
    pub deadline: Option<Instant>,
    /// Whether a failure of the store is rendered in the dialect too.
    pub render: bool,
}

/// A request for a caller's limits.
pub struct Listing<'a> {
    /// Where the calling service may act.
    pub within: &'a DomainScope,
    /// The policy's domain; the only one in scope if empty.
    pub domain: &'a str,
    /// Whose limits.
    pub caller: CallerRef<'a>,
    /// Values of attributes in scopes, other than account, key and resource.
    pub attributes: SmallVec<[(&'a str, &'a str); 2]>,
    /// The token of the page, as an answer carried it; empty for the first page.
    pub page_token: &'a str,
    /// How many to list.
    pub take: usize,
}

/// Why a call was not decided.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The call is wrong. The text begins with the name of the field.
    #[error("{0}")]
    Invalid(String),
    /// There is no such domain.
    #[error("domain: there is no domain {named:?}; there is: {known}")]
    UnknownDomain {
        /// The name that was given.
        named: String,
        /// The names in scope.
        known: String,
    },
    /// The calling service may not act in this domain, if there is one.
    #[error("domain: the caller may not act in {named:?}")]
    Forbidden {
        /// The name that was given.
        named: String,
    },
    /// There is no such reservation, or it has ended.
    #[error("reservation_id: there is no such reservation, or it has expired; what it charged stays charged")]
    NoReservation,
    /// The reservation was ended otherwise.
    #[error("reservation_id: the reservation was already {how} at {at}")]
    Ended {
        /// `settled` or `cancelled`.
        how: &'static str,
        /// When.
        at: tollgate_core::time::Timestamp,
    },
    /// It was not decided in time.
    #[error("the call took too long; whether it was charged is not known")]
    Late,
    /// Its deadline was over before the work on it began.
    #[error("the deadline has passed; nothing was charged")]
    Expired,
    /// The store did not decide. Its message is only for the log; [`CallError::message`] gives the id under which it is
    /// logged.
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
    /// Whether the call itself is wrong.
    pub fn is_of_the_call(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::UnknownDomain { .. } | Self::Forbidden { .. } | Self::UnknownResource(_) => true,
            Self::NoReservation
            | Self::Ended { .. }
            | Self::Late
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

    /// The answer for the platform's customers, if the call is rendered and the store did not decide it.
    pub fn rendered(&self) -> Option<&Rendered> {
        match self {
            Self::RenderedStore(failure) => Some(&failure.rendered),
            _ => None,
        }
    }

    /// That a field is wrong.
    pub fn field(name: impl std::fmt::Display, wrong: impl std::fmt::Display) -> Self {
        Self::Invalid(format!("{name}: {wrong}"))
    }
}

pub(super) fn check_optional_name(field: &str, name: &str) -> Result<(), CallError> {
    if name.is_empty() { Ok(()) } else { check_name(field, name) }
}

/// Whether a name is one: not empty, not too long, without control or invisible characters.
pub fn check_name(field: &str, name: &str) -> Result<(), CallError> {
    check_text(field, name, MAX_NAME_BYTES)
}

/// `field` is only put together for an error.
pub(super) fn check_text(field: impl std::fmt::Display, text: &str, most: usize) -> Result<(), CallError> {
    if text.is_empty() || text.len() > most || has_hidden(text) {
        return Err(CallError::field(
            field,
            format_args!("must have 1 to {most} bytes and no control or invisible characters"),
        ));
    }
    Ok(())
}
