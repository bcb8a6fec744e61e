//! Sends requests to a node, and reads its answers.

use std::error::Error;

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header, redirect, retry};
use rustls::crypto::ring;
use serde_json::Value;

use tollgate_api::json::error::ErrorBody;

use crate::settings::ClientSettings;

/// The largest answer that is read, in bytes; a page of accounts with all the overrides that fit has a few MiB.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// A request to a node.
pub(in crate::cli) struct ApiRequest {
    pub(super) method: Method,
    /// Below `/admin/v1`, a segment each.
    pub(super) path: Vec<String>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Value>,
    /// The version that the account must have.
    pub(super) if_version: Option<u64>,
    /// The answer for people.
    pub(super) show: fn(&str) -> String,
}

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The settings, or the arguments of the command line.
    #[error("{0}")]
    Wrong(String),
    /// The node refused the request.
    #[error("{message} ({} {code}){}{}", .status.as_u16(), after(*.retry_after_s), said_of(.token_from.as_deref()))]
    Refused {
        status: StatusCode,
        code: String,
        message: String,
        retry_after_s: Option<u64>,
        /// The source of the token, if the token is the problem.
        token_from: Option<String>,
    },
    /// Something else answered.
    #[error("url: {url} answered {status}, but not with an answer of a node's admin API{}", doubt(*.maybe_made))]
    Foreign { url: String, status: StatusCode, maybe_made: bool },
    /// There was no answer.
    #[error("url: {url} {cause}{}", doubt(*.maybe_made))]
    Unanswered { url: String, cause: String, maybe_made: bool },
}

impl Failure {
    /// The same for scripts, in the shape that a node's errors have.
    pub(super) fn to_json(&self) -> String {
        let code = match self {
            Self::Wrong(_) => "invalid_argument",
            Self::Refused { code, message, .. } => return json(code, message),
            Self::Foreign { .. } => "foreign_answer",
            Self::Unanswered { .. } => "unanswered",
        };
        json(code, &self.to_string())
    }
}

fn json(code: &str, message: &str) -> String {
    let body = ErrorBody::new(code.to_owned(), message);
    serde_json::to_string(&body).unwrap_or_default()
}

fn after(seconds: Option<u64>) -> String {
    seconds.map(|seconds| format!("; try again in {seconds} s")).unwrap_or_default()
}

fn said_of(token_from: Option<&str>) -> String {
    token_from.map(|from| format!("; the token is from {from}")).unwrap_or_default()
}

const fn doubt(maybe_made: bool) -> &'static str {
    if maybe_made { "; the change may have been made: read before you repeat it" } else { "" }
}

/// A client of one node.
pub(super) struct Client {
    http: reqwest::Client,
    settings: ClientSettings,
}

impl Client {
    pub(super) fn new(settings: ClientSettings) -> Result<Self, Failure> {
        // There may be one already, which then is this one.
        let _ = ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout)
            // The token is sent to this node only, and once.
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy();
        let builder = match &settings.ca {
            Some(certificates) => builder.tls_certs_only(certificates.iter().cloned()),
            // Without TLS it does not matter whom the system trusts, nor whether it trusts anybody.
            None if settings.url.scheme() == "http" => builder.tls_certs_only([]),
            None => builder,
        };
        let http = builder.build().map_err(|error| Failure::Wrong(format!("ca: {}", innermost(&error))))?;
        Ok(Self { http, settings })
    }

    /// The text of a good answer.
    pub(super) async fn ask(&self, ask: &ApiRequest) -> Result<String, Failure> {
        let changes = ask.method != Method::GET;
        let response = self.request(ask)?.send().await.map_err(|error| self.unanswered(&error, changes))?;
        let status = response.status();
        let headers = response.headers();
        let retry_after_s = headers.get(header::RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse().ok());
        let text = self.read(response, changes).await?;
        if status == StatusCode::NO_CONTENT || (status.is_success() && serde_json::from_str::<Value>(&text).is_ok()) {
            return Ok(text);
        }
        match serde_json::from_str::<ErrorBody>(&text) {
            Ok(ErrorBody { error }) if !status.is_success() => Err(Failure::Refused {
                status,
                code: error.code.into_owned(),
                message: error.message,
                retry_after_s,
                token_from: (status == StatusCode::UNAUTHORIZED).then(|| self.settings.token_from.clone()),
            }),
            _ => Err(Failure::Foreign {
                url: self.settings.url.to_string(),
                status,
                maybe_made: changes && !status.is_client_error() && !status.is_redirection(),
            }),
        }
    }

    fn request(&self, ask: &ApiRequest) -> Result<RequestBuilder, Failure> {
        let mut url = self.settings.url.clone();
        put_path(&mut url, &ask.path)?;
        if !self.settings.domain.is_empty() || !ask.query.is_empty() {
            let domain = Some(("domain", &self.settings.domain)).filter(|(_, domain)| !domain.is_empty());
            let query = ask.query.iter().map(|(name, value)| (*name, value));
            url.query_pairs_mut().extend_pairs(domain.into_iter().chain(query));
        }
        let mut request = self.http.request(ask.method.clone(), url).bearer_auth(&self.settings.token);
        if let Some(version) = ask.if_version {
            request = request.header(header::IF_MATCH, format!("\"{version}\""));
        }
        Ok(match &ask.body {
            Some(body) => request.json(body),
            None => request,
        })
    }

    async fn read(&self, mut response: Response, changes: bool) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unanswered(&error, changes))? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                let url = self.settings.url.to_string();
                return Err(Failure::Foreign { url, status: response.status(), maybe_made: changes });
            }
            bytes.extend_from_slice(&chunk);
        }
        // Bytes that are not UTF-8 are not JSON either, and are reported as such.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn unanswered(&self, error: &reqwest::Error, changes: bool) -> Failure {
        let cause = match innermost(error) {
            _ if error.is_timeout() => {
                format!("did not answer within {} ms (timeout-ms)", self.settings.timeout.as_millis())
            }
            cause if cause.starts_with("invalid peer certificate") => {
                format!("is not trusted: {cause}; set ca to the certificate authorities to trust")
            }
            cause if error.is_connect() => format!("cannot be reached: {cause}"),
            cause => format!("closed the connection: {cause}"),
        };
        // Where there was no connection, nothing was sent.
        let maybe_made = changes && !error.is_connect();
        Failure::Unanswered { url: self.settings.url.to_string(), cause, maybe_made }
    }
}

/// Adds `/admin/v1` and these segments.
fn put_path(url: &mut Url, segments: &[String]) -> Result<(), Failure> {
    // Those are not names in a URL, however they are escaped.
    if let Some(none) = segments.iter().find(|segment| matches!(segment.as_str(), "" | "." | "..")) {
        return Err(Failure::Wrong(format!("{none:?} cannot be part of a URL")));
    }
    let wrong = || Failure::Wrong("url: must be one of http or https".to_owned());
    let mut path = url.path_segments_mut().map_err(|()| wrong())?;
    path.pop_if_empty().extend(["admin", "v1"]).extend(segments);
    Ok(())
}

/// The innermost cause of an error.
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
