//! `tollgate account`, `key` and `tier`: the command line client of a node's admin API.

mod account;
mod client;
mod key;
mod people;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use tollgate_api::json::admin::{OverrideBody, TierList};
use tollgate_policy::file;

pub(super) use self::{account::AccountVerb, key::KeyVerb};
use self::{
    client::{ApiRequest, Client, Failure},
    people::{PlainText, shown},
};
use crate::settings::{ClientOptions, TOKEN_VARIABLE};

/// A command, and the settings of the node.
#[derive(Args)]
pub(super) struct Admin<V: Subcommand> {
    #[command(subcommand)]
    verb: V,

    /// Print the node's answer and errors as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    node: ClientOptions,
}

/// A request to a node.
pub(super) trait Verb: Subcommand {
    fn request(self) -> ApiRequest;
}

#[derive(Subcommand)]
pub(super) enum TierVerb {
    /// List the tiers of a domain
    List,
}

impl Verb for TierVerb {
    fn request(self) -> ApiRequest {
        match self {
            Self::List => ApiRequest::get::<TierList>(["tiers"]),
        }
    }
}

impl<V: Verb> Admin<V> {
    /// The text to print, or why the command failed.
    pub(super) fn run(self, file: Result<ClientOptions, String>) -> Result<String, String> {
        let json = self.json;
        self.execute(file).map_err(|failure| if json { failure.to_json() } else { failure.to_string() })
    }

    fn execute(self, file: Result<ClientOptions, String>) -> Result<String, Failure> {
        let token = std::env::var_os(TOKEN_VARIABLE).map(|token| token.to_string_lossy().into_owned());
        let settings = file.and_then(|file| self.node.resolve(token, file)).map_err(Failure::Invalid)?;
        let (client, request) = (Client::new(settings)?, self.verb.request());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Invalid(error.to_string()))?;
        let text = runtime.block_on(client.send(&request))?;
        Ok(if self.json { text } else { (request.show)(&text) })
    }
}

/// The requested part of a list.
#[derive(Args)]
pub(super) struct Page {
    /// Maximum number of entries, 1 to 100 [default: 50]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Cursor printed with the previous page
    #[arg(long, value_name = "TEXT")]
    cursor: Option<String>,
}

/// The expected version of the account.
#[derive(Args)]
pub(super) struct VersionArgs {
    /// Change only if the account still has this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
}

/// A limit of one account or key.
#[derive(Args)]
pub(super) struct OverrideArgs {
    /// What is counted: `requests`, `tokens`, `concurrent_requests` …
    #[arg(long)]
    unit: String,

    /// The window, as policy files write it: `minute`, `30s`, `{calendar: day}`; `concurrent_requests` have none
    #[arg(long, value_name = "WINDOW", value_parser = parse_value)]
    per: Option<Value>,

    /// The limit in a window: a number, or `unlimited`
    #[arg(long, value_name = "AMOUNT", value_parser = parse_value)]
    limit: Value,

    /// Only for this resource, or for the resources that match this wildcard
    #[arg(long, value_name = "NAME")]
    resource: Option<String>,

    /// Only for the quota with this scope, such as `account,resource`
    #[arg(long, value_name = "ATTRIBUTES", value_delimiter = ',')]
    scope: Option<Vec<String>>,

    /// When it expires, such as 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
}

/// Parses a value in the format of policy files.
fn parse_value(text: &str) -> Result<Value, String> {
    file::read_yaml(text)
}

impl OverrideArgs {
    fn body(self) -> OverrideBody {
        OverrideBody {
            resource: self.resource.map(Value::String),
            unit: Value::String(self.unit),
            per: self.per,
            limit: self.limit,
            scope: self.scope.map(Value::from),
            expires_at: self.expires_at,
        }
    }
}

impl ApiRequest {
    fn new<T: PlainText>(method: reqwest::Method, path: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let path = path.into_iter().map(Into::into).collect();
        Self { method, path, query: Vec::new(), body: None, if_version: None, show: shown::<T> }
    }

    fn get<T: PlainText>(path: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new::<T>(reqwest::Method::GET, path)
    }

    fn page(self, Page { limit, cursor }: Page) -> Self {
        let limit = limit.map(|limit| ("limit", limit.to_string()));
        let query = limit.into_iter().chain(cursor.map(|cursor| ("cursor", cursor))).collect();
        Self { query, ..self }
    }

    fn body(self, body: &impl Serialize) -> Self {
        // Every body can be serialized.
        Self { body: serde_json::to_value(body).ok(), ..self }
    }

    fn if_version(self, version: &VersionArgs) -> Self {
        Self { if_version: version.if_version, ..self }
    }
}
