//! A policy file, checked and compiled: everything that a node needs of it.

use std::{collections::HashSet, sync::Arc};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    dialect::Dialects,
    file::{AccountRules, BootstrapAccount, PolicyError, PolicyErrors, bootstrap, placed, structure, yaml},
    format::{self, ListingFormat, PolicyFile},
    policy::{CompileError, Compiled, Place, Policy},
    redaction::{self, Redactor},
    uploads::Uploads,
};

/// The most bytes that a policy file may have.
const MAX_POLICY_BYTES: usize = 1 << 20;

/// A policy file without mistakes, compiled.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// The compiled policy.
    pub policy: Arc<Policy>,
    /// 48 bits of the SHA-256 of the file's content, without its comments and its layout. Nodes with the same policy have
    /// the same fingerprint.
    pub fingerprint: u64,
    /// The accounts and keys that the file brings along.
    pub bootstrap: Vec<BootstrapAccount>,
    /// The rules for accounts in the store.
    pub accounts: AccountRules,
    /// How its decisions are rendered.
    pub dialects: Dialects,
    /// How large uploads may be.
    pub uploads: Uploads,
    /// The format in which its callers read their limits.
    pub listing: ListingFormat,
    /// What is valid, but probably not intended, such as quotas that no call ever reaches; in the order of the lines.
    pub warnings: Vec<PolicyError>,
}

impl LoadedPolicy {
    /// Checks the text of a policy file. `file` only names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, PolicyErrors> {
        check(text).map_err(|errors| PolicyErrors { file: file.to_owned(), errors, stuck: false })
    }
}

fn check(text: &str) -> Result<LoadedPolicy, Vec<PolicyError>> {
    if text.len() > MAX_POLICY_BYTES {
        return Err(vec![at_start(format!("is too large; a policy file has at most {MAX_POLICY_BYTES} bytes"))]);
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
        secrets
            .into_iter()
            .map(|place| (place, "contains the secret itself; a file may contain only its hash".to_owned())),
    );
    // The rest of a file with structural mistakes is checked too, if it can still be read.
    match serde_json::from_value::<PolicyFile>(checked.rest.clone()) {
        Ok(file) => match compile(&file, &checked.rest) {
            Ok((mut loaded, warnings)) if errors.is_empty() => {
                loaded.warnings = located(warnings, &redactor, &lines);
                return Ok(loaded);
            }
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
    Err(located(errors, &redactor, &lines))
}

/// Mistakes or warnings with their lines, in the order of the lines.
fn located(found: Vec<(Place, String)>, redactor: &Redactor, lines: &yaml::Lines) -> Vec<PolicyError> {
    let found = found.into_iter().map(|(place, message)| {
        let redacted = placed(&redactor.place(&place), &redactor.message(&message));
        PolicyError { line: lines.line_of(&place), place, message, redacted }
    });
    let mut found: Vec<PolicyError> = found.collect();
    found.sort_by_key(|found| found.line);
    found
}

/// The compiled file, and its warnings.
type CompiledFile = (LoadedPolicy, Vec<(Place, String)>);

fn compile(file: &PolicyFile, written: &Value) -> Result<CompiledFile, Vec<(Place, String)>> {
    let dialect = file.dialect.as_ref().map(|name| &*name.0);
    // Names are checked against the policy also where a part of it is wrong.
    let Compiled { policy, errors: wrong, warnings } = Policy::compile_in_part(file);
    let texts = |found: Vec<CompileError>| {
        found.into_iter().map(|error| (error.place, error.problem.to_string())).collect::<Vec<_>>()
    };
    let wrong = texts(wrong);
    let bootstrap = bootstrap::check(&file.bootstrap, &written["bootstrap"]["accounts"], &policy);
    let dialects = Dialects::of(&file.dialects, dialect, &policy);
    let uploads = Uploads::of(&file.uploads, &policy);
    let accounts = AccountRules::of(&file.keys, &file.promotions, &policy);
    match (bootstrap, accounts, dialects, uploads) {
        (Ok(bootstrap), Ok(accounts), Ok(dialects), Ok(uploads)) if wrong.is_empty() => {
            let (policy, fingerprint) = (Arc::new(policy), fingerprint(written));
            let listing = file.self_service.unwrap_or_else(|| dialects.listing());
            let loaded = LoadedPolicy {
                policy,
                fingerprint,
                bootstrap,
                accounts,
                dialects,
                uploads,
                listing,
                warnings: Vec::new(),
            };
            Ok((loaded, texts(warnings)))
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

#[cfg(test)]
mod tests;
