//! Abuse rules: callers that fail too often are blocked for a while.
//!
//! A rule has two counters in one ledger: failures over a trailing window, and blocks. A block is one entry in a window
//! as long as the block, so that it ends by itself. The limit of that window is one, so that nothing extends a block.
//! Every call has a [claim on the blocks](AbuseCounter::block_check), checked in the same step as its quotas.

use std::{fmt::Write, ops::RangeInclusive, sync::Arc};

use smallvec::SmallVec;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{Claim, ClaimStatus, Effect, Fit, LedgerKey, Partition},
    time::Timestamp,
    window::{SlidingWindow, WindowInstance},
};

use crate::{
    format::{self, Length, Message, Word, count::Count},
    policy::{Attribute, Place, Problem, QuotaLevel, Scope, builder::Builder},
};

/// The most rules a policy may have.
pub const MAX_ABUSE_RULES: usize = 8;

/// The name of the rule about failed authentications.
pub const AUTHENTICATION: &str = "authentication";

/// More than `limit` failures within `window` cause a block as long as `block`.
#[derive(Clone, Debug)]
pub struct AbuseRule {
    /// Its name, which names its counters too.
    pub name: Arc<str>,
    /// Which answers are failures.
    pub statuses: Statuses,
    /// Whether a call that a quota refuses is a failure, if its status is one of `statuses`.
    pub counts_refusals: bool,
    /// Maximum number of failures without a block.
    pub limit: Amount,
    /// The window in which failures are counted.
    pub window: SlidingWindow,
    /// How long a block lasts.
    pub block: SlidingWindow,
    /// The attributes whose failures are counted together, and which are blocked together.
    pub scope: Arc<Scope>,
    /// Whether it is a shadow: it reports the calls that it would refuse, and refuses none.
    pub shadow: bool,
    message: MessageTemplate,
    failures: UnitId,
    blocks: UnitId,
}

/// An active block.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The rule that caused it.
    pub rule: &'a AbuseRule,
    /// The first moment at which calls are allowed again.
    pub until: Timestamp,
}

impl Block<'_> {
    /// The message to the blocked caller at `now`.
    pub fn message(&self, now: Timestamp) -> String {
        self.rule.message(self.until.ms_since(now))
    }
}

/// A rule, and the ledger where it counts one caller's failures.
#[derive(Clone, Copy, Debug)]
pub struct AbuseCounter<'a> {
    /// The rule.
    pub rule: &'a AbuseRule,
    /// The ledger.
    pub ledger: LedgerKey,
}

/// A set of HTTP statuses from 100 to 599.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(SmallVec<[RangeInclusive<u16>; 2]>);

impl AbuseRule {
    /// The message to a blocked caller. `wait_ms` is the time until the block ends. Seconds are rounded up.
    pub fn message(&self, wait_ms: u64) -> String {
        let mut text = String::new();
        for part in &self.message.0 {
            let number = match part {
                MessagePart::Text(fixed) => {
                    text.push_str(fixed);
                    continue;
                }
                MessagePart::Limit => self.limit.get(),
                MessagePart::WindowSeconds => u64::from(self.window.ms()).div_ceil(1000),
                MessagePart::BlockSeconds => u64::from(self.block.ms()).div_ceil(1000),
                MessagePart::WaitSeconds => wait_ms.div_ceil(1000),
            };
            let _ = write!(text, "{number}");
        }
        text
    }

    /// The counters of the rule in `domain` for the caller with these values, in the account's partition `account` if
    /// the scope names the account. `None` if the call has no value for an attribute of the scope: then the failure
    /// cannot be counted.
    pub fn counter<'v>(
        &self,
        domain: &str,
        account: Partition,
        value: impl Fn(&Attribute) -> Option<&'v str>,
    ) -> Option<AbuseCounter<'_>> {
        let ledger = self.scope.ledger(domain, account, false, |attribute| value(attribute).ok_or(())).ok()?;
        Some(AbuseCounter { rule: self, ledger })
    }

    /// The windows and units of its counters, to compute the size of ledgers.
    pub(super) fn counters(&self) -> [(SlidingWindow, UnitId); 2] {
        [(self.window, self.failures), (self.block, self.blocks)]
    }
}

