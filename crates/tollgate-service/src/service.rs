//! The decision service: from a call, however it came, to its decision. It knows no protocol.

mod abuse;
mod attributes;
mod batch;
mod call;
mod facts;
mod failure;
mod identify;
mod list;
mod log;
mod pools;
mod reserve;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use smallvec::SmallVec;
use tollgate_core::{
    claim::{Answer, Applied, Claim, Mode, Partition},
    store::{Store, StoreError},
    time::Timestamp,
};
use tollgate_policy::{
    Block, DecidedBy, Resolved, Usage, Watch,
    decision::{Decision, QuotaStatus, Verdict},
    dialect::{self, Dialect},
    reason::Reason,
    uploads::TooLarge,
};
use tollgate_store::{clock::Clock, failure::Fallback};

use self::{
    abuse::TurnedAway,
    attributes::Attributes,
    call::check_optional_name,
    reserve::{Admission, Ask, By},
};
pub use self::{
    abuse::{Report, Reported},
    batch::check_batch,
    call::{Call, CallError, CallerRef, Listing, MAX_ENTRIES, check_name},
    identify::{Rejected, find_domain},
    list::{ListError, Listed, page_size},
    log::Logged,
    reserve::{Lifetimes, Reserve, Settle, Settlement, Trace},
};
use crate::{
    blocks::KnownBlocks,
    directory::{Accounts, Identity},
    domains::{CurrentDomains, Domain},
    metrics::Metrics,
    refusals::Refusals,
};

/// A node whose clock is behind the store's learns it from the first answer.
const PERIOD_ATTEMPTS: usize = 3;

/// Decides calls against the policies and the counters.
pub struct DecisionService {
    domains: Arc<CurrentDomains>,
    store: Arc<dyn Store>,
    accounts: Arc<Accounts>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    blocks: KnownBlocks,
    without_store: WithoutStore,
    lifetimes: Lifetimes,
    pools: pools::Pools,
}

/// What holds while the store does not answer.
pub struct WithoutStore {
    /// How long a call waits for accounts and counters in all.
    pub patience: Duration,
    /// Decides for quotas that are not to wait for the store.
    pub fallback: Option<Arc<Fallback>>,
}

/// The answer to a call.
#[expect(clippy::large_enum_variant, reason = "nearly every answer is the large one, and none is moved")]
pub enum Outcome<'a> {
    /// It was decided.
    Decided {
        domain: &'a Domain,
        identity: &'a Identity,
        resolved: Resolved<'a>,
        /// What the call would use.
        usage: Usage,
        decision: Decision<'a>,
        /// An upload that may not pass, whatever the quotas say.
        too_large: Option<TooLarge>,
        dialect: &'a Dialect,
        /// What the admission left behind.
        trace: Trace,
    },
    /// The API key is no good.
    BadKey { rejected: &'a Rejected, at: Timestamp, dialect: &'a Dialect },
    /// The client address is blocked, whoever calls from there: too many keys were no good.
    Barred { domain: Option<&'a Domain>, block: Block<'a>, at: Timestamp, dialect: &'a Dialect },
}

impl Outcome<'_> {
    /// Why the call may not pass; `None` if it may.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::BadKey { rejected, .. } => Some(Reason::InvalidKey(rejected.why)),
            Self::Barred { .. } => Some(Reason::Blocked),
            Self::Decided { decision, .. } if decision.block.is_some() => Some(Reason::Blocked),
            Self::Decided { too_large: Some(_), .. } => Some(Reason::UploadTooLarge),
            Self::Decided { decision, .. } => match decision.verdict {
                Verdict::Allowed => None,
                Verdict::Wait(_) => Some(Reason::QuotaExceeded),
                Verdict::Never => Some(Reason::CostAboveLimit),
            },
        }
    }

    /// The quota that speaks for the answer; none where no quota is asked.
    pub fn speaking(&self) -> Option<&QuotaStatus<'_>> {
        match self {
            Self::Decided { decision, too_large: None, .. } => decision.speaking(),
            Self::Decided { .. } | Self::BadKey { .. } | Self::Barred { .. } => None,
        }
    }

    /// The dialect that the call or its domain chose.
    pub fn dialect(&self) -> &Dialect {
        match self {
            Self::BadKey { dialect, .. } | Self::Barred { dialect, .. } | Self::Decided { dialect, .. } => dialect,
        }
    }
}

impl DecisionService {
    #[expect(clippy::too_many_arguments, reason = "what a node is wired from, each once and of its own type")]
    pub fn new(
        domains: Arc<CurrentDomains>,
        store: Arc<dyn Store>,
        accounts: Arc<Accounts>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        refusals: Arc<Refusals>,
        without_store: WithoutStore,
        lifetimes: Lifetimes,
    ) -> Self {
        let (blocks, pools) = (KnownBlocks::default(), pools::Pools::default());
        Self { domains, store, accounts, clock, metrics, refusals, blocks, without_store, lifetimes, pools }
    }

