//! Reads policy files: YAML with line numbers, the check against the schema, and the sections about accounts. Every
//! mistake is reported with its place, its line, and a correction.

use std::{fmt, path::Path};

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::{
    format,
    policy::{Mistake, Place, Step},
    redaction::{self, shown_path},
};

mod accounts;
pub(crate) mod bootstrap;
pub(crate) mod structure;
pub(crate) mod yaml;

pub use accounts::AccountRules;
pub use bootstrap::{BootstrapAccount, BootstrapKey, parse_time, segment_problem};

/// All mistakes in a policy file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors {
    /// The name of the file.
    pub file: String,
    /// The mistakes; at least one.
    pub errors: Vec<PolicyError>,
    /// Whether the file system did not answer, so that the content of the file is not known.
    pub stuck: bool,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    /// The line, counted from 1.
    pub line: usize,
    /// Where in the structure of the file.
    pub place: Place,
    /// The mistake, and how to correct it.
    pub message: String,
    /// The place and the message for logs, without text that may be a secret.
    pub redacted: String,
}

impl PolicyError {
    /// A mistake whose place and message contain no text of the file.
    pub fn new(line: usize, place: Place, message: String) -> Self {
        let redacted = placed(&place, &message);
        Self { line, place, message, redacted }
    }
}

pub(crate) fn placed(place: &impl fmt::Display, message: &str) -> String {
    let place = place.to_string();
    if place.is_empty() { message.to_owned() } else { format!("{place}: {message}") }
}

impl PolicyErrors {
    /// A line for each mistake, like its `Display`, without text that may be a secret.
    pub fn redacted(&self) -> String {
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

/// Reads an override in the format of policy files. `None` if it cannot be read.
pub fn read_override(written: &Value) -> Option<format::Override> {
    serde_json::from_value(written.clone()).ok()
}

/// The mistakes in the structure of an override in the format of policy files.
pub fn check_override(written: &Value) -> Vec<Mistake> {
    structure::check(written.clone(), &format::override_schema()).mistakes
}

/// Reads YAML from a command line, or from the program itself, with the same bounds.
pub fn read_yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let document = yaml::read(text, "it must hold something")
        .map_err(|error| format!("line {}: {}", error.line, error.message))?;
    serde_json::from_value(document.value).map_err(|error| error.to_string())
}

/// Reads a YAML file of another kind with the same bounds: a map with these keys, perhaps nested. Errors do not repeat
/// the contents of the file, which may be a secret in the wrong place. `what` describes the expected file.
pub fn read_map<T: DeserializeOwned>(text: &str, what: &str, is_key: impl Fn(&str) -> bool) -> Result<T, String> {
    let document = yaml::read(text, what).map_err(|error| format!("line {}: {}", error.line, error.message))?;
    // A struct could be read from a list too, field by field.
    if !document.value.is_object() {
        return Err(format!("line 1: is no map; {what}"));
    }
    let yaml::Document { value, lines } = document;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let steps = error.path().iter().filter_map(|segment| match segment {
            Segment::Map { key } | Segment::Enum { variant: key } => Some(Step::Key(key.clone())),
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Unknown => None,
        });
        let line = lines.line_of(&steps.collect());
        let known = |segment: &&Segment| match segment {
            Segment::Map { key } | Segment::Enum { variant: key } => is_key(key),
            Segment::Seq { .. } | Segment::Unknown => true,
        };
        let place = error.path().iter().take_while(known).fold(String::new(), |place, segment| match segment {
            Segment::Map { key } if !place.is_empty() => format!("{place}.{key}"),
            segment => format!("{place}{segment}"),
        });
        let message = error.into_inner().to_string();
        let message = match message.rsplit_once(", expected ") {
            Some((found, expected)) if found.starts_with("unknown field") => {
                let name = found.strip_prefix("unknown field `").and_then(|name| name.strip_suffix('`'));
                let name = redaction::shown(name.unwrap_or_default());
                format!("unknown field `{name}`, expected {expected}")
            }
            Some((_, "a sequence")) => "must be a list".to_owned(),
            Some((_, expected)) => format!("must be {expected}"),
            // These messages contain no text of the file.
            None if ["missing field ", "must be ", "invalid socket address"]
                .iter()
                .any(|start| message.starts_with(start)) =>
            {
                message
            }
            None => "is not right here".to_owned(),
        };
        format!("line {line}: {}", placed(&place, &message))
    })
}
