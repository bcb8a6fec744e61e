//! Settings of the commands that administer a node over its REST API.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use reqwest::{Certificate, Url};
use serde::Deserialize;
use tollgate_policy::redaction::shown_path;

use super::{
    defaults::{self, CLIENT_TIMEOUT_MS},
    numbers::Numbers,
};
use crate::files::{self, MAX_FILE_BYTES};

/// The variable that may contain an admin token. There is no flag for it, because flags are visible in the process
/// list.
pub(crate) const TOKEN_VARIABLE: &str = "TOLLGATE_ADMIN_TOKEN";

/// The maximum size of a token file, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// The settings, as flags and variables. In the configuration file they are under `client`.
#[derive(Args, Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, expecting = "a map with the names of the flags as keys")]
#[command(next_help_heading = "The node", mut_args = defaults::add_default_to_help)]
pub struct ClientOptions {
    /// URL of the node's REST API
    #[arg(long, env = "TOLLGATE_URL", value_name = "URL", global = true)]
    pub url: Option<String>,

    /// File with an admin token [default: the token itself in the variable `TOLLGATE_ADMIN_TOKEN`]
    #[arg(long, env = "TOLLGATE_ADMIN_TOKEN_FILE", value_name = "FILE", global = true)]
    pub admin_token_file: Option<PathBuf>,

    /// Certificate authorities to trust for the node, PEM [default: the system's]
    #[arg(long, env = "TOLLGATE_CA", value_name = "FILE", global = true)]
    pub ca: Option<PathBuf>,

    /// Domain [default: the token's only domain]
    #[arg(long, env = "TOLLGATE_DOMAIN", value_name = "NAME", global = true)]
    pub domain: Option<String>,

    /// Maximum time for the node to answer, in milliseconds
    #[arg(long, env = "TOLLGATE_TIMEOUT_MS", value_name = "MS", global = true)]
    pub timeout_ms: Option<u64>,

    /// Send the token beyond loopback without TLS, because something else encrypts, such as a service mesh
    // clap passes global arguments down by id, and a setting of the node has the name of this field.
    #[arg(
        id = "client_plaintext_beyond_loopback",
        long = "plaintext-beyond-loopback",
        env = "TOLLGATE_ADMIN_PLAINTEXT_BEYOND_LOOPBACK",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        global = true
    )]
    pub plaintext_beyond_loopback: Option<bool>,
}

/// The resolved settings. Not `Debug`, because they contain the token.
pub(crate) struct ClientSettings {
    pub(crate) url: Url,
    pub(crate) token: String,
    /// The source of the token, for messages.
    pub(crate) token_from: String,
    /// The trusted certificate authorities; `None` for those of the system.
    pub(crate) ca: Option<Vec<Certificate>>,
    /// Empty for the token's only domain.
    pub(crate) domain: String,
    pub(crate) timeout: Duration,
}

impl ClientOptions {
    /// Resolves these options, the configuration file and the defaults. `token` is the value of [`TOKEN_VARIABLE`]; a
    /// token file from a flag or variable takes precedence over it.
    ///
    /// # Errors
    /// All errors, one per line, each with the name of the setting.
    pub(crate) fn resolve(self, token: Option<String>, file: Self) -> Result<ClientSettings, String> {
        let token_file = match (self.admin_token_file, &token) {
            (Some(file), _) => Some(file),
            (None, Some(_)) => None,
            (None, None) => file.admin_token_file,
        };
        let plaintext = self.plaintext_beyond_loopback.or(file.plaintext_beyond_loopback) == Some(true);
        let url = parse_url(self.url.or(file.url).as_deref().unwrap_or(defaults::URL), plaintext);
        let token = find_token(token, token_file.as_deref());
        let ca = self.ca.or(file.ca).map(|file| certificates(&file)).transpose();
        let mut errors = Vec::new();
        let timeout = Numbers(&mut errors).time(CLIENT_TIMEOUT_MS, self.timeout_ms.or(file.timeout_ms));
        let timeout = errors.pop().map_or(Ok(timeout), Err);
        let domain = self.domain.or(file.domain).unwrap_or_default();
        match (url, token, ca, timeout) {
            (Ok(url), Ok((token, token_from)), Ok(ca), Ok(timeout)) => {
                Ok(ClientSettings { url, token, token_from, ca, domain, timeout })
            }
            (url, token, ca, timeout) => {
                let errors = [url.err(), token.err(), ca.err(), timeout.err()];
                Err(errors.into_iter().flatten().collect::<Vec<_>>().join("\n"))
            }
        }
    }
}

