//! Policy files: YAML in, a compiled policy and its bootstrap accounts out, or every mistake at once
//! with its line and what would be right.

use std::{collections::HashSet, fmt, io::Read, path::Path, sync::Arc};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tollgate_core::policy::{Place, Policy, draft::OverrideDraft};

use crate::{dialect::Dialects, uploads::Uploads};

mod accounts;
mod bootstrap;
mod draft;
mod format;
mod structure;
#[cfg(test)]
mod tests;
mod yaml;

pub(crate) use accounts::AccountRules;
pub use bootstrap::{BootstrapAccount, BootstrapKey};
pub(crate) use bootstrap::{not_a_segment, parse_time};
pub(crate) use draft::length_ms;
pub(crate) use format::SelfService;
pub use format::schema;
pub(crate) use format::{dialect, uploads};

/// The largest policy file, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A policy file that holds.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// The compiled policy.
    pub policy: Arc<Policy>,
    /// 48 bits of the SHA-256 of what the file says, whatever its comments and its layout: the same on nodes that go by
    /// the same.
    pub fingerprint: u64,
    /// The accounts and keys that the file brings along.
    pub bootstrap: Vec<BootstrapAccount>,
    /// What it says of accounts in the store.
    pub(crate) accounts: AccountRules,
    /// How its decisions are rendered.
    pub(crate) dialects: Dialects,
    /// How large uploads may be.
    pub(crate) uploads: Uploads,
    /// How its callers read their limits.
    pub(crate) self_service: SelfService,
}

/// Everything that is wrong with a policy file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors {
    /// The file, as it was named.
    pub file: String,
    /// The mistakes; at least one.
    pub errors: Vec<PolicyError>,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The line, counted from 1.
    pub line: usize,
    /// Where in the structure of the file.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for PolicyErrors {
    /// A line for each mistake: `venice.yaml:12: tiers.paid.quotas[0].limit: must be …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, PolicyError { line, place, message }) in self.errors.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            let colon = if *place == Place::root() { "" } else { ": " };
            write!(f, "{newline}{}:{line}: {place}{colon}{message}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// Reads and checks the policy file at `path`.
pub fn load(path: &Path) -> Result<LoadedPolicy, PolicyErrors> {
    let file = path.display().to_string();
    let mut text = String::new();
    // A byte more than allowed, so that a longer file is seen to be longer.
    let read = std::fs::File::open(path).and_then(|opened| opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(_) => parse(&file, &text),
        Err(error) => Err(PolicyErrors { file, errors: vec![at_start(format!("cannot be read: {error}"))] }),
    }
}

/// Checks the text of a policy file. `file` only names it in errors.
pub fn parse(file: &str, text: &str) -> Result<LoadedPolicy, PolicyErrors> {
    check(text).map_err(|mut errors| {
        errors.sort_by_key(|error| error.line);
        PolicyErrors { file: file.to_owned(), errors }
    })
}

/// The draft of an override that was written in the format of policy files, if it can be read.
pub(crate) fn read_override(written: &Value) -> Option<OverrideDraft> {
    serde_json::from_value(written.clone()).ok().map(|over| draft::of_override(&over))
}

/// What is wrong with the structure of an override in the format of policy files.
pub(crate) fn check_override(written: &Value) -> Vec<(Place, String)> {
    structure::check(written.clone(), &format::override_schema()).mistakes
}

/// Reads YAML of another kind with the same bounds: the configuration file.
pub(crate) fn read_yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let document = yaml::read(text).map_err(|error| format!("line {}: {}", error.line, error.message))?;
    serde_json::from_value(document.value).map_err(|error| error.to_string())
}

fn check(text: &str) -> Result<LoadedPolicy, Vec<PolicyError>> {
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(vec![at_start(format!("is too large; a policy file has at most {MAX_FILE_BYTES} bytes"))]);
    }
    let yaml::Document { value, lines } = yaml::read(text).map_err(|error| vec![error])?;
    let checked = structure::check(value, &format::schema());
    let mut errors = checked.mistakes.clone();
    // What is left after a structural mistake may be checked further, if it can still be read.
    match serde_json::from_value::<format::PolicyFile>(checked.rest.clone()) {
        Ok(file) => match compile(file, &checked.rest) {
            Ok(loaded) if errors.is_empty() => return Ok(loaded),
            Ok(_) => {}
            Err(found) => {
                let known: HashSet<Place> = errors.iter().map(|(place, _)| place.clone()).collect();
                let found = found.into_iter().map(|(place, message)| (checked.original(&place), message));
                errors.extend(found.filter(|(place, _)| !known.contains(place)));
            }
        },
        Err(error) if errors.is_empty() => errors.push((Place::root(), format!("cannot be understood: {error}"))),
        Err(_) => {}
    }
    Err(errors
        .into_iter()
        .map(|(place, message)| PolicyError { line: lines.line_of(&place), place, message })
        .collect())
}

fn compile(file: format::PolicyFile, written: &Value) -> Result<LoadedPolicy, Vec<(Place, String)>> {
    let format::PolicyFile { bootstrap, dialect, dialects, uploads, self_service, promotions, keys, .. } = file.clone();
    let speaks_venice = dialect.as_ref().is_some_and(|name| name.0 == "venice");
    let self_service = self_service.unwrap_or(if speaks_venice { SelfService::Venice } else { SelfService::Plain });
    // Names are checked against what the file says of them, also where some of that is wrong.
    let (policy, wrong) = Policy::compile_in_part(&draft::of(file));
    let wrong = wrong.into_iter().map(|error| (error.place, error.problem.to_string())).collect::<Vec<_>>();
    let bootstrap = bootstrap::check(&bootstrap, &written["bootstrap"]["accounts"], &policy);
    let dialects = Dialects::of(&dialects, dialect.as_ref().map(|name| &*name.0), &policy);
    let uploads = Uploads::of(&uploads, &policy);
    let accounts = AccountRules::of(&keys, promotions, &policy);
    match (bootstrap, accounts, dialects, uploads) {
        (Ok(bootstrap), Ok(accounts), Ok(dialects), Ok(uploads)) if wrong.is_empty() => {
            let (policy, fingerprint) = (Arc::new(policy), fingerprint(written));
            Ok(LoadedPolicy { policy, fingerprint, bootstrap, accounts, dialects, uploads, self_service })
        }
        (bootstrap, accounts, dialects, uploads) => {
            let mistakes = [Some(wrong), bootstrap.err(), accounts.err(), dialects.err(), uploads.err()];
            Err(mistakes.into_iter().flatten().flatten().collect())
        }
    }
}

fn fingerprint(written: &Value) -> u64 {
    let hash = Sha256::digest(written.to_string());
    hash.iter().take(6).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn at_start(message: String) -> PolicyError {
    PolicyError { line: 1, place: Place::root(), message }
}
