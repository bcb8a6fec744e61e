//! The master that the sentinels name, followed through failovers.

use std::{sync::Arc, time::Duration};

use redis::{
    ConnectionAddr, ConnectionInfo, TlsMode,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::StreamExt;
use tollgate_core::store::StoreError;

use super::{
    fault::{Failure, Fault},
    node::Node,
};
use crate::breaker::Backoff;

/// How often the sentinels are asked while everything works.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long one round of questions may take.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// The pauses between questions while the master may have changed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));

type Master = Result<Arc<Node>, Failure>;

/// Knows the master of the moment.
pub(super) struct Sentinels {
    master: watch::Receiver<Option<Master>>,
    stale: Arc<Notify>,
    tasks: [AbortHandle; 2],
}

impl Sentinels {
    pub(super) fn follow(
        sentinels: Vec<ConnectionInfo>,
        service: &str,
        login: &ConnectionInfo,
        certificates: Option<redis::TlsCertificates>,
        connect: impl Fn(ConnectionInfo) -> Arc<Node> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let client = client(&sentinels, service, login, certificates)
            .map_err(|error| StoreError::Refused(format!("the Redis URL: {error}")))?;
        let login = login.clone();
        let (to, master) = watch::channel(None);
        let stale = Arc::new(Notify::new());
        let connect = move |found: &ConnectionInfo| {
            let found = found.clone().set_redis_settings(login.redis_settings().clone());
            connect(found.set_tcp_settings(login.tcp_settings().clone()))
        };
        let tasks = [
            tokio::spawn(ask(client, to, Arc::clone(&stale), connect)).abort_handle(),
            tokio::spawn(listen(sentinels, Arc::clone(&stale))).abort_handle(),
        ];
        Ok(Self { master, stale, tasks })
    }

    /// The master, waited for only before the first answer of the sentinels.
    pub(super) async fn master(&self, deadline: Instant) -> Master {
        let mut master = self.master.clone();
        match timeout_at(deadline, master.wait_for(Option::is_some)).await {
            Ok(Ok(found)) => found.clone().unwrap_or_else(|| Err(unknown("no master"))),
            Ok(Err(_)) => Err(unknown("nobody asks the sentinels any more")),
            Err(_) => Err(unknown("the sentinels did not answer within the deadline")),
        }
    }

    pub(super) fn now(&self) -> Option<Arc<Node>> {
        self.master.borrow().as_ref().and_then(|master| master.as_ref().ok().cloned())
    }

    /// Asks the sentinels soon.
    pub(super) fn request_refresh(&self) {
        self.stale.notify_one();
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn unknown(text: impl Into<String>) -> Failure {
    Failure::new(Fault::Unconnected, text)
}

pub(super) fn client(
    sentinels: &[ConnectionInfo],
    service: &str,
    login: &ConnectionInfo,
    certificates: Option<redis::TlsCertificates>,
) -> redis::RedisResult<SentinelClient> {
    let at_sentinels = sentinels.first().map(|info| info.redis_settings().clone()).unwrap_or_default();
    let addresses = sentinels.iter().map(|info| info.addr().clone());
    let mut builder = SentinelClientBuilder::new(addresses, service, SentinelServerType::Master)?
        .set_client_to_redis_db(login.redis_settings().db());
    if let Some(user) = login.redis_settings().username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = login.redis_settings().password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(user) = at_sentinels.username() {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = at_sentinels.password() {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if let ConnectionAddr::TcpTls { insecure, .. } = login.addr() {
        builder = builder.set_client_to_redis_tls_mode(if *insecure { TlsMode::Insecure } else { TlsMode::Secure });
        if let Some(certificates) = certificates {
            builder = builder.set_client_to_redis_certificates(certificates);
        }
    }
    builder.build()
}

/// Reacts to a failover as soon as one sentinel reports it. A failover by command leaves the old master writable for
/// some seconds, and its writes in this time are lost.
async fn listen(sentinels: Vec<ConnectionInfo>, stale: Arc<Notify>) {
    let mut pauses = Backoff::between(PAUSES.0, ASK_EVERY);
    for sentinel in sentinels.iter().cycle() {
        let heard = timeout(ASK_WITHIN, async {
            let mut heard = redis::Client::open(sentinel.clone())?.get_async_pubsub().await?;
            heard.subscribe("+switch-master").await?;
            redis::RedisResult::Ok(heard)
        });
        if let Ok(Ok(mut heard)) = heard.await {
            pauses.reset();
            // Events before this moment.
            stale.notify_one();
            let mut news = heard.on_message();
            while news.next().await.is_some() {
                stale.notify_one();
            }
        }
        tokio::time::sleep(pauses.pause()).await;
    }
}

/// Asks repeatedly. The client also checks that the named server considers itself a master.
async fn ask(
    mut client: SentinelClient,
    master: watch::Sender<Option<Master>>,
    stale: Arc<Notify>,
    connect: impl Fn(&ConnectionInfo) -> Arc<Node>,
) {
    let mut pauses = Backoff::between(PAUSES.0, PAUSES.1);
    loop {
        let failure = match timeout(ASK_WITHIN, client.async_get_client()).await {
            Ok(Ok(found)) => {
                let info = found.get_connection_info();
                master.send_if_modified(|known| {
                    let same = matches!(known, Some(Ok(node)) if node.info.addr() == info.addr());
                    if !same {
                        *known = Some(Ok(connect(info)));
                    }
                    !same
                });
                pauses.reset();
                None
            }
            Ok(Err(error)) => Some(unknown(format!("the sentinels name no master: {error}"))),
            Err(_) => Some(unknown("the sentinels do not answer")),
        };
        let in_doubt = failure.is_some();
        if let Some(failure) = failure {
            // The master of before may serve all the same.
            master.send_if_modified(|known| {
                let none = !matches!(known, Some(Ok(_)));
                if none {
                    *known = Some(Err(failure));
                }
                none
            });
        }
        tokio::time::sleep(pauses.pause()).await;
        if !in_doubt {
            let _ = timeout(ASK_EVERY, stale.notified()).await;
        }
    }
}
