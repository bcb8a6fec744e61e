//! Redis Cluster: which master has which slot, learned from the nodes and kept up to date.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, Value};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout, timeout_at},
};

use super::{
    dial::Dialer,
    fault::{Failure, Fault},
    node::Node,
    target::elsewhere,
};
use crate::breaker::Backoff;

pub(super) const SLOTS: usize = 16_384;
/// How often the map is read while all is well.
const READ_EVERY: Duration = Duration::from_secs(10);
/// The time limit for one node to return its cluster map.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// The same of a node that has to be connected to, unless calls wait longer than that.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// So many tags are tried to find one for each master; of a master with a single slot one in nine million is not found.
const MOST_TAGS: u32 = 1 << 18;
/// The pauses between readings while the map may be stale.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// Knows the masters of the moment.
pub(super) struct Cluster {
    shared: Arc<Shared>,
    known: watch::Receiver<Option<Result<(), Failure>>>,
    task: AbortHandle,
}

struct Shared {
    map: ArcSwap<Map>,
    seeds: Vec<ConnectionInfo>,
    dialer: Dialer,
    connect: Box<dyn Fn(ConnectionInfo) -> Arc<Node> + Send + Sync>,
    /// How long a seed may take.
    within: Duration,
    stale: Notify,
}

/// Every slot's master, as a place in `nodes`.
#[derive(Clone)]
struct Map {
    slots: Arc<[Option<u16>]>,
    nodes: Vec<Arc<Node>>,
}

/// A range of slots and the address of its master.
pub(super) type Range = (usize, usize, String, u16);

impl Cluster {
    pub(super) fn follow(
        seeds: Vec<ConnectionInfo>,
        deadline: Duration,
        dialer: Dialer,
        connect: impl Fn(ConnectionInfo) -> Arc<Node> + Send + Sync + 'static,
    ) -> Self {
        let map = Map { slots: Arc::from(vec![None; SLOTS]), nodes: Vec::new() };
        let (connect, within, stale) = (Box::new(connect), ASK_WITHIN.max(deadline), Notify::new());
        let shared = Arc::new(Shared { map: ArcSwap::from_pointee(map), seeds, dialer, connect, within, stale });
        let (to, known) = watch::channel(None);
        let task = tokio::spawn(keep_reading(Arc::clone(&shared), to)).abort_handle();
        Self { shared, known, task }
    }

    /// The master of a key's slot, or any master for a command without a key.
    pub(super) async fn master(&self, key: Option<&[u8]>, deadline: Instant) -> Result<Arc<Node>, Failure> {
        let mut known = self.known.clone();
        match timeout_at(deadline, known.wait_for(Option::is_some)).await {
            Ok(Ok(known)) => known.clone().unwrap_or(Ok(()))?,
            Ok(Err(_)) => return Err(down("nobody reads the slots any more")),
            Err(_) => return Err(down("no node said within the deadline who has which slot")),
        }
        let map = self.shared.map.load();
        let found = match key {
            Some(key) => map.slots[slot(key)].and_then(|at| map.nodes.get(usize::from(at))),
            None => map.nodes.iter().find(|node| !node.is_resting()).or(map.nodes.first()),
        };
        found.cloned().ok_or_else(|| {
            self.request_refresh();
            down("nobody has the slot")
        })
    }

