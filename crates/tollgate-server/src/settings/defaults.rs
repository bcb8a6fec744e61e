//! The defaults of settings, and the ranges of numbers. The help of flags shows these defaults.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::RangeInclusive,
};

use clap::{Arg, ValueEnum};
use tollgate_core::{ledger::MAX_CALLER_NAMED, reservation::MAX_RESERVATION_TTL_MS};
use tollgate_store::redis::RedisConfig;

use crate::{auth::ForwardedHeader, logs::LogFormat};

/// The longest time, in milliseconds: a day.
const MAX_MS: u64 = 86_400_000;
/// The maximum number of entries in memory, such as cached accounts.
const MAX_COUNT: usize = 1 << 30;
/// The maximum number of connections of a listener: one process has no more descriptors.
pub(super) const MAX_CONNECTIONS: usize = 1 << 20;
/// The maximum number of concurrent calls and streams: HTTP/2 counts the streams of a connection in 31 bits.
const MAX_CALLS: usize = 1 << 20;
/// The largest request: over gRPC its length has 32 bits.
const MAX_REQUEST_BYTES: usize = 1 << 30;
/// The memory of unread bodies, in bytes. The minimum leaves space for some bodies, whatever is set.
const UNREAD_BYTES: RangeInclusive<usize> = 1 << 20..=1 << 36;

/// A number with a default.
pub(super) struct NumberSetting<T> {
    pub(super) name: &'static str,
    pub(super) default: T,
    pub(super) range: RangeInclusive<T>,
}

macro_rules! number_settings {
    ($($constant:ident: $number:ty = $name:literal, $default:expr, $range:expr;)*) => {
        $(pub(super) const $constant: NumberSetting<$number> =
            NumberSetting { name: $name, default: $default, range: $range };)*

        fn numbers() -> Vec<(&'static str, String)> {
            vec![$(($constant.name, $constant.default.to_string())),*]
        }
    };
}

number_settings! {
    REDIS_WAIT_REPLICAS: usize = "redis-wait-replicas", RedisConfig::WAIT_REPLICAS, 0..=1_000;
    REDIS_WAIT_MS: u64 = "redis-wait-ms", RedisConfig::WAIT_MS, 0..=MAX_MS;
    STORE_DEADLINE_MS: u64 = "store-deadline-ms", RedisConfig::DEADLINE_MS, 1..=MAX_MS;
    STORE_MAX_IN_FLIGHT: usize = "store-max-in-flight", RedisConfig::MAX_IN_FLIGHT, 1..=1 << 20;
    MAX_COUNTERS_PER_ACCOUNT: u32 = "max-counters-per-account", MAX_CALLER_NAMED, 0..=u32::MAX;
    NODE_COUNT: usize = "node-count", 1, 1..=MAX_COUNT;
    MEMORY_MAX_SCOPES: usize = "memory-max-scopes", 1_000_000, 1..=MAX_COUNT;
    MEMORY_MAX_ACCOUNTS: usize = "memory-max-accounts", 100_000, 1..=MAX_COUNT;
    ACCOUNT_CACHE_ENTRIES: usize = "account-cache-entries", 100_000, 1..=MAX_COUNT;
    ACCOUNT_CACHE_TTL_MS: u64 = "account-cache-ttl-ms", 60_000, 0..=MAX_MS;
    MAX_NEW_ACCOUNTS: u32 = "max-new-accounts", 60_000, 0..=u32::MAX;
    MAX_LOGIN_FAILURES: u32 = "max-login-failures", 20, 0..=u32::MAX;
    LISTENER_CONNECTIONS: usize = "max-connections", 4_096, 1..=MAX_CONNECTIONS;
    MAX_HANDSHAKES_PER_SECOND: u32 = "max-handshakes-per-second", 200, 1..=100_000;
    HEADER_TIMEOUT_MS: u64 = "header-timeout-ms", 30_000, 1..=MAX_MS;
    IDLE_TIMEOUT_MS: u64 = "idle-timeout-ms", 300_000, 1..=MAX_MS;
    ANSWER_TIMEOUT_MS: u64 = "answer-timeout-ms", 20_000, 1..=MAX_MS;
    MAX_PENDING_BYTES: usize = "max-pending-bytes", 128 << 20, 1 << 20..=1 << 40;
    REQUEST_BYTES: usize = "max-request-bytes", 65_536, 1..=MAX_REQUEST_BYTES;
    BODY_TIMEOUT_MS: u64 = "body-timeout-ms", 3_000, 1..=MAX_MS;
    MAX_UNREAD_BYTES: usize = "max-unread-bytes", 64 << 20, UNREAD_BYTES;
    MAX_CONCURRENT_CALLS: usize = "max-concurrent-calls", 1_024, 1..=MAX_CALLS;
    CALL_TIMEOUT_MS: u64 = "call-timeout-ms", 5_000, 1..=MAX_MS;
    MAX_STREAMS: usize = "max-streams", 256, 1..=MAX_CALLS;
    STREAM_CALLS: usize = "stream-calls", 128, 1..=65_536;
    STREAM_IDLE_TIMEOUT_MS: u64 = "stream-idle-timeout-ms", 300_000, 1..=MAX_MS;
    RESERVATION_TTL_MS: u32 = "reservation-ttl-ms", 600_000, 1_000..=MAX_RESERVATION_TTL_MS;
    REQUEST_ID_TTL_MS: u32 = "request-id-ttl-ms", 600_000, 1_000..=86_400_000;
    DRAIN_DELAY_MS: u64 = "drain-delay-ms", 1_000, 0..=MAX_MS;
    DRAIN_TIMEOUT_MS: u64 = "drain-timeout-ms", 10_000, 0..=MAX_MS;
    CLIENT_TIMEOUT_MS: u64 = "timeout-ms", 10_000, 1..=MAX_MS;
}

