//! Failures: reported ones, refusals by quotas, and invalid keys; and the blocks that too many of them cause.

use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tollgate_core::{
    claim::{Claims, ClaimsDecision, Mode, Partition},
    store::StoreError,
    time::Timestamp,
};
use tollgate_policy::{AUTHENTICATION, AbuseCounter, AbuseRule, Block, decision::Decision, reason::Reason};

use crate::{
    domains::{Domain, Domains},
    scope::DomainScope,
    service::{Answer, CallError, CallerRef, DecisionService, Outcome, Rejection, attributes::Attributes},
};

/// How a call was answered, decoded but not yet checked.
pub struct Report<'a> {
    /// Where the calling service may act.
    pub within: &'a DomainScope,
    /// The policy's domain; the only one in scope if empty.
    pub domain: &'a str,
    /// The caller.
    pub caller: CallerRef<'a>,
    /// The called resource.
    pub resource: &'a str,
    /// Values of attributes in scopes, other than account, key and resource.
    pub attributes: SmallVec<[(&'a str, &'a str); 2]>,
    /// The HTTP status that the call was answered with.
    pub status: u32,
}

/// The result of a report.
pub struct ReportOutcome<'a> {
    /// How many rules counted it.
    pub counted: usize,
    /// The block that is on now.
    pub block: Option<Block<'a>>,
    /// When, by the store's clock.
    pub at: Timestamp,
}

impl DecisionService {
    /// Takes a report.
    pub async fn report<R>(
        &self,
        report: Report<'_>,
        render: impl FnOnce(Result<&ReportOutcome<'_>, &Rejection<'_>>) -> R,
    ) -> Result<R, CallError> {
        let reported = self.report_unmeasured(report, render).await;
        if let Err(error) = &reported {
            self.metrics.call_failed(error.is_of_the_call());
        }
        reported
    }

