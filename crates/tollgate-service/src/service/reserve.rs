//! Reservations: the request, and the data that a reservation keeps about its call.

mod end;
mod token;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use tollgate_core::{
    admission::claims_fingerprint,
    amount::UnitId,
    claim::{ApplyResult, Charge, Claim, Claims, ClaimsDecision, Fit, Mode, Partition, ReservationId},
    reservation::{Admission, AdmitOptions, IdempotencyKey, MAX_NOTE_BYTES, MAX_RESERVATION_TTL_MS, NewReservation},
    store::StoreError,
    time::Timestamp,
    window::Window,
};
use tollgate_policy::{CONCURRENT_REQUESTS, ClaimSet, Quota, ResolvedQuotas, Usage};

pub use self::end::{SettleRequest, SettledUnit, Settlement};
use self::token::Token;
use crate::{
    directory::Identity,
    domains::Domain,
    service::{
        Call, CallError, DecisionService, MAX_ENTRIES,
        call::check_name,
        counters::{PeriodReply, retry_in_period},
    },
};

/// The minimum lifetime of a reservation.
const MIN_TTL_MS: u32 = 1_000;

/// The default retention times of records.
#[derive(Clone, Copy, Debug)]
pub struct RetentionTimes {
    /// Of reservations.
    pub reservation_ms: u32,
    /// Of calls with a request id.
    pub request_id_ms: u32,
}

/// The parameters of a reservation besides its call, decoded but not yet checked.
pub struct ReserveRequest<'a> {
    /// The inputs of estimates.
    pub inputs: Vec<(&'a str, u64)>,
    /// The lifetime of the reservation; the node's default if 0.
    pub ttl_ms: u32,
}

/// The operation that a call requests.
#[derive(Clone, Copy)]
pub(super) enum Operation<'a> {
    /// A decision.
    Decide(Mode),
    /// A reservation.
    Reserve(&'a ReserveRequest<'a>),
}

/// The records of an admission.
#[derive(Debug, Default)]
pub struct AdmissionRecord {
    /// The reservation: its id, and when it expires.
    pub reservation: Option<(String, Timestamp)>,
    /// Whether the call had already been admitted, so that nothing was charged.
    pub replayed: bool,
}

/// The records that an admission must write.
pub(super) struct AdmissionPlan {
    home: Partition,
    /// The id, lifetime and metadata of the reservation; without it only the request id is recorded.
    reservation: Option<(ReservationId, u32, Vec<u8>)>,
    request: Option<IdempotencyKey>,
}

impl AdmissionPlan {
    /// Whether it creates a reservation.
    pub(super) fn reserves(&self) -> bool {
        self.reservation.is_some()
    }

    fn options(&self) -> AdmitOptions<'_> {
        let reservation = self.reservation.as_ref();
        let hold = reservation.map(|(id, ttl_ms, metadata)| NewReservation { id: *id, ttl_ms: *ttl_ms, metadata });
        AdmitOptions { home: self.home, hold, request: self.request }
    }
}

/// The data of its call that a reservation keeps, so that any node can end it under any policy.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CallMetadata {
    /// The reserved amounts, by unit.
    #[serde(rename = "u")]
    reserved: Vec<(String, u64)>,
    /// The counters of priorities' shares of pools: unit, ledger and column.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    shares: Vec<(String, u64, u32)>,
    /// The calendar windows: id, unit and time zone.
    #[serde(rename = "c", default, skip_serializing_if = "Vec::is_empty")]
    calendars: Vec<(u32, String, String)>,
    /// The lifetime of the reservation.
    #[serde(rename = "l")]
    ttl_ms: u32,
    /// The account, key, resource and attributes of the call, for the abuse rules.
    #[serde(rename = "a")]
    account: String,
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(rename = "r")]
    resource: String,
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<(String, String)>,
}

impl CallMetadata {
    /// Whether a charge counts a unit, in the unit's own counter or in that of a share of a pool.
    fn counts_unit(&self, charge: &Charge, unit: &str) -> bool {
        let ledger = u64::from_le_bytes(charge.ledger.scope_bytes());
        let is_share = |(share_unit, share_ledger, column): &(String, u64, u32)| {
            share_unit == unit && (*share_ledger, UnitId::from_number(*column)) == (ledger, charge.unit)
        };
        charge.unit == UnitId::of(unit) || self.shares.iter().any(is_share)
    }
}

