//! Whether charges are possible: a write of the node's own on every master, the way calls go.

use std::{
    sync::Arc,
    time::{Duration, Instant as Started},
};

use futures_util::future::join_all;
use redis::{
    Cmd, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::time::Instant;
use tollgate_core::store::{Obstacle, StoreHealth};

use super::{
    Link, Route, Script,
    fault::{Failure, Fault, Remedy},
    node::Node,
};
use crate::{
    clock::{Clock, SystemClock},
    redis::scripts,
};

/// How long all servers together may take, if calls do not wait for less.
const WITHIN: Duration = Duration::from_secs(1);
/// How long the key that is written lives: longer than the pause between two probes.
const KEY_TTL_MS: u32 = 10_000;
/// How often a server is asked anew what is looked at besides.
const FACTS_EVERY: Duration = Duration::from_secs(10);

/// What a link asks servers.
pub(super) struct Probe {
    script: Script,
    /// Apart from that of every other link.
    id: u64,
}

/// What a server said of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Its `maxmemory-policy`, if that lets it give up keys.
    pub(super) eviction: Option<String>,
    /// When it was asked.
    asked: Option<Started>,
    /// How far its clock is ahead of this node's, in milliseconds.
    skew_ms: Option<i64>,
}

/// A server to ask, and a key that lives there.
type Asked = (Arc<Node>, String);

impl Probe {
    pub(super) fn new() -> Self {
        Self { script: scripts::script("probe.lua"), id: rand::random() }
    }

    fn key(&self, prefix: &str, tag: u32) -> String {
        format!("{prefix}{{{tag}}}probe{:016x}", self.id)
    }

    /// The whole command, by `EVALSHA` or `EVAL`.
    pub(super) fn command(&self, verb: &str, key: &str) -> Cmd {
        let script = if verb == "EVAL" { &self.script.code } else { &self.script.sha };
        let mut command = redis::cmd(verb);
        command.arg(script).arg(1).arg(key).arg(KEY_TTL_MS);
        command
    }
}

impl Link {
    /// Whether charges are possible, on every master. The answer comes within a second, or sooner if calls wait for less.
    ///
    /// It waits for no place among the calls under way: a probe must get through when calls do not.
    pub(crate) async fn health(&self) -> StoreHealth {
        let deadline = Instant::now() + self.0.config.deadline.min(WITHIN);
        let (servers, gap) = match self.servers(deadline).await {
            Ok(found) => found,
            Err(failure) => (Vec::new(), Some(failure)),
        };
        let probe = &self.0.probe;
        let answers = join_all(servers.iter().map(|(node, key)| node.probe(probe, key, deadline))).await;
        let mut failures: Vec<Failure> = answers.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() {
            failures.extend(gap);
        }
        for failure in &failures {
            self.0.met(failure);
        }
        // The slot is on the move: the server answers, and calls are sent on.
        failures.retain(|failure| !matches!(failure.fault, Fault::Moved | Fault::Ask | Fault::TryAgain));
        let facts = servers.iter().map(|(node, _)| node.facts());
        let mut health = StoreHealth { servers: servers.len().max(failures.len()), ..StoreHealth::default() };
        for Facts { eviction, skew_ms, .. } in facts {
            health.eviction = health.eviction.or(eviction);
            let skews = health.clock_skew_ms.into_iter().chain(skew_ms);
            health.clock_skew_ms = skews.max_by_key(|skew| skew.unsigned_abs());
        }
        health.obstacles = failures.into_iter().map(Obstacle::from).collect();
        health
    }

    /// Who has to take charges, and what is wrong if there is more to take than these can.
    async fn servers(&self, deadline: Instant) -> Result<(Vec<Asked>, Option<Failure>), Failure> {
        let key = |tag| self.0.probe.key(self.key_prefix(), tag);
        match &self.0.route {
            Route::Single(node) => Ok((vec![(Arc::clone(node), key(0))], None)),
            Route::Sentinel(sentinels) => Ok((vec![(sentinels.master(deadline).await?, key(0))], None)),
            Route::Cluster(cluster) => {
                // Waits for the first map, if there is none yet.
                cluster.master(None, deadline).await?;
                let (masters, served) = cluster.masters();
                let servers = masters.into_iter().map(|(node, tag)| (node, key(tag))).collect();
                let gap = (!served).then(|| Failure::new(Fault::ClusterDown, "some slots have no master"));
                Ok((servers, gap))
            }
        }
    }