fn parse_url(text: &str, plaintext: bool) -> Result<Url, String> {
    let expected =
        || "url: must be like http://127.0.0.1:8080 or https://limits.example, without user, query and fragment";
    let url = Url::parse(text).map_err(|error| format!("{}: {error}", expected()))?;
    let Some(host) = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")) else {
        return Err(expected().to_owned());
    };
    let has_no_user = url.username().is_empty() && url.password().is_none();
    if !has_no_user || url.query().is_some() || url.fragment().is_some() {
        return Err(expected().to_owned());
    }
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = ip.map_or(host == "localhost", |ip| ip.is_loopback());
    if url.scheme() == "http" && !loopback && !plaintext {
        return Err(format!(
            "url: {host} is not a loopback address, so the token would be sent in plain text: use https, or set \
             plaintext-beyond-loopback if something else encrypts"
        ));
    }
    Ok(url)
}

/// The token and its source. Errors do not contain the token.
fn find_token(variable: Option<String>, file: Option<&Path>) -> Result<(String, String), String> {
    let (text, source) = match (file, variable) {
        (Some(file), _) => {
            let source = format!("admin-token-file: {}", shown_path(file));
            (files::read_text(file, MAX_TOKEN_BYTES).map_err(|error| format!("{source}: {error}"))?, source)
        }
        (None, Some(token)) => (token, TOKEN_VARIABLE.to_owned()),
        (None, None) => {
            return Err(format!("admin-token-file: is missing; name a file, or put the token into {TOKEN_VARIABLE}"));
        }
    };
    let token = text.trim_end_matches(['\r', '\n']);
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{source}: must hold one token of visible ASCII characters"));
    }
    Ok((token.to_owned(), source))
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, String> {
    let with_path = |message: &dyn std::fmt::Display| format!("ca: {}: {message}", shown_path(file));
    let text = files::read_text(file, MAX_FILE_BYTES).map_err(|error| with_path(&error))?;
    let certificates =
        Certificate::from_pem_bundle(text.as_bytes()).ok().filter(|certificates| !certificates.is_empty());
    certificates.ok_or_else(|| with_path(&"has no certificate in PEM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &str, token: Option<&str>, file: &str) -> Result<ClientSettings, String> {
        let options = |yaml: &str| crate::settings::parse::<ClientOptions>(yaml).unwrap();
        options(flags).resolve(token.map(str::to_owned), options(file))
    }

    #[test]
    fn flags_go_before_variables_and_those_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("token-of-the-{name}\n")).unwrap();
            format!("admin-token-file: {}", path.display())
        };
        let (flag, from_file) = (file("flag"), file("file"));
        let token = |flags: &str, variable: Option<&str>| resolve(flags, variable, &from_file).ok().unwrap().token;
        assert_eq!(token(&flag, Some("of-the-variable")), "token-of-the-flag");
        assert_eq!(token("{}", Some("of-the-variable")), "of-the-variable");
        assert_eq!(token("{}", None), "token-of-the-file");
        let resolved =
            resolve("url: https://a.example", Some("t"), "{ url: https://b.example, domain: d }").ok().unwrap();
        assert_eq!((resolved.url.as_str(), &*resolved.domain), ("https://a.example/", "d"));
        assert_eq!(resolve("{}", Some("t"), "{}").ok().unwrap().url.as_str(), "http://127.0.0.1:8080/");
    }

    #[test]
    fn all_errors_are_reported_with_the_names_of_settings_and_without_the_token() {
        let message = resolve("{ url: 'ftp://a', ca: /nowhere, timeout-ms: 0 }", Some("a secret"), "{}").err().unwrap();
        for name in ["url: ", "TOLLGATE_ADMIN_TOKEN: ", "ca: /nowhere: ", "timeout-ms: "] {
            assert!(message.lines().any(|line| line.starts_with(name)), "{name}: {message}");
        }
        assert!(!message.contains("a secret"), "{message}");
        assert!(resolve("{}", None, "{}").err().unwrap().starts_with("admin-token-file: is missing"));
    }

    #[test]
    fn the_token_is_sent_in_plain_text_only_to_loopback() {
        for url in ["http://limits.example", "http://10.0.0.1:8080", "http://[2001:db8::1]", "http://localhost.example"]
        {
            let message = resolve(&format!("url: '{url}'"), Some("t"), "{}").err().unwrap();
            assert!(message.contains("plaintext-beyond-loopback"), "{url}: {message}");
            resolve(&format!("{{ url: '{url}', plaintext-beyond-loopback: true }}"), Some("t"), "{}").ok().unwrap();
        }
        for url in ["http://localhost:1", "http://127.1.2.3", "http://[::1]:80", "https://limits.example/behind"] {
            resolve(&format!("url: '{url}'"), Some("t"), "{}").ok().unwrap();
        }
        for url in ["https://user@a.example", "https://a.example?x", "https://a.example#x", "127.0.0.1:80", ""] {
            assert!(resolve(&format!("url: '{url}'"), Some("t"), "{}").is_err(), "{url}");
        }
    }
}
