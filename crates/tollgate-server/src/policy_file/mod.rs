//! Policy files: YAML in, a compiled policy and its bootstrap accounts out, or every mistake at once
//! with its line and what would be right.

use std::{collections::HashSet, fmt, path::Path, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;
use sha2::{Digest, Sha256};
use tollgate_core::policy::{Place, Policy, draft::OverrideDraft};

use crate::{
    dialect::Dialects,
    files::{self, FileError, MAX_FILE_BYTES},
    redaction::{self, Redactor, shown_path},
    uploads::Uploads,
};

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
    /// Whether the file system did not answer, so that it is not known what the file says.
    pub stuck: bool,
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
    /// The place and the message without what may be a secret in the wrong place, for logs.
    pub redacted: String,
}

impl PolicyError {
    /// A mistake whose place and message repeat nothing of the file.
    pub(crate) fn new(line: usize, place: Place, message: String) -> Self {
        let redacted = placed(&place, &message);
        Self { line, place, message, redacted }
    }
}

fn placed(place: &impl fmt::Display, message: &str) -> String {
    let place = place.to_string();
    if place.is_empty() { message.to_owned() } else { format!("{place}: {message}") }
}

impl PolicyErrors {
    /// A line for each mistake, as its `Display` has it, without what may be a secret in the wrong place.
    pub(crate) fn redacted(&self) -> String {
        let file = shown_path(Path::new(&self.file));
        let lines = self.errors.iter().map(|error| format!("{file}:{}: {}", error.line, error.redacted));
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for PolicyErrors {
    /// A line for each mistake: `venice.yaml:12: tiers.paid.quotas[0].limit: must be …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, PolicyError { line, place, message, .. }) in self.errors.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{line}: {}", self.file, placed(place, message))?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// Reads and checks the policy file at `path`.
pub fn load(path: &Path) -> Result<LoadedPolicy, PolicyErrors> {
    match files::read_text(path, MAX_FILE_BYTES) {
        Ok(text) => parse(&path.display().to_string(), &text),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// That a file, or a folder of files, cannot be read.
pub(crate) fn unreadable(path: &Path, error: &FileError) -> PolicyErrors {
    let errors = vec![at_start(error.to_string())];
    PolicyErrors { file: path.display().to_string(), errors, stuck: matches!(error, FileError::NoAnswer) }
}

/// Checks the text of a policy file. `file` only names it in errors.
pub fn parse(file: &str, text: &str) -> Result<LoadedPolicy, PolicyErrors> {
    check(text).map_err(|mut errors| {
        errors.sort_by_key(|error| error.line);
        PolicyErrors { file: file.to_owned(), errors, stuck: false }
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

/// Reads YAML that somebody typed, or that is part of the program, with the same bounds.
pub(crate) fn read_yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let document = yaml::read(text, "it must hold something")
        .map_err(|error| format!("line {}: {}", error.line, error.message))?;
    serde_json::from_value(document.value).map_err(|error| error.to_string())
}

/// Reads a YAML file of another kind with the same bounds: a map with these keys, some of them perhaps within others. What
/// stands in the file is not repeated, as it may be a secret in the wrong place. `what` says what the file should be.
pub(crate) fn read_map<T: DeserializeOwned>(
    text: &str,
    what: &str,
    is_key: impl Fn(&str) -> bool,
) -> Result<T, String> {
    let document = yaml::read(text, what).map_err(|error| format!("line {}: {}", error.line, error.message))?;
    // A struct could be read from a list too, field by field.
    if !document.value.is_object() {
        return Err(format!("line 1: is no map; {what}"));
    }
    serde_path_to_error::deserialize(document.value).map_err(|error| {
        let known = |segment: &&Segment| match segment {
            Segment::Map { key } | Segment::Enum { variant: key } => is_key(key),
            Segment::Seq { .. } | Segment::Unknown => true,
        };
        let place = error.path().iter().take_while(known).fold(String::new(), |place, segment| match segment {
            Segment::Map { key } if !place.is_empty() => format!("{place}.{key}"),
            segment => format!("{place}{segment}"),
        });
        let said = error.into_inner().to_string();
        let said = match said.rsplit_once(", expected ") {
            Some((found, expected)) if found.starts_with("unknown field") => {
                let name = found.strip_prefix("unknown field `").and_then(|name| name.strip_suffix('`'));
                let name = redaction::shown(name.unwrap_or_default());
                format!("unknown field `{name}`, expected {expected}")
            }
            Some((_, expected)) => format!("must be {expected}"),
            // These repeat nothing.
            None if ["missing field ", "must be ", "invalid socket address"].iter().any(|s| said.starts_with(s)) => {
                said
            }
            None => "is not right here".to_owned(),
        };
        placed(&place, &said)
    })
}

fn check(text: &str) -> Result<LoadedPolicy, Vec<PolicyError>> {
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(vec![at_start(format!("is too large; a policy file has at most {MAX_FILE_BYTES} bytes"))]);
    }
    let what = "a policy is a map with the keys `version`, `domain`, …";
    let yaml::Document { value, lines } = yaml::read(text, what).map_err(|error| vec![error])?;
    let schema = format::schema();
    let mut redactor = Redactor::of(&value, &schema);
    let secrets = redaction::secrets_in(&value);
    let checked = structure::check(value, &schema);
    redactor.add(&checked.wrong);
    let mut errors = checked.mistakes.clone();
    errors.extend(
        secrets.into_iter().map(|place| (place, "holds a secret itself; only its hash may stand in a file".to_owned())),
    );
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
        .map(|(place, message)| {
            let redacted = placed(&redactor.place(&place), &redactor.message(&message));
            PolicyError { line: lines.line_of(&place), place, message, redacted }
        })
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
    PolicyError::new(1, Place::root(), message)
}