impl Operation<'_> {
    /// The mode of the request to the counters.
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Decide(mode) => mode,
            Self::Reserve(_) => Mode::Try,
        }
    }

    /// Completes the usage of a call for this operation, and checks that it has all required units.
    pub(super) fn complete_usage(
        self,
        resolved_quotas: &ResolvedQuotas<'_>,
        usage: Usage,
        domain: &Domain,
    ) -> Result<Usage, CallError> {
        let usage = self.add_estimates(resolved_quotas, usage, domain)?;
        let required =
            (self.mode() != Mode::Peek).then(|| resolved_quotas.quotas_left_out(&usage).find(|quota| quota.required));
        match required.flatten() {
            Some(Quota { name, unit, .. }) => {
                let problem = format_args!("is required by the quota {name}; write 0 if the call uses none");
                Err(CallError::field(format_args!("usage.{}", unit.name), problem))
            }
            None => Ok(usage),
        }
    }

    /// Adds the estimates of a reservation, and a slot if a quota of concurrent requests applies.
    fn add_estimates(
        self,
        resolved_quotas: &ResolvedQuotas<'_>,
        usage: Usage,
        domain: &Domain,
    ) -> Result<Usage, CallError> {
        let concurrent =
            resolved_quotas.quotas().iter().find(|active| matches!(active.quota.window, Window::Concurrent));
        match (self, concurrent) {
            (Self::Decide(Mode::Try), Some(active)) if !active.quota.shadow => {
                let name = &active.quota.name;
                let problem = format_args!("has the quota {name} of concurrent requests; use Reserve");
                Err(CallError::field("resource", problem))
            }
            (Self::Decide(Mode::Peek), Some(_)) => Ok(usage.with_slot()),
            (Self::Decide(_), _) => Ok(usage),
            (Self::Reserve(reserve), _) => {
                let inputs = reserve.check_inputs(domain)?;
                let usage = resolved_quotas.estimated(usage, |name| inputs.get(name).copied());
                Ok(if concurrent.is_some() { usage.with_slot() } else { usage })
            }
        }
    }
}

impl ReserveRequest<'_> {
    /// Checks the inputs of estimates.
    fn check_inputs(&self, domain: &Domain) -> Result<HashMap<&str, u64>, CallError> {
        if self.inputs.len() > MAX_ENTRIES {
            return Err(CallError::field("inputs", format_args!("has more than {MAX_ENTRIES} entries")));
        }
        let mut inputs: HashMap<&str, u64> = HashMap::with_capacity(self.inputs.len());
        for (name, amount) in &self.inputs {
            check_name("inputs", name)?;
            if domain.policy.inputs().binary_search_by(|input| (**input).cmp(name)).is_err() {
                let available = domain.policy.inputs().join(", ");
                let problem = format_args!("no estimate uses it; the inputs are: {available}");
                return Err(CallError::field(format_args!("inputs.{name}"), problem));
            }
            if inputs.insert(name, *amount).is_some() {
                return Err(CallError::field(format_args!("inputs.{name}"), "named twice"));
            }
        }
        Ok(inputs)
    }
}

impl DecisionService {
    /// The records that the admission of a call must write; `None` if there are none.
    pub(super) fn admission_plan(
        &self,
        operation: Operation<'_>,
        call: &Call<'_>,
        (domain, identity): (&Domain, &Identity),
        claims: &ClaimSet<'_, '_>,
    ) -> Result<Option<AdmissionPlan>, CallError> {
        let request = if call.request_id.is_empty() {
            None
        } else {
            check_name("request_id", call.request_id)?;
            Some(IdempotencyKey {
                id: truncate_hash(Sha256::digest(call.request_id)),
                digest: call_digest(operation, call, domain, identity),
                ttl_ms: self.retention.request_id_ms,
            })
        };
        let reservation = match operation {
            Operation::Decide(Mode::Try) if request.is_some() => None,
            Operation::Decide(_) => return Ok(None),
            Operation::Reserve(reserve) => {
                let ttl_ms = check_ttl(reserve.ttl_ms, self.retention.reservation_ms)?;
                Some((Token::generate(), ttl_ms, reservation_metadata((domain, identity), call, claims, ttl_ms)?))
            }
        };
        Ok(Some(AdmissionPlan { home: identity.caller().partition, reservation, request }))
    }

    /// Admits a call in the store, with the records of `plan`.
    pub(super) async fn admit(
        &self,
        domain: &Domain,
        plan: &AdmissionPlan,
        claims_at: impl Fn(Timestamp) -> Claims,
        record: &mut AdmissionRecord,
        now: Timestamp,
    ) -> Result<ClaimsDecision, CallError> {
        let options = &plan.options();
        let token = |id| Token::new(domain.policy.domain(), plan.home, id).to_text();
        let (claims, admission) = retry_in_period(now, |now| {
            let claims = claims_at(now);
            async move {
                match self.counters.measure(self.counters.store().admit(&claims, options)).await? {
                    Admission::OutsidePeriod(time) => Ok(PeriodReply::NotCurrent(time)),
                    admission => Ok(PeriodReply::Current((claims, admission))),
                }
            }
        })
        .await?;
        match admission {
            Admission::Decided(reply) => {
                if let (true, Some((id, ttl_ms, _))) = (reply.allowed, &plan.reservation) {
                    domain.metrics.reservations.count_reserved();
                    record.reservation = Some((token(*id), reply.decided_at.plus_ms(u64::from(*ttl_ms))));
                }
                Ok(reply)
            }
            Admission::Replayed(replay) => {
                record.replayed = true;
                record.reservation = replay.held.map(|(id, ends_at)| (token(id), ends_at));
                if replay.shape == claims_fingerprint(&claims) {
                    return Ok(replay.applied);
                }
                // The quotas of the call have changed. It stays admitted, with the current statuses.
                self.replayed_decision(&claims, replay.applied).await
            }
            Admission::IdempotencyConflict | Admission::OutsidePeriod(_) => {
                Err(CallError::field("request_id", "belongs to another call; choose a new one"))
            }
        }
    }

