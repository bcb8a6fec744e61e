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
    certificate::{CertificateName, names_of},
    close_reason::CloseReason,
    connections::{ConnectionBounds, ConnectionSlot},
    gather::CoalescedWrites,
    handshakes::HandshakeTurns,
    peer::Peer,
    proxy,
};
use crate::lifecycle::Lifecycle;

/// How long a client may take for the TLS handshake, once it has its turn.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a new connection may take until its first request, or the preface of HTTP/2, is there.
const FIRST_WORDS: Duration = Duration::from_secs(10);
/// How long calls may arrive on a connection after it was told that the node stops.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long an idle connection may take to end after it was told to.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Shared by the connections of a listener.
pub(super) struct ListenerContext {
    pub(super) name: &'static str,
    pub(super) builder: auto::Builder<TokioExecutor>,
    pub(super) router: Router,
    pub(super) handshakes: HandshakeTurns,
    pub(super) bounds: ConnectionBounds,
    pub(super) stage: watch::Receiver<Lifecycle>,
    /// Whether connections end with their calls in work.
    pub(super) ending: watch::Receiver<bool>,
}

impl ListenerContext {
    /// How long the first words of a client may take.
    fn first_words(&self) -> Duration {
        FIRST_WORDS.min(self.bounds.header_timeout)
    }
}

/// A connection that was taken in.
pub(super) struct Connection {
    pub(super) shared: Arc<ListenerContext>,
    pub(super) place: ConnectionSlot,
    pub(super) address: SocketAddr,
    /// The address that it counts for; none for that of a trusted proxy.
    pub(super) source: Option<IpAddr>,
    /// Whether it begins with a header of the PROXY protocol.
    pub(super) proxied: bool,
}

impl Connection {
    /// Serves it until it ends.
    ///
    /// # Errors
    /// Why the node ended it.
    pub(super) async fn run(self, stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<(), CloseReason> {
        let activity = self.place.activity().clone();
        tokio::select! {
            ended = self.serve(stream, acceptor) => ended,
            cut = activity.cutting() => Err(cut),
        }
    }

    async fn serve(mut self, mut stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<(), CloseReason> {
        let _ = stream.set_nodelay(true);
        let ending = ended(self.shared.ending.clone());
        let Some(acceptor) = acceptor else {
            self.read_proxy_header(&mut stream).await?;
            return self.answer(stream, Vec::new()).await;
        };
        let stream = tokio::select! {
            stream = self.shake_hands(stream, acceptor) => stream?,
            () = ending => return Ok(()),
        };
        let shown = stream.get_ref().1.peer_certificates();
        let certificate = shown.and_then(<[_]>::first).map(|first| names_of(first)).unwrap_or_default();
        self.answer(stream, certificate).await
    }

    /// Takes the client's address from the header that a trusted proxy sends first.
    async fn read_proxy_header(&mut self, stream: &mut TcpStream) -> Result<(), CloseReason> {
        if !self.proxied {
            return Ok(());
        }
        let read = timeout(self.shared.first_words(), proxy::read_client(stream)).await;
        let Ok(Ok(named)) = read else { return Err(CloseReason::ProxyHeader) };
        if let Some(client) = named {
            let source = client_network(client.ip());
            let shared = &self.shared;
            self.place.name(shared.name, source, &shared.bounds).ok_or(CloseReason::TooMany)?;
            (self.address, self.source) = (client, Some(source));
        }
        Ok(())
    }

    async fn shake_hands(
        &mut self,
        mut stream: TcpStream,
        acceptor: TlsAcceptor,
    ) -> Result<TlsStream<TcpStream>, CloseReason> {
        self.read_proxy_header(&mut stream).await?;
        // A turn is taken only after the client has sent something: a silent connection costs nothing except its place.
        let readable = timeout(self.shared.first_words(), stream.readable()).await;
        readable.map_err(|_| CloseReason::Silent)?.map_err(|_| CloseReason::Handshake)?;
        self.shared.handshakes.wait(self.source).await.ok_or(CloseReason::Handshake)?;
        let stream = timeout(HANDSHAKE, acceptor.accept(stream)).await;
        stream.map_err(|_| CloseReason::Handshake)?.map_err(|_| CloseReason::Handshake)
    }

    async fn answer<I>(self, io: I, certificate: Vec<CertificateName>) -> Result<(), CloseReason>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { shared, place, address, source, .. } = self;
        let activity = place.activity().clone();
        let peer = Arc::new(Peer { address, source, certificate, connection: activity.clone() });
        let service = service_fn(|mut request: Request<Incoming>| {
            let one_at_a_time = request.version() < Version::HTTP_2;
            // Of the calls that came with those for which it is cut, none is begun any more.
            let begun = (!activity.is_cut()).then(|| {
                let call = activity.begin(&request);
                request.extensions_mut().insert(Arc::clone(&peer));
                (call, shared.router.clone().call(request.map(Body::new)))
            });
            let (stage, activity) = (shared.stage.clone(), activity.clone());
            async move {
                let Some((call, answer)) = begun.filter(|_| !activity.is_cut()) else {
                    return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
                };
                let Ok(mut answer) = answer.await;
                // HTTP/2 has a way to end a connection that loses no call; HTTP/1 has this.
                if one_at_a_time && *stage.borrow() > Lifecycle::Running {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok(call.until_the_end_of(answer))
            }
        });
        let (io, preface) = CoalescedWrites::new(io, activity.clone());
        let mut connection = pin!(shared.builder.serve_connection(TokioIo::new(io), service));
        let mut ending = pin!(ended(shared.ending.clone()));
        let silent = async {
            sleep(shared.first_words()).await;
            if activity.has_asked() || preface.is_complete() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            // The cause of the end is not reported: usually the client just closed the connection.
            _ = connection.as_mut() => return Ok(()),
            () = &mut ending => {
                connection.as_mut().graceful_shutdown();
                // A connection without a call ends soon, because not every client reacts to being told.
                let idle = async {
                    sleep(FAREWELL).await;
                    activity.idle_for(FAREWELL / 10).await;
                };
                tokio::select! {
                    _ = connection => return Ok(()),
                    () = idle => return Ok(()),
                    () = activity.has_unread_answer() => return Err(CloseReason::Unread),
                }
            }
            () = silent => return Err(CloseReason::Silent),
            () = activity.has_unread_answer() => return Err(CloseReason::Unread),
            () = activity.idle_for(shared.bounds.idle_timeout) => {}
        }
        connection.as_mut().graceful_shutdown();
        let closing = timeout(CLOSE_GRACE, async {
            let _ = connection.as_mut().await;
        });
        // A call that came at the last moment is still answered.
        if closing.await.is_err() && activity.is_busy() {
            tokio::select! {
                _ = connection => {}
                () = activity.has_unread_answer() => return Err(CloseReason::Unread),
            }
        }
        Err(CloseReason::Idle)
    }
}

async fn ended(mut ending: watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}
