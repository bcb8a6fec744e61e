//! Settings: by flag, else by environment variable, else by configuration file, else by default.

mod auth;
mod client;
mod defaults;
mod numbers;
mod options;
mod redis;
mod requests;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::de::DeserializeOwned;
use tollgate_policy::{file::read_map, redaction::shown_path};
use tollgate_service::directory::CacheBounds;

pub(crate) use self::client::{ClientSettings, TOKEN_VARIABLE};
use self::numbers::{MAX_THREADS, Numbers};
pub use self::{client::ClientOptions, options::Options, requests::RequestSettings};
use crate::{
    auth::AuthSettings,
    files::{self, MAX_FILE_BYTES},
    listener::ConnectionBounds,
    logs::LogFormat,
};

/// Every setting, settled. Without `Debug`, as the Redis URL may hold a password.
#[derive(Clone)]
pub struct Settings {
    /// Policy files and folders; none for the embedded policy.
    pub policy: Vec<PathBuf>,
    /// The store.
    pub store: StoreSettings,
    /// How many nodes share the limits.
    pub node_count: u64,
    /// The maximum number of scopes that this node decides locally.
    pub local_max_scopes: usize,
    /// Accounts and keys.
    pub accounts: AccountSettings,
    /// Where REST listens.
    pub http_listen: SocketAddr,
    /// Where gRPC listens.
    pub grpc_listen: SocketAddr,
    /// Where health and metrics listen, if not beside REST.
    pub ops_listen: Option<SocketAddr>,
    /// Authentication.
    pub auth: AuthSettings,
    /// The bounds of connections.
    pub connections: ConnectionBounds,
    /// Whether gRPC reflection is open to everybody.
    pub open_reflection: bool,
    /// How many threads connections are spread over.
    pub threads: usize,
    /// The bounds of requests.
    pub requests: RequestSettings,
    /// How long a call may take in all.
    pub call_timeout: Duration,
    /// Calls of one stream without an answer that the client took.
    pub stream_calls: usize,
    /// How long a stream may be idle.
    pub stream_idle_timeout: Duration,
    /// The default lifetime of a reservation, in milliseconds.
    pub reservation_ttl_ms: u32,
    /// How long an admission is remembered by its request id, in milliseconds.
    pub request_id_ttl_ms: u32,
    /// How long calls are still accepted after the node was told to stop.
    pub drain_delay: Duration,
    /// How long calls may take to end after that.
    pub drain_timeout: Duration,
    /// How logs are written.
    pub log_format: LogFormat,
    /// The filter of the log.
    pub log_filter: String,
}

/// Which store, and how.
#[derive(Clone)]
pub enum StoreSettings {
    /// This process's memory.
    Memory {
        /// How many scopes at most.
        max_scopes: usize,
        /// How many counters of one account whose names callers choose.
        max_caller_named: u32,
    },
    /// Redis.
    Redis(Box<tollgate_store::redis::RedisConfig>),
}

/// The store of accounts and keys, and the node's cache of it.
#[derive(Clone)]
pub struct AccountSettings {
    /// A Redis of their own.
    pub redis: Option<Box<tollgate_store::redis::RedisConfig>>,
    /// How many accounts memory keeps at most.
    pub max_in_memory: usize,
    /// The node's cache.
    pub cache: CacheBounds,
}

impl Options {
    /// These options, completed by those of the configuration file.
    pub(crate) fn completed_by(self, file: Option<&Path>) -> Result<Self, String> {
        Ok(self.or(file.map(read).transpose()?.unwrap_or_default()))
    }

