//! The policy files of a node, which are read at the start and whenever they change.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use tollgate_policy::{
    LoadedPolicy, Place,
    file::{PolicyError, PolicyErrors},
};
use tollgate_service::{
    domains::{CurrentDomains, Domains},
    metrics::Metrics,
};

use crate::{
    files::{self, Failure, FileError, MAX_FILE_BYTES, folder_of},
    reload::{LastFailure, Reload},
};

/// The policy of a node without policy files.
const EMBEDDED: &str = include_str!("../../../deploy/policies/venice.yaml");

/// The source of the policies.
#[derive(Clone, Debug)]
pub enum Source {
    /// The Venice policy compiled into the binary.
    Embedded,
    /// Policy files, and folders whose `.yaml` and `.yml` files are policy files.
    Paths(Vec<PathBuf>),
}

/// The policy files of a node. If their contents are invalid, the previous policies stay in force.
pub struct PolicyFiles {
    source: Source,
    demo: bool,
    metrics: Arc<Metrics>,
    domains: Arc<CurrentDomains>,
    last_failure: LastFailure,
}

impl PolicyFiles {
    /// Reads the policies.
    pub fn load(source: Source, demo: bool, metrics: Arc<Metrics>) -> Result<Self, Vec<PolicyErrors>> {
        let policies = read_all(&source)?;
        log_warnings(&policies);
        let domains = Domains::from_policies(policies, demo, &metrics);
        metrics.set_reload_stuck("policies", false);
        let domains = Arc::new(CurrentDomains::new(domains));
        Ok(Self { source, demo, metrics, domains, last_failure: LastFailure::default() })
    }

    /// The current domains.
    pub fn domains(&self) -> &Arc<CurrentDomains> {
        &self.domains
    }
}

impl Reload for PolicyFiles {
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
        policy_files(paths).unwrap_or_else(|_| paths.clone())
    }

    fn reload(&self) -> Result<(), Failure> {
        let policies = read_all(&self.source).map_err(|errors| failure(&errors));
        let outcome = policies.map(|policies| {
            log_warnings(&policies);
            self.domains.replace(Domains::from_policies(policies, self.demo, &self.metrics));
        });
        // After the policies are in force, so that clients that see the reload can rely on them.
        self.metrics.count_policy_reload(outcome.is_ok());
        self.metrics.set_reload_stuck(self.what(), outcome.as_ref().is_err_and(|failure| failure.stuck));
        self.last_failure.record(outcome.as_ref().err().cloned());
        outcome
    }

    fn last_failure(&self) -> Option<Failure> {
        self.last_failure.get()
    }
}

/// All errors, one per line, without text that may be a secret in the wrong place.
pub(crate) fn failure(errors: &[PolicyErrors]) -> Failure {
    Failure::join(errors.iter().map(|error| Failure { text: error.redacted(), stuck: error.stuck }))
}

/// All errors, one per line, with text of the files: for a user that has the files.
pub fn join_errors(errors: &[PolicyErrors]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Logs the warnings of policies, one line for each domain.
fn log_warnings(policies: &BTreeMap<Arc<str>, LoadedPolicy>) {
    for (domain, LoadedPolicy { warnings, .. }) in policies {
        if let Some(first) = warnings.first() {
            let (count, first) = (warnings.len(), format!("line {}: {}", first.line, first.redacted));
            tracing::warn!(domain = &**domain, count, first, "policy has warnings; `tollgate check-policy` shows them");
        }
    }
}

/// Reads all policies, and reports the errors of all files.
fn read_all(source: &Source) -> Result<BTreeMap<Arc<str>, LoadedPolicy>, Vec<PolicyErrors>> {
    let read = match source {
        Source::Embedded => vec![("venice.yaml".to_owned(), LoadedPolicy::parse("venice.yaml", EMBEDDED))],
        Source::Paths(paths) => {
            let files = policy_files(paths).map_err(|error| vec![error])?;
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
                    errors.push(file_error(file, "domain: is the domain of another file too".to_owned()));
                }
            }
            Err(file_errors) => errors.push(file_errors),
        }
    }
    if errors.is_empty() { Ok(domains) } else { Err(errors) }
}

fn policy_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, PolicyErrors> {
    let mut files = Vec::new();
    for path in paths {
        let unreadable = |error| unreadable(path, &error);
        if !files::is_folder(path).map_err(unreadable)? {
            files.push(path.clone());
            continue;
        }
        let mut entries = files::list(path).map_err(unreadable)?;
        entries.retain(|file| file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"));
        entries.sort();
        if entries.is_empty() {
            return Err(file_error(path.display().to_string(), "has no .yaml or .yml file in it".to_owned()));
        }
        files.extend(entries);
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

/// The error of a file or folder that cannot be read.
fn unreadable(path: &Path, error: &FileError) -> PolicyErrors {
    let errors = file_error(path.display().to_string(), error.to_string());
    PolicyErrors { stuck: matches!(error, FileError::NoResponse), ..errors }
}

fn file_error(file: String, message: String) -> PolicyErrors {
    let place = Place::root();
    PolicyErrors { file, errors: vec![PolicyError::new(1, place, message)], stuck: false }
}

/// Valid policy files, for reports.
pub struct CheckedPolicies {
    domains: BTreeMap<Arc<str>, LoadedPolicy>,
}

/// Checks policy files without running them.
pub fn check(paths: &[PathBuf]) -> Result<CheckedPolicies, Vec<PolicyErrors>> {
    Ok(CheckedPolicies { domains: read_all(&Source::Paths(paths.to_vec()))? })
}

impl CheckedPolicies {
    /// A line for each domain.
    pub fn summary(&self) -> String {
        let line = |(domain, loaded): (&Arc<str>, &LoadedPolicy)| {
            let (tiers, resources) = (loaded.policy.tiers().len(), loaded.policy.resources().len());
            format!("{domain}: {tiers} tiers, {resources} resources, {} accounts", loaded.bootstrap.len())
        };
        self.domains.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// For each domain, a table of its tiers and resources with their limits.
    pub fn matrix(&self) -> String {
        let tables = self.domains.iter().map(|(domain, loaded)| format!("{domain}\n{}", loaded.policy.matrix()));
        tables.collect::<Vec<_>>().join("\n\n")
    }

    /// A line for each warning; empty if there is none.
    pub fn warnings(&self) -> String {
        let lines = self.domains.iter().flat_map(|(domain, loaded)| {
            loaded.warnings.iter().map(move |warning| {
                format!("warning: {domain}: line {}: {}: {}", warning.line, warning.place, warning.message)
            })
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_missing_file_contains_its_path() {
        let error = load(Path::new("/nowhere.yaml")).unwrap_err().to_string();
        assert_eq!(error, "/nowhere.yaml:1: cannot be read: No such file or directory (os error 2)");
    }
}
