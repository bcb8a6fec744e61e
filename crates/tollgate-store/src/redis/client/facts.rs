//! Facts that a server reports about itself, and the write that shows whether charges are possible.

use std::time::Instant as Started;

use redis::{
    Cmd, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::{
    Script,
    fault::{Failure, Remedy},
};
use crate::redis::scripts;

/// How long the key that is written lives: longer than the pause between two probes.
const KEY_TTL_MS: u32 = 10_000;
/// The questions to servers.
pub(super) struct Probe {
    script: Script,
    /// Apart from that of every other link.
    id: u64,
}

/// The answers of a server about itself.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerFacts {
    /// Its `maxmemory-policy`, if that lets it give up keys.
    pub(super) eviction: Option<String>,
    /// The time of the question.
    pub(super) asked: Option<Started>,
    /// How far its clock is ahead of this node's, in milliseconds.
    pub(super) skew_ms: Option<i64>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self { script: scripts::script("probe.lua"), id: rand::random() }
    }

    pub(super) fn key(&self, prefix: &str, tag: u32) -> String {
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

impl ServerFacts {
    pub(super) fn read_memory(&mut self, info: &Value) {
        self.asked = Some(Started::now());
        if let Some(policy) = field(info, "maxmemory_policy") {
            self.eviction = (policy != "noeviction").then_some(policy);
        }
    }
}

/// Asks a newly connected server for its role. Calls may use the connection if it is a master, or a node of a cluster,
/// where a replica redirects calls.
pub(super) async fn meet(
    connection: &mut MultiplexedConnection,
    in_cluster: bool,
) -> redis::RedisResult<(ServerFacts, bool)> {
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
    let mut facts = ServerFacts::default();
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

/// How far `theirs`, read at some time between `before` and `after`, is ahead.
pub(super) fn skew(theirs: u64, before: u64, after: u64) -> i64 {
    let behind = before.saturating_sub(theirs);
    let ahead = theirs.saturating_sub(after);
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(ahead) - signed(behind)
}

/// The answer to `TIME`: seconds and microseconds.
pub(super) fn milliseconds(time: &Value) -> Option<u64> {
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
        let mut facts = ServerFacts::default();
        facts.read_memory(&info);
        assert_eq!(facts.eviction.as_deref(), Some("allkeys-lru"));
        facts.read_memory(&Value::BulkString(b"maxmemory_policy:noeviction\r\n".to_vec()));
        assert_eq!(facts.eviction, None);
    }
}
