//! Redaction: removes possible secrets from messages about a file, for the log and for administrators.
//!
//! Somebody may write a secret where its hash, a name or a path belongs. So any text that may be a secret is replaced by
//! its length. Names that look like words are shown, because they help to find the mistake. `tollgate check-policy`
//! shows everything, because its user has the file.

use std::{borrow::Cow, collections::HashSet, path::Path};

use serde_json::Value;
use tollgate_core::api_key::KeyHash;

use crate::{
    api_key,
    policy::{Place, Step},
};

/// Texts of this length or more may be secrets. Tokens and API keys are longer.
const SECRET_LENGTH: usize = 20;
/// Texts of this length or less are shown, because they reveal no secret.
const SHOWN_LENGTH: usize = 3;
/// The prefixes of secrets and of their hashes.
const SECRET_PREFIXES: [&str; 9] = ["tg_", "tgt_", "sk-", "sk_", "pk-", "pk_", "rk_", "sha256:", "bearer"];
/// Keys whose values may be secrets. These values are never shown.
const SECRET_KEYS: [&str; 6] = ["hash", "file", "secret", "token", "password", "key"];
/// Maximum number of hidden texts that are searched for in messages. If a file has more, its messages are not shown.
const MAX_TEXTS: usize = 1_000;

/// Whether this is certainly a secret: a token or an API key in Tollgate's format.
pub fn looks_issued(text: &str) -> bool {
    let random = |text: &str| text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    text.strip_prefix("tgt_").is_some_and(random) || (text.starts_with("tg_") && api_key::is_plausible(text))
}

/// The places of secrets in a file: tokens and API keys in Tollgate's format, and texts whose hash is in the same file.
/// If a key of a map is a secret, this is the place of the map.
pub fn secrets_in(file: &Value) -> Vec<Place> {
    let mut hashes = HashSet::new();
    each_text(file, "", &mut |text, _| hashes.extend(KeyHash::parse(text).map(KeyHash::bytes)));
    let is_secret =
        |text: &str| looks_issued(text) || (!hashes.is_empty() && hashes.contains(&KeyHash::of(text).bytes()));
    let mut places = Vec::new();
    find(file, &Place::root(), &is_secret, &mut places);
    places
}

fn find(value: &Value, place: &Place, is_secret: &impl Fn(&str) -> bool, places: &mut Vec<Place>) {
    match value {
        Value::String(text) if is_secret(text) => places.push(place.clone()),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| find(item, &place.at(at), is_secret, places));
        }
        Value::Object(map) => {
            if map.keys().any(|key| is_secret(key)) {
                places.push(place.clone());
            }
            map.iter().for_each(|(key, value)| find(value, &place.at(&**key), is_secret, places));
        }
        _ => {}
    }
}

/// Whether a text may be a secret: it is long, has the prefix of a secret, or does not look like words.
fn may_be_secret(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    text.chars().count() >= SECRET_LENGTH
        || SECRET_PREFIXES.iter().any(|beginning| lower.starts_with(beginning))
        || !text.split(|c: char| !c.is_alphanumeric()).all(is_word)
}

/// The kind of a character.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CharacterKind {
    Digit,
    Capital,
    Letter,
}

/// Whether letters and digits look like a word, a number or a version, and not like random characters.
fn is_word(text: &str) -> bool {
    let kinds: Vec<CharacterKind> = text
        .chars()
        .map(|c| match c {
            _ if c.is_numeric() => CharacterKind::Digit,
            _ if c.is_uppercase() => CharacterKind::Capital,
            _ => CharacterKind::Letter,
        })
        .collect();
    let changes = kinds
        .windows(2)
        .filter(|pair| pair[0] != pair[1] && pair != &[CharacterKind::Capital, CharacterKind::Letter])
        .count();
    let digits = kinds.iter().filter(|kind| **kind == CharacterKind::Digit).count();
    changes <= 2 && (digits <= 4 || (digits == kinds.len() && digits <= 8))
}

/// The text, or its length if it may be a secret.
pub fn shown(text: &str) -> Cow<'_, str> {
    if may_be_secret(text) { length_of(text).into() } else { text.into() }
}

/// The path, without the parts of it that may be secrets.
pub fn shown_path(path: &Path) -> String {
    let parts = path.iter().map(|part| {
        let part = part.to_string_lossy();
        let name = part.split('.').next().unwrap_or_default();
        let is_secret = part.len() >= SECRET_LENGTH && may_be_secret(name) || has_secret_prefix(&part);
        if is_secret { length_of(&part).into() } else { part }
    });
    parts.map(Cow::into_owned).collect::<std::path::PathBuf>().display().to_string()
}

/// A place in a file, without the keys that may be secrets.
pub fn shown_place(place: &Place) -> Place {
    let step = |step: &Step| match step {
        Step::Key(key) => Step::Key(shown(key).into_owned()),
        Step::Index(index) => Step::Index(*index),
    };
    place.steps().iter().map(step).collect()
}

fn has_secret_prefix(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    SECRET_PREFIXES.iter().any(|beginning| lower.starts_with(beginning))
}

