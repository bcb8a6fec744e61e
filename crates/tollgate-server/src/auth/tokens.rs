//! Token files: the name and the domains of each token.

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
/// The maximum number of tokens in a file.
const MAX_TOKENS: usize = 1_000;
/// The minimum length of a token in a file of its own, in bytes; 32 random letters and digits are 190 bits.
const MIN_TOKEN_BYTES: usize = 32;
/// The minimum number of different characters of such a token: random tokens have more.
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

/// A token file with its last valid contents.
pub(crate) struct TokenFile {
    kind: &'static str,
    path: PathBuf,
    metrics: Arc<Metrics>,
    tokens: ReloadCell<Tokens>,
}

#[derive(Default)]
struct Tokens {
    entries: HashMap<[u8; 8], Vec<(KeyHash, Grant)>>,
    certificates: HashMap<CertificateName, Grant>,
    /// The files that contain one token each.
    secrets: Vec<PathBuf>,
}

impl TokenFile {
    /// Reads the file at `path`. `kind` is its name in metrics and logs.
    pub(crate) fn load(kind: &'static str, path: &Path, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        metrics.set_reload_stuck(kind, false);
        let tokens = ReloadCell::new(Tokens::read(kind, path)?);
        Ok(Self { kind, path: path.to_owned(), metrics, tokens })
    }

    /// The grant of the holder of `token`. Hashes with the same first bytes are compared in constant time. The time of
    /// the lookup depends only on the first bytes of the hashes, from which no token can be derived.
    pub(super) fn find(&self, token: &str) -> Option<Grant> {
        if token.is_empty() || token.len() > MAX_SECRET_BYTES {
            return None;
        }
        let hash = KeyHash::of(token);
        let tokens = self.tokens.current();
        let candidates = tokens.entries.get(&hash.bucket())?;
        candidates.iter().find(|(candidate, _)| candidate.matches(&hash)).map(|(_, grant)| grant.clone())
    }

    /// Logs the tokens with domains that are not in `domains`.
    pub(super) fn warn_of_unknown_domains(&self, domains: &[&str]) {
        let tokens = self.tokens.current();
        let grants = tokens.entries.values().flatten().map(|(_, grant)| grant).chain(tokens.certificates.values());
        for grant in grants {
            for domain in grant.scope.names().filter(|name| !domains.contains(name)) {
                let (what, token, domain) = (self.kind, &*shown(&grant.name), &*shown(domain));
                tracing::warn!(what, token, domain, "a token names a domain that no policy has");
            }
        }
    }

    /// The grant for the first of these certificate names that is in the file.
    pub(super) fn find_certificate(&self, names: &[CertificateName]) -> Option<Grant> {
        let tokens = self.tokens.current();
        names.iter().find_map(|name| tokens.certificates.get(name)).cloned()
    }
}

impl Reload for TokenFile {
    fn what(&self) -> &'static str {
        self.kind
    }

    fn folders(&self) -> Vec<PathBuf> {
        std::iter::once(&self.path).chain(&self.tokens.current().secrets).map(|path| folder_of(path)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        // Includes files of tokens that do not exist yet or are not valid yet.
        let text = files::read_text(&self.path, MAX_FILE_BYTES).map_err(|error| error.to_string());
        let contents = text.and_then(|text| parse(&text));
        let tokens = contents.map(|contents| contents.tokens).unwrap_or_default();
        let secrets = tokens.into_iter().filter_map(|token| token.file).map(|secret| secret_path(&self.path, &secret));
        std::iter::once(self.path.clone()).chain(secrets).collect()
    }

    fn reload(&self) -> Result<(), Failure> {
        let read = Tokens::read(self.kind, &self.path);
        self.metrics.count_credential_reload(self.kind, read.is_ok());
        self.metrics.set_reload_stuck(self.kind, read.as_ref().is_err_and(|failure| failure.stuck));
        self.tokens.renew(read)
    }

    fn last_failure(&self) -> Option<Failure> {
        self.tokens.last_failure()
    }
}

