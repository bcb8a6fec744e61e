//! What a node serves: gRPC, REST, and what operators read.

mod activity;
mod gather;
mod server;
mod stage;

use std::sync::Arc;

use axum::Router;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tollgate_proto::v1::rate_limit_service_server::RateLimitServiceServer;
use tonic::{
    codegen::{Service, http},
    server::NamedService,
    service::Routes,
};

pub use self::server::ConnectionBounds;
use self::server::Server;
pub(crate) use self::stage::Stage;
use crate::{
    admin::Admin,
    auth::Doors,
    grpc,
    rest::{self, Offer},
    run::RunError,
    service::DecisionService,
    settings::Settings,
    telemetry::Telemetry,
    tls::Speaks,
    workers::Workers,
};

/// What the servers of a node share.
pub(crate) struct Servers {
    pub(crate) settings: Settings,
    pub(crate) service: Arc<DecisionService>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) doors: Arc<Doors>,
    pub(crate) health: Arc<rest::Health>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) workers: Workers,
}

impl Servers {
    /// gRPC.
    pub(crate) fn grpc(
        &self,
        listener: TcpListener,
        health: impl Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send + 'static,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Result<Server, RunError> {
        let settings = &self.settings;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tollgate_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let streams = grpc::StreamBounds {
            places: Arc::new(Semaphore::new(settings.max_streams)),
            calls: settings.stream_calls,
            idle: settings.stream_idle_timeout,
            stage: self.stage.clone(),
        };
        let api = grpc::Api::new(Arc::clone(&self.service), settings.call_timeout, streams);
        let api = RateLimitServiceServer::new(api).max_decoding_message_size(settings.max_request_bytes);
        let api = grpc::Guarded::new(api, Arc::clone(&self.doors), settings.call_timeout);
        let routes = Routes::new(health).add_service(reflection).add_service(api).prepare();
        Ok(self.server("grpc", listener, Speaks::Http2, routes.into_axum_router()))
    }

    /// REST; with what operators read, unless that has a listener of its own.
    pub(crate) fn rest(&self, listener: TcpListener) -> Server {
        let offer = if self.settings.ops_listen.is_some() { Offer::Api } else { Offer::Everything };
        self.server("http", listener, Speaks::Http, self.router(offer))
    }

    /// What operators read: in plain text and open to whoever reaches it, as scrapers and probes are.
    pub(crate) fn ops(&self, listener: TcpListener) -> Server {
        Server { tls: None, ..self.server("ops", listener, Speaks::Http, self.router(Offer::Operations)) }
    }

    fn router(&self, offer: Offer) -> Router {
        let shared = rest::Shared {
            service: Arc::clone(&self.service),
            admin: Arc::clone(&self.admin),
            doors: Arc::clone(&self.doors),
            health: Arc::clone(&self.health),
            timeout: self.settings.call_timeout,
            body_bytes: self.settings.max_request_bytes,
        };
        rest::router(shared, self.settings.max_concurrent_calls, offer)
    }

    fn server(&self, name: &'static str, listener: TcpListener, speaks: Speaks, router: Router) -> Server {
        Server {
            name,
            listener,
            router,
            speaks,
            tls: self.doors.tls.clone(),
            bounds: self.settings.connections.clone(),
            calls: self.settings.max_concurrent_calls,
            telemetry: Arc::clone(&self.telemetry),
            workers: self.workers.clone(),
        }
    }
}
