//! Examines a Redis: whether it can do what a node needs, and which of its settings will cause trouble.

mod reach;
mod rights;

use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, ConnectionInfo, Value, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{Dialer, Failure, Fault, RedisConfig, masters};
pub use super::verdict::Severity;
use crate::clock::{Clock, SystemClock};

/// How long any one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long all answers of all servers together may take.
const IN_ALL: Duration = Duration::from_secs(8);
/// So many round trips are measured, for so long at most.
const ROUND_TRIPS: usize = 50;
const MEASURE_FOR: Duration = Duration::from_secs(1);

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The server, or the URL as a whole where there is none.
    pub server: String,
    /// How good it is.
    pub verdict: Severity,
    /// The finding, and its remedy if there is a problem.
    pub text: String,
}

/// Examines every master of `config`, all at once, within 8 seconds. It writes only keys of its own, which live for a
/// second.
pub async fn examine(config: &RedisConfig) -> Vec<Finding> {
    let until = Instant::now() + IN_ALL;
    let dialer = match Dialer::of(config) {
        Ok(dialer) => dialer,
        Err(error) => return vec![Finding::new("redis", Severity::Error, error.to_string())],
    };
    let (found, masters) = match timeout_at(until, masters(config)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return vec![Finding::new("redis", Severity::Error, error.to_string())],
        Err(_) => {
            let text = format!("connection: the masters could not be found within {IN_ALL:?}");
            return vec![Finding::new("redis", Severity::Error, text)];
        }
    };
    let mut findings: Vec<Finding> =
        found.into_iter().map(|(verdict, text)| Finding::new("redis", verdict, text)).collect();
    let mut servers: Vec<Server<'_>> =
        masters.iter().map(|info| Server::new(info.addr().to_string(), config, dialer.clone())).collect();
    let looks = servers.iter_mut().zip(&masters).map(|(server, info)| server.examine(info));
    let in_time = timeout_at(until, join_all(looks)).await.is_ok();
    for mut server in servers {
        if !in_time && !server.done {
            server.say(Severity::Error, format!("latency: too slow to finish all checks within {IN_ALL:?}"));
        }
        findings.append(&mut server.findings);
    }
    findings
}

impl Finding {
    fn new(server: &str, verdict: Severity, text: impl Into<String>) -> Self {
        Self { server: server.to_owned(), verdict, text: text.into() }
    }
}

struct Server<'a> {
    name: String,
    config: &'a RedisConfig,
    dialer: Dialer,
    findings: Vec<Finding>,
    done: bool,
}

impl<'a> Server<'a> {
    fn new(name: String, config: &'a RedisConfig, dialer: Dialer) -> Self {
        Self { name, config, dialer, findings: Vec::new(), done: false }
    }

    fn say(&mut self, verdict: Severity, text: impl Into<String>) {
        self.findings.push(Finding::new(&self.name, verdict, text));
    }

    async fn examine(&mut self, info: &ConnectionInfo) {
        // If a server cannot be reached, is no Redis, or does not answer, the other checks are skipped.
        match reach::reach(info, &self.dialer).await {
            Ok(connection) => {
                self.say(Severity::Ok, "connection: answers");
                if let Err(failure) = self.look(info, connection).await {
                    self.say(Severity::Error, format!("connection: does not answer any more: {}", failure.text()));
                }
            }
            Err(what) => self.say(Severity::Error, format!("connection: {what}")),
        }
        self.done = true;
    }

    /// Looks at a server that answers, until it does not any more.
    async fn look(&mut self, info: &ConnectionInfo, mut connection: MultiplexedConnection) -> Result<(), Failure> {
        match ask(&mut connection, Cmd::new().arg("INFO").arg("everything")).await {
            Ok(Value::BulkString(text)) => {
                let said = Info(String::from_utf8_lossy(&text).into_owned());
                if said.get("redis_mode") == Some("sentinel") {
                    self.say(
                        Severity::Error,
                        "topology: this is a sentinel, which stores no counters; use redis+sentinel://",
                    );
                    return Ok(());
                }
                self.read_info(&said);
            }
            Ok(_) => self.say(Severity::Warning, "INFO: the answer cannot be read"),
            Err(failure) => self.say(
                Severity::Warning,
                format!("INFO: {}; version, memory and persistence were not checked", failure.text()),
            ),
        }
        self.check_rights(info, &mut connection).await?;
        self.check_replicas(&mut connection).await;
        self.check_clock(&mut connection).await;
        self.check_latency(&mut connection).await;
        self.check_settings(&mut connection).await;
        Ok(())
    }

