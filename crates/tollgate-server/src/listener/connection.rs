//! One connection, from its first byte to its last.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Version, header::CONNECTION},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tollgate_service::blocks::client_network;
use tower::Service;

use super::{
    certificate::{CertificateName, certificate_names},
    close_reason::CloseReason,
    connections::{ConnectionBounds, ConnectionPermit},
    gather::CoalescedWrites,
    handshakes::HandshakeLimiter,
    peer::Peer,
    proxy,
};
use crate::lifecycle::Lifecycle;

/// The maximum time of a TLS handshake after its permit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time until the first request, or the preface of HTTP/2, has arrived.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The time in which calls may still arrive after a client was told that the connection closes.
const LAST_CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum time until an idle connection has closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Shared by the connections of a listener.
pub(super) struct ListenerContext {
    pub(super) name: &'static str,
    pub(super) builder: auto::Builder<TokioExecutor>,
    pub(super) router: Router,
    pub(super) handshakes: HandshakeLimiter,
    pub(super) bounds: ConnectionBounds,
    pub(super) stage: watch::Receiver<Lifecycle>,
    /// Whether connections close after their calls in progress.
    pub(super) closing: watch::Receiver<bool>,
}

impl ListenerContext {
    /// The maximum time until the first bytes of a client have arrived.
    fn first_request_timeout(&self) -> Duration {
        FIRST_REQUEST_TIMEOUT.min(self.bounds.header_timeout)
    }
}

/// An accepted connection.
pub(super) struct Connection {
    pub(super) shared: Arc<ListenerContext>,
    pub(super) permit: ConnectionPermit,
    pub(super) address: SocketAddr,
    /// The network that it is counted by; `None` for a trusted proxy.
    pub(super) source: Option<IpAddr>,
    /// Whether it begins with a header of the PROXY protocol.
    pub(super) expects_proxy_header: bool,
}

impl Connection {
    /// Serves the connection until it ends.
    ///
    /// # Errors
    /// The node closed the connection.
    pub(super) async fn run(self, stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<(), CloseReason> {
        let activity = self.permit.activity().clone();
        tokio::select! {
            result = self.serve(stream, acceptor) => result,
            reason = activity.wait_for_close() => Err(reason),
        }
    }

    async fn serve(mut self, mut stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<(), CloseReason> {
        let _ = stream.set_nodelay(true);
        let closing = closing_started(self.shared.closing.clone());
        let Some(acceptor) = acceptor else {
            self.read_proxy_header(&mut stream).await?;
            return self.serve_http(stream, Vec::new()).await;
        };
        let stream = tokio::select! {
            stream = self.accept_tls(stream, acceptor) => stream?,
            () = closing => return Ok(()),
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(<[_]>::first).map(|first| certificate_names(first)).unwrap_or_default();
        self.serve_http(stream, certificate).await
    }

    /// Reads the client's address from the header that a trusted proxy sends first.
    async fn read_proxy_header(&mut self, stream: &mut TcpStream) -> Result<(), CloseReason> {
        if !self.expects_proxy_header {
            return Ok(());
        }
        let read = timeout(self.shared.first_request_timeout(), proxy::read_client(stream)).await;
        let Ok(Ok(client)) = read else { return Err(CloseReason::ProxyHeader) };
        if let Some(client) = client {
            let source = client_network(client.ip());
            let shared = &self.shared;
            self.permit.set_source(shared.name, source, &shared.bounds).ok_or(CloseReason::TooMany)?;
            (self.address, self.source) = (client, Some(source));
        }
        Ok(())
    }

    async fn accept_tls(
        &mut self,
        mut stream: TcpStream,
        acceptor: TlsAcceptor,
    ) -> Result<TlsStream<TcpStream>, CloseReason> {
        self.read_proxy_header(&mut stream).await?;
        // A permit is taken only after the client has sent something, so silent connections take no permits.
        let readable = timeout(self.shared.first_request_timeout(), stream.readable()).await;
        readable.map_err(|_| CloseReason::Silent)?.map_err(|_| CloseReason::Handshake)?;
        self.shared.handshakes.wait(self.source).await.ok_or(CloseReason::Handshake)?;
        let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
        stream.map_err(|_| CloseReason::Handshake)?.map_err(|_| CloseReason::Handshake)
    }

    async fn serve_http<I>(self, io: I, certificate: Vec<CertificateName>) -> Result<(), CloseReason>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { shared, permit, address, source, .. } = self;
        let activity = permit.activity().clone();
        let peer = Arc::new(Peer { address, source, certificate, connection: activity.clone() });
        let service = service_fn(|mut request: Request<Incoming>| {
            let is_http1 = request.version() < Version::HTTP_2;
            // No call begins while the connection is closing.
            let pending = (!activity.is_closing()).then(|| {
                let call = activity.begin_call(&request);
                request.extensions_mut().insert(Arc::clone(&peer));
                (call, shared.router.clone().call(request.map(Body::new)))
            });
            let (stage, activity) = (shared.stage.clone(), activity.clone());
            async move {
                let Some((call, response)) = pending.filter(|_| !activity.is_closing()) else {
                    return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
                };
                let Ok(mut response) = response.await;
                // HTTP/1 has no other way to close a connection without losing a call.
                if is_http1 && *stage.borrow() > Lifecycle::Running {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok(call.track_response(response))
            }
        });
        let (io, preface) = CoalescedWrites::new(io, activity.clone());
        let mut connection = pin!(shared.builder.serve_connection(TokioIo::new(io), service));
        let mut closing = pin!(closing_started(shared.closing.clone()));
        let silent = async {
            sleep(shared.first_request_timeout()).await;
            if activity.has_request() || preface.is_complete() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            // Errors are not reported: usually the client has closed the connection.
            _ = connection.as_mut() => return Ok(()),
            () = &mut closing => {
                connection.as_mut().graceful_shutdown();
                // Not every client reacts to the shutdown, so an idle connection is closed soon.
                let idle = async {
                    sleep(LAST_CALL_TIMEOUT).await;
                    activity.wait_until_idle(LAST_CALL_TIMEOUT / 10).await;
                };
                tokio::select! {
                    _ = connection => return Ok(()),
                    () = idle => return Ok(()),
                    () = activity.wait_for_unread_response() => return Err(CloseReason::Unread),
                }
            }
            () = silent => return Err(CloseReason::Silent),
            () = activity.wait_for_unread_response() => return Err(CloseReason::Unread),
            () = activity.wait_until_idle(shared.bounds.idle_timeout) => {}
        }
        connection.as_mut().graceful_shutdown();
        let closing = timeout(CLOSE_TIMEOUT, async {
            let _ = connection.as_mut().await;
        });
        // A call that arrived at the last moment is still processed.
        if closing.await.is_err() && activity.is_busy() {
            tokio::select! {
                _ = connection => {}
                () = activity.wait_for_unread_response() => return Err(CloseReason::Unread),
            }
        }
        Err(CloseReason::Idle)
    }
}

async fn closing_started(mut closing: watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}