    /// Whether no server can be used as each is a replica.
    pub(crate) fn is_read_only(&self) -> bool {
        let nodes = self.0.nodes();
        !nodes.is_empty() && nodes.iter().all(|node| node.is_read_only())
    }
}

impl Node {
    /// Whether the server takes a charge, asked whatever the breaker says. The answer tells the breaker.
    pub(super) async fn probe(&self, probe: &Probe, key: &str, deadline: Instant) -> Result<(), Failure> {
        let before = SystemClock.now().as_ms();
        let time = self.write(probe, key, deadline).await?;
        let after = SystemClock.now().as_ms();
        let skew_ms = milliseconds(&time).map(|theirs| skew(theirs, before, after));
        let due = self.change_facts(|facts| {
            facts.skew_ms = skew_ms;
            facts.asked.is_none_or(|asked| asked.elapsed() >= FACTS_EVERY)
        });
        // Only the administrator of the server changes it, and not every user may ask.
        if due && let Ok(answer) = self.ask(redis::cmd("INFO").arg("memory"), deadline).await {
            self.change_facts(|facts| facts.read_memory(&answer));
        }
        Ok(())
    }
}

impl Facts {
    fn read_memory(&mut self, info: &Value) {
        self.asked = Some(Started::now());
        if let Some(policy) = field(info, "maxmemory_policy") {
            self.eviction = (policy != "noeviction").then_some(policy);
        }
    }
}

/// Asks a server that was just connected to who it is. Calls may use the connection if it is a master, or a node of a
/// cluster: there a replica sends calls on by itself.
pub(super) async fn meet(
    connection: &mut MultiplexedConnection,
    in_cluster: bool,
) -> redis::RedisResult<(Facts, bool)> {
    let mut questions = redis::pipe();
    // A stalled server takes connections in, too.
    questions.cmd("PING").cmd("INFO").arg("memory").cmd("INFO").arg("replication").cmd("ROLE");
    let mut replies = connection.req_packed_commands(&questions, 0, questions.len()).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil).extract_error();
    if let Err(error) = next()
        && Failure::of(&error).fault.remedy() == Remedy::Reconnect
    {
        return Err(error);
    }
    let (memory, replication, role) = (next(), next(), next());
    let mut facts = Facts::default();
    if let Ok(memory) = memory {
        facts.read_memory(&memory);
    }
    // A user may be allowed one of the two.
    let is_replica = replication.is_ok_and(|info| field(&info, "role").as_deref() == Some("slave"))
        || role.is_ok_and(
            |role| matches!(role, Value::Array(parts) if parts.first().and_then(text).as_deref() == Some("slave")),
        );
    Ok((facts, !is_replica || in_cluster))
}

/// How far `theirs`, told at some time from `before` to `after`, is ahead.
fn skew(theirs: u64, before: u64, after: u64) -> i64 {
    let behind = before.saturating_sub(theirs);
    let ahead = theirs.saturating_sub(after);
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(ahead) - signed(behind)
}

/// The answer to `TIME`: seconds and microseconds.
fn milliseconds(time: &Value) -> Option<u64> {
    let Value::Array(parts) = time else { return None };
    let part = |at: usize| text(parts.get(at)?)?.parse::<u64>().ok();
    Some(part(0)?.saturating_mul(1_000).saturating_add(part(1)? / 1_000))
}

/// A field of the answer to `INFO`.
fn field(info: &Value, name: &str) -> Option<String> {
    let info = text(info)?;
    info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':')).map(str::to_owned)
}

fn text(value: &Value) -> Option<std::borrow::Cow<'_, str>> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes)),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_ahead_or_behind_only_of_what_the_way_does_not_explain() {
        for (theirs, expected) in [(100, 0), (150, 0), (200, 0), (201, 1), (5_200, 5_000), (99, -1), (0, -100)] {
            assert_eq!(skew(theirs, 100, 200), expected, "{theirs}");
        }
    }

    #[test]
    fn what_info_says() {
        let info = Value::BulkString(b"# Memory\r\nmaxmemory_policy:allkeys-lru\r\nrole:slave\r\n".to_vec());
        assert_eq!(field(&info, "role").as_deref(), Some("slave"));
        let mut facts = Facts::default();
        facts.read_memory(&info);
        assert_eq!(facts.eviction.as_deref(), Some("allkeys-lru"));
        facts.read_memory(&Value::BulkString(b"maxmemory_policy:noeviction\r\n".to_vec()));
        assert_eq!(facts.eviction, None);
    }
}
