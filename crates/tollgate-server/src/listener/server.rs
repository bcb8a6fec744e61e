//! A listener and its connections, from the first byte to the last: TLS, and the bounds of a connection.

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
    handshakes::HandshakeTurns,
    thread_memory::ThreadMemory,
};
use crate::{
    auth::TrustedProxies,
    lifecycle::Lifecycle,
    tls::{Protocols, Tls},
    workers::Workers,
};

/// How long accepting rests after an error that is the node's own, such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long clients that connected while the node stopped may take to send a call.
const FIRST_WORD: Duration = Duration::from_millis(50);
/// How often HTTP/2 clients are pinged, and how long they may take to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How many bytes of an HTTP/2 stream, and of all streams of a connection, are taken in before they are read. Small
/// messages cost more than their bytes, and h2 ends a connection (`ENHANCE_YOUR_CALM`) that has buffered frames
/// for more than half of its window: so a window of one stream must run out well before.
const STREAM_WINDOW: u32 = 32 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// The most bytes of a request's headers.
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
    /// How many calls may be in work on one connection.
    pub(crate) calls: usize,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) workers: Workers,
    pub(crate) proxies: TrustedProxies,
    /// The connections of all listeners.
    pub(crate) connections: Arc<ConnectionTable>,
}

impl Server {
    /// Serves until the node stops, then finishes the calls in progress.
    pub(crate) async fn serve(self, stage: watch::Receiver<Lifecycle>) {
        // Connections are told to end only when the listener is closed: a client that reconnects because of it is
        // refused.
        let (end, ending) = watch::channel(false);
        let open = self.metrics.connections(self.name);
        let builder = self.builder();
        let Self { name, listener, router, protocols, tls, bounds, metrics, workers, proxies, connections, .. } = self;
        let shared = Arc::new(ListenerContext {
            name,
            builder,
            router,
            handshakes: HandshakeTurns::per_second(bounds.handshakes_per_second),
            bounds,
            stage: stage.clone(),
            ending,
        });
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = Lifecycle::Stopping.reached(stage.clone()) => match listener.accept().now_or_never() {
                    // Clients that connected before are served.
                    Some(accepted) => accepted,
                    None => break,
                },
            };
            while tasks.try_join_next().is_some() {}
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // A client that disconnected again is no error; the remaining causes are a lack of files or memory.
                    if !is_of_the_client(&error) {
                        tracing::warn!(listener = name, %error, "connection not accepted");
                        sleep(ACCEPT_BACKOFF).await;
                    }
                    continue;
                }
            };
            let worker = workers.least_busy();
            let memory = ThreadMemory::new(worker.pending_bytes(), shared.bounds.pending_bytes);
            let activity = Activity::new(Arc::clone(&connections) as _, memory, shared.bounds.answer_timeout);
            let trusted = proxies.trusts(address.ip().to_canonical());
            let source = (!trusted).then(|| client_network(address.ip()));
            let Some(place) = connections.admit(name, source, &shared.bounds, activity) else {
                metrics.count_closed_connection(name, CloseReason::TooMany.reason());
                continue;
            };
            let proxied = trusted && shared.bounds.proxy_protocol;
            let connection = Connection { shared: Arc::clone(&shared), place, address, source, proxied };
            let acceptor = tls.as_ref().map(|tls| tls.acceptor(protocols));
            let (metrics, counted) = (Arc::clone(&metrics), Counted::new(open.clone()));
            let Ok(stream) = stream.into_std() else { continue };
            let thread = worker.handle().clone();
            let work = async move {
                let (_counted, _seat) = (counted, worker);
                let Ok(stream) = TcpStream::from_std(stream) else { return };
                if let Err(cut) = connection.run(stream, acceptor).await {
                    metrics.count_closed_connection(name, cut.reason());
                    tracing::debug!(listener = name, peer = %address, reason = cut.reason(), "connection cut");
                }
            };
            tasks.spawn_on(work, &thread);
        }
        drop(listener);
        sleep(FIRST_WORD).await;
        let _ = end.send(true);
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

/// Counts a connection while it is open.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn is_of_the_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
