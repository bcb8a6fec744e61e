//! Finding the caller, and the domain it calls in.

use std::sync::Arc;

use tollgate_core::{api_key::KeyHash, time::Timestamp};
use tollgate_policy::{
    api_key::{self, MAX_SECRET_BYTES},
    reason::InvalidKey,
};

use crate::{
    directory::{Identity, Recalled},
    domains::{Domain, Domains},
    scope::DomainScope,
    service::{
        CallError, CallerRef, DecisionService,
        call::{check_name, check_optional_name},
    },
};

/// A key that is no good.
#[derive(Debug)]
pub struct Rejected {
    /// The domain that the call named, or that the key belongs to, where that is known.
    pub domain: Option<Arc<Domain>>,
    /// What is wrong with it.
    pub why: InvalidKey,
}

impl DecisionService {
    /// The domain and the caller, or why the caller's key is no good. Keys are looked for only where the calling
    /// service may act.
    pub(super) async fn identify<'d>(
        &self,
        domains: &'d Domains,
        within: &DomainScope,
        domain: &str,
        caller: CallerRef<'_>,
        now: Timestamp,
    ) -> Result<Result<(&'d Domain, Identity), Rejected>, CallError> {
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
            Rejected { domain: domain.cloned(), why }
        }))
    }

    /// What the node knows of the API key with this secret, in whatever domain, without asking the store of accounts.
    pub fn recall(&self, secret: &str) -> Recalled {
        let Ok(Some(hash)) = check_secret(secret) else { return Recalled::Bad };
        let now = self.clock.now();
        match self.domains.load().by_secret(&hash, &DomainScope::SelfService) {
            Some((_, identity)) if identity.key.as_ref().is_some_and(|key| key.check(now).is_ok()) => Recalled::Good,
            Some(_) => Recalled::Bad,
            None => self.accounts.recall(&hash, now),
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
