//! A policy file, checked and compiled.

use std::{collections::HashSet, sync::Arc};

use indexmap::{IndexMap, map::Entry};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    dialect::Dialects,
    file::{AccountRules, BootstrapAccount, PolicyError, PolicyErrors, bootstrap, placed, structure, yaml},
    format::{self, ListingFormat, PolicyFile},
    policy::{Compiled, Mistake, Place, Policy},
    redaction::{self, Redactor},
    uploads::Uploads,
};

/// Maximum size of a policy file, in bytes.
const MAX_POLICY_BYTES: usize = 1 << 20;

/// A policy file without mistakes, compiled.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// The compiled policy.
    pub policy: Arc<Policy>,
    /// 48 bits of the SHA-256 of the file's content, without comments and layout. Nodes with the same policy have the same
    /// fingerprint.
    pub fingerprint: u64,
    /// The accounts and keys that the file defines.
    pub bootstrap: Vec<BootstrapAccount>,
    /// The rules for accounts in the store.
    pub accounts: AccountRules,
    /// The dialects in which its decisions are rendered.
    pub dialects: Dialects,
    /// The limits of uploads.
    pub uploads: Uploads,
    /// The format in which its callers read their limits.
    pub listing: ListingFormat,
    /// Warnings about valid but probably unintended content, such as quotas that no call ever reaches, in the order of
    /// the lines.
    pub warnings: Vec<PolicyError>,
}

impl LoadedPolicy {
    /// Checks and compiles the text of a policy file. `file` is its name in errors.
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
            .map(|place| Mistake::new(place, "contains the secret itself; a file may contain only its hash")),
    );
    // A file with structural mistakes is compiled without the wrong parts, to find more mistakes.
    match serde_json::from_value::<PolicyFile>(checked.rest.clone()) {
        Ok(file) => match compile(&file, &checked.rest) {
            Ok((mut loaded, warnings)) if errors.is_empty() => {
                loaded.warnings = located(warnings, &redactor, &lines);
                return Ok(loaded);
            }
            Ok(_) => {}
            Err(found) => {
                let known: HashSet<Place> = errors.iter().map(|mistake| mistake.place.clone()).collect();
                let found =
                    found.into_iter().map(|Mistake { place, message }| Mistake::new(checked.original(&place), message));
                errors.extend(found.filter(|mistake| !known.contains(&mistake.place)));
            }
        },
        Err(error) if errors.is_empty() => {
            errors.push(Mistake::new(Place::root(), format!("cannot be understood: {error}")));
        }
        Err(_) => {}
    }
    Err(located(errors, &redactor, &lines))
}

/// Mistakes or warnings with their lines, in the order of the lines. One that YAML aliases repeat is reported once.
fn located(found: Vec<Mistake>, redactor: &Redactor, lines: &yaml::LineNumbers) -> Vec<PolicyError> {
    let mut once: IndexMap<_, (Mistake, Vec<Place>)> = IndexMap::new();
    for (at, mistake) in found.into_iter().enumerate() {
        let start = lines.start_of(&mistake.place).ok_or(at);
        match once.entry((start, mistake.message.clone())) {
            Entry::Vacant(entry) => {
                entry.insert((mistake, Vec::new()));
            }
            Entry::Occupied(mut entry) => entry.get_mut().1.push(mistake.place),
        }
    }
    let found = once.into_values().map(|(Mistake { place, message }, repeated)| {
        let message = if repeated.is_empty() { message } else { format!("{message}; {}", repetition(&repeated)) };
        let redacted = placed(&redactor.place(&place), &redactor.message(&message));
        PolicyError { line: lines.line_of(&place), place, message, redacted }
    });
    let mut found: Vec<PolicyError> = found.collect();
    found.sort_by_key(|found| found.line);
    found
}

/// Names the places where an alias repeats a mistake.
fn repetition(places: &[Place]) -> String {
    let mut names: Vec<String> = places.iter().take(3).map(Place::to_string).collect();
    if places.len() > names.len() {
        names.push(format!("{} more places", places.len() - names.len()));
    }
    format!("an alias repeats it in {}", names.join(", "))
}

/// The compiled file, and its warnings.
type CompiledFile = (LoadedPolicy, Vec<Mistake>);

fn compile(file: &PolicyFile, written: &Value) -> Result<CompiledFile, Vec<Mistake>> {
    let dialect = file.dialect.as_ref().map(|name| &*name.0);
    // Even if a part of the policy is wrong, the other sections are checked against its names.
    let Compiled { policy, errors: wrong, warnings } = Policy::compile_in_part(file);
    let wrong: Vec<Mistake> = wrong.into_iter().map(Mistake::from).collect();
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
            Ok((loaded, warnings.into_iter().map(Mistake::from).collect()))
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
