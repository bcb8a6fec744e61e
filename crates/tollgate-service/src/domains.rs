//! The domains that a node serves: their policies, compiled, with the accounts that come along.

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

/// One domain.
#[derive(Debug)]
pub struct Domain {
    /// Its policy.
    pub policy: Arc<Policy>,
    /// The accounts and keys that its policy file has.
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

/// All domains of one moment. Calls take one and keep it to their end.
#[derive(Debug, Default)]
pub struct Domains(HashMap<Arc<str>, Arc<Domain>>);

/// The domains in force.
#[derive(Debug)]
pub struct CurrentDomains(ArcSwap<Domains>);

impl CurrentDomains {
    /// These to begin with.
    pub fn new(domains: Domains) -> Self {
        Self(ArcSwap::from_pointee(domains))
    }

    /// The domains of this moment.
    pub fn load(&self) -> Guard<Arc<Domains>> {
        self.0.load()
    }

    /// Puts others in force, for the calls that begin from now on.
    pub fn replace(&self, domains: Domains) {
        self.0.store(Arc::new(domains));
    }
}

impl Domains {
    /// The domains of these policies. Demo keys, whose secrets are public, are included only if `demo` is set.
    pub fn of(policies: BTreeMap<Arc<str>, LoadedPolicy>, demo: bool, metrics: &Arc<Metrics>) -> Self {
        let domains = policies.into_iter().map(|(name, loaded)| {
            let of_domain = DomainMetrics::of(metrics, &loaded.policy);
            metrics.policy_loaded(&name, loaded.fingerprint);
            let LoadedPolicy { policy, bootstrap, accounts, dialects, uploads, listing, .. } = loaded;
            let directory = Directory::of(bootstrap, demo);
            (name, Arc::new(Domain { policy, directory, accounts, metrics: of_domain, dialects, uploads, listing }))
        });
        Self(domains.collect())
    }

    /// The domain with this name. An empty name means the only domain of the token.
    pub fn get(&self, name: &str, within: &DomainScope) -> Option<&Arc<Domain>> {
        if name.is_empty() {
            let mut all = self.within(within);
            return all.next().filter(|_| all.next().is_none());
        }
        self.0.get(name).filter(|_| within.permits(name))
    }

    /// The domains in this scope, in no order.
    pub fn within<'a, 'r>(&'a self, scope: &'r DomainScope) -> impl Iterator<Item = &'a Arc<Domain>> + use<'a, 'r> {
        self.0.iter().filter(|(name, _)| scope.permits(name)).map(|(_, domain)| domain)
    }

    /// The names, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.keys().map(AsRef::as_ref).collect();
        names.sort_unstable();
        names
    }

    /// Whether some call may be decided while the store cannot answer.
    pub fn tolerate_outage(&self) -> bool {
        self.0.values().any(|domain| domain.policy.tolerates_outage())
    }

    /// The key of a policy file with this secret, in whatever domain within reach.
    pub fn by_secret(&self, hash: &KeyHash, within: &DomainScope) -> Option<(&Arc<Domain>, &Identity)> {
        self.within(within).find_map(|domain| domain.directory.by_secret(hash).map(|identity| (domain, identity)))
    }
}
