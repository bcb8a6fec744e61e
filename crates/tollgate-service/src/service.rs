//! The decision service: from a call, however it came, to its answer.

mod abuse;
mod answer;
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

use std::{sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use tollgate_core::{claim::Mode, store::StoreError, time::Timestamp};
use tollgate_policy::{
    ClaimSet, DecidedBy, Resolved, Usage,
    decision::{Decision, Verdict},
    dialect::{self, Facts, ResponseKind},
    uploads::UploadTooLarge,
};
use tollgate_store::clock::Clock;

pub use self::{
    abuse::{Report, ReportOutcome},
    answer::{Answer, Outcome, Rejection, RejectionCause},
    authenticate::find_domain,
    batch::check_batch,
    call::{Call, CallError, CallerRef, Listing, MAX_ENTRIES, RenderedFailure, check_name},
    counters::Counters,
    list::{LimitsPage, ListError, page_size},
    log::RefusalsError,
    outage::OutagePolicy,
    reserve::{AdmissionRecord, Lifetimes, Reserve, Settle, SettledUnit, Settlement},
};
use self::{
    attributes::Attributes,
    call::check_optional_name,
    deadline::Deadline,
    reserve::{AdmissionPlan, Operation},
};
use crate::{
    blocks::KnownBlocks,
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
    blocks: KnownBlocks,
    outage: OutagePolicy,
    lifetimes: Lifetimes,
    pools: pools::Pools,
}

/// The parts that a [`DecisionService`] is made of.
pub struct ServiceParts {
    /// The domains in force.
    pub domains: Arc<CurrentDomains>,
    /// The counters.
    pub counters: Counters,
    /// Accounts and keys.
    pub accounts: Arc<Accounts>,
    /// The clock that predicts the current calendar period, and tells whether a key has expired.
    pub clock: Arc<dyn Clock>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The log of refusals.
    pub refusals: Arc<Refusals>,
    /// The behaviour during an outage of the store.
    pub outage: OutagePolicy,
    /// How long reservations and request ids are remembered.
    pub lifetimes: Lifetimes,
}

impl DecisionService {
    /// A service of these parts.
    pub fn new(parts: ServiceParts) -> Self {
        let ServiceParts { domains, counters, accounts, clock, metrics, refusals, outage, lifetimes } = parts;
        let (blocks, pools) = (KnownBlocks::default(), pools::Pools::default());
        Self { domains, counters, accounts, clock, metrics, refusals, blocks, outage, lifetimes, pools }
    }

    /// Decides a call. `render` makes the protocol's response of the answer while the policy that decided is still
    /// available.
    pub fn decide<'a, R>(
        &'a self,
        call: Call<'a>,
        mode: Mode,
        render: impl FnOnce(&Answer<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        self.perform(call, Operation::Decide(mode), render)
    }

    /// Reserves for a call.
    pub fn reserve<'a, R>(
        &'a self,
        call: Call<'a>,
        reserve: &'a Reserve<'a>,
        render: impl FnOnce(&Answer<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        self.perform(call, Operation::Reserve(reserve), render)
    }

    /// On the heap from the start: otherwise each layer around it would contain the future and its parts once more.
    fn perform<'a, R>(
        &'a self,
        call: Call<'a>,
        operation: Operation<'a>,
        render: impl FnOnce(&Answer<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        Box::pin(async move {
            let started = Instant::now();
            let answered = self.answer(&call, operation, render).await.map_err(|error| self.rendered(&call, error));
            match &answered {
                Ok(_) => self.metrics.decided_in(started.elapsed()),
                Err(error) => self.metrics.call_failed(error.is_of_the_call()),
            }
            answered
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
        let dialect = match domains.get(call.domain, call.within) {
            Some(domain) => domain.dialects.choose(call.dialect),
            None => dialect::built_in_dialect(call.dialect),
        };
        let Ok(dialect) = dialect else { return error.into() };
        let rendered = dialect.render(&Facts::of_kind(ResponseKind::Unavailable, self.clock.now()));
        CallError::RenderedStore(Box::new(RenderedFailure { error, rendered }))
    }

    /// The steps of a call, as ARCHITECTURE.md walks them.
    async fn answer<R>(
        &self,
        call: &Call<'_>,
        operation: Operation<'_>,
        render: impl FnOnce(&Answer<'_>) -> R,
    ) -> Result<R, CallError> {
        // Before anything else: a call with an outer deadline is polled once, even if it is late.
        if call.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now()) {
            return Err(CallError::Expired);
        }
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(&call.attributes)?;
        check_optional_name("dialect", call.dialect)?;
        let deadline = Deadline::earliest(self.outage.patience, call.deadline);

        let authenticating = self.authenticate(&domains, call.within, call.domain, call.caller, &attributes, now);
        let (domain, identity) = match deadline.wrap(authenticating).await? {
            Ok(caller) => caller,
            Err(rejection) => {
                let dialect = match rejection.domain {
                    Some(domain) => domain.dialects.choose(call.dialect)?,
                    None => dialect::built_in_dialect(call.dialect)?,
                };
                return Ok(render(&Answer { dialect, outcome: Err(rejection) }));
            }
        };
        let dialect = &**domain.dialects.choose(call.dialect)?;

        let (resolved, usage, too_large) = match Self::resolve(domain, &identity, call, operation) {
            Err(CallError::UnknownResource(_)) => {
                if operation.mode() != Mode::Peek {
                    domain.metrics.count(identity.account.tier, None, Some(UNKNOWN_RESOURCE));
                }
                let cause = RejectionCause::UnknownResource(call.resource);
                return Ok(render(&Answer {
                    dialect,
                    outcome: Err(Rejection { domain: Some(domain), cause, at: now }),
                }));
            }
            resolved => resolved?,
        };
        let address_check = Self::address_check(domain, call.caller, &attributes);
        // If the upload is refused nothing is charged, and the answer still contains the caller's current usage.
        let nothing = Usage::none();
        let (asked, mode) = if too_large.is_some() { (&nothing, Mode::Peek) } else { (&usage, operation.mode()) };
        let claims = resolved.claim_set(asked, |name| attributes.get(name), address_check)?;
        let plan = self.admission_plan(operation, call, (domain, &identity), &claims)?;
        let reserves = plan.as_ref().is_some_and(AdmissionPlan::reserves);
        let plan = plan.filter(|_| too_large.is_none());

        let mut record = AdmissionRecord::default();
        let decided = match identity.check() {
            Ok(()) => deadline.wrap(self.ask_store(domain, &claims, plan.as_ref(), mode, &mut record, now)).await,
            Err(stale) => Err(stale.into()),
        };
        let decision = match decided {
            // A node without the store cannot hold slots for a reservation.
            Err(CallError::Store(error)) if !reserves => self.decide_locally(&claims, mode, now, error)?,
            decided => decided?,
        };
        if let Some(guard) = &address_check {
            self.remember_block(guard, &decision, now);
        }

        let charges = operation.mode() != Mode::Peek;
        if charges && !record.replayed {
            Self::count(domain, &identity, &resolved, &usage, &decision, too_large.as_ref());
        }
        // Without the store there is nothing to count failures in.
        let has_store = decision.decided_by == DecidedBy::Store;
        drop(claims);
        let outcome = Outcome { domain, identity: &identity, resolved, usage, decision, too_large, record };
        let answer = Answer { dialect, outcome: Ok(outcome) };
        if charges {
            self.log_refusal(&answer);
            if has_store && let Some(failures) = self.count_refusal(&answer, &attributes) {
                // Whether that comes in time or not, the call is decided.
                let _ = deadline.wrap(failures).await;
            }
        }
        Ok(render(&answer))
    }

    /// The quotas of a call, its usage, and whether its upload is too large.
    fn resolve<'a>(
        domain: &'a Domain,
        identity: &'a Identity,
        call: &'a Call<'_>,
        operation: Operation<'_>,
    ) -> Result<(Resolved<'a>, Usage, Option<UploadTooLarge>), CallError> {
        if call.usage.len() > MAX_ENTRIES {
            return Err(CallError::field("usage", format_args!("has more than {MAX_ENTRIES} units")));
        }
        let usage = domain.policy.usage(call.usage.iter().copied())?;
        let resolved = domain.policy.resolve(&identity.caller(), call.resource)?;
        let too_large = match &call.upload {
            Some(upload) => domain.uploads.check(call.resource, upload)?,
            None => None,
        };
        let usage = operation.usage_of(&resolved, usage, domain)?;
        Ok((resolved, usage, too_large))
    }

    /// Asks the store, and asks once more if its answer shows that the request had stale numbers of pools.
    async fn ask_store<'a>(
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
            let can_ask_again = attempts.next().is_some_and(|attempt| attempt < pools::ATTEMPTS);
            let known = self.pools.known(claims.pool_claims());
            let claims_at = |now| claims.claims(now, &known);
            let applied = match plan {
                None => self.counters.apply(claims.partition(), claims_at, mode, now).await?,
                Some(plan) => Some(Box::pin(self.admit(domain, plan, claims_at, record, now)).await?),
            };
            let Some(applied) = applied else { return Ok(Decision::unlimited(now)) };
            let (decision, outcome) = claims.decide(mode, can_ask_again, applied);
            let unmet = self.pools.learn(claims.pool_claims(), &outcome, decision.decided_at);
            if outcome.ask_again {
                continue;
            }
            if !unmet.is_empty() {
                // The call is decided, even if the report fails.
                let _ = self.counters.force(&unmet).await;
            }
            return Ok(decision);
        }
    }

    fn count(
        domain: &Domain,
        identity: &Identity,
        resolved: &Resolved<'_>,
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
        domain.metrics.count(account.tier, resolved.class(), denied_by);
        let mut last = None;
        for quota in resolved.quotas_left_out(usage) {
            // Quotas of one unit usually stand side by side.
            if last.replace(quota.unit.id) != Some(quota.unit.id) {
                domain.metrics.unit_left_out(quota.unit.id);
            }
        }
        let shadows = decision.shadow_refusals().map(|name| &**name);
        domain.metrics.count_shadows(&account.id, account.tier, resolved.class(), shadows);
    }
}

/// Whether a node may decide without the store that answered so.
fn is_outage(error: &StoreError) -> bool {
    !matches!(error, StoreError::Overloaded(_) | StoreError::CounterCapReached(_))
}
