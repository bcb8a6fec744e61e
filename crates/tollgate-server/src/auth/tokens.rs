//! Files of tokens: who is known by which token, and where it may act.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use rand::{Rng, distr::Alphanumeric};
use serde::Deserialize;

use super::{Grant, Reach};
use crate::{
    key::{KeyHash, MAX_SECRET_BYTES},
    policy_file::{self, MAX_FILE_BYTES},
    reload::{Reload, folder_of},
    telemetry::Telemetry,
};

/// The most tokens of a file: each one that is presented is compared with all.
const MAX_TOKENS: usize = 1_000;
/// The shortest token that a file may hold in plain, in bytes; 32 random letters and digits are 190 bits.
const MIN_TOKEN_BYTES: usize = 32;
/// The fewest different characters of such a token: random ones have more, and typed ones fewer.
const MIN_DIFFERENT: usize = 10;
const PREFIX: &str = "tgt_";
const RANDOM: usize = 43;

/// A new token of 256 random bits.
pub(crate) fn generate() -> String {
    PREFIX.chars().chain(rand::rng().sample_iter(Alphanumeric).take(RANDOM).map(char::from)).collect()
}

/// A file of tokens, as it was when it last held.
pub(crate) struct TokenFile {
    what: &'static str,
    path: PathBuf,
    telemetry: Arc<Telemetry>,
    current: ArcSwap<Tokens>,
    last_failure: Mutex<Option<String>>,
}

#[derive(Default)]
struct Tokens {
    entries: Vec<(KeyHash, Grant)>,
    /// Files that hold a token each.
    secrets: Vec<PathBuf>,
}

impl TokenFile {
    /// Reads the file at `path`. `what` names it for metrics and logs.
    pub(crate) fn load(what: &'static str, path: &Path, telemetry: Arc<Telemetry>) -> Result<Self, String> {
        let current = ArcSwap::from_pointee(Tokens::read(path)?);
        Ok(Self { what, path: path.to_owned(), telemetry, current, last_failure: Mutex::new(None) })
    }

    /// The grant of whoever presents `token`.
    ///
    /// Compares with all entries, so that the time tells nothing about which ones there are.
    pub(super) fn find(&self, token: &str) -> Option<Grant> {
        if token.is_empty() || token.len() > MAX_SECRET_BYTES {
            return None;
        }
        let hash = KeyHash::of(token);
        let tokens = self.current.load();
        let look = |found, (known, grant)| if hash.matches(known) { Some(grant) } else { found };
        tokens.entries.iter().map(|(known, grant)| (known, grant)).fold(None, look).cloned()
    }

    /// What was wrong with the file when it was last looked at, if it was.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().ok()?.clone()
    }
}

impl Reload for TokenFile {
    fn what(&self) -> &'static str {
        self.what
    }

    fn folders(&self) -> Vec<PathBuf> {
        std::iter::once(&self.path).chain(&self.current.load().secrets).map(|path| folder_of(path)).collect()
    }

    fn reload(&self) -> Result<(), String> {
        let read = Tokens::read(&self.path);
        self.telemetry.credentials_reloaded(self.what, read.is_ok());
        if let Ok(mut last_failure) = self.last_failure.lock() {
            *last_failure = read.as_ref().err().cloned();
        }
        self.current.store(Arc::new(read?));
        Ok(())
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    tokens: Vec<WrittenToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenToken {
    name: String,
    hash: Option<String>,
    file: Option<PathBuf>,
    domains: WrittenDomains,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "domains: must be `all` or a list of names")]