    /// The Redis of the counters and that of the accounts, from these options, the configuration file and the defaults.
    /// Other settings of a node may be wrong or missing.
    ///
    /// # Errors
    /// Everything that is wrong, a line each, with the name of the setting.
    pub(crate) fn settle_redis(self, file: Option<&Path>) -> Result<Vec<tollgate_store::redis::RedisConfig>, String> {
        let options = self.completed_by(file)?;
        let mut wrong = Vec::new();
        let (redis, accounts) = redis::both(&options, 1, &mut wrong);
        if wrong.is_empty() { Ok(redis.into_iter().chain(accounts).collect()) } else { Err(wrong.join("\n")) }
    }

    /// These options, completed by those of the configuration file and by the defaults.
    ///
    /// # Errors
    /// Everything that is wrong, a line each, with the name of the setting.
    pub fn settle(self, file: Option<&Path>) -> Result<Settings, String> {
        let options = self.completed_by(file)?;
        let mut wrong = Vec::new();
        let threads =
            options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS));
        let (redis, accounts_redis) = redis::both(&options, threads, &mut wrong);
        let accounts_redis = accounts_redis.map(Box::new);
        let settled = auth::settle(&options, &mut wrong);
        let mut numbers = Numbers(&mut wrong);
        let threads = numbers.within("threads", Some(threads), 1, 1..=MAX_THREADS);
        let max_scopes = numbers.read(defaults::MEMORY_MAX_SCOPES, options.memory_max_scopes);
        let max_caller_named = numbers.read(defaults::MAX_COUNTERS_PER_ACCOUNT, options.max_counters_per_account);
        let accounts = AccountSettings {
            redis: accounts_redis,
            max_in_memory: numbers.read(defaults::MEMORY_MAX_ACCOUNTS, options.memory_max_accounts),
            cache: CacheBounds {
                entries: numbers.read(defaults::ACCOUNT_CACHE_ENTRIES, options.account_cache_entries),
                lifetime: numbers.time(defaults::ACCOUNT_CACHE_TTL_MS, options.account_cache_ttl_ms),
                deadline: numbers.time(defaults::STORE_DEADLINE_MS, options.store_deadline_ms),
                max_new_accounts: numbers.read(defaults::MAX_NEW_ACCOUNTS, options.max_new_accounts),
            },
        };
        let node_count = numbers.read(defaults::NODE_COUNT, options.node_count);
        let requests = RequestSettings::settle(&options, &mut numbers);
        let stream_calls = numbers.read(defaults::STREAM_CALLS, options.stream_calls);
        let stream_idle_timeout = numbers.time(defaults::STREAM_IDLE_TIMEOUT_MS, options.stream_idle_timeout_ms);
        let call_timeout = numbers.time(defaults::CALL_TIMEOUT_MS, options.call_timeout_ms);
        let reservation_ttl_ms = numbers.read(defaults::RESERVATION_TTL_MS, options.reservation_ttl_ms);
        let request_id_ttl_ms = numbers.read(defaults::REQUEST_ID_TTL_MS, options.request_id_ttl_ms);
        let drain_delay = numbers.time(defaults::DRAIN_DELAY_MS, options.drain_delay_ms);
        let drain_timeout = numbers.time(defaults::DRAIN_TIMEOUT_MS, options.drain_timeout_ms);
        // If two Redis are set, or if a number has a rule beside it, the mistake would be reported twice.
        let mut said = std::collections::HashSet::new();
        wrong.retain(|line| said.insert(line.clone()));
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        Ok(Settings {
            policy: options.policy,
            accounts,
            node_count: node_count as u64,
            local_max_scopes: max_scopes,
            store: redis.map_or(StoreSettings::Memory { max_scopes, max_caller_named }, |redis| {
                StoreSettings::Redis(Box::new(redis))
            }),
            http_listen: settled.http_listen,
            grpc_listen: settled.grpc_listen,
            ops_listen: settled.ops_listen,
            auth: settled.auth,
            connections: settled.connections,
            open_reflection: options.open_reflection.unwrap_or(false),
            threads,
            requests,
            call_timeout,
            stream_calls,
            stream_idle_timeout,
            reservation_ttl_ms,
            request_id_ttl_ms,
            drain_delay,
            drain_timeout,
            log_format: options.log_format.unwrap_or(defaults::LOG_FORMAT),
            log_filter: options.log_filter.unwrap_or_else(|| defaults::LOG_FILTER.to_owned()),
        })
    }
}

