//! The decision service: from a call, however it came, to its decision. It knows no protocol.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;
use tollgate_core::{
    claim::{Answer, Applied, Claim, Mode},
    decision::Decision,
    policy::{MissingAttribute, ResolveError, Resolved, Usage, UsageError},
    store::{Store, StoreError},
    time::Timestamp,
};
use tollgate_store::clock::Clock;

use crate::{
    directory::{BadKey, Identity},
    key::{self, KeyHash, MAX_SECRET_BYTES},
    policies::{Domain, Domains, Policies},
    telemetry::{InFlight, Telemetry},
};

/// The longest domain, account, key id or attribute name, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// The longest value of an attribute, in bytes.
const MAX_VALUE_BYTES: usize = 256;
/// The most units in a usage, and the most attributes.
pub(crate) const MAX_ENTRIES: usize = 16;
/// A listing asks the store for so many counters at once.
const COUNTERS_AT_ONCE: usize = 16;
/// A node whose clock is behind the store's learns it from the first answer.
const PERIOD_ATTEMPTS: usize = 3;

/// Decides calls against the policies and the counters.
pub(crate) struct DecisionService {
    policies: Arc<Policies>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    telemetry: Arc<Telemetry>,
}

/// Who calls, as the call says it.
#[derive(Clone, Copy)]
pub(crate) enum CallerRef<'a> {
    /// By the secret of a key.
    Secret(&'a str),
    /// By the id of a key.
    KeyId(&'a str),
    /// By the name of an account.
    Account(&'a str),
}

/// A call, decoded but not yet checked.
pub(crate) struct Call<'a> {
    pub(crate) domain: &'a str,
    pub(crate) caller: CallerRef<'a>,
    pub(crate) resource: &'a str,
    pub(crate) usage: SmallVec<[(&'a str, u64); 4]>,
    pub(crate) attributes: SmallVec<[(&'a str, &'a str); 2]>,
}

/// What a caller's listing asks for.
pub(crate) struct Listing<'a> {
    pub(crate) domain: &'a str,
    pub(crate) caller: CallerRef<'a>,
    pub(crate) attributes: SmallVec<[(&'a str, &'a str); 2]>,
    /// How many resources to pass over.
    pub(crate) skip: usize,
    /// How many to list.
    pub(crate) take: usize,
}

/// The answer to a call.
#[expect(clippy::large_enum_variant, reason = "nearly every answer is the large one, and none is moved")]
pub(crate) enum Outcome<'a> {
    /// It was decided.
    Decided {
        identity: &'a Identity,
        tier: &'a str,
        /// The canonical name.
        resource: &'a str,
        decision: Decision<'a>,
    },
    /// The API key is no good.
    BadKey { why: BadKey, at: Timestamp },
}

/// The answer to a listing.
pub(crate) enum Listed<'a> {
    /// A page.
    Page {
        identity: &'a Identity,
        domain: &'a Domain,
        resources: Vec<(&'a str, Decision<'a>)>,
        decided_at: Timestamp,
        next: Option<usize>,
    },
    /// The API key is no good.
    BadKey { why: BadKey, at: Timestamp },
}