impl<'a> AbuseCounter<'a> {
    /// The claim that refuses while a block is active. It is never charged.
    pub fn block_check(&self) -> Claim {
        let block = self.block();
        let limit = if self.rule.shadow { Limit::Unlimited } else { block.limit };
        Claim { effect: Effect::CheckOnly, limit, ..block }
    }

    /// The claims of one failure: the failure, and a check that no block is active, for a shadow rule too. The failure
    /// is charged only if the check passes.
    pub fn failure(&self) -> [Claim; 2] {
        let failure = Claim {
            ledger: self.ledger,
            span: WindowInstance::Sliding(self.rule.window),
            unit: self.rule.failures,
            cost: Amount::from(1),
            limit: Limit::Unlimited,
            effect: Effect::Charge,
        };
        [failure, Claim { effect: Effect::CheckOnly, ..self.block() }]
    }

    /// The claim that starts a block. It is charged only if no block is active.
    pub fn block(&self) -> Claim {
        Claim {
            ledger: self.ledger,
            span: WindowInstance::Sliding(self.rule.block),
            unit: self.rule.blocks,
            cost: Amount::from(1),
            limit: Limit::Finite(Amount::from(1)),
            effect: Effect::Charge,
        }
    }

    /// The active block, from the status of [`AbuseCounter::block_check`].
    pub fn block_of(&self, guard: &ClaimStatus) -> Option<Block<'a>> {
        block_of(self.rule, guard)
    }
}

/// The active block of `rule`, from the status of [`AbuseCounter::block_check`].
pub(crate) fn block_of<'a>(rule: &'a AbuseRule, guard: &ClaimStatus) -> Option<Block<'a>> {
    match guard.fit {
        Fit::At(until) => Some(Block { rule, until }),
        Fit::Now | Fit::Never => None,
    }
}

impl Statuses {
    /// Whether `status` is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// A message with placeholders for the numbers of its rule.
#[derive(Clone, Debug)]
struct MessageTemplate(Vec<MessagePart>);

#[derive(Clone, Debug)]
enum MessagePart {
    Text(String),
    Limit,
    WindowSeconds,
    BlockSeconds,
    WaitSeconds,
}

impl MessageTemplate {
    fn parse(mut text: &str) -> Result<Self, Problem> {
        let mut parts = Vec::new();
        while let Some((before, rest)) = text.split_once('{') {
            let (name, after) = rest.split_once('}').unwrap_or((rest, ""));
            let part = match name {
                "limit" => MessagePart::Limit,
                "window_seconds" => MessagePart::WindowSeconds,
                "block_seconds" => MessagePart::BlockSeconds,
                "wait_seconds" => MessagePart::WaitSeconds,
                other => return Err(Problem::Placeholder(other.to_owned())),
            };
            parts.extend([MessagePart::Text(before.to_owned()), part]);
            text = after;
        }
        parts.push(MessagePart::Text(text.to_owned()));
        Ok(Self(parts))
    }
}

const DEFAULT_MESSAGE: &str = "Too many failed attempts (> {limit}) resulting in a non-success status code. \
                       Please wait {block_seconds}s and try again.";
const DEFAULT_AUTHENTICATION_MESSAGE: &str =
    "Too many failed attempts (> {limit}) to authenticate. Please wait {block_seconds}s and try again.";

/// The fields that both kinds of rules have.
struct RuleFields<'a> {
    /// The statuses that are failures. If empty, all from 400 on.
    statuses: SmallVec<[RangeInclusive<u16>; 2]>,
    counts_refusals: bool,
    limit: Count,
    per: &'a Length,
    block: &'a Length,
    scope: Option<&'a [Word]>,
    message: Option<&'a Message>,
    default_message: &'a str,
}

