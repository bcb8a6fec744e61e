//! A proxy in front of Redis that can close or stall subscriptions, and leaves all other connections alone.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

const PASS: u8 = 0;
const CUT: u8 = 1;
const STALL: u8 = 2;

pub(super) struct SubscriptionProxy {
    pub(super) url: String,
    mode: Arc<AtomicU8>,
    changed: watch::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl SubscriptionProxy {
    pub(super) async fn start(redis: &str) -> Self {
        let to = redis.trim_start_matches("redis://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("redis://{}", listener.local_addr().expect("an address"));
        let mode = Arc::new(AtomicU8::new(PASS));
        let (changed, seen) = watch::channel(());
        let task = tokio::spawn({
            let mode = Arc::clone(&mode);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if let Ok(server) = TcpStream::connect(&to).await {
                        tokio::spawn(forward(client, server, Arc::clone(&mode), seen.clone()));
                    }
                }
            }
        });
        Self { url, mode, changed, task }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
        self.changed.send_replace(());
    }

    /// Closes all subscriptions, and refuses new ones.
    pub(super) fn cut(&self) {
        self.set(CUT);
    }

    /// Silently stops forwarding to subscribers.
    pub(super) fn stall(&self) {
        self.set(STALL);
    }

    pub(super) fn restore(&self) {
        self.set(PASS);
    }
}

impl Drop for SubscriptionProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, mode: Arc<AtomicU8>, mut changes: watch::Receiver<()>) {
    let (mut to_server, mut to_client) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut subscribes = false;
    loop {
        let now = mode.load(Ordering::SeqCst);
        if subscribes && now == CUT {
            return;
        }
        let stalled = subscribes && now == STALL;
        tokio::select! {
            _ = changes.changed() => {}
            read = client.read(&mut to_server), if !stalled => {
                let Ok(length @ 1..) = read else { return };
                let output = &to_server[..length];
                subscribes |= output.windows(9).any(|word| word.eq_ignore_ascii_case(b"SUBSCRIBE"));
                if (subscribes && mode.load(Ordering::SeqCst) == CUT) || server.write_all(output).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut to_client), if !stalled => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&to_client[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
