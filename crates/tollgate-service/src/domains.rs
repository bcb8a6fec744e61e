//! The domains that a node serves: their compiled policies, with the accounts of the policy files.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::{ArcSwap, Guard};
use tollgate_core::api_key::KeyHash;
use tollgate_policy::{
    LoadedPolicy, Policy, dialect::Dialects, file::AccountRules, format::ListingFormat, uploads::Uploads,
};

use crate::{
    directory::{Directory, Identity},
    metrics::{DomainMetrics, Metrics},
    scope::DomainScope,
};

/// A domain.
#[derive(Debug)]
pub struct Domain {
    /// Its policy.
    pub policy: Arc<Policy>,
    /// The accounts and keys of its policy file.
    pub directory: Directory,
    /// The policy's rules for accounts in the store.
    pub accounts: AccountRules,
    /// Its metrics.
    pub metrics: DomainMetrics,
    /// How its decisions are rendered.
    pub dialects: Dialects,
    /// How large uploads may be.
    pub uploads: Uploads,
    /// The format in which its callers read their limits.
    pub listing: ListingFormat,
}

/// All domains at one time. A call uses the same `Domains` until its end.
#[derive(Debug, Default)]
pub struct Domains(HashMap<Arc<str>, Arc<Domain>>);

/// The current domains.
#[derive(Debug)]
pub struct CurrentDomains(ArcSwap<Domains>);

impl CurrentDomains {
    /// Starts with `domains`.
    pub fn new(domains: Domains) -> Self {
        Self(ArcSwap::from_pointee(domains))
    }

    /// The current domains.
    pub fn load(&self) -> Guard<Arc<Domains>> {
        self.0.load()
    }

    /// Replaces the domains for calls that begin from now on.
    pub fn replace(&self, domains: Domains) {
        self.0.store(Arc::new(domains));
    }
}

impl Domains {
    /// The domains of these policies. Demo keys, whose secrets are public, are included only if `demo` is set.
    pub fn from_policies(policies: BTreeMap<Arc<str>, LoadedPolicy>, demo: bool, metrics: &Arc<Metrics>) -> Self {
        let domains = policies.into_iter().map(|(name, loaded)| {
            let domain_metrics = DomainMetrics::new(metrics, &loaded.policy);
            metrics.count_policy_load(&name, loaded.fingerprint);
            let LoadedPolicy { policy, bootstrap, accounts, dialects, uploads, listing, .. } = loaded;
            let directory = Directory::new(bootstrap, demo);
            (
                name,
                Arc::new(Domain { policy, directory, accounts, metrics: domain_metrics, dialects, uploads, listing }),
            )
        });
        Self(domains.collect())
    }

    /// The domain with this name. An empty name means the only domain of the token.
    pub fn get(&self, name: &str, scope: &DomainScope) -> Option<&Arc<Domain>> {
        if name.is_empty() {
            let mut in_scope = self.in_scope(scope);
            return in_scope.next().filter(|_| in_scope.next().is_none());
        }
        self.0.get(name).filter(|_| scope.permits(name))
    }

    /// The domains in this scope, in no order.
    pub fn in_scope<'a, 'r>(&'a self, scope: &'r DomainScope) -> impl Iterator<Item = &'a Arc<Domain>> + use<'a, 'r> {
        self.0.iter().filter(|(name, _)| scope.permits(name)).map(|(_, domain)| domain)
    }

    /// The names, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.keys().map(AsRef::as_ref).collect();
        names.sort_unstable();
        names
    }

    /// Whether some call may be decided during an outage of the store.
    pub fn tolerate_outage(&self) -> bool {
        self.0.values().any(|domain| domain.policy.tolerates_outage())
    }

    /// The caller with this secret in the policy files of the domains in scope.
    pub fn identity_by_secret(&self, hash: &KeyHash, scope: &DomainScope) -> Option<(&Arc<Domain>, &Identity)> {
        self.in_scope(scope)
            .find_map(|domain| domain.directory.identity_by_secret(hash).map(|identity| (domain, identity)))
    }
}