impl Builder {
    /// The rules, and the rule about failed authentications.
    pub(super) fn abuse(
        &mut self,
        section: &format::abuse::Abuse,
        place: &Place,
    ) -> (Vec<AbuseRule>, Option<AbuseRule>) {
        let of_rules = place.at("rules");
        if section.rules.len() > MAX_ABUSE_RULES {
            self.error(of_rules.clone(), Problem::TooManyAbuseRules);
        }
        let mut rules = Vec::with_capacity(section.rules.len());
        for (name, rule) in &section.rules {
            let place = of_rules.at(&**name);
            if name == AUTHENTICATION {
                self.error(place.clone(), Problem::ReservedRule);
            }
            let fields = RuleFields {
                statuses: rule.statuses.iter().map(format::abuse::Status::range).collect(),
                counts_refusals: rule.count_refusals,
                limit: rule.limit,
                per: &rule.per,
                block: &rule.block,
                scope: rule.scope.as_ref().map(|scope| &*scope.0),
                message: rule.message.as_ref(),
                default_message: DEFAULT_MESSAGE,
            };
            rules.extend(self.abuse_rule(name, fields, &place).map(|rule| (rule, place)));
        }
        let place = place.at(AUTHENTICATION);
        let authentication = section.authentication.as_ref().and_then(|rule| {
            let fields = RuleFields {
                statuses: SmallVec::new(),
                counts_refusals: false,
                limit: rule.limit,
                per: &rule.per,
                block: &rule.block,
                scope: Some(&[Word("ip".to_owned())]),
                message: rule.message.as_ref(),
                default_message: DEFAULT_AUTHENTICATION_MESSAGE,
            };
            self.abuse_rule(AUTHENTICATION, fields, &place)
        });
        self.check_unit_clashes(
            rules.iter().map(|(rule, place)| (rule, place)).chain(authentication.iter().zip([&place])),
        );
        (rules.into_iter().map(|(rule, _)| rule).collect(), authentication)
    }

    fn abuse_rule(&mut self, name: &str, fields: RuleFields<'_>, place: &Place) -> Option<AbuseRule> {
        let scope = self.scope(fields.scope, QuotaLevel::Account, place);
        let mut statuses = fields.statuses;
        for (at, range) in statuses.iter().enumerate().filter(|(_, range)| range.is_empty()) {
            self.error(place.at("statuses").at(at), Problem::EmptyRange(*range.start(), *range.end()));
        }
        if statuses.is_empty() {
            statuses.push(400..=599);
        }
        let limit = self.checked(Amount::try_from(fields.limit.0), place.at("limit"));
        let window = self.checked(SlidingWindow::from_ms(fields.per.ms()), place.at("per"));
        let block = SlidingWindow::from_ms(fields.block.ms()).map_err(|_| Problem::BlockLength);
        let block = self.checked(block, place.at("block"));
        let message = fields.message.map_or(fields.default_message, |message| &message.0);
        let message = self.checked(MessageTemplate::parse(message), place.at("message"));
        // No unit of a policy has a dot in its name.
        let unit = |of: &str| UnitId::of(&format!("{of}.{name}"));
        Some(AbuseRule {
            name: name.into(),
            statuses: Statuses(statuses),
            counts_refusals: fields.counts_refusals,
            limit: limit?,
            window: window?,
            block: block?,
            scope: scope?,
            shadow: self.shadow && name != AUTHENTICATION,
            message: message?,
            failures: unit("failures"),
            blocks: unit("blocks"),
        })
    }

    /// Reports rules whose counters would share a column with another counter of the policy.
    fn check_unit_clashes<'a>(&mut self, rules: impl Iterator<Item = (&'a AbuseRule, &'a Place)>) {
        let mut taken: Vec<(UnitId, Arc<str>)> = self.units.iter().map(|unit| (unit.id, unit.name.clone())).collect();
        for (rule, place) in rules {
            for unit in [rule.failures, rule.blocks] {
                if let Some((_, other)) = taken.iter().find(|(known, _)| *known == unit) {
                    let problem = Problem::UnitClash(rule.name.to_string(), other.to_string());
                    self.error(place.clone(), problem);
                }
                taken.push((unit, rule.name.clone()));
            }
        }
    }
}
