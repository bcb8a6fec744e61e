//! The servers: gRPC and REST, from a listener to the last answer.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tollgate_proto::v1::rate_limit_service_server::RateLimitServiceServer;
use tonic::{server::NamedService, transport::server::TcpIncoming};

use crate::{auth::Doors, grpc, rest, run::RunError, service::DecisionService, settings::Settings};

/// How many bytes of a gRPC stream, and of all streams of a connection, are taken in before they are read. Small
/// messages cost more than their bytes, and h2 ends a connection (`ENHANCE_YOUR_CALM`) that has buffered frames
/// for more than half of its window: so a window of one stream must run out well before.
const STREAM_WINDOW: u32 = 32 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;

/// Serves gRPC until `stopped`, then finishes what is in work.
pub(crate) async fn serve_grpc(
    settings: Settings,
    service: Arc<DecisionService>,
    doors: Arc<Doors>,
    health: impl tonic::codegen::Service<
        tonic::codegen::http::Request<tonic::body::Body>,
        Response = tonic::codegen::http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send + 'static,
    > + NamedService
    + Clone
    + Send
    + Sync
    + 'static,
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tollgate_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let streams = grpc::StreamBounds {
        places: Arc::new(Semaphore::new(settings.max_streams)),
        calls: settings.stream_calls,
        idle: settings.stream_idle_timeout,
        stopped: stopped.clone(),
    };
    let api = RateLimitServiceServer::new(grpc::Api::new(service, settings.call_timeout, streams))
        .max_decoding_message_size(settings.max_request_bytes);
    let api = grpc::Guarded::new(api, doors);
    let streams = u32::try_from(settings.max_concurrent_calls).unwrap_or(u32::MAX);
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(settings.max_concurrent_calls)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(health)
        .add_service(reflection)
        .add_service(api)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), wait(stopped))
        .await
        .map_err(|error| RunError::Serve(format!("gRPC: {error}")))
}

/// The same for REST.
pub(crate) async fn serve_http(
    settings: Settings,
    shared: rest::Shared,
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
) -> Result<(), RunError> {
    use axum::serve::ListenerExt;
    let bounds =
        rest::Bounds { body_bytes: settings.max_request_bytes, concurrent_calls: settings.max_concurrent_calls };
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, rest::router(shared, &bounds))
        .with_graceful_shutdown(wait(stopped))
        .await
        .map_err(|error| RunError::Serve(format!("HTTP: {error}")))
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
