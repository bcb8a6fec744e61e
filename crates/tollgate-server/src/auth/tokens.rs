//! Files of tokens: the name and the domains of each token.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::{Rng, distr::Alphanumeric};
use serde::Deserialize;
use tollgate_core::{api_key::KeyHash, text::has_hidden};
use tollgate_policy::{
    api_key::MAX_SECRET_BYTES,
    file,
    redaction::{looks_issued, shown, shown_path},
};
use tollgate_service::{metrics::Metrics, scope::DomainScope};

use super::Grant;
use crate::{
    files::{self, Failure, MAX_FILE_BYTES, folder_of},
    listener::CertificateName,
    reload::{Reload, ReloadCell},
};

/// The name of the administrators' file in logs and metrics.
pub(super) const ADMINS: &str = "admin_tokens";
/// The most tokens of a file.
const MAX_TOKENS: usize = 1_000;
/// The shortest token that a file may hold in plain, in bytes; 32 random letters and digits are 190 bits.
const MIN_TOKEN_BYTES: usize = 32;
/// The fewest different characters of such a token: random ones have more, and typed ones fewer.
const MIN_DIFFERENT: usize = 10;
/// The keys of the file.
const KEYS: [&str; 9] = ["tokens", "name", "hash", "file", "certificate", "domains", "uri", "dns", "common_name"];
const BAD_HASH: &str = "must be `sha256:` and 64 hexadecimal digits";
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
    metrics: Arc<Metrics>,
    tokens: ReloadCell<Tokens>,
}

#[derive(Default)]
struct Tokens {
    entries: HashMap<[u8; 8], Vec<(KeyHash, Grant)>>,
    certificates: HashMap<CertificateName, Grant>,
    /// Files that hold a token each.
    secrets: Vec<PathBuf>,
}

impl TokenFile {
    /// Reads the file at `path`. `what` is its name in metrics and logs.
    pub(crate) fn load(what: &'static str, path: &Path, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        metrics.reload_stuck(what, false);
        let tokens = ReloadCell::new(Tokens::read(what, path)?);
        Ok(Self { what, path: path.to_owned(), metrics, tokens })
    }

    /// The grant of the holder of `token`. The time does not depend on the number of tokens.
    ///
    /// Hashes with the same first bytes are compared in constant time; which first bytes exist says nothing about a
    /// token.
    pub(super) fn find(&self, token: &str) -> Option<Grant> {
        if token.is_empty() || token.len() > MAX_SECRET_BYTES {
            return None;
        }
        let hash = KeyHash::of(token);
        let tokens = self.tokens.current();
        let candidates = tokens.entries.get(&hash.bucket())?;
        candidates.iter().find(|(known, _)| known.matches(&hash)).map(|(_, grant)| grant.clone())
    }

    /// Says which tokens name domains that are not among these.
    pub(super) fn warn_of_unknown_domains(&self, domains: &[&str]) {
        let tokens = self.tokens.current();
        let grants = tokens.entries.values().flatten().map(|(_, grant)| grant).chain(tokens.certificates.values());
        for grant in grants {
            for domain in grant.scope.names().filter(|name| !domains.contains(name)) {
                let (what, token, domain) = (self.what, &*shown(&grant.name), &*shown(domain));
                tracing::warn!(what, token, domain, "a token names a domain that no policy has");
            }
        }
    }

    /// The grant of the holder of a certificate with these names, the first that is known.
    pub(super) fn find_certificate(&self, names: &[CertificateName]) -> Option<Grant> {
        let tokens = self.tokens.current();
        names.iter().find_map(|name| tokens.certificates.get(name)).cloned()
    }
}