enum WrittenDomains {
    All(AllDomains),
    Only(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AllDomains {
    All,
}

impl Tokens {
    fn read(path: &Path) -> Result<Self, String> {
        let file = path.display();
        let text = read_bounded(path, MAX_FILE_BYTES).map_err(|error| format!("{file}: {error}"))?;
        let written: Written = policy_file::read_yaml(&text).map_err(|error| format!("{file}: {error}"))?;
        let mut wrong = Vec::new();
        let mut tokens = Self::default();
        if written.tokens.len() > MAX_TOKENS {
            wrong.push(format!("tokens: are more than {MAX_TOKENS}"));
        }
        let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
        for (at, token) in written.tokens.into_iter().take(MAX_TOKENS).enumerate() {
            let mut mistake = |field: &str, said: &str| wrong.push(format!("tokens[{at}].{field}: {said}"));
            if token.name.is_empty() || token.name.len() > 128 || token.name.contains(char::is_control) {
                mistake("name", "must have 1 to 128 bytes and no control characters");
            } else if !names.insert(token.name.clone()) {
                mistake("name", "is the name of another token; each needs its own");
            }
            let hash = match (&token.hash, &token.file) {
                (Some(hash), None) => {
                    let hash = KeyHash::parse(hash);
                    if hash.is_none() {
                        mistake("hash", "must be `sha256:` and 64 hexadecimal digits");
                    }
                    hash
                }
                (None, Some(secret)) => {
                    // As seen from the file that names it.
                    let secret = folder_of(path).join(secret);
                    let hash = plain(&secret);
                    tokens.secrets.push(secret);
                    hash.map_err(|error| mistake("file", &error)).ok()
                }
                _ => {
                    mistake("hash", "give the token as one of `hash` and `file`");
                    None
                }
            };
            let reach = match token.domains {
                WrittenDomains::All(AllDomains::All) => Reach::All,
                WrittenDomains::Only(domains) => {
                    if domains.is_empty() || domains.iter().any(String::is_empty) {
                        mistake("domains", "must be `all`, or name at least one domain");
                    }
                    Reach::Only(Arc::new(domains.into_iter().map(Into::into).collect::<BTreeSet<_>>()))
                }
            };
            let Some(hash) = hash else { continue };
            if !hashes.insert(hash.to_text()) {
                mistake("hash", "is the token of another entry; each needs its own");
            }
            tokens.entries.push((hash, Grant { name: token.name.into(), reach }));
        }
        if wrong.is_empty() {
            return Ok(tokens);
        }
        Err(wrong.into_iter().map(|wrong| format!("{file}: {wrong}")).collect::<Vec<_>>().join("\n"))
    }
}

/// The hash of the token that a file holds in plain, as a mounted secret does.
fn plain(path: &Path) -> Result<KeyHash, String> {
    let named = |said: &str| format!("{}: {said}", path.display());
    let text = read_bounded(path, 4 * MAX_SECRET_BYTES as u64).map_err(|error| named(&error))?;
    let token = text.trim_end_matches(['\r', '\n']);
    if token.len() < MIN_TOKEN_BYTES || token.len() > MAX_SECRET_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(named(&format!(
            "must hold one token of {MIN_TOKEN_BYTES} to {MAX_SECRET_BYTES} visible ASCII characters; \
             `tollgate generate-token` makes one"
        )));
    }
    if token.bytes().collect::<HashSet<_>>().len() < MIN_DIFFERENT {
        return Err(named("holds a token that is easy to guess; `tollgate generate-token` makes a good one"));
    }
    Ok(KeyHash::of(token))
}

fn read_bounded(path: &Path, most: u64) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() as u64 > most => Err(format!("is too large; it may have at most {most} bytes")),
        Ok(_) => Ok(text),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, secret: &str) -> Result<Tokens, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), secret).unwrap();
        let file = folder.path().join("tokens.yaml");
        std::fs::write(&file, text).unwrap();
        Tokens::read(&file)
    }

    #[test]
    fn every_mistake_is_said_with_its_place() {
        let good = generate();
        let hash = KeyHash::of(&good).to_text();
        let said = read(
            &format!(
                "tokens:\n\
                 - {{ name: a, hash: 'sha256:12', domains: all }}\n\
                 - {{ name: a, file: secret, domains: [] }}\n\
                 - {{ name: b, domains: all }}\n\
                 - {{ name: c, hash: '{hash}', domains: [x] }}\n\
                 - {{ name: d, hash: '{hash}', domains: [x] }}\n"
            ),
            "short",
        );
        let said = said.err().unwrap();
        for (at, field) in [(0, "hash"), (1, "name"), (1, "file"), (1, "domains"), (2, "hash"), (4, "hash")] {
            assert!(said.contains(&format!("tokens[{at}].{field}: ")), "{at} {field}: {said}");
        }
        assert_eq!(said.lines().count(), 6, "{said}");
        for (text, place) in [("tokens: [{ name: a }]", "domains"), ("token: []", "token"), ("\t", "line 1")] {
            let said = read(text, "").err().unwrap();
            assert!(said.contains(place) && said.contains("tokens.yaml"), "{said}");
        }
    }

    #[test]
    fn plain_tokens_must_be_hard_to_guess_and_are_read_without_their_last_newline() {
        let with = |secret: &str| read("tokens: [{ name: a, file: secret, domains: all }]", secret);
        let good = generate();
        let tokens = with(&format!("{good}\n")).unwrap();
        assert!(tokens.entries[0].0.matches(&KeyHash::of(&good)));
        for bad in ["", "short", &"a".repeat(64), "with a space in it that makes it no token at all", &"x1".repeat(400)]
        {
            let said = with(bad).err().unwrap();
            assert!(said.contains("tokens[0].file: "), "{said}");
            assert!(bad.is_empty() || !said.contains(bad), "the token is in the message: {said}");
        }
    }
}
