//! Listings: a caller's limits and current usage.

use tollgate_core::{
    claim::{ClaimsDecision, Mode},
    time::Timestamp,
};
use tollgate_policy::{ClaimSet, MissingAttribute, ResolveError, ResolvedQuotas, Usage, decision::Decision};

use crate::{
    directory::Identity,
    domains::Domain,
    page_token::List,
    service::{CallError, DecisionService, ListRequest, Rejection, RejectionCause, attributes::Attributes},
};

/// The maximum number of counters in one peek at the store.
const MAX_PEEKED_COUNTERS: usize = 16;

const DEFAULT_PAGE_SIZE: usize = 50;
const MAX_PAGE_SIZE: usize = 100;

/// Checks the page size that a service requests; 0 means the default.
pub fn page_size(size: u32) -> Result<usize, CallError> {
    match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => Ok(DEFAULT_PAGE_SIZE),
        size @ 1..=MAX_PAGE_SIZE => Ok(size),
        _ => Err(CallError::field("page_size", format_args!("must be at most {MAX_PAGE_SIZE}"))),
    }
}

/// A page of a caller's limits.
pub struct LimitsPage<'a> {
    /// The caller.
    pub identity: &'a Identity,
    /// The domain.
    pub domain: &'a Domain,
    /// The resources, each with the state of its quotas.
    pub resources: Vec<(&'a str, Decision<'a>)>,
    /// The time by the store's clock, or by the node's if no counter was read.
    pub decided_at: Timestamp,
    /// The token of the next page.
    pub next: Option<String>,
}

/// The error of a list.
pub enum ListError {
    /// The request is invalid, or the store cannot be read.
    Call(CallError),
    /// The page token does not belong to this caller's list.
    PageToken,
}

impl ListError {
    /// The error of a call; `field` is the name of the page token.
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
        request: ListRequest<'_>,
        render: impl FnOnce(Result<&LimitsPage<'_>, &Rejection<'_>>) -> R,
    ) -> Result<R, ListError> {
        let domains = self.domains.load().clone();
        let now = self.clock.now();
        let attributes = Attributes::check(&request.attributes)?;
        let authentication =
            self.authenticate(&domains, request.scope, request.domain, request.caller, &attributes, now).await?;
        let (domain, identity) = match authentication {
            Ok(caller) => caller,
            Err(rejection) => return Ok(render(Err(&rejection))),
        };
        identity.check()?;
        if let Some(block) = self.address_block(domain, request.caller, &attributes, now).await? {
            let cause = RejectionCause::Blocked(block);
            return Ok(render(Err(&Rejection { domain: Some(domain), cause, time: now })));
        }
        let caller = identity.caller();
        let all = domain.policy.resolve_all(&caller);
        let list = List::Limits {
            domain: domain.policy.domain(),
            account: &identity.account.id,
            key: identity.key.as_ref().map(|key| &*key.id),
        };
        let skip = match request.page_token {
            "" => 0,
            token => list.position(token).and_then(|position| position.parse().ok()).ok_or(ListError::PageToken)?,
        };
        let end = request.page_size.saturating_add(skip);
        let next = (end < all.len()).then(|| list.token(&end.to_string()));
        // Quotas by an attribute that the request does not have, such as `ip`, are left out.
        let has_attribute = |name: &str| attributes.get(name).is_some();
        let page = all
            .skip(skip)
            .take(request.page_size)
            .map(|resolved_quotas| Ok(resolved_quotas?.with_attributes(has_attribute)));
        let page = page.collect::<Result<Vec<ResolvedQuotas<'_>>, ResolveError>>()?;
        let (decisions, decided_at) = self.peek_all(&page, &attributes, now).await?;
        let resources = page.iter().map(ResolvedQuotas::resource).zip(decisions).collect();
        Ok(render(Ok(&LimitsPage { identity: &identity, domain, resources, decided_at, next })))
    }

    /// Peeks at the counters of several resources, a bounded number of them in each call to the store.
    async fn peek_all<'r, 'a>(
        &self,
        page: &'r [ResolvedQuotas<'a>],
        attributes: &Attributes<'_>,
        now: Timestamp,
    ) -> Result<(Vec<Decision<'a>>, Timestamp), CallError> {
        let no_usage = Usage::none();
        let claim_set = |resolved_quotas: &'r ResolvedQuotas<'a>| {
            resolved_quotas.claim_set(&no_usage, |name| attributes.get(name), None)
        };
        let claim_sets = page.iter().map(claim_set).collect::<Result<Vec<ClaimSet<'_, 'a>>, MissingAttribute>>()?;
        let (mut decisions, mut decided_at) = (Vec::with_capacity(page.len()), now);
        let mut rest = &claim_sets[..];
        while let Some(first) = rest.first() {
            let mut counters = 0;
            let count = rest.iter().take_while(|claims| {
                counters += claims.len();
                counters <= MAX_PEEKED_COUNTERS
            });
            // A single resource may have more counters.
            let (peeked, remaining) = rest.split_at(count.count().max(1));
            let claims_at = |now| peeked.iter().flat_map(|claims| claims.claims(now, &[])).collect();
            let reply = self.counters.apply(first.partition(), claims_at, Mode::Peek, now).await?;
            decided_at = reply.as_ref().map_or(decided_at, |reply| reply.decided_at);
            let mut statuses = reply.map(|reply| reply.statuses).unwrap_or_default().into_iter();
            for claims in peeked {
                let statuses = statuses.by_ref().take(claims.len()).collect();
                let reply = ClaimsDecision { decided_at, allowed: true, statuses };
                decisions.push(claims.decide(Mode::Peek, false, reply).0);
            }
            rest = remaining;
        }
        Ok((decisions, decided_at))
    }
}
