//! The settings of Redis, converted to the store's configuration.

use std::{path::Path, time::Duration};

use tollgate_core::text::has_hidden;
use tollgate_policy::redaction::shown_path;
use tollgate_store::redis::{RedisConfig, RedisTls};

use super::{
    Options, defaults,
    numbers::{MAX_THREADS, Numbers},
};
use crate::files::{self, MAX_FILE_BYTES};

/// The configurations of the Redis of counters and of the Redis of accounts, for a node with `threads` threads. Errors
/// are added to `errors`.
pub(super) fn redis_configs(
    options: &Options,
    threads: usize,
    errors: &mut Vec<String>,
) -> (Option<RedisConfig>, Option<RedisConfig>) {
    let mut read = |setting: &str, url: Option<&str>| {
        let redis = config(url?, options, threads, errors);
        // Other errors are reported under the names of their settings.
        if let Err(error) = redis.check() {
            errors.push(format!("{setting}: {error}"));
        }
        Some(redis)
    };
    let configs = (read("redis", options.redis.as_deref()), read("accounts-redis", options.accounts_redis.as_deref()));
    let mut unique = std::collections::HashSet::new();
    errors.retain(|line| unique.insert(line.clone()));
    configs
}

/// The configuration of the Redis at `url`.
fn config(url: &str, options: &Options, threads: usize, errors: &mut Vec<String>) -> RedisConfig {
    let mut redis = RedisConfig::new(url);
    if let Some(prefix) = &options.redis_key_prefix {
        redis.key_prefix.clone_from(prefix);
    }
    redis.user.clone_from(&options.redis_user);
    redis.sentinel_user.clone_from(&options.redis_sentinel_user);
    let mut read = |name, path: Option<&Path>| {
        path.and_then(|path| match files::read(path, MAX_FILE_BYTES) {
            Ok(contents) => Some(contents.bytes),
            Err(error) => {
                errors.push(format!("{name}: {}: {error}", shown_path(path)));
                None
            }
        })
    };
    let password = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned();
    redis.password = read("redis-password-file", options.redis_password_file.as_deref()).map(password);
    redis.sentinel_password =
        read("redis-sentinel-password-file", options.redis_sentinel_password_file.as_deref()).map(password);
    let ca = read("redis-tls-ca", options.redis_tls_ca.as_deref());
    let certificate = read("redis-tls-cert", options.redis_tls_cert.as_deref());
    let key = read("redis-tls-key", options.redis_tls_key.as_deref());
    if options.redis_tls_cert.is_some() != options.redis_tls_key.is_some() {
        errors.push("redis-tls-cert: set redis-tls-cert and redis-tls-key, or neither of them".to_owned());
    }
    let identity = certificate.zip(key);
    let server_name = options.redis_tls_server_name.clone();
    let tls = url.starts_with("rediss") && (ca.is_some() || identity.is_some() || server_name.is_some());
    redis.tls = tls.then_some(RedisTls { ca, identity, server_name });
    let mut numbers = Numbers(errors);
    redis.connections = numbers.in_range(
        "redis-connections",
        options.redis_connections,
        threads.clamp(1, MAX_THREADS),
        1..=MAX_THREADS,
    );
    redis.max_in_flight = numbers.read(defaults::STORE_MAX_IN_FLIGHT, options.store_max_in_flight);
    redis.max_caller_named = numbers.read(defaults::MAX_COUNTERS_PER_ACCOUNT, options.max_counters_per_account);
    redis.deadline = numbers.time(defaults::STORE_DEADLINE_MS, options.store_deadline_ms);
    redis.wait_replicas = numbers.read(defaults::REDIS_WAIT_REPLICAS, options.redis_wait_replicas);
    redis.wait = numbers.time(defaults::REDIS_WAIT_MS, options.redis_wait_ms);
    if redis.wait_replicas > 0 && !(Duration::from_millis(1)..redis.deadline).contains(&redis.wait) {
        errors.push("redis-wait-ms: must be at least 1, and less than store-deadline-ms".to_owned());
    }
    let prefix = &redis.key_prefix;
    if prefix.len() > 32 || prefix.contains(['{', '}']) || has_hidden(prefix) {
        errors.push(
            "redis-key-prefix: must have at most 32 bytes, no braces, and no control or invisible characters"
                .to_owned(),
        );
    }
    redis
}