fn length_of(text: &str) -> String {
    format!("<{} characters>", text.chars().count())
}

/// Hides the texts of one file that may be secrets.
pub struct Redactor {
    /// The words of the format, which are not secrets.
    vocabulary: HashSet<String>,
    hidden: HashSet<String>,
}

impl Redactor {
    /// The redactor for this file, whose format has this schema.
    pub fn of(file: &Value, schema: &Value) -> Self {
        let mut vocabulary = HashSet::new();
        each_text(schema, "", &mut |text, _| {
            vocabulary.insert(text.to_owned());
        });
        let mut redactor = Self { vocabulary, hidden: HashSet::new() };
        each_text(file, "", &mut |text, key| {
            if may_be_secret(text) || SECRET_KEYS.contains(&key) {
                redactor.hide(text);
            }
        });
        redactor
    }

    /// Hides these values too, whatever they look like, because they are wrong.
    pub fn add(&mut self, wrong: &[Value]) {
        for value in wrong {
            match value {
                // Lists and maps may contain correct values.
                Value::Array(_) | Value::Object(_) => {}
                value => each_text(value, "", &mut |text, _| self.hide(text)),
            }
        }
    }

    fn hide(&mut self, text: &str) {
        if text.chars().count() > SHOWN_LENGTH && !self.vocabulary.contains(text) {
            self.hidden.insert(text.to_owned());
        }
    }

    /// The place, with hidden parts replaced.
    pub fn place(&self, place: &Place) -> Place {
        let step = |step: &Step| match step {
            Step::Key(key) if self.hidden.contains(key) => Step::Key(length_of(key)),
            step => step.clone(),
        };
        place.steps().iter().map(step).collect()
    }

    /// The message, with hidden parts replaced.
    pub fn message(&self, message: &str) -> String {
        if self.hidden.len() > MAX_TEXTS {
            return "is wrong; run `tollgate check-policy` for the details".to_owned();
        }
        let mut hidden: Vec<&String> = self.hidden.iter().collect();
        // The longest first, because one may be a part of another.
        hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
        hidden.iter().fold(message.to_owned(), |message, text| {
            // Messages contain a text as it is, quoted, or shortened.
            let start: String = text.chars().take(64).collect();
            let forms = [text.as_str(), &escaped(text), &start, &escaped(&start)].map(str::to_owned);
            forms.iter().fold(message, |message, form| {
                if message.contains(form.as_str()) { message.replace(form.as_str(), &length_of(text)) } else { message }
            })
        })
    }
}

/// The text with the escapes of a quoted text, without the quotes.
fn escaped(text: &str) -> String {
    let quoted = format!("{text:?}");
    quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default().to_owned()
}

/// Calls `with` for every text, every long number and every key in the value, with the key that each belongs to.
fn each_text(value: &Value, key: &str, with: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => {
            let number = number.to_string();
            // Short numbers, such as limits, are not secrets.
            if number.len() > 8 {
                with(&number, key);
            }
        }
        Value::String(text) => with(text, key),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, key, with)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            with(key, "");
            each_text(value, key, with);
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_shown_and_possible_secrets_are_not() {
        for name in [
            "venice",
            "llama-3.3-70b",
            "txt2img",
            "text/small",
            "Venice AI",
            "gpt-4o-mini",
            "OpenAI",
            "2025-01-20",
            "米",
        ] {
            assert_eq!(shown(name), name);
        }
        for secret in [
            "tgt_x",
            "sk-short",
            "Bearer x",
            "9f86d081884c",
            "aB3dE6gH9j",
            "super-secret-token-of-words",
            "123456789012",
            "xKqLmZpWvRtYbNcD",
        ] {
            assert_eq!(shown(secret), format!("<{} characters>", secret.len()));
        }
        assert_eq!(shown_path(Path::new("/etc/tollgate/tokens.yaml")), "/etc/tollgate/tokens.yaml");
        assert_eq!(shown_path(Path::new("/etc/tgt_abc/tg_1.yaml")), "/etc/<7 characters>/<9 characters>");
        assert!(looks_issued(&api_key::generate()));
        assert!(!looks_issued("tgt_integration-token") && !looks_issued("tg_x"));
    }

    #[test]
    fn messages_contain_neither_secrets_nor_misplaced_values() {
        let file =
            json!({ "names": { "plain": 1, "qT7rB2xW9": "words" }, "hash": "swordfish", "long": "é\"".repeat(50) });
        let mut redactor = Redactor::of(&file, &json!({ "enum": ["words"] }));
        redactor.add(&[json!("swordfish"), json!("words"), json!(123_456_789)]);
        let long = "é\"".repeat(50);
        let said = format!("\"plain\" qT7rB2xW9 \"words\" \"swordfish\" 123456789 {long:?} {:?}…", &long[..96]);
        assert_eq!(
            redactor.message(&said),
            "\"plain\" <9 characters> \"words\" \"<9 characters>\" <9 characters> \"<100 characters>\" \"<100 characters>\"…"
        );
        assert_eq!(redactor.place(&Place::root().at("names").at("qT7rB2xW9")).to_string(), "names.\"<9 characters>\"");
    }
}
