//! A bad network between nodes and one Redis.

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

/// Passes bytes on, or not.
pub(crate) struct Proxy {
    port: u16,
    weather: Arc<Weather>,
    cuts: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Weather {
    swallows: AtomicBool,
    delay_ms: AtomicU64,
}

impl Proxy {
    /// In front of the Redis on `port`.
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let weather = Arc::new(Weather::default());
        let (cuts, cut) = watch::channel(0);
        let task = tokio::spawn({
            let weather = Arc::clone(&weather);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (weather, mut cut) = (Arc::clone(&weather), cut.clone());
                    cut.mark_unchanged();
                    tokio::spawn(async move {
                        let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                        let (from_client, to_client) = client.into_split();
                        let (from_server, to_server) = server.into_split();
                        tokio::select! {
                            () = pass(from_client, to_server, &weather, false) => {}
                            () = pass(from_server, to_client, &weather, true) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            }
        });
        Self { port: own, weather, cuts, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Loses everything, without a word, from now on or no more.
    pub(crate) fn swallow(&self, on: bool) {
        self.weather.swallows.store(on, Ordering::SeqCst);
    }

    /// Holds every answer back for so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.weather.delay_ms.store(u64::try_from(delay.as_millis()).expect("short"), Ordering::SeqCst);
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: &Weather, answers: bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut lost = false;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // A stream with a hole in it is of no use any more.
        lost |= weather.swallows.load(Ordering::SeqCst);
        if lost {
            continue;
        }
        if answers {
            tokio::time::sleep(Duration::from_millis(weather.delay_ms.load(Ordering::SeqCst))).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