    async fn report_unmeasured<R>(
        &self,
        report: Report<'_>,
        render: impl FnOnce(Result<&ReportOutcome<'_>, &Rejection<'_>>) -> R,
    ) -> Result<R, CallError> {
        let status = u16::try_from(report.status).ok().filter(|status| (100..=599).contains(status));
        let status = status.ok_or_else(|| CallError::field("status", "must be an HTTP status from 100 to 599"))?;
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(&report.attributes)?;
        let authenticated =
            self.authenticate(&domains, report.within, report.domain, report.caller, &attributes, now).await?;
        let (domain, identity) = match authenticated {
            Ok(caller) => caller,
            Err(rejection) => return Ok(render(Err(&rejection))),
        };
        identity.check()?;
        let caller = identity.caller();
        let resolved = domain.policy.resolve(&caller, report.resource)?;
        let watches = resolved.abuse_counters(|name| attributes.get(name));
        let (counting, others): (AbuseCounters<'_>, AbuseCounters<'_>) =
            watches.partition(|watch| watch.rule.statuses.contains(status));
        let (mut counted, mut at) = (0, now);
        let mut blocks: SmallVec<[Block<'_>; 2]> = SmallVec::new();
        for watch in counting {
            let failed = match self.count_failure(domain, watch, now).await {
                // A caller that uses all counters of an account is still subject to its other rules.
                Err(CallError::Store(StoreError::CounterCapReached(_))) => continue,
                failed => failed?,
            };
            counted += usize::from(failed.counted);
            blocks.extend(failed.block.filter(|block| !block.rule.shadow));
            at = failed.at;
        }
        let guards = |_| others.iter().map(AbuseCounter::block_check).collect();
        if let Some(seen) = self.counters.apply(caller.partition, guards, Mode::Peek, now).await? {
            blocks.extend(others.iter().zip(&seen.statuses).filter_map(|(watch, guard)| watch.block_of(guard)));
            at = seen.decided_at;
        }
        let block = blocks.into_iter().max_by_key(|block| block.until);
        domain.metrics.reported(counted > 0);
        Ok(render(Ok(&ReportOutcome { counted, block, at })))
    }

    /// Counts a refusal by this node as a failure of the caller, if a rule says so. The refusal stands whatever the
    /// result is.
    pub(super) fn count_refusal<'a>(
        &'a self,
        answer: &'a Answer<'_>,
        attributes: &'a Attributes<'_>,
    ) -> Option<BoxFuture<'a, Result<(), CallError>>> {
        let Ok(Outcome { domain, resolved, decision, .. }) = &answer.outcome else { return None };
        let status = match answer.reason() {
            // An answer because of a block is no failure: it would feed on itself.
            None | Some(Reason::Blocked) => return None,
            Some(_) => answer.status(),
        };
        Some(Box::pin(async move {
            for watch in resolved.abuse_counters(|name| attributes.get(name)) {
                if watch.rule.counts_refusals && watch.rule.statuses.contains(status) {
                    // Where one rule cannot count, the others do.
                    let _ = self.count_failure(domain, watch, decision.decided_at).await;
                }
            }
            Ok(())
        }))
    }

    /// Guards a call against its address, if it came by a secret.
    pub(super) fn address_check<'d>(
        domain: &'d Domain,
        caller: CallerRef<'_>,
        attributes: &Attributes<'_>,
    ) -> Option<AbuseCounter<'d>> {
        let ip = attributes.ip().filter(|_| matches!(caller, CallerRef::Secret(_)))?;
        watch_address(domain.policy.authentication_rule()?, domain.policy.domain(), ip)
    }

    /// The block of the call's client address, for requests that read no other counter.
    pub(super) async fn address_block<'d>(
        &self,
        domain: &'d Domain,
        caller: CallerRef<'_>,
        attributes: &Attributes<'_>,
        now: Timestamp,
    ) -> Result<Option<Block<'d>>, CallError> {
        let Some(guard) = Self::address_check(domain, caller, attributes) else { return Ok(None) };
        let claims = |_| Claims::from_iter([guard.block_check()]);
        let found = self.counters.apply(guard.ledger.partition, claims, Mode::Peek, now).await?;
        Ok(found.and_then(|found| guard.block_of(found.statuses.first()?)))
    }

    /// Remembers the block of an address that a call ran into.
    pub(super) fn remember_block(&self, guard: &AbuseCounter<'_>, decision: &Decision<'_>, now: Timestamp) {
        if let Some(block) = decision.block.filter(|block| std::ptr::eq(block.rule, guard.rule)) {
            self.blocks.remember(guard.ledger, now, block.until.ms_since(decision.decided_at));
        }
    }

    /// The block of an address that this node remembers.
    pub(super) fn known_block<'d>(
        &self,
        (rule, name): (&'d AbuseRule, &str),
        ip: &str,
        now: Timestamp,
    ) -> Option<Block<'d>> {
        let ledger = || Some(watch_address(rule, name, ip)?.ledger);
        self.blocks.until(ledger, now).map(|until| Block { rule, until })
    }

    /// Counts an invalid key; returns the block that was on already. Where the store does not answer,
    /// the key is invalid all the same.
    pub(super) async fn failed_to_authenticate<'d>(
        &self,
        (rule, name): (&'d AbuseRule, &str),
        domain: Option<&Domain>,
        ip: &str,
        now: Timestamp,
    ) -> Option<Block<'d>> {
        let watch = watch_address(rule, name, ip)?;
        let failed = self.count_in_store(watch, now).await.ok()?;
        if let Some(block) = failed.block {
            self.blocks.remember(watch.ledger, now, block.until.ms_since(failed.at));
        }
        if failed.is_new {
            match domain {
                Some(domain) => domain.metrics.blocked(&rule.name),
                None => self.metrics.address_blocked(),
            }
        }
        failed.block.filter(|_| !failed.counted)
    }

    /// The rule about invalid keys, and the domain in which it counts. If the domain is not known, the strictest rule
    /// of all domains in scope is used, and it counts only for callers with the same scope.
    pub(super) fn authentication_rule_of<'d>(
        domains: &'d Domains,
        within: &'d DomainScope,
        domain: Option<&'d Domain>,
    ) -> Option<(&'d AbuseRule, &'d str)> {
        if let Some(domain) = domain {
            return domain.policy.authentication_rule().map(|rule| (rule, &**domain.policy.domain()));
        }
        let rules = domains.within(within).filter_map(|domain| domain.policy.authentication_rule());
        // Whatever the order of the domains.
        let strictness = |rule: &&AbuseRule| (rule.limit, rule.window, std::cmp::Reverse(rule.block));
        rules.min_by_key(strictness).map(|rule| (rule, within.counted_as()))
    }

    async fn count_failure<'a>(
        &self,
        domain: &Domain,
        watch: AbuseCounter<'a>,
        now: Timestamp,
    ) -> Result<FailureCount<'a>, CallError> {
        let failed = self.count_in_store(watch, now).await?;
        if failed.is_new && !watch.rule.shadow {
            domain.metrics.blocked(&watch.rule.name);
        }
        Ok(failed)
    }

    /// Counts one failure, unless a block is active: calls that were in progress when it began must neither extend it
    /// nor cause the next. One failure above the limit sets the block; no other can set it while it is active.
    async fn count_in_store<'a>(&self, watch: AbuseCounter<'a>, now: Timestamp) -> Result<FailureCount<'a>, CallError> {
        let home = watch.ledger.partition;
        let applied = self.counters.apply(home, |_| Claims::from_iter(watch.failure()), Mode::Try, now).await?;
        let Some(ClaimsDecision { decided_at: at, statuses, .. }) = applied else {
            return Ok(FailureCount::not_counted(now));
        };
        let [failures, guard] = &statuses[..] else { return Ok(FailureCount::not_counted(at)) };
        if let Some(block) = watch.block_of(guard) {
            return Ok(FailureCount { block: Some(block), ..FailureCount::not_counted(at) });
        }
        if failures.used <= watch.rule.limit {
            return Ok(FailureCount { counted: true, ..FailureCount::not_counted(at) });
        }
        let applied = self.counters.apply(home, |_| Claims::from_iter([watch.block()]), Mode::Try, at).await?;
        let Some(ClaimsDecision { decided_at: at, allowed: is_new, statuses }) = applied else {
            return Ok(FailureCount { counted: true, ..FailureCount::not_counted(at) });
        };
        let block = statuses.first().and_then(|status| match watch.block_of(status) {
            None => Some(Block { rule: watch.rule, until: status.resets_at }),
            on => on,
        });
        Ok(FailureCount { counted: true, is_new, block, at })
    }
}

type AbuseCounters<'a> = SmallVec<[AbuseCounter<'a>; 2]>;

/// The result of counting a failure.
struct FailureCount<'a> {
    /// Whether it was counted.
    counted: bool,
    /// The block that is on now.
    block: Option<Block<'a>>,
    /// Whether this failure brought it.
    is_new: bool,
    at: Timestamp,
}

impl FailureCount<'_> {
    fn not_counted(at: Timestamp) -> Self {
        Self { counted: false, block: None, is_new: false, at }
    }
}

/// The failures of an address, as [`counted_address`](crate::blocks::counted_address) names it.
fn watch_address<'a>(rule: &'a AbuseRule, domain: &str, ip: &str) -> Option<AbuseCounter<'a>> {
    // No account has a part in it.
    let nobody = Partition::of([domain, AUTHENTICATION]);
    rule.counter(domain, nobody, |attribute| (attribute.name() == "ip").then_some(ip))
}
