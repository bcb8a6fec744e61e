//! Authentication: the caller and its domain.

use std::sync::Arc;

use tollgate_core::{api_key::KeyHash, time::Timestamp};
use tollgate_policy::{
    api_key::{self, MAX_SECRET_BYTES},
    reason::InvalidKey,
};

use crate::{
    directory::{CachedKey, Identity},
    domains::{Domain, Domains},
    scope::DomainScope,
    service::{
        CallError, CallerRef, DecisionService, Rejection, RejectionCause,
        attributes::Attributes,
        call::{check_name, check_optional_name},
    },
};

impl DecisionService {
    /// The domain and the caller, or why it is rejected. An invalid key counts against the address it came from, and an
    /// address that is known to be blocked is rejected before its key is looked up.
    pub(super) async fn authenticate<'d>(
        &self,
        domains: &'d Domains,
        within: &'d DomainScope,
        domain: &str,
        caller: CallerRef<'_>,
        attributes: &Attributes<'_>,
        now: Timestamp,
    ) -> Result<Result<(&'d Domain, Identity), Rejection<'d>>, CallError> {
        // A service that names an id or an account has authenticated the caller by other means.
        let by_secret = matches!(caller, CallerRef::Secret(_));
        let ip = attributes.ip().filter(|_| by_secret);
        let named = domains.get(domain, within).map(|domain| &**domain);
        let blocked = |domain, block| Rejection { domain, cause: RejectionCause::Blocked(block), at: now };
        let rule = Self::authentication_rule_of(domains, within, named);
        if let Some(block) = ip.zip(rule).and_then(|(ip, rule)| self.known_block(rule, ip, now)) {
            return Ok(Err(blocked(named, block)));
        }
        let (domain, why) = match self.identify(domains, within, domain, caller, now).await? {
            Ok(found) => return Ok(Ok(found)),
            Err(invalid) => invalid,
        };
        let block = match ip.zip(Self::authentication_rule_of(domains, within, domain)) {
            Some((ip, rule)) => Box::pin(self.failed_to_authenticate(rule, domain, ip, now)).await,
            None => None,
        };
        let invalid = || Rejection { domain, cause: RejectionCause::InvalidKey(why), at: now };
        Ok(Err(block.map_or_else(invalid, |block| blocked(domain, block))))
    }

    /// The domain and the caller, or why the caller's key is invalid, with the domain where that is known. Keys are looked for only where the calling
    /// service may act.
    async fn identify<'d>(
        &self,
        domains: &'d Domains,
        within: &DomainScope,
        domain: &str,
        caller: CallerRef<'_>,
        now: Timestamp,
    ) -> Result<Result<(&'d Domain, Identity), (Option<&'d Domain>, InvalidKey)>, CallError> {
        check_optional_name("domain", domain)?;
        let found = match caller {
            CallerRef::Secret(secret) => {
                let named = if domain.is_empty() { None } else { Some(find_domain(domains, within, domain)?) };
                match check_secret(secret)? {
                    Some(hash) => self.find_secret(domains, within, named, &hash, now).await?,
                    None => Err((named.or_else(|| domains.get("", within)), InvalidKey::Unknown)),
                }
            }
            CallerRef::KeyId(id) => {
                let domain = find_domain(domains, within, domain)?;
                check_name("caller.api_key_id", id)?;
                let identity = match domain.directory.by_id(id) {
                    Some(identity) => Some(identity.clone()),
                    None => self.accounts.by_key_id(id, &domain.policy, now).await?,
                };
                identity.map(|identity| (domain, identity)).ok_or((Some(domain), InvalidKey::Unknown))
            }
            CallerRef::Account(id) => {
                let domain = find_domain(domains, within, domain)?;
                check_name("caller.account", id)?;
                let identity = match domain.directory.account(id) {
                    Some(account) => Identity::certain(Arc::clone(account), None),
                    None => self.accounts.by_vouched_name(id, &domain.policy, now, Some(within)).await,
                };
                Ok((domain, identity))
            }
        };
        let checked = found.and_then(|(domain, identity)| {
            let good = identity.key.as_ref().map_or(Ok(()), |key| key.check(now));
            good.map(|()| (&**domain, identity)).map_err(|why| (Some(domain), why))
        });
        Ok(checked.map_err(|(domain, why)| {
            self.metrics.key_refused(why);
            (domain.map(|domain| &**domain), why)
        }))
    }

    /// What the node knows about the API key with this secret, in any domain, without reading the store of accounts.
    pub fn cached_key(&self, secret: &str) -> CachedKey {
        let Ok(Some(hash)) = check_secret(secret) else { return CachedKey::Invalid };
        let now = self.clock.now();
        match self.domains.load().by_secret(&hash, &DomainScope::SelfService) {
            Some((_, identity)) if identity.key.as_ref().is_some_and(|key| key.check(now).is_ok()) => CachedKey::Valid,
            Some(_) => CachedKey::Invalid,
            None => self.accounts.cached_key(&hash, now),
        }
    }

    /// The caller with this secret, in the domain that was named, or else in whatever domain within reach.
    async fn find_secret<'a>(
        &self,
        domains: &'a Domains,
        within: &DomainScope,
        named: Option<&'a Arc<Domain>>,
        hash: &KeyHash,
        now: Timestamp,
    ) -> Result<Result<(&'a Arc<Domain>, Identity), (Option<&'a Arc<Domain>>, InvalidKey)>, CallError> {
        let in_files = match named {
            Some(domain) => domain.directory.by_secret(hash).map(|identity| (domain, identity)),
            None => domains.by_secret(hash, within),
        };
        if let Some((domain, identity)) = in_files {
            return Ok(Ok((domain, identity.clone())));
        }
        let unknown = Ok(Err((named.or_else(|| domains.get("", within)), InvalidKey::Unknown)));
        let Some(place) = self.accounts.place_of(hash).await? else { return unknown };
        let of_the_name = |domain: &&Arc<Domain>| **domain.policy.domain() == *place.domain;
        let Some(domain) = named.or_else(|| domains.get(&place.domain, within)).filter(of_the_name) else {
            return unknown;
        };
        let found = self.accounts.by_secret(&place, hash, &domain.policy, now).await?;
        Ok(found.map(|identity| (domain, identity)).map_err(|why| (Some(domain), why)))
    }
}

/// The domain called `name`, or the only one within reach if that is empty.
pub fn find_domain<'a>(domains: &'a Domains, within: &DomainScope, name: &str) -> Result<&'a Arc<Domain>, CallError> {
    domains.get(name, within).ok_or_else(|| {
        // The same whether or not there is such a domain, so that one platform does not learn of the others.
        if !name.is_empty() && !within.permits(name) {
            return CallError::Forbidden { named: name.to_owned() };
        }
        let mut known = domains.names();
        known.retain(|name| within.permits(name));
        let known = known.join(", ");
        CallError::UnknownDomain { named: name.to_owned(), known }
    })
}

/// The hash to look for; `None` if this cannot be a key.
fn check_secret(secret: &str) -> Result<Option<KeyHash>, CallError> {
    if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
        return Err(CallError::field("caller.api_key", format_args!("must have 1 to {MAX_SECRET_BYTES} bytes")));
    }
    Ok(api_key::is_plausible(secret).then(|| KeyHash::of(secret)))
}
