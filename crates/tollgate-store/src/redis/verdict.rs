//! How good what was found of a server is.

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and may hurt later.
    Doubtful,
    /// A node cannot work with it, or limits will not hold.
    Bad,
}
