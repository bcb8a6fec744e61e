//! Mistakes in a policy, and their places.

use std::fmt;

use tollgate_core::{
    amount::AmountTooLarge,
    reservation::MAX_SLOTS,
    window::{BadWindowLength, UnknownTimeZone},
};

use crate::policy::{
    MAX_ABUSE_RULES, MAX_OVERRIDES, MAX_RULE_QUOTAS, QuotaLevel, pattern::InvalidPattern, pool::MAX_POOLS,
};

/// One mistake in a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct CompileError {
    /// Where in the file.
    pub place: Place,
    /// The mistake, and how to correct it.
    pub problem: Problem,
}

/// A mistake in a file, as text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Mistake {
    /// Where in the file.
    pub place: Place,
    /// The mistake, and how to correct it.
    pub message: String,
}

impl Mistake {
    pub(crate) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into() }
    }
}

impl From<CompileError> for Mistake {
    fn from(error: CompileError) -> Self {
        Self::new(error.place, error.problem.to_string())
    }
}

/// How alike two names are by the measure of Jaro and Winkler, from 0 to 1, if one may be meant for the other.
const ALIKE: f64 = 0.85;

/// The known name that may be meant by `name`.
pub(crate) fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |known: &str| strsim::jaro_winkler(name, known);
    let closest = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    closest.filter(|known| likeness(known) >= ALIKE)
}

