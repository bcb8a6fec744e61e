//! A listener and its connections, from the first byte to the last: TLS, and what a connection may cost.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Version, header::CONNECTION},
};
use futures_util::FutureExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use metrics::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::Service;

use super::{Stage, activity::Activity, gather::Gather};
use crate::{
    auth::{Peer, names_of},
    telemetry::Telemetry,
    tls::{Speaks, Tls},
    workers::Workers,
};

/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long an idle connection has to end after it was told to.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long accepting rests after an error that is the node's own, such as too many open files.
const REST: Duration = Duration::from_millis(100);
/// How long those who connected as the node stopped have to make a call.
const FIRST_WORD: Duration = Duration::from_millis(50);
/// How often HTTP/2 clients are asked whether they are still there, and how long they may take to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How many bytes of an HTTP/2 stream, and of all streams of a connection, are taken in before they are read. Small
/// messages cost more than their bytes, and h2 ends a connection (`ENHANCE_YOUR_CALM`) that has buffered frames
/// for more than half of its window: so a window of one stream must run out well before.
const STREAM_WINDOW: u32 = 32 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// The most bytes of a request's headers.
const MAX_HEADER_BYTES: u16 = 16 * 1024;

/// What connections may cost.
#[derive(Clone, Debug)]
pub struct ConnectionBounds {
    /// How many there may be on each listener; more are closed at once.
    pub most: usize,
    /// How long a client may take to send the headers of an HTTP/1 request, from the end of the one before.
    pub header_timeout: Duration,
    /// How long a connection may be without a call.
    pub idle_timeout: Duration,
}

/// A listener, and what answers on it.
pub(crate) struct Server {
    /// For metrics and logs.
    pub(crate) name: &'static str,
    pub(crate) listener: TcpListener,
    pub(crate) router: Router,
    pub(crate) speaks: Speaks,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) bounds: ConnectionBounds,
    /// How many calls may be in work on one connection.
    pub(crate) calls: usize,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) workers: Workers,
}

impl Server {
    /// Serves until the node stops, then finishes what is in work.
    pub(crate) async fn serve(self, stage: watch::Receiver<Stage>) {
        // Connections are told to end when nobody can connect any more: whoever does so because of it is refused.
        let (end, ending) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(self.bounds.most));
        let connections = self.telemetry.connections(self.name);
        let builder = Arc::new(self.builder());
        let Self { name, listener, router, speaks, tls, bounds, telemetry, workers, .. } = self;
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = Stage::Stopping.reached(stage.clone()) => match listener.accept().now_or_never() {
                    // Whoever came before is served.
                    Some(accepted) => accepted,
                    None => break,
                },
            };
            while tasks.try_join_next().is_some() {}
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Clients that went away again are nothing; what is left is that files or memory ran out.
                    if !is_of_the_client(&error) {
                        tracing::warn!(listener = name, %error, "connection not accepted");
                        sleep(REST).await;
                    }
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                telemetry.connection_cut(name, "too_many");
                continue;
            };
            let connection = Connection {
                builder: Arc::clone(&builder),
                router: router.clone(),
                idle_timeout: bounds.idle_timeout,
                stage: stage.clone(),
                ending: ending.clone(),
            };
            let acceptor = tls.as_ref().map(|tls| tls.acceptor(speaks));
            let (telemetry, counted) = (Arc::clone(&telemetry), Counted::new(connections.clone()));
            let worker = workers.least_busy();
            let Ok(stream) = stream.into_std() else { continue };
            let thread = worker.handle().clone();
            let work = async move {
                let (_slot, _counted, _seat) = (slot, counted, worker);
                let Ok(stream) = TcpStream::from_std(stream) else { return };
                if let Err(cut) = connection.run(stream, address, acceptor).await {
                    telemetry.connection_cut(name, cut.reason());
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
        match self.speaks {
            Speaks::Http => builder,
            Speaks::Http2 => builder.http2_only(),
        }
    }
}

/// Why a connection was ended by the node.
#[derive(Clone, Copy)]
enum Cut {
    Handshake,
    Idle,
}

impl Cut {
    const fn reason(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Idle => "idle",
        }
    }
}

struct Connection {
    builder: Arc<auto::Builder<TokioExecutor>>,
    router: Router,
    idle_timeout: Duration,
    stage: watch::Receiver<Stage>,
    ending: watch::Receiver<bool>,
}

impl Connection {
    async fn run(
        self,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: Option<tokio_rustls::TlsAcceptor>,
    ) -> Result<(), Cut> {
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = acceptor else {
            return self.serve(stream, Peer { address, certificate: Vec::new() }).await;
        };
        let stream = tokio::select! {
            stream = timeout(HANDSHAKE, acceptor.accept(stream)) => stream,
            () = ended(self.ending.clone()) => return Ok(()),
        };
        let Ok(Ok(stream)) = stream else { return Err(Cut::Handshake) };
        let shown = stream.get_ref().1.peer_certificates();
        let certificate = shown.and_then(<[_]>::first).map(|first| names_of(first)).unwrap_or_default();
        self.serve(stream, Peer { address, certificate }).await
    }

    async fn serve<I>(self, io: I, peer: Peer) -> Result<(), Cut>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { builder, router, idle_timeout, stage, ending } = self;
        let activity = Activity::new();
        let peer = Arc::new(peer);
        let service = service_fn(|mut request: Request<Incoming>| {
            let call = activity.begin();
            request.extensions_mut().insert(Arc::clone(&peer));
            let one_at_a_time = request.version() < Version::HTTP_2;
            let answer = router.clone().call(request.map(Body::new));
            let stage = stage.clone();
            async move {
                let mut answer = answer.await?;
                // HTTP/2 has a way to end a connection that loses no call; HTTP/1 has this.
                if one_at_a_time && *stage.borrow() > Stage::Running {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(call.until_the_end_of(answer))
            }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(Gather::new(io)), service));
        let mut stopping = pin!(ended(ending));
        tokio::select! {
            // How it ended is between hyper and the client: most often somebody just closed it.
            _ = connection.as_mut() => return Ok(()),
            () = &mut stopping => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
                return Ok(());
            }
            () = activity.idle_for(idle_timeout) => {}
        }
        connection.as_mut().graceful_shutdown();
        let goodbye = timeout(GOODBYE, async {
            let _ = connection.as_mut().await;
        });
        // A call that came at the last moment is still answered.
        if goodbye.await.is_err() && activity.is_busy() {
            let _ = connection.await;
        }
        Err(Cut::Idle)
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

async fn ended(mut ending: watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}
