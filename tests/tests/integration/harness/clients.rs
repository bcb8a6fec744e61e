//! Clients, and short constructors for calls.

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use serde_json::Value;
use tokio::time::timeout;
use tollgate_api::v1::{
    Call, Caller, CheckRequest, ConsumeRequest, Decision, QuotaStatus, Verdict, caller::By,
    rate_limit_service_client::RateLimitServiceClient,
};
use tonic::{Status, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

use super::until;

/// A node's REST API.
#[derive(Clone)]
pub(crate) struct Rest {
    base: String,
    client: reqwest::Client,
}

/// Builder of an HTTP client: with a timeout, and without root certificates, as loopback uses plain HTTP.
pub(crate) fn http() -> reqwest::ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_secs(20))
}

impl Rest {
    pub(crate) fn new(address: &str) -> Self {
        Self { base: format!("http://{address}"), client: http().build().expect("a client") }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// The status and the text.
    pub(crate) async fn text(&self, path: &str) -> (StatusCode, String) {
        let answer = self.request(Method::GET, path).send().await.expect("an answer");
        (answer.status(), answer.text().await.expect("a text"))
    }

    /// The status and the JSON.
    pub(crate) async fn json(&self, path: &str) -> (StatusCode, Value) {
        let (status, text) = self.text(path).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}")))
    }

    /// Waits until `/metrics` has each of these texts. What a client observes as the end of a connection is counted a
    /// moment after it.
    pub(crate) async fn until_counted(&self, texts: &[&str]) {
        let mut metrics = String::new();
        let counted = async || {
            metrics = self.text("/metrics").await.1;
            texts.iter().all(|text| metrics.contains(text)).then_some(())
        };
        let waited = timeout(Duration::from_secs(10), until("the metrics have them", Duration::MAX, counted)).await;
        waited.unwrap_or_else(|_| panic!("{texts:?} are not all in {metrics}"));
    }

    /// `GET /api_keys/rate_limits`.
    pub(crate) async fn limits(&self, secret: &str) -> Value {
        let request = self.request(Method::GET, "/api_keys/rate_limits").bearer_auth(secret);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.expect("JSON")
    }

    /// `POST` of any body as JSON.
    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let request = self.request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
        let answer = request.body(body).send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a text");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

pub(crate) fn account(id: impl Into<String>) -> Caller {
    Caller { by: Some(By::Account(id.into())) }
}

pub(crate) fn api_key(secret: impl Into<String>) -> Caller {
    Caller { by: Some(By::ApiKey(secret.into())) }
}

pub(crate) fn api_key_id(id: impl Into<String>) -> Caller {
    Caller { by: Some(By::ApiKeyId(id.into())) }
}

pub(crate) fn call(caller: Caller, resource: &str, usage: &[(&str, u64)]) -> Call {
    Call {
        caller: Some(caller),
        resource: resource.to_owned(),
        usage: usage.iter().map(|(unit, amount)| ((*unit).to_owned(), *amount)).collect(),
        ..Call::default()
    }
}

/// `Consume`.
pub(crate) async fn consume(grpc: &RateLimitServiceClient<Channel>, call: Call) -> Result<Decision, Status> {
    let answer = grpc.clone().consume(ConsumeRequest { call: Some(call) }).await?;
    Ok(answer.into_inner().decision.expect("a decision"))
}

/// Asserts that this health watch on `channel` is still open. The node answers another call on that connection first,
/// so that the client knows of a closed watch.
pub(crate) async fn assert_watch_open(watch: &mut Streaming<HealthCheckResponse>, channel: &Channel) {
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.expect("the node answers");
    while let Ok(news) = tokio::time::timeout(Duration::ZERO, watch.message()).await {
        assert!(matches!(news, Ok(Some(_))), "the watch has ended: {news:?}");
    }
}

/// `Check`.
pub(crate) async fn peek(grpc: &RateLimitServiceClient<Channel>, call: Call) -> Result<Decision, Status> {
    let answer = grpc.clone().check(CheckRequest { call: Some(call) }).await?;
    Ok(answer.into_inner().decision.expect("a decision"))
}

/// Whether the call is admitted. An unspecified verdict fails the test.
pub(crate) fn allowed(decision: &Decision) -> bool {
    match decision.verdict() {
        Verdict::Allowed => true,
        Verdict::Denied => false,
        Verdict::Unspecified => panic!("no verdict: {decision:?}"),
    }
}

/// The status of the quota `name`.
pub(crate) fn quota<'a>(decision: &'a Decision, name: &str) -> &'a QuotaStatus {
    let found = decision.quotas.iter().find(|quota| quota.name == name);
    found.unwrap_or_else(|| panic!("no quota {name}: {decision:?}"))
}

/// A timestamp in milliseconds.
pub(crate) fn ms(at: &prost_types::Timestamp) -> u64 {
    u64::try_from(at.seconds * 1000 + i64::from(at.nanos / 1_000_000)).expect("after 1970")
}

pub(crate) fn decided_at_ms(decision: &Decision) -> u64 {
    ms(decision.decided_at.as_ref().expect("the store's time"))
}
