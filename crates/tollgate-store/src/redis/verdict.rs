//! The severity of a finding about a server.

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, and may hurt later.
    Warning,
    /// A node cannot work with it, or limits will not hold.
    Error,
}
