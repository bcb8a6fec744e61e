//! Finding the caller, and the domain it calls in.

use std::sync::Arc;

use tollgate_core::time::Timestamp;

use crate::{
    auth::Reach,
    directory::{BadKey, Identity},
    key::{self, KeyHash, MAX_SECRET_BYTES},
    policies::{Domain, Domains},
    service::{
        CallError, CallerRef, DecisionService,
        call::{check_name, check_optional_name},
    },
};

/// A key that is no good.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// The domain that the call named, or that the key belongs to, where that is known.
    pub(crate) domain: Option<Arc<Domain>>,
    /// What is wrong with it.
    pub(crate) why: BadKey,
}

impl DecisionService {
    /// The domain and the caller, or why the caller's key is no good. Keys are looked for only where the calling
    /// service may act.
    pub(super) fn identify(
        &self,
        domains: &Domains,
        within: &Reach,
        domain: &str,
        caller: CallerRef<'_>,
        now: Timestamp,
    ) -> Result<Result<(Arc<Domain>, Identity), Rejected>, CallError> {
        check_optional_name("domain", domain)?;
        let (domain, identity) = match caller {
            CallerRef::Secret(secret) if domain.is_empty() => {
                match find_secret(secret, |hash| domains.by_secret(hash, within))? {
                    Some((domain, key)) => (Some(domain), Some(Identity::of_key(key))),
                    None => (domains.get("", within), None),
                }
            }
            _ => {
                let domain = find_domain(domains, within, domain)?;
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
                (Some(domain), identity)
            }
        };
        let why = match (&domain, identity) {
            (Some(domain), Some(identity)) => match identity.key.as_ref().map_or(Ok(()), |key| key.check(now)) {
                Ok(()) => return Ok(Ok((Arc::clone(domain), identity))),
                Err(why) => why,
            },
            _ => BadKey::Unknown,
        };
        self.telemetry.key_refused(why);
        Ok(Err(Rejected { domain: domain.cloned(), why }))
    }
}

fn find_domain<'a>(domains: &'a Domains, within: &Reach, name: &str) -> Result<&'a Arc<Domain>, CallError> {
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

fn find_secret<T>(secret: &str, find: impl FnOnce(&KeyHash) -> Option<T>) -> Result<Option<T>, CallError> {
    if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
        return Err(CallError::field("caller.api_key", format_args!("must have 1 to {MAX_SECRET_BYTES} bytes")));
    }
    Ok(if key::is_plausible(secret) { find(&KeyHash::of(secret)) } else { None })
}
