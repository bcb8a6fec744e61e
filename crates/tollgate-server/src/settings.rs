//! Settings: from flags, environment variables, the configuration file and defaults, in this order of precedence.

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

/// The resolved settings. Not `Debug`, because the Redis URL may contain a password.
#[derive(Clone)]
pub struct Settings {
    /// Policy files and folders; none for the embedded policy.
    pub policy: Vec<PathBuf>,
    /// The store.
    pub store: StoreSettings,
    /// The number of nodes that share the limits.
    pub node_count: u64,
    /// The maximum number of scopes that this node decides locally.
    pub local_max_scopes: usize,
    /// Accounts and keys.
    pub accounts: AccountSettings,
    /// The address of REST.
    pub http_listen: SocketAddr,
    /// The address of gRPC.
    pub grpc_listen: SocketAddr,
    /// The address of health and metrics, if they have their own listener.
    pub ops_listen: Option<SocketAddr>,
    /// Authentication.
    pub auth: AuthSettings,
    /// The bounds of connections.
    pub connections: ConnectionBounds,
    /// Whether gRPC reflection needs no authentication.
    pub open_reflection: bool,
    /// The number of threads for connections.
    pub threads: usize,
    /// The bounds of requests.
    pub requests: RequestSettings,
    /// The maximum time of a call.
    pub call_timeout: Duration,
    /// The maximum number of calls of one stream whose responses the client has not read.
    pub stream_calls: usize,
    /// The maximum idle time of a stream.
    pub stream_idle_timeout: Duration,
    /// The default lifetime of a reservation, in milliseconds.
    pub reservation_ttl_ms: u32,
    /// The default retention time of request ids, in milliseconds.
    pub request_id_ttl_ms: u32,
    /// The time in which calls are still accepted after the signal to stop.
    pub drain_delay: Duration,
    /// The maximum time for the calls in progress after that.
    pub drain_timeout: Duration,
    /// The format of logs.
    pub log_format: LogFormat,
    /// The filter of the log.
    pub log_filter: String,
}

/// The settings of the store.
#[derive(Clone)]
pub enum StoreSettings {
    /// This process's memory.
    Memory {
        /// The maximum number of scopes.
        max_scopes: usize,
        /// The maximum number of caller-named counters of an account.
        max_caller_named: u32,
    },
    /// Redis.
    Redis(Box<tollgate_store::redis::RedisConfig>),
}

/// The settings of the store of accounts and keys, and of its cache.
#[derive(Clone)]
pub struct AccountSettings {
    /// The Redis of accounts, if it is not that of the counters.
    pub redis: Option<Box<tollgate_store::redis::RedisConfig>>,
    /// The maximum number of accounts in memory.
    pub max_in_memory: usize,
    /// The node's cache.
    pub cache: CacheBounds,
}

impl Options {
    /// Adds the options of the configuration file.
    pub(crate) fn with_file(self, file: Option<&Path>) -> Result<Self, String> {
        Ok(self.or(file.map(read).transpose()?.unwrap_or_default()))
    }

    /// Resolves only the settings of the Redis of counters and of the Redis of accounts.
    ///
    /// # Errors
    /// All errors, one per line, each with the name of the setting.
    pub(crate) fn resolve_redis(self, file: Option<&Path>) -> Result<Vec<tollgate_store::redis::RedisConfig>, String> {
        let options = self.with_file(file)?;
        let mut errors = Vec::new();
        let (redis, accounts) = redis::redis_configs(&options, 1, &mut errors);
        if errors.is_empty() { Ok(redis.into_iter().chain(accounts).collect()) } else { Err(errors.join("\n")) }
    }