pub(super) const HTTP_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));
pub(super) const GRPC_LISTEN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8081));
pub(super) const URL: &str = "http://127.0.0.1:8080";
pub(super) const FORWARDED_HEADER: ForwardedHeader = ForwardedHeader::XForwardedFor;
pub(super) const LOG_FORMAT: LogFormat = LogFormat::Pretty;
pub(super) const LOG_FILTER: &str = "info";

/// The default of a setting, as its help shows it. `None` if the text of the help states the default.
fn help_default(name: &str) -> Option<String> {
    let word = |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
    match name {
        "http-listen" => Some(HTTP_LISTEN.to_string()),
        "grpc-listen" => Some(GRPC_LISTEN.to_string()),
        "url" => Some(URL.to_owned()),
        "redis-key-prefix" => Some(RedisConfig::KEY_PREFIX.to_owned()),
        "forwarded-header" => word(FORWARDED_HEADER.to_possible_value()),
        "log-format" => word(LOG_FORMAT.to_possible_value()),
        "log-filter" => Some(LOG_FILTER.to_owned()),
        _ => numbers().into_iter().find(|(number, _)| *number == name).map(|(_, default)| default),
    }
}

/// Adds the default of a flag to its help.
pub(super) fn add_default_to_help(arg: Arg) -> Arg {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default = arg.get_long().and_then(help_default);
    // A command may contain the settings of a node and of a client, so this may be called twice.
    match default.map(|default| format!("[default: {default}]")).filter(|default| !help.ends_with(default.as_str())) {
        Some(default) => arg.help(format!("{help} {default}")),
        None => arg,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;
    use crate::settings::{ClientOptions, Options, Settings, StoreSettings, parse};

    /// The values of all settings, as text.
    fn values(yaml: &str) -> String {
        let options: Options = parse(yaml).unwrap();
        let client = options.client.clone().resolve(Some("token".to_owned()), ClientOptions::default()).ok().unwrap();
        let Settings {
            policy,
            store,
            node_count,
            local_max_scopes,
            accounts,
            http_listen,
            grpc_listen,
            ops_listen,
            auth,
            connections,
            open_reflection,
            threads,
            requests,
            call_timeout,
            stream_calls,
            stream_idle_timeout,
            reservation_ttl_ms,
            request_id_ttl_ms,
            drain_delay,
            drain_timeout,
            log_format,
            log_filter,
        } = options.resolve(None).unwrap_or_else(|error| panic!("{yaml}: {error}"));
        let store = match store {
            StoreSettings::Memory { max_scopes, max_caller_named } => format!("{max_scopes} {max_caller_named}"),
            StoreSettings::Redis(redis) => format!(
                "{} {} {:?} {} {} {} {:?}",
                redis.key_prefix,
                redis.connections,
                redis.deadline,
                redis.max_in_flight,
                redis.max_caller_named,
                redis.wait_replicas,
                redis.wait
            ),
        };
        let node = (policy, node_count, local_max_scopes, accounts.max_in_memory, accounts.cache, open_reflection);
        let listeners = (http_listen, grpc_listen, ops_listen, auth, connections, threads);
        let calls = (requests, call_timeout, stream_calls, stream_idle_timeout, reservation_ttl_ms, request_id_ttl_ms);
        let process = (drain_delay, drain_timeout, log_format, log_filter);
        format!("{store} {node:?} {listeners:?} {calls:?} {process:?} {:?} {:?}", client.url, client.timeout)
    }

    /// A valid value of a setting that is not its default.
    fn other_value(arg: &Arg, default: &str) -> String {
        let word = arg.get_possible_values().into_iter().find(|word| word.get_name() != default);
        match (word, default.parse::<u64>()) {
            (Some(word), _) => word.get_name().to_owned(),
            (None, Ok(number)) => (number + 1).to_string(),
            (None, Err(_)) => default
                .strip_suffix(|last: char| last.is_ascii_digit())
                .map_or(format!("{default}x"), |address| format!("{address}9")),
        }
    }

    /// Fails if a default is not used (`unwrap_or(5)`), and if it is used for another setting.
    #[test]
    fn the_help_of_a_setting_shows_its_default() {
        let node = Options::augment_args(Command::new("node"));
        let client = ClientOptions::augment_args(Command::new("client"));
        for (command, is_client) in [(node, false), (client, true)] {
            for arg in command.get_arguments() {
                let (name, help) = (arg.get_long().unwrap(), arg.get_help().unwrap().to_string());
                let Some(default) = help_default(name) else {
                    let is_number = arg.get_value_names().is_some_and(|names| ["N", "MS"].contains(&names[0].as_str()));
                    assert!(!is_number || help.contains("[default: "), "{name}: {help}");
                    continue;
                };
                assert!(help.ends_with(&format!(" [default: {default}]")), "{name}: {help}");
                assert_eq!(help.matches("[default: ").count(), 1, "{name}: {help}");
                let with = |base: &str, value: &str| {
                    let is_number = value.parse::<u64>().is_ok();
                    let line = if is_number { format!("{name}: {value}") } else { format!("{name}: '{value}'") };
                    values(&if is_client { format!("{base}client: {{ {line} }}") } else { format!("{base}{line}") })
                };
                let bases = ["", "redis: 'redis://h'\n"];
                for base in bases {
                    assert_eq!(with(base, &default), values(&format!("{base}policy: []")), "{name}");
                }
                let other = other_value(arg, &default);
                assert!(
                    bases.iter().any(|base| with(base, &other) != with(base, &default)),
                    "{name}: {other} changes nothing, so the test does not see this setting"
                );
            }
        }
    }
}
