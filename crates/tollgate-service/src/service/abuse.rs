//! Abuse rules: they count failures (reported calls, refusals by quotas, invalid keys), and block callers with too many
//! of them.

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
    service::{CallError, CallResponse, CallerRef, DecisionService, Outcome, Rejection, attributes::Attributes},
};

/// A report of a call's result, decoded but not yet checked.
pub struct Report<'a> {
    /// The domains in which the calling service may act.
    pub scope: &'a DomainScope,
    /// The domain; if empty, the only one in scope.
    pub domain: &'a str,
    /// The caller.
    pub caller: CallerRef<'a>,
    /// The called resource.
    pub resource: &'a str,
    /// Values of attributes in scopes, other than account, key and resource.
    pub attributes: SmallVec<[(&'a str, &'a str); 2]>,
    /// The HTTP status of the response to the call.
    pub status: u32,
}

/// The result of a report.
pub struct ReportOutcome<'a> {
    /// The number of rules that counted it as a failure.
    pub counted: usize,
    /// The active block.
    pub block: Option<Block<'a>>,
    /// The time by the store's clock.
    pub time: Timestamp,
}

impl DecisionService {
    /// Processes a report.
    pub async fn report<R>(
        &self,
        report: Report<'_>,
        render: impl FnOnce(Result<&ReportOutcome<'_>, &Rejection<'_>>) -> R,
    ) -> Result<R, CallError> {
        let result = self.report_unmeasured(report, render).await;
        if let Err(error) = &result {
            self.metrics.record_call_error(error.is_caller_error());
        }
        result
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
        let authentication =
            self.authenticate(&domains, report.scope, report.domain, report.caller, &attributes, now).await?;
        let (domain, identity) = match authentication {
            Ok(caller) => caller,
            Err(rejection) => return Ok(render(Err(&rejection))),
        };
        identity.check()?;
        let caller = identity.caller();
        let resolved_quotas = domain.policy.resolve(&caller, report.resource)?;
        let counters = resolved_quotas.abuse_counters(|name| attributes.get(name));
        let (counting, others): (AbuseCounters<'_>, AbuseCounters<'_>) =
            counters.partition(|counter| counter.rule.statuses.contains(status));
        let (mut counted, mut time) = (0, now);
        let mut blocks: SmallVec<[Block<'_>; 2]> = SmallVec::new();
        for counter in counting {
            let failure = match self.count_failure(domain, counter, now).await {
                // The other rules still apply to an account that has no room for another counter.
                Err(CallError::Store(StoreError::CounterCapReached(_))) => continue,
                failure => failure?,
            };
            counted += usize::from(failure.counted);
            blocks.extend(failure.block.filter(|block| !block.rule.shadow));
            time = failure.time;
        }
        let block_checks = |_| others.iter().map(AbuseCounter::block_check).collect();
        if let Some(reply) = self.counters.apply(caller.partition, block_checks, Mode::Peek, now).await? {
            blocks.extend(others.iter().zip(&reply.statuses).filter_map(|(counter, status)| counter.block_of(status)));
            time = reply.decided_at;
        }
        let block = blocks.into_iter().max_by_key(|block| block.until);
        domain.metrics.count_report(counted > 0);
        Ok(render(Ok(&ReportOutcome { counted, block, time })))
    }

    /// Counts a refusal by this node as a failure of the caller, if a rule says so. An error does not change the
    /// refusal.
    pub(super) fn count_refusal<'a>(
        &'a self,
        response: &'a CallResponse<'_>,
        attributes: &'a Attributes<'_>,
    ) -> Option<BoxFuture<'a, Result<(), CallError>>> {
        let Ok(Outcome { domain, resolved_quotas, decision, .. }) = &response.outcome else { return None };
        let status = match response.reason() {
            // A refusal because of a block is not a failure: blocks would never end.
            None | Some(Reason::Blocked) => return None,
            Some(_) => response.status(),
        };
        Some(Box::pin(async move {
            for counter in resolved_quotas.abuse_counters(|name| attributes.get(name)) {
                if counter.rule.counts_refusals && counter.rule.statuses.contains(status) {
                    // An error of one rule does not affect the others.
                    let _ = self.count_failure(domain, counter, decision.decided_at).await;
                }
            }
            Ok(())
        }))
    }

    /// The counter of the client address, if the call has the secret of a key.
    pub(super) fn address_counter<'d>(
        domain: &'d Domain,
        caller: CallerRef<'_>,
        attributes: &Attributes<'_>,
    ) -> Option<AbuseCounter<'d>> {
        let ip = attributes.ip().filter(|_| matches!(caller, CallerRef::Secret(_)))?;
        counter_of_address(domain.policy.authentication_rule()?, domain.policy.domain(), ip)
    }

    /// Reads the block of the client address, for requests that read no other counters in the same step.
    pub(super) async fn address_block<'d>(
        &self,
        domain: &'d Domain,
        caller: CallerRef<'_>,
        attributes: &Attributes<'_>,
        now: Timestamp,
    ) -> Result<Option<Block<'d>>, CallError> {
        let Some(counter) = Self::address_counter(domain, caller, attributes) else { return Ok(None) };
        let claims = |_| Claims::from_iter([counter.block_check()]);
        let reply = self.counters.apply(counter.ledger.partition, claims, Mode::Peek, now).await?;
        Ok(reply.and_then(|reply| counter.block_of(reply.statuses.first()?)))
    }

    /// Caches the block of a client address, if it refused a call.
    pub(super) fn cache_block(&self, counter: &AbuseCounter<'_>, decision: &Decision<'_>, now: Timestamp) {
        if let Some(block) = decision.block.filter(|block| std::ptr::eq(block.rule, counter.rule)) {
            self.blocks.insert(counter.ledger, now, block.until.ms_since(decision.decided_at));
        }
    }

    /// The cached block of an address.
    pub(super) fn cached_block<'d>(
        &self,
        (rule, name): (&'d AbuseRule, &str),
        ip: &str,
        now: Timestamp,
    ) -> Option<Block<'d>> {
        let ledger = || Some(counter_of_address(rule, name, ip)?.ledger);
        self.blocks.block_end(ledger, now).map(|until| Block { rule, until })
    }

    /// Counts an invalid key as a failure of the client address; returns the block that was already active. Errors of
    /// the store are ignored, because the caller is rejected in any case.
    pub(super) async fn count_failed_authentication<'d>(
        &self,
        (rule, name): (&'d AbuseRule, &str),
        domain: Option<&Domain>,
        ip: &str,
        now: Timestamp,
    ) -> Option<Block<'d>> {
        let counter = counter_of_address(rule, name, ip)?;
        let failure = self.count_in_store(counter, now).await.ok()?;
        if let Some(block) = failure.block {
            self.blocks.insert(counter.ledger, now, block.until.ms_since(failure.time));
        }
        if failure.block_is_new {
            match domain {
                Some(domain) => domain.metrics.count_block(&rule.name),
                None => self.metrics.count_address_block(),
            }
        }
        failure.block.filter(|_| !failure.counted)
    }

    /// The rule for invalid keys, and the name under which it counts: the domain, or the scope if the domain is not
    /// known. Then the strictest rule of the domains in scope is used.
    pub(super) fn authentication_rule<'d>(
        domains: &'d Domains,
        scope: &'d DomainScope,
        domain: Option<&'d Domain>,
    ) -> Option<(&'d AbuseRule, &'d str)> {
        if let Some(domain) = domain {
            return domain.policy.authentication_rule().map(|rule| (rule, &**domain.policy.domain()));
        }
        let rules = domains.in_scope(scope).filter_map(|domain| domain.policy.authentication_rule());
        // Does not depend on the order of the domains.
        let strictness = |rule: &&AbuseRule| (rule.limit, rule.window, std::cmp::Reverse(rule.block));
        rules.min_by_key(strictness).map(|rule| (rule, scope.counter_name()))
    }

    async fn count_failure<'a>(
        &self,
        domain: &Domain,
        counter: AbuseCounter<'a>,
        now: Timestamp,
    ) -> Result<FailureCount<'a>, CallError> {
        let failure = self.count_in_store(counter, now).await?;
        if failure.block_is_new && !counter.rule.shadow {
            domain.metrics.count_block(&counter.rule.name);
        }
        Ok(failure)
    }

    /// Counts one failure, unless a block is active: calls that were in progress when the block began must neither
    /// extend it nor cause another one. A failure above the limit charges the block, which is possible only once while
    /// it is active.
    async fn count_in_store<'a>(
        &self,
        counter: AbuseCounter<'a>,
        now: Timestamp,
    ) -> Result<FailureCount<'a>, CallError> {
        let home = counter.ledger.partition;
        let reply = self.counters.apply(home, |_| Claims::from_iter(counter.failure()), Mode::Try, now).await?;
        let Some(ClaimsDecision { decided_at: time, statuses, .. }) = reply else {
            return Ok(FailureCount::not_counted(now));
        };
        let [failures, block_check] = &statuses[..] else { return Ok(FailureCount::not_counted(time)) };
        if let Some(block) = counter.block_of(block_check) {
            return Ok(FailureCount { block: Some(block), ..FailureCount::not_counted(time) });
        }
        if failures.used <= counter.rule.limit {
            return Ok(FailureCount { counted: true, ..FailureCount::not_counted(time) });
        }
        let reply = self.counters.apply(home, |_| Claims::from_iter([counter.block()]), Mode::Try, time).await?;
        let Some(ClaimsDecision { decided_at: time, allowed: block_is_new, statuses }) = reply else {
            return Ok(FailureCount { counted: true, ..FailureCount::not_counted(time) });
        };
        let block = statuses.first().and_then(|status| match counter.block_of(status) {
            None => Some(Block { rule: counter.rule, until: status.resets_at }),
            active => active,
        });
        Ok(FailureCount { counted: true, block_is_new, block, time })
    }
}

type AbuseCounters<'a> = SmallVec<[AbuseCounter<'a>; 2]>;

/// The result of counting a failure.
struct FailureCount<'a> {
    counted: bool,
    /// The active block.
    block: Option<Block<'a>>,
    /// Whether this failure caused the block.
    block_is_new: bool,
    time: Timestamp,
}

impl FailureCount<'_> {
    fn not_counted(time: Timestamp) -> Self {
        Self { counted: false, block: None, block_is_new: false, time }
    }
}

/// The counter of an address; `ip` is its [`client_network_name`](crate::blocks::client_network_name).
fn counter_of_address<'a>(rule: &'a AbuseRule, domain: &str, ip: &str) -> Option<AbuseCounter<'a>> {
    // It belongs to no account.
    let partition = Partition::of([domain, AUTHENTICATION]);
    rule.counter(domain, partition, |attribute| (attribute.name() == "ip").then_some(ip))
}
