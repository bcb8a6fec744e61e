//! The client of a node's admin API.

use std::error::Error;

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header, redirect, retry};
use rustls::crypto::ring;
use serde_json::Value;

use tollgate_api::json::error::ErrorBody;

use crate::settings::ClientSettings;

/// The maximum size of a response, in bytes; a page of accounts with the maximum number of overrides has a few MiB.
const MAX_RESPONSE_BYTES: usize = 32 << 20;

/// A request to a node.
pub(in crate::cli) struct ApiRequest {
    pub(super) method: Method,
    /// The segments of the path below `/admin/v1`.
    pub(super) path: Vec<String>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Value>,
    /// The version that the account must have.
    pub(super) if_version: Option<u64>,
    /// Converts the response to text for people.
    pub(super) show: fn(&str) -> String,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The settings or the arguments are invalid.
    #[error("{0}")]
    Invalid(String),
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
    /// The response does not come from a node.
    #[error("url: {url} answered {status}, but not with an answer of a node's admin API{}", doubt(*.maybe_made))]
    Foreign { url: String, status: StatusCode, maybe_made: bool },
    /// There was no response.
    #[error("url: {url} {cause}{}", doubt(*.maybe_made))]
    Unanswered { url: String, cause: String, maybe_made: bool },
}

impl Failure {
    /// The failure in the JSON format of a node's errors, for scripts.
    pub(super) fn to_json(&self) -> String {
        let code = match self {
            Self::Invalid(_) => "invalid_argument",
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
        // Fails if the provider is already installed.
        let _ = ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout)
            // The token is sent only to this node, and once.
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy();
        let builder = match &settings.ca {
            Some(certificates) => builder.tls_certs_only(certificates.iter().cloned()),
            // Without TLS the system's certificate authorities are not needed, and may be missing.
            None if settings.url.scheme() == "http" => builder.tls_certs_only([]),
            None => builder,
        };
        let http = builder.build().map_err(|error| Failure::Invalid(format!("ca: {}", innermost(&error))))?;
        Ok(Self { http, settings })
    }

    /// Sends a request, and returns the text of a successful response.
    pub(super) async fn send(&self, request: &ApiRequest) -> Result<String, Failure> {
        let changes = request.method != Method::GET;
        let response = self.http_request(request)?.send().await.map_err(|error| self.unanswered(&error, changes))?;
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

    fn http_request(&self, request: &ApiRequest) -> Result<RequestBuilder, Failure> {
        let mut url = self.settings.url.clone();
        put_path(&mut url, &request.path)?;
        if !self.settings.domain.is_empty() || !request.query.is_empty() {
            let domain = Some(("domain", &self.settings.domain)).filter(|(_, domain)| !domain.is_empty());
            let query = request.query.iter().map(|(name, value)| (*name, value));
            url.query_pairs_mut().extend_pairs(domain.into_iter().chain(query));
        }
        let mut http_request = self.http.request(request.method.clone(), url).bearer_auth(&self.settings.token);
        if let Some(version) = request.if_version {
            http_request = http_request.header(header::IF_MATCH, format!("\"{version}\""));
        }
        Ok(match &request.body {
            Some(body) => http_request.json(body),
            None => http_request,
        })
    }

    async fn read(&self, mut response: Response, changes: bool) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unanswered(&error, changes))? {
            if bytes.len() + chunk.len() > MAX_RESPONSE_BYTES {
                let url = self.settings.url.to_string();
                return Err(Failure::Foreign { url, status: response.status(), maybe_made: changes });
            }
            bytes.extend_from_slice(&chunk);
        }
        // Bytes that are not UTF-8 are reported as invalid JSON.
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
        // Without a connection nothing was sent.
        let maybe_made = changes && !error.is_connect();
        Failure::Unanswered { url: self.settings.url.to_string(), cause, maybe_made }
    }
}

/// Adds `/admin/v1` and the segments to the path.
fn put_path(url: &mut Url, segments: &[String]) -> Result<(), Failure> {
    // These segments cannot be used in a URL, even if they are escaped.
    if let Some(invalid) = segments.iter().find(|segment| matches!(segment.as_str(), "" | "." | "..")) {
        return Err(Failure::Invalid(format!("{invalid:?} cannot be part of a URL")));
    }
    let invalid = || Failure::Invalid("url: must be one of http or https".to_owned());
    let mut path = url.path_segments_mut().map_err(|()| invalid())?;
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