/// Why a call was not decided.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The call is wrong. The text begins with the name of the field.
    #[error("{0}")]
    Invalid(String),
    /// There is no such domain.
    #[error("domain: there is no domain {named:?}; there is: {known}")]
    UnknownDomain { named: String, known: String },
    /// The store did not decide.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ResolveError> for CallError {
    fn from(error: ResolveError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<UsageError> for CallError {
    fn from(error: UsageError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<MissingAttribute> for CallError {
    fn from(error: MissingAttribute) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl CallError {
    fn field(name: impl std::fmt::Display, wrong: impl std::fmt::Display) -> Self {
        Self::Invalid(format!("{name}: {wrong}"))
    }
}

impl DecisionService {
    pub(crate) fn new(
        policies: Arc<Policies>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self { policies, store, clock, telemetry }
    }

    /// Decides a call; `render` makes of the outcome what the protocol wants, while the policy that
    /// decided is still at hand.
    pub(crate) async fn decide<R>(
        &self,
        call: Call<'_>,
        mode: Mode,
        render: impl FnOnce(&Outcome<'_>) -> R,
    ) -> Result<R, CallError> {
        let started = Instant::now();
        let decided = self.decide_unmeasured(call, mode, render).await;
        match &decided {
            Ok(_) => self.telemetry.decided_in(started.elapsed()),
            Err(CallError::Invalid(_) | CallError::UnknownDomain { .. }) => self.telemetry.bad_request(),
            Err(CallError::Store(_)) => {}
        }
        decided
    }

    async fn decide_unmeasured<R>(
        &self,
        call: Call<'_>,
        mode: Mode,
        render: impl FnOnce(&Outcome<'_>) -> R,
    ) -> Result<R, CallError> {
        let domains = self.policies.current().clone();
        let now = self.clock.now();
        check_attributes(&call.attributes)?;
        let (domain, identity) = match self.identify(&domains, call.domain, call.caller, now)? {
            Ok(found) => found,
            Err(why) => return Ok(render(&Outcome::BadKey { why, at: now })),
        };
        if call.usage.len() > MAX_ENTRIES {
            return Err(CallError::field("usage", format_args!("has more than {MAX_ENTRIES} units")));
        }
        let usage = domain.policy.usage(call.usage.iter().copied())?;
        let resolved = domain.policy.resolve(&identity.caller(), call.resource)?;
        let decision = self.judge(&resolved, &usage, &call.attributes, mode, now).await?;
        if mode != Mode::Peek {
            let denied_by = match decision.verdict {
                tollgate_core::decision::Verdict::Allowed => None,
                _ => decision.speaking().map(|quota| &*quota.quota.name),
            };
            domain.metrics.count(identity.account.tier, resolved.class(), denied_by);
        }
        let (tier, resource) = (&*resolved.tier().name, resolved.resource());
        Ok(render(&Outcome::Decided { identity: &identity, tier, resource, decision }))
    }

    /// Lists limits and where the caller stands, from the same counters as the decisions.
    pub(crate) async fn list<R>(
        &self,
        listing: Listing<'_>,
        render: impl FnOnce(&Listed<'_>) -> R,
    ) -> Result<R, CallError> {
        let domains = self.policies.current().clone();
        let now = self.clock.now();
        check_attributes(&listing.attributes)?;
        let (domain, identity) = match self.identify(&domains, listing.domain, listing.caller, now)? {
            Ok(found) => found,
            Err(why) => return Ok(render(&Listed::BadKey { why, at: now })),
        };
        let caller = identity.caller();
        let all = domain.policy.resolve_all(&caller);
        let end = listing.skip.saturating_add(listing.take);
        let next = (end < all.len()).then_some(end);
        // A quota by an attribute that this caller cannot bring, such as `ip`, is no reason to show nothing.
        let known = |name: &str| find(&listing.attributes, name).is_some();
        let page = all.skip(listing.skip).take(listing.take).map(|resolved| Ok(resolved?.with_attributes(known)));
        let page = page.collect::<Result<Vec<Resolved<'_>>, ResolveError>>()?;
        let (decisions, decided_at) = self.peek_all(&page, &listing.attributes, now).await?;
        let resources = page.iter().map(Resolved::resource).zip(decisions).collect();
        Ok(render(&Listed::Page { identity: &identity, domain: &domain, resources, decided_at, next }))
    }

    /// Peeks at the counters of several resources, a bounded number in each call to the store.
    async fn peek_all<'a>(
        &self,
        page: &[Resolved<'a>],
        attributes: &[(&str, &str)],
        now: Timestamp,
    ) -> Result<(Vec<Decision<'a>>, Timestamp), CallError> {
        let nothing = Usage::none();
        let mut decisions = Vec::with_capacity(page.len());
        let mut decided_at = now;
        let mut rest = page;
        while !rest.is_empty() {
            let mut counters = 0;
            let fitting = rest.iter().take_while(|resolved| {
                counters += resolved.quotas().len();
                counters <= COUNTERS_AT_ONCE
            });
            // One resource alone may have more; a call to it asks for as many.
            let (together, later) = rest.split_at(fitting.count().max(1));
            let claims_at = |now| {
                let mut claims: SmallVec<[Claim; 8]> = SmallVec::new();
                for resolved in together {
                    claims.extend(resolved.claims(&nothing, |name| find(attributes, name), now)?);
                }
                Ok(claims)
            };
            let applied = self.apply(claims_at, Mode::Peek, now).await?;
            decided_at = applied.as_ref().map_or(decided_at, |applied| applied.decided_at);
            let mut statuses = applied.map(|applied| applied.statuses).unwrap_or_default().into_iter();
            for resolved in together {
                let statuses = statuses.by_ref().take(resolved.quotas().len()).collect();
                let applied = Applied { decided_at, allowed: true, statuses };
                decisions.push(Decision::merge(resolved.quotas(), &applied));
            }
            rest = later;
        }
        Ok((decisions, decided_at))
    }

    async fn judge<'a>(
        &self,
        resolved: &Resolved<'a>,
        usage: &Usage,
        attributes: &[(&str, &str)],
        mode: Mode,
        now: Timestamp,
    ) -> Result<Decision<'a>, CallError> {
        let claims_at = |now| Ok(resolved.claims(usage, |name| find(attributes, name), now)?);
        let applied = self.apply(claims_at, mode, now).await?;
        Ok(applied.map_or_else(|| Decision::unlimited(now), |applied| Decision::merge(resolved.quotas(), &applied)))
    }

    /// Asks the store, and once more where its clock is in another calendar period than the node's.
    /// `None` if there is nothing to ask.
    async fn apply(
        &self,
        claims_at: impl Fn(Timestamp) -> Result<SmallVec<[Claim; 8]>, CallError>,
        mode: Mode,
        mut now: Timestamp,
    ) -> Result<Option<Applied>, CallError> {
        for _ in 0..PERIOD_ATTEMPTS {
            let claims = claims_at(now)?;
            if claims.is_empty() {
                return Ok(None);
            }
            let started = Instant::now();
            let in_flight = InFlight::new(&self.telemetry);
            let answer = self.store.apply(&claims, mode).await;
            drop(in_flight);
            self.telemetry.store_answered(started.elapsed(), &answer);
            match answer? {
                Answer::Applied(applied) => return Ok(Some(applied)),
                Answer::OutsidePeriod(at) => now = at,
            }
        }
        Err(StoreError::Refused("its clock moves from one calendar period to the next at every call".into()).into())
    }

    fn identify(
        &self,
        domains: &Domains,
        domain: &str,
        caller: CallerRef<'_>,
        now: Timestamp,
    ) -> Result<Result<(Arc<Domain>, Identity), BadKey>, CallError> {
        check_optional_name("domain", domain)?;
        let found = match caller {
            CallerRef::Secret(secret) if domain.is_empty() => find_secret(secret, |hash| {
                domains.by_secret(hash).map(|(domain, key)| (Arc::clone(domain), Identity::of_key(key)))
            })?,
            _ => {
                let domain = find_domain(domains, domain)?;
                let identity = match caller {
                    CallerRef::Secret(secret) => {
                        find_secret(secret, |hash| domain.directory.by_secret(hash).map(Identity::of_key))?
                    }
                    CallerRef::KeyId(id) => {
                        check_name("caller.api_key_id", id)?;
                        domain.directory.by_id(id).map(Identity::of_key)
                    }
                    CallerRef::Account(id) => {
                        check_name("caller.account", id)?;
                        Some(Identity { account: domain.directory.account(id, &domain.policy), key: None })
                    }
                };
                identity.map(|identity| (Arc::clone(domain), identity))
            }
        };
        let checked = match found {
            None => Err(BadKey::Unknown),
            Some((domain, identity)) => match identity.key.as_ref().map(|key| key.check(now)) {
                Some(Err(why)) => Err(why),
                _ => Ok((domain, identity)),
            },
        };
        if let Err(why) = checked {
            self.telemetry.key_refused(why);
        }
        Ok(checked)
    }
}

fn find_domain<'a>(domains: &'a Domains, name: &str) -> Result<&'a Arc<Domain>, CallError> {
    domains.get(name).ok_or_else(|| {
        let known = domains.names().join(", ");
        CallError::UnknownDomain { named: name.to_owned(), known }
    })
}

fn find_secret<T>(secret: &str, find: impl FnOnce(&KeyHash) -> Option<T>) -> Result<Option<T>, CallError> {
    if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
        return Err(CallError::field("caller.api_key", format_args!("must have 1 to {MAX_SECRET_BYTES} bytes")));
    }
    Ok(if key::is_plausible(secret) { find(&KeyHash::of(secret)) } else { None })
}

fn check_optional_name(field: &str, name: &str) -> Result<(), CallError> {
    if name.is_empty() { Ok(()) } else { check_name(field, name) }
}

fn check_name(field: &str, name: &str) -> Result<(), CallError> {
    check_text(field, name, MAX_NAME_BYTES)
}

/// `field` is only put together for an error.
fn check_text(field: impl std::fmt::Display, text: &str, most: usize) -> Result<(), CallError> {
    if text.is_empty() || text.len() > most || text.chars().any(char::is_control) {
        return Err(CallError::field(field, format_args!("must have 1 to {most} bytes and no control characters")));
    }
    Ok(())
}

fn check_attributes(attributes: &[(&str, &str)]) -> Result<(), CallError> {
    if attributes.len() > MAX_ENTRIES {
        return Err(CallError::field("attributes", format_args!("has more than {MAX_ENTRIES} entries")));
    }
    for (name, value) in attributes {
        check_name("attributes", name)?;
        check_text(format_args!("attributes.{name}"), value, MAX_VALUE_BYTES)?;
    }
    Ok(())
}

fn find<'v>(attributes: &[(&str, &'v str)], name: &str) -> Option<&'v str> {
    attributes.iter().find(|(have, _)| *have == name).map(|(_, value)| *value)
}
