//! Parts of gRPC besides the API: health, reflection, deadlines.
//!
//! Seen to fail: without the health descriptors in the reflection, and with a node that waits 300 ms beyond its store
//! deadline.

use std::time::{Duration, Instant};

use tollgate_store::testing::RedisServer;
use tonic::{Code, Request, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::harness::{
    Process, ProcessBuilder, SLACK, account, allowed, call, consume, folder_with, http, memory_node, shop, signal,
    until,
};

pub(crate) const SERVICE: &str = "tollgate.v1.RateLimitService";

/// A gRPC error: code and message.
pub(crate) type RawError = (Code, String);

/// Sends a message with these headers through a plain HTTP client, which applies no deadline of its own. Returns the
/// error of the answer.
pub(crate) async fn raw(address: &str, path: &str, message: &[u8], headers: &[(&str, &str)]) -> RawError {
    error_of(&raw_as(Some("application/grpc"), address, path, message, headers).await)
}

/// Like [`raw`], with this content type or none. Returns the whole answer.
pub(crate) async fn raw_as(
    content_type: Option<&str>,
    address: &str,
    path: &str,
    message: &[u8],
    headers: &[(&str, &str)],
) -> reqwest::Response {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    frame.extend(message);
    let request = http().http2_prior_knowledge().build().expect("a client").post(format!("http://{address}{path}"));
    let headers =
        content_type.map(|content_type| ("content-type", content_type)).into_iter().chain(headers.iter().copied());
    let request = headers.fold(request.header("te", "trailers"), |request, (name, value)| request.header(name, value));
    request.body(frame).send().await.expect("an answer")
}

/// The gRPC error of an answer.
pub(crate) fn error_of(answer: &reqwest::Response) -> RawError {
    let text = |name| answer.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let code = text("grpc-status").expect("an error comes without a body");
    (Code::from_bytes(code.as_bytes()), text("grpc-message").unwrap_or_default())
}

/// The health of `service`.
pub(crate) async fn health(channel: &Channel, service: &str) -> Option<ServingStatus> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await.ok()?;
    Some(answer.into_inner().status())
}

#[tokio::test]
async fn health_is_serving_for_the_service_and_the_node() {
    let node = memory_node(&shop(100)).await;
    for service in [SERVICE, ""] {
        until("it serves", Duration::from_secs(5), async || {
            (health(&node.channel, service).await == Some(ServingStatus::Serving)).then_some(())
        })
        .await;
    }
    let error = HealthClient::new(node.channel.clone()).check(HealthCheckRequest { service: "nowhere".into() }).await;
    assert_eq!(error.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_the_services_and_describes_them() {
    let node = memory_node(&shop(100)).await;
    let ask = async |question: MessageRequest| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let mut client = ServerReflectionClient::new(node.channel.clone());
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(services) = ask(MessageRequest::ListServices(String::new())).await else {
        panic!("no list")
    };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    for service in [SERVICE, "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == service), "{names:?}");
        let described = ask(MessageRequest::FileContainingSymbol(service.to_owned())).await;
        assert!(
            matches!(&described, MessageResponse::FileDescriptorResponse(files) if !files.file_descriptor_proto.is_empty())
        );
    }
}

/// A node on this Redis, with this store deadline.
pub(crate) fn node_on(redis: &RedisServer, deadline_ms: u64) -> (tempfile::TempDir, Process) {
    let (folder, policy) = folder_with(&shop(100));
    let deadline = format!("--store-deadline-ms={deadline_ms}");
    let node = ProcessBuilder::new(&policy).redis(&redis.url()).arg(deadline).start();
    (folder, node)
}

/// A Redis that is suspended until this value is dropped.
pub(crate) struct SuspendedRedis(u32);

impl SuspendedRedis {
    pub(crate) fn suspend(redis: &RedisServer) -> Self {
        let info: String = redis::cmd("INFO").arg("server").query(&mut redis.connection()).expect("an answer");
        let id = info.lines().find_map(|line| line.strip_prefix("process_id:")).expect("the id of the process");
        let id = id.trim().parse().expect("a number");
        signal(id, "STOP");
        Self(id)
    }
}

impl Drop for SuspendedRedis {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

#[tokio::test]
async fn a_call_fails_at_the_store_deadline_when_redis_hangs() {
    let redis = RedisServer::start();
    let (_folder, node) = node_on(&redis, 200);
    let one = || call(account("a"), "model", &[]);
    until("the node decides", Duration::from_secs(10), async || consume(&node.grpc, one()).await.ok()).await;
    let suspended = SuspendedRedis::suspend(&redis);
    for _ in 0..3 {
        let started = Instant::now();
        let error = consume(&node.grpc, one()).await.unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        assert!(took >= Duration::from_millis(190) && took < Duration::from_millis(200) + SLACK, "{took:?}");
    }
    let (status, body) = node.rest.post("/v1/check", r#"{"caller":{"account":"a"},"resource":"model"}"#).await;
    assert_eq!((status.as_u16(), body["error"]["code"].as_str()), (503, Some("unavailable")), "{body}");
    drop(suspended);
    until("the node decides again", Duration::from_secs(10), async || consume(&node.grpc, one()).await.ok()).await;
}

/// The server keeps the client's `grpc-timeout`, and then answers `DEADLINE_EXCEEDED`
/// (<https://grpc.io/docs/guides/deadlines/>), or `UNAVAILABLE`, as it is the store that does not answer.
#[tokio::test]
async fn a_client_deadline_is_kept_when_redis_hangs() {
    let redis = RedisServer::start();
    let (_folder, node) = node_on(&redis, 20_000);
    assert!(allowed(&consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap()));
    let _suspended = SuspendedRedis::suspend(&redis);
    let request = tollgate_api::v1::ConsumeRequest { call: Some(call(account("a"), "model", &[])) };
    let message = prost::Message::encode_to_vec(&request);
    let started = Instant::now();
    let (code, text) =
        raw(&node.grpc_address, "/tollgate.v1.RateLimitService/Consume", &message, &[("grpc-timeout", "300m")]).await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(290) && took < Duration::from_millis(300) + SLACK, "{took:?}");
    assert!([Code::DeadlineExceeded, Code::Unavailable].contains(&code), "{code:?}: {text}");
}

/// A tonic client's call ends at its deadline.
#[tokio::test]
async fn a_client_deadline_ends_its_call() {
    let redis = RedisServer::start();
    let (_folder, node) = node_on(&redis, 20_000);
    assert!(allowed(&consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap()));
    let _suspended = SuspendedRedis::suspend(&redis);
    let mut request = Request::new(tollgate_api::v1::ConsumeRequest { call: Some(call(account("a"), "model", &[])) });
    request.set_timeout(Duration::from_millis(300));
    let started = Instant::now();
    node.grpc.clone().consume(request).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(300) + SLACK, "{:?}", started.elapsed());
}
