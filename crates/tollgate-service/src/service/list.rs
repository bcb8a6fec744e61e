//! Listings: a caller's limits, and where it stands.

use smallvec::SmallVec;
use tollgate_core::{
    claim::{Applied, Claim, Mode},
    time::Timestamp,
};
use tollgate_policy::{Block, ResolveError, Resolved, Usage, decision::Decision, pool::settle};

use crate::{
    directory::Identity,
    domains::Domain,
    page_token::List,
    service::{CallError, DecisionService, Listing, Rejected, abuse::TurnedAway, attributes::Attributes},
};

/// A listing asks the store for so many counters at once.
const COUNTERS_AT_ONCE: usize = 16;

/// How many resources a service is listed that does not say.
const DEFAULT_PAGE: usize = 50;
const LARGEST_PAGE: usize = 100;

/// How many resources a page has, as a service asks for it.
pub fn page_size(size: u32) -> Result<usize, CallError> {
    match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => Ok(DEFAULT_PAGE),
        take @ 1..=LARGEST_PAGE => Ok(take),
        _ => Err(CallError::field("page_size", format_args!("must be at most {LARGEST_PAGE}"))),
    }
}

/// The answer to a listing.
pub enum Listed<'a> {
    /// A page.
    Page {
        identity: &'a Identity,
        domain: &'a Domain,
        resources: Vec<(&'a str, Decision<'a>)>,
        decided_at: Timestamp,
        /// The token of the next page.
        next: Option<String>,
    },
    /// The API key is no good.
    BadKey { rejected: &'a Rejected, at: Timestamp },
    /// The client address is blocked.
    Barred { block: Block<'a>, at: Timestamp },
}

/// Why there is no list.
pub enum ListError {
    /// As of any call.
    Call(CallError),
    /// The page token is none of this caller's list.
    PageToken,
}

impl ListError {
    /// As an error of a call in which the page token stands in `field`.
    pub fn in_field(self, field: &str) -> CallError {
        match self {
            Self::Call(error) => error,
            Self::PageToken => CallError::field(field, "must be that of the previous answer to the same caller"),
        }
    }
}

impl<E: Into<CallError>> From<E> for ListError {
    fn from(error: E) -> Self {
        Self::Call(error.into())
    }
}

impl DecisionService {
    /// Lists limits and where the caller stands, from the same counters as the decisions.
    pub async fn list<R>(&self, listing: Listing<'_>, render: impl FnOnce(&Listed<'_>) -> R) -> Result<R, ListError> {
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(&listing.attributes)?;
        let entered = self.enter(&domains, listing.within, listing.domain, listing.caller, &attributes, now).await?;
        let (domain, identity) = match entered {
            Ok(entered) => entered,
            Err(TurnedAway::BadKey(rejected)) => return Ok(render(&Listed::BadKey { rejected: &rejected, at: now })),
            Err(TurnedAway::Barred { block, .. }) => return Ok(render(&Listed::Barred { block, at: now })),
        };
        identity.check()?;
        if let Some(block) = self.gate_block(domain, listing.caller, &attributes, now).await? {
            return Ok(render(&Listed::Barred { block, at: now }));
        }
        let caller = identity.caller();
        let all = domain.policy.resolve_all(&caller);
        let list = List::Limits {
            domain: domain.policy.domain(),
            account: &identity.account.id,
            key: identity.key.as_ref().map(|key| &*key.id),
        };
        let skip = match listing.page_token {
            "" => 0,
            token => list.position(token).and_then(|at| at.parse().ok()).ok_or(ListError::PageToken)?,
        };
        let end = listing.take.saturating_add(skip);
        let next = (end < all.len()).then(|| list.token(&end.to_string()));
        // A quota by an attribute that this caller cannot bring, such as `ip`, is no reason to show nothing.
        let known = |name: &str| attributes.get(name).is_some();
        let page = all.skip(skip).take(listing.take).map(|resolved| Ok(resolved?.with_attributes(known)));
        let page = page.collect::<Result<Vec<Resolved<'_>>, ResolveError>>()?;
        let (decisions, decided_at) = self.peek_all(&page, &attributes, now).await?;
        let resources = page.iter().map(Resolved::resource).zip(decisions).collect();
        Ok(render(&Listed::Page { identity: &identity, domain, resources, decided_at, next }))
    }

    /// Peeks at the counters of several resources, a bounded number in each call to the store.
    async fn peek_all<'a>(
        &self,
        page: &[Resolved<'a>],
        attributes: &Attributes<'_>,
        now: Timestamp,
    ) -> Result<(Vec<Decision<'a>>, Timestamp), CallError> {
        let nothing = Usage::none();
        let mut decisions = Vec::with_capacity(page.len());
        let mut decided_at = now;
        let value = |name: &str| attributes.get(name);
        let mut rest = page;
        while let Some(first) = rest.first() {
            let mut counters = 0;
            let fitting = rest.iter().take_while(|resolved| {
                counters += claims_of(resolved, value);
                counters <= COUNTERS_AT_ONCE
            });
            // One resource alone may have more; a call to it asks for as many.
            let (together, later) = rest.split_at(fitting.count().max(1));
            let claims_at = |now| {
                let mut claims: SmallVec<[Claim; 4]> = SmallVec::new();
                for resolved in together {
                    claims.extend(resolved.claims(&nothing, value, now)?);
                    for draw in resolved.draws(&nothing, value)? {
                        claims.extend(draw.claims(None, now));
                    }
                }
                Ok(claims)
            };
            let applied = self.apply(first.partition(), claims_at, Mode::Peek, now).await?;
            decided_at = applied.as_ref().map_or(decided_at, |applied| applied.decided_at);
            let mut statuses = applied.map(|applied| applied.statuses).unwrap_or_default().into_iter();
            for resolved in together {
                let statuses = statuses.by_ref().take(claims_of(resolved, value)).collect();
                let mut applied = Applied { decided_at, allowed: true, statuses };
                let draws = resolved.draws(&nothing, value)?;
                let (_, rooms) = settle(&draws, Mode::Peek, false, &mut applied);
                let decision = Decision::merge(resolved.quotas(), resolved.guards(value), &applied);
                decisions.push(decision.with_rooms(&rooms));
            }
            rest = later;
        }
        Ok((decisions, decided_at))
    }
}

/// How many claims look at everything that a resource is judged by.
fn claims_of<'a: 'v, 'v>(resolved: &Resolved<'a>, value: impl Fn(&str) -> Option<&'v str>) -> usize {
    resolved.quotas().len() + resolved.guards(value).count() + resolved.draw_claims()
}
