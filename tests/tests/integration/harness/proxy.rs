//! A network with faults between nodes and one Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

/// A proxy that forwards, delays or drops bytes.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<NetworkState>,
    cuts: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct NetworkState {
    drops_traffic: AtomicBool,
    delay_ms: AtomicU64,
}

impl Proxy {
    /// Starts a proxy for the Redis on `port`.
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own_port = listener.local_addr().expect("an address").port();
        let state = Arc::new(NetworkState::default());
        let (cuts, cut) = watch::channel(0);
        let task = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (state, mut cut) = (Arc::clone(&state), cut.clone());
                    cut.mark_unchanged();
                    tokio::spawn(async move {
                        let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                        let (from_client, to_client) = client.into_split();
                        let (from_server, to_server) = server.into_split();
                        tokio::select! {
                            () = forward(from_client, to_server, &state, false) => {}
                            () = forward(from_server, to_client, &state, true) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            }
        });
        Self { port: own_port, state, cuts, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Drops all traffic silently, or stops doing so. A connection that lost bytes stays silent.
    pub(crate) fn drop_traffic(&self, on: bool) {
        self.state.drops_traffic.store(on, Ordering::SeqCst);
    }

    /// Delays every answer of Redis.
    pub(crate) fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(u64::try_from(delay.as_millis()).expect("short"), Ordering::SeqCst);
    }

    /// Closes every connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &NetworkState, answers: bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut lost = false;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // A connection that lost bytes cannot be used any more.
        lost |= state.drops_traffic.load(Ordering::SeqCst);
        if lost {
            continue;
        }
        if answers {
            tokio::time::sleep(Duration::from_millis(state.delay_ms.load(Ordering::SeqCst))).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
