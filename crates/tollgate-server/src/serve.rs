//! The servers of a node: gRPC, REST, and the routes for operators.

use std::sync::Arc;

use axum::Router;
use tokio::{net::TcpListener, sync::watch};
use tollgate_api::v1::rate_limit_service_server::RateLimitServiceServer;
use tollgate_service::{admin::Admin, metrics::Metrics, service::DecisionService};
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::{
    auth::Authenticator,
    error::RunError,
    grpc,
    lifecycle::Lifecycle,
    listener::{ConnectionTable, Server},
    rest::{self, RouteSet},
    settings::Settings,
    shares::Shares,
    tls::Protocols,
    workers::Workers,
};

/// Builds the servers of a node.
pub(crate) struct Servers {
    pub(crate) settings: Settings,
    pub(crate) service: Arc<DecisionService>,
    pub(crate) admin: Arc<Admin>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) health: Arc<rest::Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stage: watch::Receiver<Lifecycle>,
    pub(crate) workers: Workers,
    pub(crate) connections: Arc<ConnectionTable>,
}

impl Servers {
    /// gRPC.
    pub(crate) fn grpc(&self, listener: TcpListener, health: HealthServer<impl Health>) -> Result<Server, RunError> {
        let settings = &self.settings;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tollgate_api::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let open = Arc::new(grpc::OpenServiceBounds::default());
        let health = health.max_decoding_message_size(grpc::MAX_MESSAGE_BYTES);
        let health =
            grpc::OpenService::new(health, Arc::clone(&open), ("/grpc.health.v1.Health/Watch", grpc::WATCH_LIFETIME));
        let reflection = reflection.max_decoding_message_size(grpc::MAX_MESSAGE_BYTES);
        let streams = grpc::StreamBounds {
            streams: Shares::new(settings.requests.max_streams, settings.requests.max_streams_per_caller),
            calls: settings.stream_calls,
            idle_timeout: settings.stream_idle_timeout,
            stage: self.stage.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let bodies = grpc::BodyBounds {
            timeout: settings.requests.body_timeout,
            unread: unread_body_memory(settings),
            message_bytes: settings.requests.max_bytes,
            metrics: Arc::clone(&self.metrics),
        };
        let api = grpc::Api::new(Arc::clone(&self.service), settings.call_timeout, streams);
        let api = RateLimitServiceServer::new(api).max_decoding_message_size(settings.requests.max_bytes);
        let api = grpc::AuthenticatedService::new(api, Arc::clone(&self.auth), settings.call_timeout, bodies.clone());
        let routes = Routes::new(health).add_service(api);
        let conversation = ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", grpc::REFLECTION_LIFETIME);
        let routes = if settings.open_reflection {
            routes.add_service(grpc::OpenService::new(reflection, open, conversation))
        } else {
            let reflection =
                grpc::AuthenticatedService::new(reflection, Arc::clone(&self.auth), settings.call_timeout, bodies);
            routes.add_service(grpc::OpenService::new(reflection, open, conversation))
        };
        let routes = routes.prepare();
        Ok(self.server("grpc", listener, Protocols::Http2, routes.into_axum_router()))
    }

    /// REST; with the routes for operators, unless they have a listener of their own.
    pub(crate) fn rest(&self, listener: TcpListener) -> Result<Server, RunError> {
        let route_set = if self.settings.ops_listen.is_some() { RouteSet::Api } else { RouteSet::Everything };
        Ok(self.server("http", listener, Protocols::Http, self.router(route_set)?))
    }

    /// The routes for operators: plain text and without authentication, for scrapers and probes.
    pub(crate) fn ops(&self, listener: TcpListener) -> Result<Server, RunError> {
        let router = self.router(RouteSet::Operations)?;
        Ok(Server { tls: None, ..self.server("ops", listener, Protocols::Http, router) })
    }

    fn router(&self, route_set: RouteSet) -> Result<Router, RunError> {
        let shared = rest::Shared {
            service: Arc::clone(&self.service),
            admin: Arc::clone(&self.admin),
            auth: Arc::clone(&self.auth),
            health: Arc::clone(&self.health),
            timeout: self.settings.call_timeout,
        };
        let requests = &self.settings.requests;
        let calls = || Shares::new(requests.max_concurrent_calls, requests.max_calls_per_caller);
        let bounds = rest::RequestBounds {
            body_bytes: requests.max_bytes,
            body_timeout: requests.body_timeout,
            unread: unread_body_memory(&self.settings),
            calls: calls(),
            end_user_calls: calls(),
            pages: rest::RequestBounds::pages(),
            metrics: Arc::clone(&self.metrics),
        };
        Ok(rest::router(shared, &Arc::new(bounds), route_set)?)
    }

    fn server(&self, name: &'static str, listener: TcpListener, protocols: Protocols, router: Router) -> Server {
        Server {
            name,
            listener,
            router,
            protocols,
            tls: self.auth.tls.clone(),
            bounds: self.settings.connections.clone(),
            calls: self.settings.requests.max_concurrent_calls,
            metrics: Arc::clone(&self.metrics),
            workers: self.workers.clone(),
            proxies: self.settings.auth.proxies.clone(),
            connections: Arc::clone(&self.connections),
        }
    }
}

/// The memory for request bodies that have not arrived completely; one caller may use half of it.
fn unread_body_memory(settings: &Settings) -> Arc<Shares> {
    let bytes = settings.requests.max_unread_bytes;
    Shares::new(bytes, bytes / 2)
}