/// The contents of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with the key `tokens`")]
struct TokenFileContents {
    tokens: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a map with the keys `name`, `domains`, and one of `hash`, `file` and `certificate`"
)]
struct TokenEntry {
    name: String,
    hash: Option<String>,
    file: Option<PathBuf>,
    certificate: Option<CertificateName>,
    domains: DomainsEntry,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be `all` or a list of names")]
enum DomainsEntry {
    All(AllDomains),
    Only(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AllDomains {
    All,
}

impl Tokens {
    fn read(kind: &str, path: &Path) -> Result<Self, Failure> {
        let file = shown_path(path);
        let contents = files::read(path, MAX_FILE_BYTES).map_err(|error| Failure::of(&file, &error))?;
        let open_to_all = contents.open_to_all;
        let text = contents.text().map_err(|error| Failure::of(&file, &error))?;
        let contents = parse(&text).map_err(|error| format!("{file}: {error}"))?;
        let (mut errors, mut stuck) = (Vec::new(), false);
        let mut open_files = if open_to_all { vec![file.clone()] } else { Vec::new() };
        let mut tokens = Self::default();
        if contents.tokens.len() > MAX_TOKENS {
            errors.push(format!("tokens: must be at most {MAX_TOKENS}"));
        }
        let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
        let mut plain_texts = Vec::new();
        for (index, token) in contents.tokens.into_iter().take(MAX_TOKENS).enumerate() {
            let mut add_error = |field: &str, message: &str| errors.push(format!("tokens[{index}].{field}: {message}"));
            if token.name.is_empty() || token.name.len() > 128 || has_hidden(&token.name) {
                add_error("name", "must have 1 to 128 bytes and no control or invisible characters");
            } else if !names.insert(token.name.clone()) {
                add_error("name", "is the name of another token; each needs its own");
            }
            plain_texts.push((index, "name", token.name.clone()));
            let scope = match token.domains {
                DomainsEntry::All(AllDomains::All) => DomainScope::All,
                DomainsEntry::Only(domains) => {
                    if domains.is_empty() || domains.iter().any(String::is_empty) {
                        add_error("domains", "must be `all`, or name at least one domain");
                    }
                    plain_texts.extend(domains.iter().map(|domain| (index, "domains", domain.clone())));
                    DomainScope::only(domains)
                }
            };
            let grant = Grant { name: token.name.into(), scope };
            let (field, hash) = match (&token.hash, &token.file, token.certificate) {
                (Some(hash), None, None) => ("hash", KeyHash::parse(hash).ok_or_else(|| BAD_HASH.to_owned())),
                (None, Some(secret), None) => {
                    let secret = secret_path(path, secret);
                    let hash = read_plain_token(&secret).map(|(hash, open_to_all)| {
                        open_files.extend(open_to_all.then(|| format!("{file}: tokens[{index}].file")));
                        hash
                    });
                    tokens.secrets.push(secret);
                    stuck |= hash.as_ref().is_err_and(|failure| failure.stuck);
                    ("file", hash.map_err(|failure| failure.text))
                }
                (None, None, Some(_)) if kind == ADMINS => {
                    add_error("certificate", "is for services only; an administrator needs a token");
                    continue;
                }
                (None, None, Some(name)) => {
                    if name.text().is_empty() {
                        add_error("certificate", "must have a name");
                    } else if tokens.certificates.insert(name.canonical(), grant).is_some() {
                        add_error("certificate", "is the name of another entry; each needs its own");
                    }
                    continue;
                }
                _ => {
                    add_error("hash", "give one of `hash`, `file` and `certificate`");
                    continue;
                }
            };
            match hash {
                Err(error) => add_error(field, &error),
                Ok(hash) if !hashes.insert(hash.bytes()) => {
                    add_error(field, "is also the token of another entry; each entry needs its own");
                }
                Ok(hash) => tokens.entries.entry(hash.bucket()).or_default().push((hash, grant)),
            }
        }
        // Names and domains are logged, so they must not be secrets.
        for (index, field, text) in plain_texts {
            if looks_issued(&text) || hashes.contains(&KeyHash::of(&text).bytes()) {
                errors.push(format!(
                    "tokens[{index}].{field}: contains the secret itself; a file may contain only its hash"
                ));
            }
        }
        if errors.is_empty() {
            for file in open_files {
                tracing::warn!(
                    what = kind,
                    file,
                    "every user of this machine can read this token file; restrict its permissions"
                );
            }
            return Ok(tokens);
        }
        let text = errors.into_iter().map(|error| format!("{file}: {error}")).collect::<Vec<_>>().join("\n");
        Err(Failure { text, stuck })
    }
}

fn parse(text: &str) -> Result<TokenFileContents, String> {
    file::read_map(text, "a token file is a map with the key `tokens`", |key| KEYS.contains(&key))
}

/// The path of a token's own file, which is relative to the token file.
fn secret_path(path: &Path, secret: &Path) -> PathBuf {
    folder_of(path).join(secret)
}

/// The hash of the token in a file of its own, such as a mounted secret, and whether every user of the machine may read
/// the file. Errors do not contain the path, which may be a token in the wrong place.
fn read_plain_token(path: &Path) -> Result<(KeyHash, bool), Failure> {
    let contents = files::read(path, 4 * MAX_SECRET_BYTES as u64);
    let failure = |error| Failure::of("the file that it names", &error);
    let contents = contents.map_err(failure)?;
    let open_to_all = contents.open_to_all;
    let text = contents.text().map_err(failure)?;
    let token = text.trim_end_matches(['\r', '\n']);
    if token.len() < MIN_TOKEN_BYTES || token.len() > MAX_SECRET_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::from(format!(
            "the file that it names must hold one token of {MIN_TOKEN_BYTES} to {MAX_SECRET_BYTES} visible ASCII \
             characters; `tollgate generate-token` makes one"
        )));
    }
    if token.bytes().collect::<HashSet<_>>().len() < MIN_DIFFERENT {
        let message = "the file that it names contains a token that is easy to guess; use `tollgate generate-token`";
        return Err(Failure::from(message.to_owned()));
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
    fn every_error_is_reported_with_its_place() {
        let good = generate();
        let hash = KeyHash::of(&good).to_text();
        let errors = read(
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
        let errors = errors.err().unwrap();
        for (index, field) in [(0, "hash"), (1, "name"), (1, "file"), (1, "domains"), (2, "hash"), (4, "hash")] {
            assert!(errors.contains(&format!("tokens[{index}].{field}: ")), "{index} {field}: {errors}");
        }
        assert_eq!(errors.lines().count(), 6, "{errors}");
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
            let error = read(text, "").err().unwrap();
            assert!(error.contains(place) && error.contains("tokens.yaml"), "{error}");
        }
    }

    #[test]
    fn token_files_must_be_hard_to_guess_and_may_end_with_a_newline() {
        let with = |secret: &str| read("tokens: [{ name: a, file: secret, domains: all }]", secret);
        let good = generate();
        let tokens = with(&format!("{good}\n")).unwrap();
        assert!(tokens.entries.values().flatten().any(|(hash, _)| hash.matches(&KeyHash::of(&good))));
        for bad in ["", "short", &"a".repeat(64), "with a space in it that makes it no token at all", &"x1".repeat(400)]
        {
            let error = with(bad).err().unwrap();
            assert!(error.contains("tokens[0].file: "), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "the token is in the message: {error}");
        }
    }
}
