//! The domains a node serves: their policies, compiled, with the accounts that come along.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use tollgate_core::api_key::KeyHash;
use tollgate_policy::{
    LoadedPolicy, Place, Policy,
    dialect::Dialects,
    file::{AccountRules, PolicyError, PolicyErrors, SelfService},
    uploads::Uploads,
};

use crate::{
    auth::Reach,
    directory::{Directory, Identity},
    files::{self, Failure, FileError, MAX_FILE_BYTES, folder_of},
    reload::{Kept, Reload},
    telemetry::{DomainMetrics, Telemetry},
};

/// The policy of a node that is given none.
const EMBEDDED: &str = include_str!("../../../deploy/policies/venice.yaml");

/// Where the policies come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The Venice policy compiled into the binary.
    Embedded,
    /// Policy files, and folders whose `.yaml` and `.yml` files are policy files.
    Paths(Vec<PathBuf>),
}

/// One domain.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) policy: Arc<Policy>,
    pub(crate) directory: Directory,
    pub(crate) accounts: AccountRules,
    pub(crate) metrics: DomainMetrics,
    pub(crate) dialects: Dialects,
    pub(crate) uploads: Uploads,
    pub(crate) self_service: SelfService,
}

/// All domains of one moment. Calls take one and keep it to their end.
#[derive(Debug, Default)]
pub(crate) struct Domains(HashMap<Arc<str>, Arc<Domain>>);

/// The domains in force, and how their last reload went.
pub struct Policies {
    source: Source,
    demo: bool,
    telemetry: Arc<Telemetry>,
    domains: Kept<Domains>,
}

impl Domains {
    fn read(source: &Source, demo: bool, telemetry: &Arc<Telemetry>) -> Result<Self, Vec<PolicyErrors>> {
        let domains = read_all(source)?.into_iter().map(|(domain, loaded)| {
            let metrics = DomainMetrics::of(telemetry, &loaded.policy);
            telemetry.policy_loaded(&domain, loaded.fingerprint);
            let LoadedPolicy { policy, bootstrap, accounts, dialects, uploads, self_service, .. } = loaded;
            let directory = Directory::of(bootstrap, demo);
            (domain, Arc::new(Domain { policy, directory, accounts, metrics, dialects, uploads, self_service }))
        });
        Ok(Self(domains.collect()))
    }

    /// The domain of this name. No name stands for the only one within reach.
    pub(crate) fn get(&self, name: &str, within: &Reach) -> Option<&Arc<Domain>> {
        if name.is_empty() {
            let mut all = self.within(within);
            return all.next().filter(|_| all.next().is_none());
        }
        self.0.get(name).filter(|_| within.permits(name))
    }

    pub(crate) fn within<'a, 'r>(&'a self, reach: &'r Reach) -> impl Iterator<Item = &'a Arc<Domain>> + use<'a, 'r> {
        self.0.iter().filter(|(name, _)| reach.permits(name)).map(|(_, domain)| domain)
    }

    /// The names, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.keys().map(AsRef::as_ref).collect();
        names.sort_unstable();
        names
    }

    /// Whether some call may be decided while the store cannot answer.
    pub(crate) fn bear_failure(&self) -> bool {
        self.0.values().any(|domain| domain.policy.bears_failure())
    }

    /// The key of a policy file with this secret, in whatever domain within reach.
    pub(crate) fn by_secret(&self, hash: &KeyHash, within: &Reach) -> Option<(&Arc<Domain>, &Identity)> {
        self.within(within).find_map(|domain| domain.directory.by_secret(hash).map(|identity| (domain, identity)))
    }
}

impl Policies {
    /// Loads the policies.
    pub fn load(source: Source, demo: bool, telemetry: Arc<Telemetry>) -> Result<Self, Vec<PolicyErrors>> {
        let domains = Kept::new(Domains::read(&source, demo, &telemetry)?);
        telemetry.reload_stuck("policies", false);
        Ok(Self { source, demo, telemetry, domains })
    }

    pub(crate) fn current(&self) -> arc_swap::Guard<Arc<Domains>> {
        self.domains.current()
    }
}