impl Reload for TokenFile {
    fn what(&self) -> &'static str {
        self.what
    }

    fn folders(&self) -> Vec<PathBuf> {
        std::iter::once(&self.path).chain(&self.tokens.current().secrets).map(|path| folder_of(path)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        // Also the secrets that are named and not there yet, or not good yet: they may come to be.
        let text = files::read_text(&self.path, MAX_FILE_BYTES).map_err(|error| error.to_string());
        let written = text.and_then(|text| parse(&text));
        let named = written.map(|written| written.tokens).unwrap_or_default();
        let secrets = named.into_iter().filter_map(|token| token.file).map(|secret| secret_of(&self.path, &secret));
        std::iter::once(self.path.clone()).chain(secrets).collect()
    }

    fn reload(&self) -> Result<(), Failure> {
        let read = Tokens::read(self.what, &self.path);
        self.metrics.credentials_reloaded(self.what, read.is_ok());
        self.metrics.reload_stuck(self.what, read.as_ref().is_err_and(|failure| failure.stuck));
        self.tokens.renew(read)
    }

    fn last_failure(&self) -> Option<Failure> {
        self.tokens.last_failure()
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with the key `tokens`")]
struct TokenFileContents {
    tokens: Vec<WrittenToken>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a map with the keys `name`, `domains`, and one of `hash`, `file` and `certificate`"
)]
struct WrittenToken {
    name: String,
    hash: Option<String>,
    file: Option<PathBuf>,
    certificate: Option<CertificateName>,
    domains: WrittenDomains,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be `all` or a list of names")]
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
    fn read(what: &str, path: &Path) -> Result<Self, Failure> {
        let file = shown_path(path);
        let contents = files::read(path, MAX_FILE_BYTES).map_err(|error| Failure::of(&file, &error))?;
        let open_to_all = contents.open_to_all;
        let text = contents.text().map_err(|error| Failure::of(&file, &error))?;
        let written = parse(&text).map_err(|error| format!("{file}: {error}"))?;
        let (mut wrong, mut stuck) = (Vec::new(), false);
        let mut open = if open_to_all { vec![file.clone()] } else { Vec::new() };
        let mut tokens = Self::default();
        if written.tokens.len() > MAX_TOKENS {
            wrong.push(format!("tokens: must be at most {MAX_TOKENS}"));
        }
        let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
        let mut plain_texts = Vec::new();
        for (at, token) in written.tokens.into_iter().take(MAX_TOKENS).enumerate() {
            let mut mistake = |field: &str, said: &str| wrong.push(format!("tokens[{at}].{field}: {said}"));
            if token.name.is_empty() || token.name.len() > 128 || has_hidden(&token.name) {
                mistake("name", "must have 1 to 128 bytes and no control or invisible characters");
            } else if !names.insert(token.name.clone()) {
                mistake("name", "is the name of another token; each needs its own");
            }
            plain_texts.push((at, "name", token.name.clone()));
            let scope = match token.domains {
                WrittenDomains::All(AllDomains::All) => DomainScope::All,
                WrittenDomains::Only(domains) => {
                    if domains.is_empty() || domains.iter().any(String::is_empty) {
                        mistake("domains", "must be `all`, or name at least one domain");
                    }
                    plain_texts.extend(domains.iter().map(|domain| (at, "domains", domain.clone())));
                    DomainScope::only(domains)
                }
            };
            let grant = Grant { name: token.name.into(), scope };
            let (field, hash) = match (&token.hash, &token.file, token.certificate) {
                (Some(hash), None, None) => ("hash", KeyHash::parse(hash).ok_or_else(|| BAD_HASH.to_owned())),
                (None, Some(secret), None) => {
                    let secret = secret_of(path, secret);
                    let hash = plain(&secret).map(|(hash, open_to_all)| {
                        open.extend(open_to_all.then(|| format!("{file}: tokens[{at}].file")));
                        hash
                    });
                    tokens.secrets.push(secret);
                    stuck |= hash.as_ref().is_err_and(|failure| failure.stuck);
                    ("file", hash.map_err(|failure| failure.text))
                }
                (None, None, Some(_)) if what == ADMINS => {
                    mistake("certificate", "is for services only; an administrator needs a token");
                    continue;
                }
                (None, None, Some(name)) => {
                    if name.text().is_empty() {
                        mistake("certificate", "must have a name");
                    } else if tokens.certificates.insert(name.canonical(), grant).is_some() {
                        mistake("certificate", "is the name of another entry; each needs its own");
                    }
                    continue;
                }
                _ => {
                    mistake("hash", "give one of `hash`, `file` and `certificate`");
                    continue;
                }
            };
            match hash {
                Err(error) => mistake(field, &error),
                Ok(hash) if !hashes.insert(hash.bytes()) => {
                    mistake(field, "is also the token of another entry; each entry needs its own");
                }
                Ok(hash) => tokens.entries.entry(hash.bucket()).or_default().push((hash, grant)),
            }
        }
        // They are written into logs.
        for (at, field, text) in plain_texts {
            if looks_issued(&text) || hashes.contains(&KeyHash::of(&text).bytes()) {
                wrong.push(format!(
                    "tokens[{at}].{field}: contains the secret itself; a file may contain only its hash"
                ));
            }
        }
        if wrong.is_empty() {
            for file in open {
                tracing::warn!(
                    what,
                    file,
                    "every user of this machine can read this token file; restrict its permissions"
                );
            }
            return Ok(tokens);
        }
        let text = wrong.into_iter().map(|wrong| format!("{file}: {wrong}")).collect::<Vec<_>>().join("\n");
        Err(Failure { text, stuck })
    }
}

fn parse(text: &str) -> Result<TokenFileContents, String> {
    file::read_map(text, "a token file is a map with the key `tokens`", |key| KEYS.contains(&key))
}

/// A secret is named as seen from the file that names it.
fn secret_of(path: &Path, secret: &Path) -> PathBuf {
    folder_of(path).join(secret)
}

/// The hash of the token that a file holds in plain, as a mounted secret does, and whether every user of the machine may
/// read it. Its path is not repeated: it may be a token that was put in the wrong place.
fn plain(path: &Path) -> Result<(KeyHash, bool), Failure> {
    let contents = files::read(path, 4 * MAX_SECRET_BYTES as u64);
    let named = |error| Failure::of("the file that it names", &error);
    let contents = contents.map_err(named)?;
    let open_to_all = contents.open_to_all;
    let text = contents.text().map_err(named)?;
    let token = text.trim_end_matches(['\r', '\n']);
    if token.len() < MIN_TOKEN_BYTES || token.len() > MAX_SECRET_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::from(format!(
            "the file that it names must hold one token of {MIN_TOKEN_BYTES} to {MAX_SECRET_BYTES} visible ASCII \
             characters; `tollgate generate-token` makes one"
        )));
    }
    if token.bytes().collect::<HashSet<_>>().len() < MIN_DIFFERENT {
        let said = "the file that it names contains a token that is easy to guess; use `tollgate generate-token`";
        return Err(Failure::from(said.to_owned()));
    }
    Ok((KeyHash::of(token), open_to_all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, secret: &str) -> Result<Tokens, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), secret).unwrap();
        let file = folder.path().join("tokens.yaml");
        std::fs::write(&file, text).unwrap();
        Tokens::read(ADMINS, &file).map_err(|failure| failure.text)
    }

    #[test]
    fn a_new_token_is_recognized_as_a_secret() {
        assert!(looks_issued(&generate()));
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
        for (text, place) in [
            ("tokens: [{ name: a }]", "tokens[0]: missing field `domains`"),
            ("tokens: [{ name: a, domains: 7 }]", "tokens[0].domains: must be `all` or a list of names"),
            ("tokens: [{ name: a, secret: b }]", "tokens[0]: unknown field `secret`, expected one of `name`"),
            ("tokens: plain", "line 1: tokens: must be a list"),
            ("tokens: [plain]", "tokens[0]: must be a map with the keys `name`, `domains`, and one of `hash`"),
            ("- plain", "tokens.yaml: line 1: is no map; a token file is a map with the key `tokens`"),
            ("", "tokens.yaml: line 1: is empty; a token file is a map with the key `tokens`"),
            ("a: 1\n---\nb: 1", "line 3: contains several documents (`---`); it must contain one"),
            ("token: []", "unknown field `token`, expected `tokens`"),
            ("tgt_token: []", "unknown field `<9 characters>`, expected `tokens`"),
            ("\t", "line 1"),
        ] {
            let said = read(text, "").err().unwrap();
            assert!(said.contains(place) && said.contains("tokens.yaml"), "{said}");
        }
    }

    #[test]
    fn plain_tokens_must_be_hard_to_guess_and_are_read_without_their_last_newline() {
        let with = |secret: &str| read("tokens: [{ name: a, file: secret, domains: all }]", secret);
        let good = generate();
        let tokens = with(&format!("{good}\n")).unwrap();
        assert!(tokens.entries.values().flatten().any(|(hash, _)| hash.matches(&KeyHash::of(&good))));
        for bad in ["", "short", &"a".repeat(64), "with a space in it that makes it no token at all", &"x1".repeat(400)]
        {
            let said = with(bad).err().unwrap();
            assert!(said.contains("tokens[0].file: "), "{said}");
            assert!(bad.is_empty() || !said.contains(bad), "the token is in the message: {said}");
        }
    }
}