    /// The node that a redirection names, `3999 127.0.0.1:6381` or, on the host that answered, `3999 :6381`.
    pub(super) fn redirected(&self, detail: &str, from: &Node) -> Result<Arc<Node>, Failure> {
        let to = detail.split_ascii_whitespace().nth(1).and_then(|address| address.rsplit_once(':'));
        let parsed = to.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = parsed.ok_or_else(|| down(format!("an unreadable redirection: {detail}")))?;
        let info = match (host, from.info.addr()) {
            ("" | "?", ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => {
                elsewhere(&from.info, host, port)
            }
            _ => elsewhere(&from.info, host, port),
        };
        Ok(self.shared.node_at(info))
    }

    /// Every master that has slots, and a number that, as the tag of a key, leads to one of them; and whether all slots
    /// have a master.
    pub(super) fn masters(&self) -> (Vec<(Arc<Node>, u32)>, bool) {
        let map = self.shared.map.load();
        let mut missing = vec![false; map.nodes.len()];
        for at in map.slots.iter().flatten() {
            missing[usize::from(*at)] = true;
        }
        let (mut left, mut masters) = (missing.iter().filter(|missing| **missing).count(), Vec::new());
        // A few are enough, unless a master has hardly any slot.
        for tag in 0..MOST_TAGS {
            if left == 0 {
                break;
            }
            let at = map.slots[slot(tag.to_string().as_bytes())].map(usize::from);
            if let Some(at) = at.filter(|at| std::mem::take(&mut missing[*at])) {
                masters.push((Arc::clone(&map.nodes[at]), tag));
                left -= 1;
            }
        }
        (masters, map.slots.iter().all(Option::is_some))
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.shared.map.load().nodes.clone()
    }

    /// Reads the map soon.
    pub(super) fn request_refresh(&self) {
        self.shared.stale.notify_one();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// The node at an address, which the map need not name yet.
    fn node_at(&self, info: ConnectionInfo) -> Arc<Node> {
        if let Some(node) = find(&self.map.load().nodes, &info) {
            return node;
        }
        let fresh = (self.connect)(info);
        self.map.rcu(|map| {
            let mut map = Map::clone(map);
            if find(&map.nodes, &fresh.info).is_none() {
                map.nodes.push(Arc::clone(&fresh));
            }
            map
        });
        find(&self.map.load().nodes, &fresh.info).unwrap_or(fresh)
    }

    /// Asks every known node, then the seeds, and takes the first answer.
    async fn read(&self) -> Result<(), Failure> {
        let (info, ranges) = match self.ask_known().await {
            Some(answer) => answer,
            None => ask_seeds(&self.seeds, &self.dialer, self.within).await?,
        };
        let before = self.map.load_full();
        let (mut slots, mut nodes) = (vec![None; SLOTS], Vec::<Arc<Node>>::new());
        for (from, to, host, port) in ranges {
            let info = elsewhere(&info, &host, port);
            let at = nodes.iter().position(|node| node.info.addr() == info.addr()).unwrap_or_else(|| {
                nodes.push(find(&before.nodes, &info).unwrap_or_else(|| (self.connect)(info)));
                nodes.len() - 1
            });
            slots[from..=to].fill(u16::try_from(at).ok());
        }
        self.map.store(Arc::new(Map { slots: slots.into(), nodes }));
        Ok(())
    }

    async fn ask_known(&self) -> Option<(ConnectionInfo, Vec<Range>)> {
        let mut asked = JoinSet::new();
        for node in self.map.load().nodes.iter().cloned() {
            asked.spawn(async move {
                let answer = node.ask(&question(), Instant::now() + READ_WITHIN).await.ok()?;
                Some((node.info.clone(), ranges(&answer, host_of(&node.info))?))
            });
        }
        first(asked).await
    }
}

/// Asks nodes that need not be known yet, and takes the first answer.
pub(super) async fn ask_seeds(
    seeds: &[ConnectionInfo],
    dialer: &Dialer,
    within: Duration,
) -> Result<(ConnectionInfo, Vec<Range>), Failure> {
    let (mut asked, last) = (JoinSet::new(), Arc::new(ArcSwap::from_pointee(down("no node answers"))));
    for seed in seeds.iter().cloned() {
        let (last, dialer) = (Arc::clone(&last), dialer.clone());
        asked.spawn(async move {
            let answer = timeout(within, async {
                let mut connection = dialer.connect(&seed, &AsyncConnectionConfig::new()).await?;
                question().query_async::<Value>(&mut connection).await
            });
            match answer.await {
                Ok(Ok(answer)) => {
                    let found = ranges(&answer, host_of(&seed)).filter(|ranges| !ranges.is_empty());
                    if found.is_none() {
                        last.store(Arc::new(down("CLUSTER SLOTS names no slot: the cluster is not set up")));
                    }
                    found.map(|ranges| (seed, ranges))
                }
                Ok(Err(error)) => {
                    last.store(Arc::new(Failure::to_connect(&error)));
                    None
                }
                Err(_) => None,
            }
        });
    }
    first(asked).await.ok_or_else(|| Failure::clone(&last.load()))
}

async fn keep_reading(shared: Arc<Shared>, known: watch::Sender<Option<Result<(), Failure>>>) {
    let mut pauses = Backoff::between(PAUSES.0, PAUSES.1);
    loop {
        let read = shared.read().await;
        let is_stale = read.is_err();
        known.send_if_modified(|known| {
            // A stale map is better than none.
            let news = !matches!(known, Some(Ok(())));
            if news {
                *known = Some(read);
            }
            news
        });
        if !is_stale {
            pauses.reset();
        }
        tokio::time::sleep(pauses.pause()).await;
        if !is_stale {
            let _ = timeout(READ_EVERY, shared.stale.notified()).await;
        }
    }
}

fn find(nodes: &[Arc<Node>], info: &ConnectionInfo) -> Option<Arc<Node>> {
    nodes.iter().find(|node| node.info.addr() == info.addr()).cloned()
}

async fn first<T: 'static>(mut asked: JoinSet<Option<T>>) -> Option<T> {
    while let Some(answer) = asked.join_next().await {
        if let Ok(Some(answer)) = answer {
            return Some(answer);
        }
    }
    None
}

fn question() -> redis::Cmd {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    command
}

/// Reads `CLUSTER SLOTS` (<https://redis.io/docs/latest/commands/cluster-slots/>): for each range its first and last
/// slot, then its master. If the master's host is missing, it is the node that was asked.
fn ranges(answer: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    let read = |range: &Value| {
        let Value::Array(range) = range else { return None };
        let [Value::Int(from), Value::Int(to), Value::Array(master), ..] = range.as_slice() else { return None };
        let [host, Value::Int(port), ..] = master.as_slice() else { return None };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            _ => "",
        };
        let host = if host.is_empty() || host == "?" { asked } else { host };
        let (from, to) = (usize::try_from(*from).ok()?, usize::try_from(*to).ok()?);
        (from <= to && to < SLOTS).then_some((from, to, host.to_owned(), u16::try_from(*port).ok()?))
    };
    ranges.iter().map(read).collect()
}

fn host_of(info: &ConnectionInfo) -> &str {
    match info.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}

/// The slot of a key (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>).
fn slot(key: &[u8]) -> usize {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|byte| *byte == b'}').filter(|length| *length > 0).map(|length| &rest[..length])
    });
    usize::from(crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key))) % SLOTS
}

fn down(text: impl Into<String>) -> Failure {
    Failure::new(Fault::ClusterDown, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the specification of Redis Cluster, and from `CLUSTER KEYSLOT` of Redis 7.0.15.
    #[test]
    fn slots() {
        for (key, expected) in
            [("123456789", 12_739), ("foo{}{bar}", 8_363), ("{user1000}.following", 3_443), ("a{user1000}b", 3_443)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }
}