    fn read_info(&mut self, info: &Info) {
        let (kind, version) = match info.get("valkey_version") {
            Some(version) => ("Valkey", version),
            None => ("Redis", info.get("redis_version").unwrap_or("without a version")),
        };
        let mut numbers = version.split('.').filter_map(|part| part.parse::<u32>().ok());
        let old = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (6, 2);
        if old {
            self.say(Severity::Error, format!("version: {kind} {version}; 6.2 or later is needed"));
        } else {
            self.say(Severity::Ok, format!("version: {kind} {version}"));
        }
        self.read_memory(info);
        let clustered = info.number("cluster_enabled") == 1;
        if clustered != self.config.url.contains("+cluster://") {
            let should =
                if clustered { "a node of a cluster; use redis+cluster://" } else { "no cluster; use redis://" };
            self.say(Severity::Error, format!("topology: this server is {should}"));
        }
        match (info.get("role"), info.number("connected_slaves")) {
            (Some("master"), 0) if clustered || self.config.url.contains("+sentinel://") => {
                self.say(Severity::Warning, "replicas: none, so no failover is possible");
            }
            (Some("master"), replicas) => self.say(Severity::Ok, format!("replicas: {replicas}")),
            (role, _) => self.say(
                Severity::Error,
                format!("role: {}; counters can be written only on a master", role.unwrap_or("unknown")),
            ),
        }
        for (name, what) in
            [("rdb_last_bgsave_status", "the last snapshot"), ("aof_last_write_status", "the last AOF write")]
        {
            if info.get(name).is_some_and(|status| status != "ok") {
                self.say(Severity::Error, format!("persistence: {what} failed; Redis may refuse writes (MISCONF)"));
            }
        }
        if info.number("loading") == 1 {
            self.say(Severity::Error, "persistence: the data set is being loaded; wait for it");
        }
    }

    fn read_memory(&mut self, info: &Info) {
        let (used, most) = (info.number("used_memory"), info.number("maxmemory"));
        let policy = info.get("maxmemory_policy").unwrap_or("unknown");
        if policy != "noeviction" {
            self.say(
                Severity::Error,
                format!(
                    "eviction: maxmemory-policy is {policy}, and an evicted counter starts again at 0; set noeviction"
                ),
            );
        } else if most == 0 {
            self.say(Severity::Warning, "memory: no maxmemory, so the machine may run out of memory; set it");
        } else if used > most / 10 * 8 {
            let part = used * 100 / most;
            self.say(Severity::Warning, format!("memory: {part} % of maxmemory is used; at 100 % calls fail (OOM)"));
        } else {
            self.say(Severity::Ok, "memory: maxmemory is set, noeviction");
        }
        if info.number("evicted_keys") > 0 {
            self.say(Severity::Error, "eviction: keys were evicted since the start, so counters or accounts were lost");
        }
    }

