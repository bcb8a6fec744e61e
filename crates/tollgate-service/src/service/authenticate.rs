//! Authentication of callers.

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
    /// Returns the domain and the caller, or the rejection. An invalid key is counted as a failure of the client
    /// address. If the block of an address is cached, the call is rejected before its key is looked up.
    pub(super) async fn authenticate<'d>(
        &self,
        domains: &'d Domains,
        scope: &'d DomainScope,
        domain: &str,
        caller: CallerRef<'_>,
        attributes: &Attributes<'_>,
        now: Timestamp,
    ) -> Result<Result<(&'d Domain, Identity), Rejection<'d>>, CallError> {
        // A service that sends an id or an account has authenticated the caller by other means.
        let has_secret = matches!(caller, CallerRef::Secret(_));
        let ip = attributes.ip().filter(|_| has_secret);
        let call_domain = domains.get(domain, scope).map(|domain| &**domain);
        let rejection = |domain, cause| Rejection { domain, cause, time: now };
        let rule = Self::authentication_rule(domains, scope, call_domain);
        if let Some(block) = ip.zip(rule).and_then(|(ip, rule)| self.cached_block(rule, ip, now)) {
            return Ok(Err(rejection(call_domain, RejectionCause::Blocked(block))));
        }
        let (domain, invalid_key) = match self.identify(domains, scope, domain, caller, now).await? {
            Ok(identified) => return Ok(Ok(identified)),
            Err(invalid) => invalid,
        };
        let block = match ip.zip(Self::authentication_rule(domains, scope, domain)) {
            Some((ip, rule)) => Box::pin(self.count_failed_authentication(rule, domain, ip, now)).await,
            None => None,
        };
        let cause = block.map_or(RejectionCause::InvalidKey(invalid_key), RejectionCause::Blocked);
        Ok(Err(rejection(domain, cause)))
    }

    /// Returns the domain and the caller; or why the key is invalid, and the domain if it is known. Only keys in the
    /// scope of the calling service are valid.
    async fn identify<'d>(
        &self,
        domains: &'d Domains,
        scope: &DomainScope,
        domain: &str,
        caller: CallerRef<'_>,
        now: Timestamp,
    ) -> Result<Result<(&'d Domain, Identity), (Option<&'d Domain>, InvalidKey)>, CallError> {
        check_optional_name("domain", domain)?;
        let identified = match caller {
            CallerRef::Secret(secret) => {
                let call_domain = if domain.is_empty() { None } else { Some(find_domain(domains, scope, domain)?) };
                match hash_secret(secret)? {
                    Some(hash) => self.identify_by_secret(domains, scope, call_domain, &hash, now).await?,
                    None => Err((call_domain.or_else(|| domains.get("", scope)), InvalidKey::Unknown)),
                }
            }
            CallerRef::KeyId(id) => {
                let domain = find_domain(domains, scope, domain)?;
                check_name("caller.api_key_id", id)?;
                let identity = match domain.directory.identity_by_key_id(id) {
                    Some(identity) => Some(identity.clone()),
                    None => self.accounts.identity_by_key_id(id, &domain.policy, now).await?,
                };
                identity.map(|identity| (domain, identity)).ok_or((Some(domain), InvalidKey::Unknown))
            }
            CallerRef::Account(id) => {
                let domain = find_domain(domains, scope, domain)?;
                check_name("caller.account", id)?;
                let identity = match domain.directory.account(id) {
                    Some(account) => Identity::new(Arc::clone(account), None),
                    None => self.accounts.identity_for_service(id, &domain.policy, now, Some(scope)).await,
                };
                Ok((domain, identity))
            }
        };
        let valid = identified.and_then(|(domain, identity)| {
            let result = identity.key.as_ref().map_or(Ok(()), |key| key.check(now));
            result.map(|()| (&**domain, identity)).map_err(|invalid_key| (Some(domain), invalid_key))
        });
        Ok(valid.map_err(|(domain, invalid_key)| {
            self.metrics.count_invalid_key(invalid_key);
            (domain.map(|domain| &**domain), invalid_key)
        }))
    }

    /// The cached state of the API key with this secret, in any domain. Does not read the store of accounts.
    pub fn cached_key(&self, secret: &str) -> CachedKey {
        let Ok(Some(hash)) = hash_secret(secret) else { return CachedKey::Invalid };
        let now = self.clock.now();
        match self.domains.load().identity_by_secret(&hash, &DomainScope::SelfService) {
            Some((_, identity)) if identity.key.as_ref().is_some_and(|key| key.check(now).is_ok()) => CachedKey::Valid,
            Some(_) => CachedKey::Invalid,
            None => self.accounts.cached_key(&hash, now),
        }
    }

    /// The caller with this secret, in the domain of the call, or in any domain in scope if the call names none.
    async fn identify_by_secret<'a>(
        &self,
        domains: &'a Domains,
        scope: &DomainScope,
        call_domain: Option<&'a Arc<Domain>>,
        hash: &KeyHash,
        now: Timestamp,
    ) -> Result<Result<(&'a Arc<Domain>, Identity), (Option<&'a Arc<Domain>>, InvalidKey)>, CallError> {
        let policy_file_key = match call_domain {
            Some(domain) => domain.directory.identity_by_secret(hash).map(|identity| (domain, identity)),
            None => domains.identity_by_secret(hash, scope),
        };
        if let Some((domain, identity)) = policy_file_key {
            return Ok(Ok((domain, identity.clone())));
        }
        let unknown = Ok(Err((call_domain.or_else(|| domains.get("", scope)), InvalidKey::Unknown)));
        let Some(location) = self.accounts.key_location(hash).await? else { return unknown };
        let is_key_domain = |domain: &&Arc<Domain>| **domain.policy.domain() == *location.domain;
        let Some(domain) = call_domain.or_else(|| domains.get(&location.domain, scope)).filter(is_key_domain) else {
            return unknown;
        };
        let identity = self.accounts.identity_by_secret(&location, hash, &domain.policy, now).await?;
        Ok(identity.map(|identity| (domain, identity)).map_err(|invalid_key| (Some(domain), invalid_key)))
    }
}

/// The domain with this name; if the name is empty, the only domain in scope.
pub fn find_domain<'a>(domains: &'a Domains, scope: &DomainScope, name: &str) -> Result<&'a Arc<Domain>, CallError> {
    domains.get(name, scope).ok_or_else(|| {
        // The error does not depend on whether the domain exists, so that no platform learns of another.
        if !name.is_empty() && !scope.permits(name) {
            return CallError::Forbidden { name: name.to_owned() };
        }
        let mut names = domains.names();
        names.retain(|name| scope.permits(name));
        CallError::UnknownDomain { name: name.to_owned(), available: names.join(", ") }
    })
}

/// The hash of a secret; `None` if the text cannot be a key.
fn hash_secret(secret: &str) -> Result<Option<KeyHash>, CallError> {
    if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
        return Err(CallError::field("caller.api_key", format_args!("must have 1 to {MAX_SECRET_BYTES} bytes")));
    }
    Ok(api_key::is_plausible(secret).then(|| KeyHash::of(secret)))
}