    /// Resolves these options, the configuration file and the defaults.
    ///
    /// # Errors
    /// All errors, one per line, each with the name of the setting.
    pub fn resolve(self, file: Option<&Path>) -> Result<Settings, String> {
        let options = self.with_file(file)?;
        let mut errors = Vec::new();
        let threads =
            options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS));
        let (redis, accounts_redis) = redis::redis_configs(&options, threads, &mut errors);
        let accounts_redis = accounts_redis.map(Box::new);
        let resolved = auth::resolve(&options, &mut errors);
        let mut numbers = Numbers(&mut errors);
        let threads = numbers.in_range("threads", Some(threads), 1, 1..=MAX_THREADS);
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
        let requests = RequestSettings::resolve(&options, &mut numbers);
        let stream_calls = numbers.read(defaults::STREAM_CALLS, options.stream_calls);
        let stream_idle_timeout = numbers.time(defaults::STREAM_IDLE_TIMEOUT_MS, options.stream_idle_timeout_ms);
        let call_timeout = numbers.time(defaults::CALL_TIMEOUT_MS, options.call_timeout_ms);
        let reservation_ttl_ms = numbers.read(defaults::RESERVATION_TTL_MS, options.reservation_ttl_ms);
        let request_id_ttl_ms = numbers.read(defaults::REQUEST_ID_TTL_MS, options.request_id_ttl_ms);
        let drain_delay = numbers.time(defaults::DRAIN_DELAY_MS, options.drain_delay_ms);
        let drain_timeout = numbers.time(defaults::DRAIN_TIMEOUT_MS, options.drain_timeout_ms);
        // An error may have been found twice, for example with two Redis.
        let mut unique = std::collections::HashSet::new();
        errors.retain(|line| unique.insert(line.clone()));
        if !errors.is_empty() {
            return Err(errors.join("\n"));
        }
        Ok(Settings {
            policy: options.policy,
            accounts,
            node_count: node_count as u64,
            local_max_scopes: max_scopes,
            store: redis.map_or(StoreSettings::Memory { max_scopes, max_caller_named }, |redis| {
                StoreSettings::Redis(Box::new(redis))
            }),
            http_listen: resolved.http_listen,
            grpc_listen: resolved.grpc_listen,
            ops_listen: resolved.ops_listen,
            auth: resolved.auth,
            connections: resolved.connections,
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
    let with_path = |error: &dyn std::fmt::Display| format!("{}: {error}", shown_path(file));
    let text = files::read_text(file, MAX_FILE_BYTES).map_err(|error| with_path(&error))?;
    parse(&text).map_err(|error| with_path(&error))
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
    fn flags_take_precedence_over_the_file_and_the_file_over_defaults() {
        let settings = Options { http_listen: "127.0.0.1:1".parse().ok(), ..Options::default() }
            .or(options("http-listen: 127.0.0.1:2\ngrpc-listen: 127.0.0.1:3\nredis: redis://127.0.0.1:4\nthreads: 3"))
            .resolve(None)
            .ok()
            .unwrap();
        assert_eq!(settings.http_listen.port(), 1);
        assert_eq!(settings.grpc_listen.port(), 3);
        assert!(matches!(settings.store, StoreSettings::Redis(redis) if redis.connections == 3));
    }

    #[test]
    fn all_errors_are_reported_with_the_names_of_settings() {
        let invalid = options(
            "http-listen: 0.0.0.0:80\nredis: redis://h\nredis-connections: 0\nredis-key-prefix: a{b\nredis-wait-replicas: 1\nredis-wait-ms: 0\nstore-deadline-ms: 0",
        );
        let message = invalid.resolve(None).err().unwrap();
        for name in [
            "http-listen: 0.0.0.0:80 is not a loopback",
            "redis-connections: ",
            "redis-key-prefix: ",
            "redis-wait-ms: ",
            "store-deadline-ms: ",
        ] {
            assert!(message.contains(name), "{message}");
        }
        assert_eq!(message.lines().count(), 6, "{message}");
    }

    /// Fails if a single value is not accepted as a list, and if an error has no line.
    #[test]
    fn a_single_value_is_a_list_of_one_and_errors_contain_line_and_key() {
        let single =
            options("allowed-hosts: api.example.com\ntrusted-proxies: [10.0.0.0/8, 10.1.0.0/16]\npolicy: p.yaml");
        assert_eq!(single.allowed_hosts, ["api.example.com"]);
        assert_eq!(single.trusted_proxies.len(), 2);
        assert_eq!(single.policy, [std::path::PathBuf::from("p.yaml")]);
        let error = |text: &str| parse::<Options>(text).unwrap_err();
        assert_eq!(
            error("threads: 1\nallowed-hosts: 7"),
            "line 2: allowed-hosts: must be a string or a list of strings"
        );
        assert_eq!(error("threads: 1\nallowed-hosts:\n- a\n- 7"), "line 4: allowed-hosts[1]: must be a string");
        assert!(error("threads: 1\n\nlisten: 7").starts_with("line 3: unknown field `listen`"));
    }

    /// Fails if a URL is parsed only when Redis is connected.
    #[test]
    fn an_invalid_redis_url_is_reported_with_the_name_of_its_setting() {
        let invalid = options("redis: 'rediss://h/#insecure'\naccounts-redis: 'redis://:hunter2@h:port'\npolicy: [p]");
        let message = invalid.clone().resolve_redis(None).err().unwrap();
        let lines: Vec<&str> = message.lines().collect();
        assert!(lines[0].starts_with("redis: ") && lines[0].contains("#insecure"), "{message}");
        assert!(lines[1].starts_with("accounts-redis: ") && lines[1].contains("invalid port number"), "{message}");
        assert!(lines.len() == 2 && !message.contains("hunter2"), "{message}");
        let node_errors = invalid.resolve(None).err().unwrap();
        assert!(lines.iter().all(|line| node_errors.contains(line)), "{node_errors}");
    }
}