    /// Whether so many replicas confirm as calls will wait for.
    async fn check_replicas(&mut self, connection: &mut MultiplexedConnection) {
        let (replicas, within) = (self.config.wait_replicas, self.config.wait);
        if replicas == 0 {
            return;
        }
        let mut wait = redis::cmd("WAIT");
        wait.arg(replicas).arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1));
        match ask(connection, &wait).await {
            Ok(Value::Int(have)) if usize::try_from(have).is_ok_and(|have| have >= replicas) => {
                self.say(Severity::Ok, format!("replicas: {have} confirm, {replicas} are required"));
            }
            Ok(answer) => {
                let have = if let Value::Int(have) = answer { have } else { 0 };
                let text =
                    format!("replicas: {have} of {replicas} confirm within {within:?}; calls fail (unreplicated)");
                self.say(Severity::Error, text);
            }
            Err(failure) => self.say(Severity::Error, format!("replicas: WAIT ({})", failure.text())),
        }
    }

    async fn check_clock(&mut self, connection: &mut MultiplexedConnection) {
        let before = SystemClock.now().as_ms();
        let Ok(Value::Array(time)) = ask(connection, &redis::cmd("TIME")).await else {
            return self.say(Severity::Error, "clock: TIME is not answered; the user needs +time");
        };
        let after = SystemClock.now().as_ms();
        let part = |at: usize| match time.get(at) {
            Some(Value::BulkString(digits)) => String::from_utf8_lossy(digits).parse::<u64>().unwrap_or(0),
            _ => 0,
        };
        let theirs = part(0) * 1000 + part(1) / 1000;
        let skew = before.saturating_sub(theirs).max(theirs.saturating_sub(after));
        if skew > 1_000 {
            self.say(
                Severity::Warning,
                format!(
                    "clock: {skew} ms from this machine's; counters use the clock of Redis, the expiry of API keys that of the node: run NTP"
                ),
            );
        } else {
            self.say(Severity::Ok, format!("clock: within {skew} ms of this machine's"));
        }
    }

    async fn check_latency(&mut self, connection: &mut MultiplexedConnection) {
        let mut took = Vec::with_capacity(ROUND_TRIPS);
        let begun = Instant::now();
        for _ in 0..ROUND_TRIPS {
            let started = Instant::now();
            if started - begun > MEASURE_FOR {
                break;
            }
            if ask(connection, &redis::cmd("PING")).await.is_ok() {
                took.push(started.elapsed());
            }
        }
        took.sort_unstable();
        let (Some(median), Some(longest)) = (took.get(took.len() / 2), took.last()) else {
            return self.say(Severity::Error, "latency: PING is not answered; the user needs +ping");
        };
        let text = format!("latency: median {median:.1?}, maximum {longest:.1?}, of {} round trips", took.len());
        let deadline = self.config.deadline;
        if *median > deadline / 2 {
            self.say(
                Severity::Error,
                format!("{text}; the deadline is {deadline:?}: move Redis closer, or raise the deadline"),
            );
        } else if *longest > deadline / 2 {
            self.say(
                Severity::Warning,
                format!("{text}; the deadline is {deadline:?}: look for slow commands and forks"),
            );
        } else {
            self.say(Severity::Ok, text);
        }
    }

    /// Settings that only an administrator may read. A node's own user should not have this right.
    async fn check_settings(&mut self, connection: &mut MultiplexedConnection) {
        let mut get = async |name: &str| match ask(connection, Cmd::new().arg("CONFIG").arg("GET").arg(name)).await {
            Ok(Value::Array(pair)) => match pair.into_iter().nth(1) {
                Some(Value::BulkString(value)) => Some(String::from_utf8_lossy(&value).into_owned()),
                _ => None,
            },
            _ => None,
        };
        let (Some(append), Some(save)) = (get("appendonly").await, get("save").await) else {
            return self.say(
                Severity::Ok,
                "persistence: this user may not read it (CONFIG GET), which is right for a node; check it as an administrator",
            );
        };
        let fsync = get("appendfsync").await.unwrap_or_default();
        match (append.as_str(), fsync.as_str(), save.is_empty()) {
            ("yes", fsync, _) => self.say(Severity::Ok, format!("persistence: AOF, appendfsync {fsync}")),
            (_, _, false) => self.say(
                Severity::Warning,
                "persistence: snapshots only; a crash loses everything since the last one (AOF everysec: one second)",
            ),
            _ => self.say(
                Severity::Warning,
                "persistence: none; a restart loses all counters, and the accounts if they are stored here",
            ),
        }
    }
}

async fn ask(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, Failure> {
    match timeout(PATIENCE, command.query_async::<Value>(connection)).await {
        Ok(Ok(value)) => value.extract_error().map_err(|error| Failure::of(&error)),
        Ok(Err(error)) => Err(Failure::of(&error)),
        Err(_) => Err(Failure::new(Fault::NoAnswer, format!("no answer within {PATIENCE:?}"))),
    }
}

/// The text of `INFO`.
struct Info(String);

impl Info {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
    }

    /// Zero where there is none.
    fn number(&self, name: &str) -> u64 {
        self.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