impl Reload for Policies {
    fn what(&self) -> &'static str {
        "policies"
    }

    fn folders(&self) -> Vec<PathBuf> {
        let Source::Paths(paths) = &self.source else { return Vec::new() };
        let folder =
            |path: &PathBuf| if files::is_folder(path).unwrap_or(false) { path.clone() } else { folder_of(path) };
        paths.iter().map(folder).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let Source::Paths(paths) = &self.source else { return Vec::new() };
        files_of(paths).unwrap_or_else(|_| paths.clone())
    }

    fn reload(&self) -> Result<(), Failure> {
        let read = Domains::read(&self.source, self.demo, &self.telemetry).map_err(|errors| failure(&errors));
        self.telemetry.policy_reloads(read.is_ok());
        self.telemetry.reload_stuck(self.what(), read.as_ref().is_err_and(|failure| failure.stuck));
        self.domains.renew(read)
    }

    fn last_failure(&self) -> Option<Failure> {
        self.domains.last_failure()
    }
}

/// Everything that is wrong, a line each, without what may be a secret in the wrong place.
pub(crate) fn failure(errors: &[PolicyErrors]) -> Failure {
    Failure::join(errors.iter().map(|error| Failure { text: error.redacted(), stuck: error.stuck }))
}

/// Everything that is wrong, a line each, with all that stands in the files: for who holds them.
pub fn one_text(errors: &[PolicyErrors]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads every file before it says which are wrong.
fn read_all(source: &Source) -> Result<BTreeMap<Arc<str>, LoadedPolicy>, Vec<PolicyErrors>> {
    let read = match source {
        Source::Embedded => vec![("venice.yaml".to_owned(), LoadedPolicy::parse("venice.yaml", EMBEDDED))],
        Source::Paths(paths) => {
            let files = files_of(paths).map_err(|error| vec![error])?;
            files.into_iter().map(|file| (file.display().to_string(), load(&file))).collect()
        }
    };
    let mut domains: BTreeMap<Arc<str>, LoadedPolicy> = BTreeMap::new();
    let mut errors = Vec::new();
    for (file, outcome) in read {
        match outcome {
            Ok(loaded) => {
                let domain = Arc::clone(loaded.policy.domain());
                if domains.insert(Arc::clone(&domain), loaded).is_some() {
                    errors.push(whole_file(file, "domain: is the domain of another file too".to_owned()));
                }
            }
            Err(wrong) => errors.push(wrong),
        }
    }
    if errors.is_empty() { Ok(domains) } else { Err(errors) }
}

fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>, PolicyErrors> {
    let mut files = Vec::new();
    for path in paths {
        let unreadable = |error| unreadable(path, &error);
        if !files::is_folder(path).map_err(unreadable)? {
            files.push(path.clone());
            continue;
        }
        let mut inside = files::list(path).map_err(unreadable)?;
        inside.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml"));
        inside.sort();
        if inside.is_empty() {
            return Err(whole_file(path.display().to_string(), "has no .yaml or .yml file in it".to_owned()));
        }
        files.extend(inside);
    }
    Ok(files)
}

/// Reads and checks the policy file at `path`.
pub fn load(path: &Path) -> Result<LoadedPolicy, PolicyErrors> {
    match files::read_text(path, MAX_FILE_BYTES) {
        Ok(text) => LoadedPolicy::parse(&path.display().to_string(), &text),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// That a file, or a folder of files, cannot be read.
fn unreadable(path: &Path, error: &FileError) -> PolicyErrors {
    let errors = whole_file(path.display().to_string(), error.to_string());
    PolicyErrors { stuck: matches!(error, FileError::NoAnswer), ..errors }
}

fn whole_file(file: String, message: String) -> PolicyErrors {
    let place = Place::root();
    PolicyErrors { file, errors: vec![PolicyError::new(1, place, message)], stuck: false }
}

/// Checks policy files without running them.
pub fn check(paths: &[PathBuf]) -> Result<Vec<String>, Vec<PolicyErrors>> {
    let loaded = read_all(&Source::Paths(paths.to_vec()))?;
    let summary = |(domain, loaded): (&Arc<str>, &LoadedPolicy)| {
        let (tiers, resources) = (loaded.policy.tiers().len(), loaded.policy.resources().len());
        format!("{domain}: {tiers} tiers, {resources} resources, {} accounts", loaded.bootstrap.len())
    };
    Ok(loaded.iter().map(summary).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_is_named() {
        let error = load(Path::new("/nowhere.yaml")).unwrap_err().to_string();
        assert_eq!(error, "/nowhere.yaml:1: cannot be read: No such file or directory (os error 2)");
    }
}
