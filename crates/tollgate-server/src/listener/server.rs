//! A listener: it accepts connections and starts a task for each.

use std::{sync::Arc, time::Duration};

use axum::Router;
use futures_util::FutureExt;
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto,
};
use metrics::Gauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};
use tollgate_service::{blocks::client_network, metrics::Metrics};

use super::{
    activity::Activity,
    close_reason::CloseReason,
    connection::{Connection, ListenerContext},
    connections::{ConnectionBounds, ConnectionTable},
    handshakes::HandshakeLimiter,
    thread_memory::ThreadMemory,
};
use crate::{
    auth::TrustedProxies,
    lifecycle::Lifecycle,
    tls::{Protocols, Tls},
    workers::Workers,
};

/// The pause after an error of the node itself, such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// The time for the first call of clients that connected just before the listener closed.
const FIRST_CALL_TIMEOUT: Duration = Duration::from_millis(50);
/// The interval of HTTP/2 pings, and the timeout of their acknowledgement.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// The flow control windows of an HTTP/2 stream and of a connection, in bytes. h2 closes a connection
/// (`ENHANCE_YOUR_CALM`) if buffered frames, including their overhead, exceed half of its window; the window of a
/// stream must be used up well before.
const STREAM_WINDOW: u32 = 32 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// The maximum size of a request's headers, in bytes.
const MAX_HEADER_BYTES: u16 = 16 * 1024;

/// A listener, and the service behind it.
pub(crate) struct Server {
    /// For metrics and logs.
    pub(crate) name: &'static str,
    pub(crate) listener: TcpListener,
    pub(crate) router: Router,
    pub(crate) protocols: Protocols,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) bounds: ConnectionBounds,
    /// The maximum number of concurrent calls on a connection.
    pub(crate) calls: usize,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) workers: Workers,
    pub(crate) proxies: TrustedProxies,
    /// The connections of all listeners.
    pub(crate) connections: Arc<ConnectionTable>,
}

impl Server {
    /// Accepts connections until the node stops, then waits for the calls in progress.
    pub(crate) async fn serve(self, stage: watch::Receiver<Lifecycle>) {
        // Connections are closed only after the listener, so that clients do not reconnect to this node.
        let (close, closing) = watch::channel(false);
        let open = self.metrics.connections(self.name);
        let builder = self.builder();
        let Self { name, listener, router, protocols, tls, bounds, metrics, workers, proxies, connections, .. } = self;
        let shared = Arc::new(ListenerContext {
            name,
            builder,
            router,
            handshakes: HandshakeLimiter::per_second(bounds.handshakes_per_second),
            bounds,
            stage: stage.clone(),
            closing,
        });
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = Lifecycle::Stopping.reached(stage.clone()) => match listener.accept().now_or_never() {
                    // Clients that have already connected are served.
                    Some(accepted) => accepted,
                    None => break,
                },
            };
            while tasks.try_join_next().is_some() {}
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // If the client has disconnected, this is no error. Other causes are a lack of file descriptors or
                    // memory.
                    if !is_client_error(&error) {
                        tracing::warn!(listener = name, %error, "connection not accepted");
                        sleep(ACCEPT_BACKOFF).await;
                    }
                    continue;
                }
            };
            let worker = workers.least_busy();
            let memory = ThreadMemory::new(worker.pending_bytes(), shared.bounds.pending_bytes);
            let activity = Activity::new(Arc::clone(&connections) as _, memory, shared.bounds.response_timeout);
            let trusted = proxies.trusts(address.ip().to_canonical());
            let source = (!trusted).then(|| client_network(address.ip()));
            let Some(permit) = connections.admit(name, source, &shared.bounds, activity) else {
                metrics.count_closed_connection(name, CloseReason::TooMany.name());
                continue;
            };
            let expects_proxy_header = trusted && shared.bounds.proxy_protocol;
            let connection = Connection { shared: Arc::clone(&shared), permit, address, source, expects_proxy_header };
            let acceptor = tls.as_ref().map(|tls| tls.acceptor(protocols));
            let (metrics, open_connection) = (Arc::clone(&metrics), OpenConnection::new(open.clone()));
            let Ok(stream) = stream.into_std() else { continue };
            let thread = worker.handle().clone();
            let work = async move {
                let (_open_connection, _worker) = (open_connection, worker);
                let Ok(stream) = TcpStream::from_std(stream) else { return };
                if let Err(reason) = connection.run(stream, acceptor).await {
                    metrics.count_closed_connection(name, reason.name());
                    tracing::debug!(listener = name, peer = %address, reason = reason.name(), "connection closed");
                }
            };
            tasks.spawn_on(work, &thread);
        }
        drop(listener);
        sleep(FIRST_CALL_TIMEOUT).await;
        let _ = close.send(true);
        while tasks.join_next().await.is_some() {}
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.header_timeout)
            .max_buf_size(usize::from(MAX_HEADER_BYTES));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(u32::try_from(self.calls).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::from(MAX_HEADER_BYTES))
            .keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1);
        match self.protocols {
            Protocols::Http => builder,
            Protocols::Http2 => builder.http2_only(),
        }
    }
}

/// Counts an open connection in a gauge.
struct OpenConnection(Gauge);

impl OpenConnection {
    fn new(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn is_client_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
