//! Listings: a caller's limits and current usage.

use tollgate_core::{
    claim::{ClaimsDecision, Mode},
    time::Timestamp,
};
use tollgate_policy::{ClaimSet, MissingAttribute, ResolveError, Resolved, Usage, decision::Decision};

use crate::{
    directory::Identity,
    domains::Domain,
    page_token::List,
    service::{CallError, DecisionService, Listing, Rejection, RejectionCause, attributes::Attributes},
};

/// Maximum number of counters in one request of a listing to the store.
const COUNTERS_AT_ONCE: usize = 16;

/// The default page size for services.
const DEFAULT_PAGE: usize = 50;
const LARGEST_PAGE: usize = 100;

/// The page size that a service requests.
pub fn page_size(size: u32) -> Result<usize, CallError> {
    match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => Ok(DEFAULT_PAGE),
        take @ 1..=LARGEST_PAGE => Ok(take),
        _ => Err(CallError::field("page_size", format_args!("must be at most {LARGEST_PAGE}"))),
    }
}

/// A page of a caller's limits.
pub struct LimitsPage<'a> {
    /// Whose limits.
    pub identity: &'a Identity,
    /// In which domain.
    pub domain: &'a Domain,
    /// The resources, each with the state of its quotas.
    pub resources: Vec<(&'a str, Decision<'a>)>,
    /// The time of the store's clock; of the node's if no counter was read.
    pub decided_at: Timestamp,
    /// The token of the next page.
    pub next: Option<String>,
}

/// Why there is no list.
pub enum ListError {
    /// As of any call.
    Call(CallError),
    /// The page token is none of this caller's list.
    PageToken,
}

impl ListError {
    /// The same as an error of a call that has the page token in `field`.
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
    /// Lists limits and current usage, from the same counters as the decisions.
    pub async fn list<R>(
        &self,
        listing: Listing<'_>,
        render: impl FnOnce(Result<&LimitsPage<'_>, &Rejection<'_>>) -> R,
    ) -> Result<R, ListError> {
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(&listing.attributes)?;
        let authenticated =
            self.authenticate(&domains, listing.within, listing.domain, listing.caller, &attributes, now).await?;
        let (domain, identity) = match authenticated {
            Ok(caller) => caller,
            Err(rejection) => return Ok(render(Err(&rejection))),
        };
        identity.check()?;
        if let Some(block) = self.address_block(domain, listing.caller, &attributes, now).await? {
            let cause = RejectionCause::Blocked(block);
            return Ok(render(Err(&Rejection { domain: Some(domain), cause, at: now })));
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
        Ok(render(Ok(&LimitsPage { identity: &identity, domain, resources, decided_at, next })))
    }

    /// Peeks at the counters of several resources, a bounded number in each call to the store.
    async fn peek_all<'r, 'a>(
        &self,
        page: &'r [Resolved<'a>],
        attributes: &Attributes<'_>,
        now: Timestamp,
    ) -> Result<(Vec<Decision<'a>>, Timestamp), CallError> {
        let nothing = Usage::none();
        let claim_set = |resolved: &'r Resolved<'a>| resolved.claim_set(&nothing, |name| attributes.get(name), None);
        let claim_sets = page.iter().map(claim_set).collect::<Result<Vec<ClaimSet<'_, 'a>>, MissingAttribute>>()?;
        let (mut decisions, mut decided_at) = (Vec::with_capacity(page.len()), now);
        let mut rest = &claim_sets[..];
        while let Some(first) = rest.first() {
            let mut counters = 0;
            let fitting = rest.iter().take_while(|claims| {
                counters += claims.len();
                counters <= COUNTERS_AT_ONCE
            });
            // A single resource may have more; a call to it reads as many.
            let (together, later) = rest.split_at(fitting.count().max(1));
            let claims_at = |now| together.iter().flat_map(|claims| claims.claims(now, &[])).collect();
            let applied = self.counters.apply(first.partition(), claims_at, Mode::Peek, now).await?;
            decided_at = applied.as_ref().map_or(decided_at, |applied| applied.decided_at);
            let mut statuses = applied.map(|applied| applied.statuses).unwrap_or_default().into_iter();
            for claims in together {
                let statuses = statuses.by_ref().take(claims.len()).collect();
                let applied = ClaimsDecision { decided_at, allowed: true, statuses };
                decisions.push(claims.decide(Mode::Peek, false, applied).0);
            }
            rest = later;
        }
        Ok((decisions, decided_at))
    }
}
