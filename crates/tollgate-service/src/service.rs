//! The decision service: decides decoded calls, for every front door.

mod abuse;
mod attributes;
mod authenticate;
mod batch;
mod call;
mod counters;
mod deadline;
mod list;
mod log;
mod outage;
mod pools;
mod reserve;
mod response;

use std::{sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use tollgate_core::{claim::Mode, store::StoreError, time::Timestamp};
use tollgate_policy::{
    ClaimSet, DecisionSource, ResolvedQuotas, Usage,
    decision::{Decision, Verdict},
    dialect::{self, Facts, ResponseKind},
    uploads::UploadTooLarge,
};
use tollgate_store::clock::Clock;

pub use self::{
    abuse::{Report, ReportOutcome},
    authenticate::find_domain,
    batch::check_batch,
    call::{Call, CallError, CallerRef, ListRequest, MAX_ENTRIES, RenderedFailure, check_name},
    counters::Counters,
    list::{LimitsPage, ListError, page_size},
    log::RefusalsError,
    outage::OutagePolicy,
    reserve::{AdmissionRecord, ReserveRequest, RetentionTimes, SettleRequest, SettledUnit, Settlement},
    response::{CallResponse, Outcome, Rejection, RejectionCause},
};
use self::{
    attributes::Attributes,
    call::check_optional_name,
    deadline::Deadline,
    pools::PoolStates,
    reserve::{AdmissionPlan, Operation},
};
use crate::{
    blocks::BlockCache,
    directory::{Accounts, Identity},
    domains::{CurrentDomains, Domain},
    metrics::{Metrics, UNKNOWN_RESOURCE},
    refusals::Refusals,
};

/// Decides calls against the policies and the counters.
pub struct DecisionService {
    domains: Arc<CurrentDomains>,
    counters: Counters,
    accounts: Arc<Accounts>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    blocks: BlockCache,
    outage: OutagePolicy,
    retention: RetentionTimes,
    pools: PoolStates,
}

/// The parts of a [`DecisionService`].
pub struct ServiceParts {
    /// The current domains.
    pub domains: Arc<CurrentDomains>,
    /// The counters.
    pub counters: Counters,
    /// Accounts and keys.
    pub accounts: Arc<Accounts>,
    /// The clock for predicting the current calendar period, and for the expiry of keys.
    pub clock: Arc<dyn Clock>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The log of refusals.
    pub refusals: Arc<Refusals>,
    /// The behaviour during an outage of the store.
    pub outage: OutagePolicy,
    /// The default retention times of reservations and request ids.
    pub retention: RetentionTimes,
}

impl DecisionService {
    /// Creates a service.
    pub fn new(parts: ServiceParts) -> Self {
        let ServiceParts { domains, counters, accounts, clock, metrics, refusals, outage, retention } = parts;
        let (blocks, pools) = (BlockCache::default(), PoolStates::default());
        Self { domains, counters, accounts, clock, metrics, refusals, blocks, outage, retention, pools }
    }

    /// Decides a call. `render` converts the response to the protocol's message while the policy is borrowed.
    pub fn decide<'a, R>(
        &'a self,
        call: Call<'a>,
        mode: Mode,
        render: impl FnOnce(&CallResponse<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        self.process(call, Operation::Decide(mode), render)
    }

    /// Reserves for a call.
    pub fn reserve<'a, R>(
        &'a self,
        call: Call<'a>,
        reserve: &'a ReserveRequest<'a>,
        render: impl FnOnce(&CallResponse<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        self.process(call, Operation::Reserve(reserve), render)
    }

    /// Boxed here, so that the outer futures do not embed this large future.
    fn process<'a, R>(
        &'a self,
        call: Call<'a>,
        operation: Operation<'a>,
        render: impl FnOnce(&CallResponse<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        Box::pin(async move {
            let started = Instant::now();
            let result = self.process_unmeasured(&call, operation, render).await;
            let result = result.map_err(|error| self.rendered(&call, error));
            match &result {
                Ok(_) => self.metrics.record_latency(started.elapsed()),
                Err(error) => self.metrics.record_call_error(error.is_caller_error()),
            }
            result
        })
    }

    /// Renders a failure of the store if the call is rendered.
    fn rendered(&self, call: &Call<'_>, error: CallError) -> CallError {
        let error = match error {
            // The account has caused it itself.
            CallError::Store(error) if call.render && !matches!(error, StoreError::CounterCapReached(_)) => error,
            error => return error,
        };
        let domains = self.domains.load();
        let dialect = match domains.get(call.domain, call.scope) {
            Some(domain) => domain.dialects.choose(call.dialect),
            None => dialect::built_in_dialect(call.dialect),
        };
        let Ok(dialect) = dialect else { return error.into() };
        let rendered = dialect.render(&Facts::of_kind(ResponseKind::Unavailable, self.clock.now()));
        CallError::RenderedStore(Box::new(RenderedFailure { error, rendered }))
    }

    /// The steps of a call, which ARCHITECTURE.md describes.
    async fn process_unmeasured<R>(
        &self,
        call: &Call<'_>,
        operation: Operation<'_>,
        render: impl FnOnce(&CallResponse<'_>) -> R,
    ) -> Result<R, CallError> {
        // An outer timeout polls a call once, even if its deadline has passed.
        if call.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now()) {
            return Err(CallError::Expired);
        }
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(&call.attributes)?;
        check_optional_name("dialect", call.dialect)?;
        let deadline = Deadline::earliest(self.outage.store_timeout, call.deadline);

        let authentication = self.authenticate(&domains, call.scope, call.domain, call.caller, &attributes, now);
        let (domain, identity) = match deadline.wrap(authentication).await? {
            Ok(caller) => caller,
            Err(rejection) => {
                let dialect = match rejection.domain {
                    Some(domain) => domain.dialects.choose(call.dialect)?,
                    None => dialect::built_in_dialect(call.dialect)?,
                };
                return Ok(render(&CallResponse { dialect, outcome: Err(rejection) }));
            }
        };
        let dialect = &**domain.dialects.choose(call.dialect)?;

        let (resolved_quotas, usage, too_large) = match Self::resolve(domain, &identity, call, operation) {
            Err(CallError::UnknownResource(_)) => {
                if operation.mode() != Mode::Peek {
                    domain.metrics.count_decision(identity.account.tier, None, Some(UNKNOWN_RESOURCE));
                }
                let cause = RejectionCause::UnknownResource(call.resource);
                let rejection = Rejection { domain: Some(domain), cause, time: now };
                return Ok(render(&CallResponse { dialect, outcome: Err(rejection) }));
            }
            resolved => resolved?,
        };
        let address_counter = Self::address_counter(domain, call.caller, &attributes);
        // For a call whose upload is too large, the counters are read and nothing is charged.
        let no_usage = Usage::none();
        let (checked_usage, mode) =
            if too_large.is_some() { (&no_usage, Mode::Peek) } else { (&usage, operation.mode()) };
        let claims = resolved_quotas.claim_set(checked_usage, |name| attributes.get(name), address_counter)?;
        let plan = self.admission_plan(operation, call, (domain, &identity), &claims)?;
        let reserves = plan.as_ref().is_some_and(AdmissionPlan::reserves);
        let plan = plan.filter(|_| too_large.is_none());

        let mut record = AdmissionRecord::default();
        let result = match identity.check() {
            Ok(()) => deadline.wrap(self.decide_by_store(domain, &claims, plan.as_ref(), mode, &mut record, now)).await,
            Err(error) => Err(error.into()),
        };
        let decision = match result {
            // A node without the store cannot hold slots for a reservation.
            Err(CallError::Store(error)) if !reserves => self.decide_locally(&claims, mode, now, error)?,
            result => result?,
        };
        if let Some(counter) = &address_counter {
            self.cache_block(counter, &decision, now);
        }

        let charges = operation.mode() != Mode::Peek;
        if charges && !record.replayed {
            Self::count_decision(domain, &identity, &resolved_quotas, &usage, &decision, too_large.as_ref());
        }
        let store_is_available = decision.decided_by == DecisionSource::Store;
        drop(claims);
        let outcome = Outcome { domain, identity: &identity, resolved_quotas, usage, decision, too_large, record };
        let response = CallResponse { dialect, outcome: Ok(outcome) };
        if charges {
            self.log_refusal(&response);
            if store_is_available && let Some(failures) = self.count_refusal(&response, &attributes) {
                // The call is decided, even if the failure cannot be counted.
                let _ = deadline.wrap(failures).await;
            }
        }
        Ok(render(&response))
    }

    /// The quotas of a call, its usage, and whether its upload is too large.
    fn resolve<'a>(
        domain: &'a Domain,
        identity: &'a Identity,
        call: &'a Call<'_>,
        operation: Operation<'_>,
    ) -> Result<(ResolvedQuotas<'a>, Usage, Option<UploadTooLarge>), CallError> {
        if call.usage.len() > MAX_ENTRIES {
            return Err(CallError::field("usage", format_args!("has more than {MAX_ENTRIES} units")));
        }
        let usage = domain.policy.usage(call.usage.iter().copied())?;
        let resolved_quotas = domain.policy.resolve(&identity.caller(), call.resource)?;
        let too_large = match &call.upload {
            Some(upload) => domain.uploads.check(call.resource, upload)?,
            None => None,
        };
        let usage = operation.complete_usage(&resolved_quotas, usage, domain)?;
        Ok((resolved_quotas, usage, too_large))
    }

    /// Lets the store decide; repeats this once if the reply shows that the request contained outdated states of pools.
    async fn decide_by_store<'a>(
        &self,
        domain: &Domain,
        claims: &ClaimSet<'_, 'a>,
        plan: Option<&AdmissionPlan>,
        mode: Mode,
        record: &mut AdmissionRecord,
        now: Timestamp,
    ) -> Result<Decision<'a>, CallError> {
        let mut attempts = 1..=pools::ATTEMPTS;
        loop {
            let can_retry = attempts.next().is_some_and(|attempt| attempt < pools::ATTEMPTS);
            let pool_states = self.pools.last_states(claims.pool_claims());
            let claims_at = |now| claims.claims(now, &pool_states);
            let reply = match plan {
                None => self.counters.apply(claims.partition(), claims_at, mode, now).await?,
                Some(plan) => Some(Box::pin(self.admit(domain, plan, claims_at, record, now)).await?),
            };
            let Some(reply) = reply else { return Ok(Decision::unlimited(now)) };
            let (decision, outcome) = claims.decide(mode, can_retry, reply);
            let demand_claims = self.pools.update(claims.pool_claims(), &outcome, decision.decided_at);
            if outcome.retry {
                continue;
            }
            if !demand_claims.is_empty() {
                // The call is decided, even if its unmet demand cannot be charged.
                let _ = self.counters.charge_unconditionally(&demand_claims).await;
            }
            return Ok(decision);
        }
    }

    fn count_decision(
        domain: &Domain,
        identity: &Identity,
        resolved_quotas: &ResolvedQuotas<'_>,
        usage: &Usage,
        decision: &Decision<'_>,
        too_large: Option<&UploadTooLarge>,
    ) {
        let denied_by = match (&decision.block, decision.verdict) {
            (Some(block), _) => Some(&*block.rule.name),
            _ if too_large.is_some() => Some("upload"),
            (None, Verdict::Allowed) => None,
            (None, Verdict::RetryAt(_) | Verdict::Never) => decision.binding_quota().map(|status| &*status.quota.name),
        };
        let account = &identity.account;
        domain.metrics.count_decision(account.tier, resolved_quotas.class(), denied_by);
        for unit in resolved_quotas.units_left_out(usage) {
            domain.metrics.count_unit_left_out(unit);
        }
        let shadows = decision.shadow_refusals().map(|name| &**name);
        domain.metrics.count_shadow_refusals(&account.id, account.tier, resolved_quotas.class(), shadows);
    }
}

/// Whether a node may decide without the store after this error.
fn is_outage(error: &StoreError) -> bool {
    !matches!(error, StoreError::Overloaded(_) | StoreError::CounterCapReached(_))
}
