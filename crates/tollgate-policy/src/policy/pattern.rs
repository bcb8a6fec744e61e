//! Names of resources, and wildcards over them.

use tollgate_core::text::has_hidden;

/// Maximum length of the name of a resource, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A name, or a wildcard: a prefix and a trailing `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

/// The text is neither a name nor a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// A `*` that is not at the end.
    #[error("a `*` is allowed only at the end, as in `prompt/*`")]
    StarInside,
    /// Empty, too long, or with hidden characters.
    #[error("must have 1 to {MAX_NAME_BYTES} bytes and no control or invisible characters")]
    InvalidName,
}

/// Whether `text` can be the name of a resource: it is short enough, and safe to print.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && !has_hidden(text)
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if !is_name(text) {
            return Err(InvalidPattern::InvalidName);
        }
        let (stem, is_prefix) = text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        match (stem.contains('*'), is_prefix) {
            (true, _) => Err(InvalidPattern::StarInside),
            (false, true) => Ok(Self::Prefix(stem.into())),
            (false, false) => Ok(Self::Exact(stem.into())),
        }
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => &**exact == name,
            Self::Prefix(prefix) => name.starts_with(&**prefix),
        }
    }

    /// Whether it matches every name that `other` matches.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Exact(_), Self::Prefix(_)) => false,
            (Self::Prefix(prefix), Self::Exact(text) | Self::Prefix(text)) => text.starts_with(&**prefix),
        }
    }

    /// The order of patterns: a longer wildcard is more specific than a shorter one, and a name is more specific than any
    /// wildcard.
    pub(super) fn specificity(&self) -> usize {
        match self {
            Self::Prefix(prefix) => prefix.len(),
            Self::Exact(_) => usize::MAX,
        }
    }
}
