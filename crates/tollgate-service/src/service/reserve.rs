//! Reservations: the parameters of a request, the data that a reservation keeps, and its end.

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
use tollgate_policy::{CONCURRENT_REQUESTS, ClaimSet, Quota, Resolved, Usage};

pub use self::end::{Settle, SettledUnit, Settlement};
use self::token::Token;
use crate::{
    directory::Identity,
    domains::Domain,
    service::{
        Call, CallError, DecisionService, MAX_ENTRIES,
        call::check_name,
        counters::{Period, in_period},
    },
};

/// The shortest lifetime that can be requested for a reservation.
const MIN_TTL_MS: u32 = 1_000;

/// The default lifetimes of records.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// A reservation.
    pub reservation_ms: u32,
    /// A call with a request id.
    pub request_id_ms: u32,
}

/// The parameters of a reservation besides the call, decoded but not yet checked.
pub struct Reserve<'a> {
    /// The inputs of estimates.
    pub inputs: Vec<(&'a str, u64)>,
    /// The life of the reservation; the node's default if 0.
    pub ttl_ms: u32,
}

/// The operation that a call requests.
#[derive(Clone, Copy)]
pub(super) enum Operation<'a> {
    /// It is decided.
    Decide(Mode),
    /// It is reserved.
    Reserve(&'a Reserve<'a>),
}

/// The records of an admission.
#[derive(Debug, Default)]
pub struct AdmissionRecord {
    /// The reservation that was made: its id, and when it expires.
    pub reservation: Option<(String, Timestamp)>,
    /// Whether the call was admitted before, and nothing was charged now.
    pub replayed: bool,
}

/// The records that an admission must write.
pub(super) struct AdmissionPlan {
    home: Partition,
    /// The reservation; without it only the request id is recorded.
    hold: Option<(ReservationId, u32, Vec<u8>)>,
    request: Option<IdempotencyKey>,
}

impl AdmissionPlan {
    /// Whether it makes a reservation.
    pub(super) fn reserves(&self) -> bool {
        self.hold.is_some()
    }

    fn terms(&self) -> AdmitOptions<'_> {
        let hold =
            self.hold.as_ref().map(|(id, ttl_ms, metadata)| NewReservation { id: *id, ttl_ms: *ttl_ms, metadata });
        AdmitOptions { home: self.home, hold, request: self.request }
    }
}

/// The data of its call that a reservation keeps, so that any node can end it under any policy.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CallMetadata {
    /// The reserved amounts, by unit.
    #[serde(rename = "u")]
    reserved: Vec<(String, u64)>,
    /// The counters of priorities' shares of pools: of which unit, and which, by ledger and id.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    shares: Vec<(String, u64, u32)>,
    /// The calendar windows, by their ids: unit and time zone.
    #[serde(rename = "c", default, skip_serializing_if = "Vec::is_empty")]
    calendars: Vec<(u32, String, String)>,
    /// How long it lives.
    #[serde(rename = "l")]
    ttl_ms: u32,
    /// The caller and the resource, for the abuse rules.
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
    /// Whether a charge counts a unit: in the unit's own counter, or in that of a share of a pool.
    fn is_of(&self, charge: &Charge, unit: &str) -> bool {
        let ledger = u64::from_le_bytes(charge.ledger.scope_bytes());
        let is_share = |(of, share, id): &(String, u64, u32)| {
            of == unit && (*share, UnitId::from_number(*id)) == (ledger, charge.unit)
        };
        charge.unit == UnitId::of(unit) || self.shares.iter().any(is_share)
    }
}

impl Operation<'_> {
    /// The mode in which the counters are asked.
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Decide(mode) => mode,
            Self::Reserve(_) => Mode::Try,
        }
    }

    /// The usage of a call for this operation: with estimates for units that it does not name, and the slot that it
    /// takes.
    pub(super) fn usage_of(self, resolved: &Resolved<'_>, usage: Usage, domain: &Domain) -> Result<Usage, CallError> {
        let usage = self.complete_usage(resolved, usage, domain)?;
        let required =
            (self.mode() != Mode::Peek).then(|| resolved.quotas_left_out(&usage).find(|quota| quota.required));
        match required.flatten() {
            Some(Quota { name, unit, .. }) => {
                let wrong = format_args!("is required by the quota {name}; write 0 if the call uses none");
                Err(CallError::field(&format!("usage.{}", unit.name), wrong))
            }
            None => Ok(usage),
        }
    }

    fn complete_usage(self, resolved: &Resolved<'_>, usage: Usage, domain: &Domain) -> Result<Usage, CallError> {
        let concurrent = resolved.quotas().iter().find(|active| matches!(active.quota.window, Window::Concurrent));
        match (self, concurrent) {
            (Self::Decide(Mode::Try), Some(active)) if !active.quota.shadow => {
                let name = &active.quota.name;
                let wrong = format_args!("has the quota {name} of concurrent requests; use Reserve");
                Err(CallError::field("resource", wrong))
            }
            (Self::Decide(Mode::Peek), Some(_)) => Ok(usage.with_slot()),
            (Self::Decide(_), _) => Ok(usage),
            (Self::Reserve(reserve), _) => {
                let inputs = reserve.checked_inputs(domain)?;
                let usage = resolved.estimated(usage, |name| inputs.get(name).copied());
                Ok(if concurrent.is_some() { usage.with_slot() } else { usage })
            }
        }
    }
}