    /// Decides a call; `render` makes of the outcome what the protocol wants, while the policy that
    /// decided is still at hand.
    pub fn decide<'a, R>(
        &'a self,
        call: Call<'a>,
        mode: Mode,
        render: impl FnOnce(&Outcome<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        self.decide_as(call, Ask::Decide(mode), render)
    }

    /// Reserves for a call.
    pub fn reserve<'a, R>(
        &'a self,
        call: Call<'a>,
        reserve: &'a Reserve<'a>,
        render: impl FnOnce(&Outcome<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        self.decide_as(call, Ask::Reserve(reserve), render)
    }

    /// On the heap from the start: each layer around would hold it, and what it is made of, once more.
    fn decide_as<'a, R>(
        &'a self,
        call: Call<'a>,
        ask: Ask<'a>,
        render: impl FnOnce(&Outcome<'_>) -> R + Send + 'a,
    ) -> BoxFuture<'a, Result<R, CallError>> {
        Box::pin(async move {
            let started = Instant::now();
            let decided = self.decide_unmeasured(&call, ask, render).await;
            match &decided {
                Ok(_) => self.metrics.decided_in(started.elapsed()),
                Err(CallError::Invalid(_) | CallError::UnknownDomain { .. } | CallError::Forbidden { .. }) => {
                    self.metrics.bad_request();
                }
                Err(
                    CallError::Late
                    | CallError::Expired
                    | CallError::Store(_)
                    | CallError::NoReservation
                    | CallError::Ended { .. },
                ) => {}
            }
            decided
        })
    }

    async fn decide_unmeasured<R>(
        &self,
        call: &Call<'_>,
        ask: Ask<'_>,
        render: impl FnOnce(&Outcome<'_>) -> R,
    ) -> Result<R, CallError> {
        // Before anything is looked at: what a bound in time holds is tried once, however late it is.
        if call.deadline.is_some_and(|deadline| deadline <= tokio::time::Instant::now()) {
            return Err(CallError::Expired);
        }
        let mode = ask.mode();
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(&call.attributes)?;
        check_optional_name("dialect", call.dialect)?;
        let until = Until::the_earlier(self.without_store.patience, call.deadline);
        let entering = self.enter(&domains, call.within, call.domain, call.caller, &attributes, now);
        let (domain, identity) = match until.bounds(entering).await? {
            Ok(entered) => entered,
            Err(away) => {
                let dialect = match away.domain() {
                    Some(domain) => domain.dialects.choose(call.dialect)?,
                    None => dialect::without_domain(call.dialect)?,
                };
                return Ok(render(&match &away {
                    TurnedAway::BadKey(rejected) => Outcome::BadKey { rejected, at: now, dialect },
                    TurnedAway::Barred { domain, block } => {
                        Outcome::Barred { domain: *domain, block: *block, at: now, dialect }
                    }
                }));
            }
        };
        let dialect = &**domain.dialects.choose(call.dialect)?;
        if call.usage.len() > MAX_ENTRIES {
            return Err(CallError::field("usage", format_args!("has more than {MAX_ENTRIES} units")));
        }
        let usage = domain.policy.usage(call.usage.iter().copied())?;
        let resolved = domain.policy.resolve(&identity.caller(), call.resource)?;
        let too_large = match &call.upload {
            Some(upload) => domain.uploads.check(call.resource, upload)?,
            None => None,
        };
        let gate = Self::gate(domain, call.caller, &attributes);
        let usage = Self::usage_of(ask, &resolved, usage, domain)?;
        let remember = self.to_remember(ask, call, (domain, &identity, &resolved), (&usage, &attributes))?;
        let mut trace = Trace::default();
        let nothing = Usage::none();
        // Of an upload that may not pass nothing is charged, and the answer still says where the caller stands.
        let (judged, judged_mode) = if too_large.is_some() { (&nothing, Mode::Peek) } else { (&usage, mode) };
        let by = match &remember {
            Some(remember) if too_large.is_none() => By::Admission(Admission { remember, domain, trace: &mut trace }),
            _ => By::Mode(judged_mode),
        };
        let asked = match identity.check() {
            Ok(()) => until.bounds(self.judge(&resolved, judged, &attributes, gate, by, now)).await,
            Err(in_doubt) => Err(in_doubt.into()),
        };
        // A node alone can hold nothing for a reservation.
        let holds = remember.as_ref().is_some_and(|remember| remember.hold.is_some());
        let decision = match asked {
            Err(CallError::Store(error))
                if !holds && !matches!(error, StoreError::Overloaded(_) | StoreError::Crowded(_)) =>
            {
                self.decide_alone(&resolved, judged, &attributes, judged_mode, now, error)?
            }
            asked => asked?,
        };
        if mode != Mode::Peek && !trace.replayed {
            let denied_by = match (&decision.block, decision.verdict) {
                (Some(block), _) => Some(&*block.rule.name),
                _ if too_large.is_some() => Some("upload"),
                (None, Verdict::Allowed) => None,
                (None, Verdict::Wait(_) | Verdict::Never) => decision.speaking().map(|quota| &*quota.quota.name),
            };
            domain.metrics.count(identity.account.tier, resolved.class(), denied_by);
            let shadows = decision.shadow_refusals().map(|name| &**name);
            domain.metrics.count_shadows(&identity.account.id, identity.account.tier, resolved.class(), shadows);
        }
        // Without the store there is nothing to count in.
        let counts = mode != Mode::Peek && decision.decided_by == DecidedBy::Store;
        let identity = &identity;
        let outcome = Outcome::Decided { domain, identity, resolved, usage, decision, too_large, dialect, trace };
        if mode != Mode::Peek {
            self.note_refusal(&outcome);
        }
        if let (true, Some(failures)) = (counts, self.count_refusal(&outcome, &attributes)) {
            // Whether that comes in time or not, the call is decided.
            let _ = until.bounds(failures).await;
        }
        Ok(render(&outcome))
    }

    async fn judge<'a>(
        &self,
        resolved: &Resolved<'a>,
        usage: &Usage,
        attributes: &Attributes<'_>,
        gate: Option<Watch<'a>>,
        by: By<'_>,
        now: Timestamp,
    ) -> Result<Decision<'a>, CallError> {
        let value = |name: &str| attributes.get(name);
        let claims_at = |now| {
            let mut claims = resolved.claims(usage, value, now)?;
            claims.extend(gate.map(|gate| gate.guard()));
            Ok(claims)
        };
        let mode = by.mode();
        let draws = resolved.draws(usage, value)?;
        let Some((mut applied, rooms)) = self.apply_drawing(resolved.partition(), &draws, claims_at, by, now).await?
        else {
            return Ok(Decision::unlimited(now));
        };
        let guards = || resolved.guards(value).chain(gate.map(|gate| gate.rule));
        resolved.judge_shadow(usage, guards(), mode, &mut applied);
        let decision = Decision::merge(resolved.quotas(), guards(), &applied).with_rooms(&rooms);
        if let Some(gate) = gate {
            self.remember(&gate, &decision, now);
        }
        Ok(decision)
    }

    /// Asks the store, and once more where its clock is in another calendar period than the node's.
    /// `None` if there is nothing to ask.
    async fn apply(
        &self,
        home: Partition,
        claims_at: impl Fn(Timestamp) -> Result<SmallVec<[Claim; 4]>, CallError>,
        mode: Mode,
        mut now: Timestamp,
    ) -> Result<Option<Applied>, CallError> {
        for _ in 0..PERIOD_ATTEMPTS {
            let claims = claims_at(now)?;
            if claims.is_empty() {
                return Ok(None);
            }
            let started = Instant::now();
            let answer = self.store.apply_at(home, &claims, mode).await;
            self.metrics.store_answered(started.elapsed(), &answer);
            match answer? {
                Answer::Applied(applied) => return Ok(Some(applied)),
                Answer::OutsidePeriod(at) => now = at,
            }
        }
        Err(StoreError::Refused("its clock moves from one calendar period to the next at every call".into()).into())
    }
}

/// One bound for everything that a call waits for.
#[derive(Clone, Copy)]
struct Until {
    at: tokio::time::Instant,
    /// The call's own deadline, if that is what bounds.
    deadline: Option<tokio::time::Instant>,
}

impl Until {
    /// When the store has had so much time, or at the call's deadline if that comes first.
    fn the_earlier(patience: Duration, deadline: Option<tokio::time::Instant>) -> Self {
        let at = tokio::time::Instant::now() + patience;
        match deadline.filter(|deadline| *deadline < at) {
            Some(deadline) => Self { at: deadline, deadline: Some(deadline) },
            None => Self { at, deadline: None },
        }
    }

    fn bounds<T>(self, work: impl Future<Output = Result<T, CallError>>) -> impl Future<Output = Result<T, CallError>> {
        tokio::time::timeout_at(self.at, work).map(move |done| {
            done.unwrap_or_else(|_| match self.deadline {
                Some(_) => Err(CallError::Late),
                None => Err(StoreError::Indeterminate("no answer within the deadline".into()).into()),
            })
        })
    }
}