/// The mistake, and how to correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A name that nothing in the policy has.
    #[error("there is no {what} {name:?}; {}there is: {known}", .closest.as_ref().map(|name| format!("did you mean {name:?}? ")).unwrap_or_default())]
    Unknown {
        /// The kind of the missing thing.
        what: &'static str,
        /// The name.
        name: String,
        /// The name that would be right and is most like it, if one is alike.
        closest: Option<String>,
        /// The first names that would be right.
        known: String,
    },
    /// Two units of one id.
    #[error("{0:?} is counted in the same column as {1:?}; rename one of the two units")]
    UnitClash(String, String),
    /// A window of an impossible length.
    #[error(transparent)]
    Window(#[from] BadWindowLength),
    /// A required unit that every call has.
    #[error("has no effect, as {0} is part of every call; remove it")]
    RequiredUnit(String),
    /// An advised wait for a quota with a window.
    #[error("is only for concurrent_requests; the wait for a window is computed")]
    AdvisedWait,
    /// A block of an impossible length.
    #[error("a block lasts from 1 millisecond to 31 days")]
    BlockLength,
    /// A time zone that does not exist.
    #[error(transparent)]
    TimeZone(#[from] UnknownTimeZone),
    /// A limit that is too large to count.
    #[error("{0}; write `unlimited` for no limit")]
    Limit(#[from] AmountTooLarge),
    /// A quota without a window.
    #[error("is required: the length of the window; only concurrent_requests has none")]
    NoWindow,
    /// A window for concurrent requests.
    #[error("concurrent_requests has no window; leave it out")]
    ConcurrentWindow,
    /// More concurrent requests than can be held, or no limit.
    #[error("concurrent_requests needs a limit of at most {MAX_SLOTS}; leave the quota out for no limit")]
    TooManySlots,
    /// A unit that is there already.
    #[error("{0:?} is always there; leave it out")]
    BuiltInUnit(String),
    /// An estimate without inputs, or with too many.
    #[error("needs from 1 to {0} inputs")]
    Inputs(usize),
    /// An estimate that names an input twice.
    #[error("{0:?} is named twice; once is enough")]
    RepeatedInput(String),
    /// A default above the maximum of its input.
    #[error("is above `at_most`")]
    DefaultAboveMost,
    /// A priority that does not exist.
    #[error("must be from 1 (low) to 4 (critical)")]
    Priority,
    /// An invalid name or wildcard.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// A rule of a tier, or an override, that can never apply.
    #[error("{0:?} matches none of `resources`; name one of them, or a wildcard that covers one")]
    CoversNothing(String),
    /// A scope without attributes.
    #[error("needs at least one attribute, such as account, api_key or resource")]
    EmptyScope,
    /// A scope that names an attribute twice.
    #[error("names {0:?} twice; once is enough")]
    RepeatedAttribute(String),
    /// A scope of the key's level where one of the account's is required, or the other way round.
    #[error("{}", if *.key { "must contain api_key; quotas without it are the account's" } else { "must not contain api_key; quotas with it are the key's" })]
    OtherLevel {
        /// Whether the scope must be of the key's level.
        key: bool,
    },
    /// Two quotas that are one counter.
    #[error("has the same unit, window and scope as number {0} of this list (counted from 0); keep one of the two")]
    SameCounter(usize),
    /// No rule applies to the resource.
    #[error("no rule gives it quotas in tier {0:?}; write `quotas: []` where it is not limited")]
    NoRule(String),
    /// A quota of `also` on a counter that has another quota already.
    #[error(
        "{0} has the same unit, window and scope as a quota of {1}, and both apply to some call; keep one of the two"
    )]
    AddedTwice(String, Place),
    /// A list of quotas that nothing has.
    #[error("no resource has these quotas; give a resource the class, or remove them")]
    Unused,
    /// A list of quotas that never wins.
    #[error(
        "no call ever reaches {}: {}{} {} instead; write what is to apply in addition as `also`",
        match .of_level { None => "these quotas", Some(QuotaLevel::Account) => "the account's quotas here", Some(QuotaLevel::Key) => "the key's quotas here" },
        listed(.winners), if *.more > 0 { format!(" and {} more", .more) } else { String::new() },
        if .winners.len() + .more > 1 { "apply" } else { "applies" }
    )]
    NeverWins {
        /// Of which quotas, if not of all.
        of_level: Option<QuotaLevel>,
        /// The rules that win instead.
        winners: Vec<Place>,
        /// How many more win instead.
        more: usize,
    },
    /// Quotas of one pool that differ.
    #[error(
        "describes the same pool as {0}, with another limit or other shares: each call is decided by those of its own tier"
    )]
    DifferentPool(Place),
    /// More quotas than a call may have.
    #[error("has {0} quotas in tier {1:?}; at most {MAX_RULE_QUOTAS} can apply to one call")]
    TooManyQuotas(usize, String),
    /// More overrides than fit.
    #[error("there can be at most {MAX_OVERRIDES} overrides")]
    TooManyOverrides,
    /// Overrides that could add too many quotas.
    #[error("at most {0} different counters (unit, window and scope) can be overridden")]
    TooManyOverriddenCounters(usize),
    /// An empty range of statuses.
    #[error("{0}-{1} contains no status; write the smaller one first")]
    EmptyRange(u16, u16),
    /// An unknown placeholder.
    #[error(
        "{{{0}}} is not a placeholder; there is: {{limit}}, {{window_seconds}}, {{block_seconds}}, {{wait_seconds}}"
    )]
    Placeholder(String),
    /// A rule with the name of the rule about failed authentications.
    #[error("is the name of the rule about failed authentications; choose another")]
    ReservedRule,
    /// More abuse rules than a call may be guarded by.
    #[error("there can be at most {MAX_ABUSE_RULES} rules")]
    TooManyAbuseRules,
    /// A pool that no two accounts share.
    #[error(
        "has the scope [{0}], which is one account's own; a pool needs a scope without account and api_key, such as [resource]"
    )]
    PrivatePool(String),
    /// A pool of slots.
    #[error("slots cannot be shared by priority; give the pool a unit that is counted over a window")]
    PoolOfSlots,
    /// Shares with an invalid sum.
    #[error("the shares add up to {0} percent; the sum must be from 1 to 100")]
    Shares(u32),
    /// More pools than one call may draw from.
    #[error("has {0} pools in tier {1:?}; one call can draw from {MAX_POOLS} at most")]
    TooManyPools(usize, String),
    /// A scope whose counters do not fit in the store.
    #[error(
        "scope [{scope}] has too many counters: the weight of its sliding windows is {weight}, at most {most} is allowed (4 \
         for each window; for each unit in it 2 for requests, 2 for each counter of an abuse rule, 4 for any other; over \
         all tiers); use fewer windows or units, or another scope"
    )]
    LedgerTooLarge {
        /// The scope.
        scope: String,
        /// The weight.
        weight: usize,
        /// The largest weight.
        most: usize,
    },
}

fn listed(places: &[Place]) -> String {
    places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ")
}

/// A place in a policy: the keys and indexes on the path to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(Vec<Step>);

/// One step of a place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// A key of a map.
    Key(String),
    /// An index of a list, counted from 0.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl Place {
    /// The whole policy.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// The place one step further inside.
    #[must_use]
    pub fn at(&self, step: impl Into<Step>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }

    /// The place that `inner` is within this one.
    #[must_use]
    pub fn join(&self, inner: &Self) -> Self {
        Self(self.0.iter().chain(&inner.0).cloned().collect())
    }

    /// The steps from the root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The place one step back; `None` at the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, before) = self.0.split_last()?;
        Some(Self(before.to_vec()))
    }
}

impl FromIterator<Step> for Place {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        Self(steps.into_iter().collect())
    }
}

impl fmt::Display for Place {
    /// `tiers.paid.quotas[0].limit`; keys with other characters than letters, digits, `_` and `-`
    /// are quoted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    let dot = if at == 0 { "" } else { "." };
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if !key.is_empty() && key.chars().all(plain) {
                        write!(f, "{dot}{key}")?;
                    } else {
                        write!(f, "{dot}{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