    /// The decision of an earlier admission, with the current statuses of `claims`.
    async fn replayed_decision(&self, claims: &[Claim], earlier: ClaimsDecision) -> Result<ClaimsDecision, CallError> {
        let ApplyResult::Applied(mut current) = self.counters.store().apply(claims, Mode::Peek).await? else {
            return Ok(ClaimsDecision { statuses: SmallVec::new(), ..earlier });
        };
        current.allowed = true;
        current.statuses.iter_mut().for_each(|status| status.fit = Fit::Now);
        Ok(ClaimsDecision { decided_at: earlier.decided_at, ..current })
    }
}

fn check_ttl(ttl_ms: u32, default: u32) -> Result<u32, CallError> {
    match ttl_ms {
        0 => Ok(default),
        MIN_TTL_MS..=MAX_RESERVATION_TTL_MS => Ok(ttl_ms),
        _ => {
            Err(CallError::field("ttl_ms", format_args!("must be from {MIN_TTL_MS} to {MAX_RESERVATION_TTL_MS}, or 0")))
        }
    }
}

fn reservation_metadata(
    (domain, identity): (&Domain, &Identity),
    call: &Call<'_>,
    claims: &ClaimSet<'_, '_>,
    ttl_ms: u32,
) -> Result<Vec<u8>, CallError> {
    let units = domain.policy.units().iter().filter(|unit| *unit.name != *CONCURRENT_REQUESTS);
    let reserved =
        units.map(|unit| (unit.name.to_string(), claims.usage().of(unit.id).get())).filter(|(_, amount)| *amount > 0);
    let calendars = claims.quotas().iter().filter_map(|active| match &active.quota.window {
        Window::Calendar(window) => Some((window.id(), window.unit().name().to_owned(), window.zone().to_owned())),
        Window::Sliding(_) | Window::Concurrent => None,
    });
    let shares = claims.pool_claims().iter().filter_map(|claim| {
        let (ledger, column) = claim.own_counter();
        let unit = &claims.quotas().get(claim.quota)?.quota.unit.name;
        Some((unit.to_string(), u64::from_le_bytes(ledger.scope_bytes()), column.get()))
    });
    let mut metadata = CallMetadata {
        reserved: reserved.collect(),
        shares: shares.collect(),
        calendars: calendars.collect(),
        ttl_ms,
        account: identity.account.id.to_string(),
        key: identity.key.as_ref().map(|key| key.id.to_string()),
        resource: call.resource.to_owned(),
        attributes: call.attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    metadata.calendars.sort_unstable();
    metadata.calendars.dedup();
    let bytes = serde_json::to_vec(&metadata).map_err(|error| StoreError::Refused(format!("a metadata: {error}")))?;
    if bytes.len() > MAX_NOTE_BYTES {
        return Err(StoreError::Refused("the reservation's metadata is too long".into()).into());
    }
    Ok(bytes)
}

/// A digest that is equal for repetitions of the same call.
fn call_digest(operation: Operation<'_>, call: &Call<'_>, domain: &Domain, identity: &Identity) -> [u8; 16] {
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    add(match operation {
        Operation::Decide(_) => "consume",
        Operation::Reserve(_) => "reserve",
    });
    add(domain.policy.domain());
    add(&identity.account.id);
    add(identity.key.as_ref().map_or("", |key| &key.id));
    add(call.resource);
    let mut numbers = |kind: &str, numbers: &[(&str, u64)]| {
        let mut sorted: SmallVec<[&(&str, u64); 4]> = numbers.iter().collect();
        sorted.sort_unstable();
        add(kind);
        for (name, amount) in sorted {
            add(name);
            add(&amount.to_string());
        }
    };
    numbers("usage", &call.usage);
    if let Operation::Reserve(reserve) = operation {
        numbers("inputs", &reserve.inputs);
    }
    add("attributes");
    let mut attributes: SmallVec<[&(&str, &str); 4]> = call.attributes.iter().collect();
    attributes.sort_unstable();
    for (name, value) in attributes {
        add(name);
        add(value);
    }
    truncate_hash(hasher.finalize())
}

/// The first 16 bytes of a hash.
fn truncate_hash(hash: impl AsRef<[u8]>) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    bytes
}