/// The contents of the configuration file.
pub(crate) fn read(file: &Path) -> Result<Options, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", shown_path(file));
    let text = files::read_text(file, MAX_FILE_BYTES).map_err(|error| named(&error))?;
    parse(&text).map_err(|error| named(&error))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let keys = options::names();
    read_map(text, "settings are a map with the names of the flags as keys", |key| keys.iter().any(|name| name == key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(yaml: &str) -> Options {
        parse(yaml).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let settings = Options { http_listen: "127.0.0.1:1".parse().ok(), ..Options::default() }
            .or(options("http-listen: 127.0.0.1:2\ngrpc-listen: 127.0.0.1:3\nredis: redis://127.0.0.1:4\nthreads: 3"))
            .settle(None)
            .ok()
            .unwrap();
        assert_eq!(settings.http_listen.port(), 1);
        assert_eq!(settings.grpc_listen.port(), 3);
        assert!(matches!(settings.store, StoreSettings::Redis(redis) if redis.connections == 3));
    }

    #[test]
    fn every_mistake_is_said_at_once_by_name() {
        let wrong = options(
            "http-listen: 0.0.0.0:80\nredis: redis://h\nredis-connections: 0\nredis-key-prefix: a{b\nredis-wait-replicas: 1\nredis-wait-ms: 0\nstore-deadline-ms: 0",
        );
        let said = wrong.settle(None).err().unwrap();
        for name in [
            "http-listen: 0.0.0.0:80 is not a loopback",
            "redis-connections: ",
            "redis-key-prefix: ",
            "redis-wait-ms: ",
            "store-deadline-ms: ",
        ] {
            assert!(said.contains(name), "{said}");
        }
        assert_eq!(said.lines().count(), 6, "{said}");
    }

    /// Seen to fail when a single host was "not right here", and an error named no line.
    #[test]
    fn a_list_of_one_may_be_written_as_a_scalar_and_errors_name_line_and_key() {
        let one = options("allowed-hosts: api.example.com\ntrusted-proxies: [10.0.0.0/8, 10.1.0.0/16]\npolicy: p.yaml");
        assert_eq!(one.allowed_hosts, ["api.example.com"]);
        assert_eq!(one.trusted_proxies.len(), 2);
        assert_eq!(one.policy, [std::path::PathBuf::from("p.yaml")]);
        let error = |text: &str| parse::<Options>(text).unwrap_err();
        assert_eq!(
            error("threads: 1\nallowed-hosts: 7"),
            "line 2: allowed-hosts: must be a string or a list of strings"
        );
        assert_eq!(error("threads: 1\nallowed-hosts:\n- a\n- 7"), "line 4: allowed-hosts[1]: must be a string");
        assert!(error("threads: 1\n\nlisten: 7").starts_with("line 3: unknown field `listen`"));
    }

    /// Seen to fail where a URL was read only when the link was opened.
    #[test]
    fn a_redis_url_that_cannot_be_read_is_said_by_the_name_of_its_setting() {
        let wrong = options("redis: 'rediss://h/#insecure'\naccounts-redis: 'redis://:hunter2@h:port'\npolicy: [p]");
        let said = wrong.clone().settle_redis(None).err().unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].starts_with("redis: ") && lines[0].contains("#insecure"), "{said}");
        assert!(lines[1].starts_with("accounts-redis: ") && lines[1].contains("invalid port number"), "{said}");
        assert!(lines.len() == 2 && !said.contains("hunter2"), "{said}");
        let of_node = wrong.settle(None).err().unwrap();
        assert!(lines.iter().all(|line| of_node.contains(line)), "{of_node}");
    }
}