impl Reserve<'_> {
    /// The inputs of estimates, by name.
    fn checked_inputs(&self, domain: &Domain) -> Result<HashMap<&str, u64>, CallError> {
        if self.inputs.len() > MAX_ENTRIES {
            return Err(CallError::field("inputs", format_args!("has more than {MAX_ENTRIES} entries")));
        }
        let mut inputs: HashMap<&str, u64> = HashMap::with_capacity(self.inputs.len());
        for (name, amount) in &self.inputs {
            check_name("inputs", name)?;
            if domain.policy.inputs().binary_search_by(|known| (**known).cmp(name)).is_err() {
                let known = domain.policy.inputs().join(", ");
                let wrong = format_args!("no estimate uses it; the inputs are: {known}");
                return Err(CallError::field(format_args!("inputs.{name}"), wrong));
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
                id: cut(Sha256::digest(call.request_id)),
                digest: digest_of(operation, call, domain, identity),
                ttl_ms: self.lifetimes.request_id_ms,
            })
        };
        let hold = match operation {
            Operation::Decide(Mode::Try) if request.is_some() => None,
            Operation::Decide(_) => return Ok(None),
            Operation::Reserve(reserve) => {
                let ttl_ms = checked_ttl(reserve.ttl_ms, self.lifetimes.reservation_ms)?;
                Some((Token::generate(), ttl_ms, metadata_of((domain, identity), call, claims, ttl_ms)?))
            }
        };
        Ok(Some(AdmissionPlan { home: identity.caller().partition, hold, request }))
    }

    /// Asks the store to admit and remember.
    pub(super) async fn admit(
        &self,
        domain: &Domain,
        plan: &AdmissionPlan,
        claims_at: impl Fn(Timestamp) -> Claims,
        record: &mut AdmissionRecord,
        now: Timestamp,
    ) -> Result<ClaimsDecision, CallError> {
        let terms = &plan.terms();
        let token = |id| Token::new(domain.policy.domain(), plan.home, id).to_text();
        let (claims, admission) = in_period(now, |now| {
            let claims = claims_at(now);
            async move {
                match self.counters.measure(self.counters.store().admit(&claims, terms)).await? {
                    Admission::OutsidePeriod(at) => Ok(Period::Outside(at)),
                    admission => Ok(Period::Inside((claims, admission))),
                }
            }
        })
        .await?;
        match admission {
            Admission::Decided(applied) => {
                if let (true, Some((id, ttl_ms, _))) = (applied.allowed, &plan.hold) {
                    domain.metrics.reservations.reserved();
                    record.reservation = Some((token(*id), applied.decided_at.plus_ms(u64::from(*ttl_ms))));
                }
                Ok(applied)
            }
            Admission::Replayed(replay) => {
                record.replayed = true;
                record.reservation = replay.held.map(|(id, ends_at)| (token(id), ends_at));
                if replay.shape == claims_fingerprint(&claims) {
                    return Ok(replay.applied);
                }
                // The policy gives other quotas now. The call was admitted; the numbers are those of today.
                self.as_admitted(&claims, replay.applied).await
            }
            Admission::IdempotencyConflict | Admission::OutsidePeriod(_) => {
                Err(CallError::field("request_id", "belongs to another call; choose a new one"))
            }
        }
    }

    async fn as_admitted(&self, claims: &[Claim], then: ClaimsDecision) -> Result<ClaimsDecision, CallError> {
        let ApplyResult::Applied(mut applied) = self.counters.store().apply(claims, Mode::Peek).await? else {
            return Ok(ClaimsDecision { statuses: SmallVec::new(), ..then });
        };
        applied.allowed = true;
        applied.statuses.iter_mut().for_each(|status| status.fit = Fit::Now);
        Ok(ClaimsDecision { decided_at: then.decided_at, ..applied })
    }
}

fn checked_ttl(ttl_ms: u32, default: u32) -> Result<u32, CallError> {
    match ttl_ms {
        0 => Ok(default),
        MIN_TTL_MS..=MAX_RESERVATION_TTL_MS => Ok(ttl_ms),
        _ => {
            Err(CallError::field("ttl_ms", format_args!("must be from {MIN_TTL_MS} to {MAX_RESERVATION_TTL_MS}, or 0")))
        }
    }
}

fn metadata_of(
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

/// Identifies the call: equal for repetitions of the same call.
fn digest_of(operation: Operation<'_>, call: &Call<'_>, domain: &Domain, identity: &Identity) -> [u8; 16] {
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
    cut(hasher.finalize())
}

fn cut(full: impl AsRef<[u8]>) -> [u8; 16] {
    let mut cut = [0; 16];
    cut.iter_mut().zip(full.as_ref()).for_each(|(to, from)| *to = *from);
    cut
}
