//! The settings of a node, before they are resolved.

use std::{fmt, marker::PhantomData, net::SocketAddr, path::PathBuf};

use clap::Args;
use serde::{
    Deserialize, Deserializer,
    de::{self, IntoDeserializer as _, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::{ClientOptions, defaults};
use crate::{auth::ForwardedHeader, logs::LogFormat};

/// The settings, as flags and variables. The configuration file is YAML with the names of the flags.
#[derive(Args, Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, expecting = "a map with the names of the flags as keys")]
#[command(mut_args = defaults::add_default_to_help)]
pub struct Options {
    /// Policy file, or folder of policy files; may be repeated [default: the embedded Venice policy]
    #[arg(long = "policy", env = "TOLLGATE_POLICY", value_name = "PATH", value_delimiter = ',')]
    #[serde(default, deserialize_with = "one_or_more")]
    pub policy: Vec<PathBuf>,

    /// URL of the Redis that stores the counters, shared by all nodes: `redis://user:password@host:port/db`; the
    /// schemes are `redis`, `unix`, `redis+sentinel` and `redis+cluster`, with `rediss` for TLS [default: memory of
    /// this process]
    #[arg(long, env = "TOLLGATE_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis: Option<String>,

    /// Redis user, if it is not in the URL
    #[arg(long, env = "TOLLGATE_REDIS_USER", value_name = "NAME")]
    pub redis_user: Option<String>,

    /// File with the Redis password, if it is not in the URL
    #[arg(long, env = "TOLLGATE_REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,

    /// User for the sentinels
    #[arg(long, env = "TOLLGATE_REDIS_SENTINEL_USER", value_name = "NAME")]
    pub redis_sentinel_user: Option<String>,

    /// File with the password for the sentinels
    #[arg(long, env = "TOLLGATE_REDIS_SENTINEL_PASSWORD_FILE", value_name = "FILE")]
    pub redis_sentinel_password_file: Option<PathBuf>,

    /// Certificate authorities to trust for Redis, PEM [default: the system's]
    #[arg(long, env = "TOLLGATE_REDIS_TLS_CA", value_name = "FILE")]
    pub redis_tls_ca: Option<PathBuf>,

    /// Client certificate of this node for Redis, PEM
    #[arg(long, env = "TOLLGATE_REDIS_TLS_CERT", value_name = "FILE")]
    pub redis_tls_cert: Option<PathBuf>,

    /// Private key of that certificate, PEM
    #[arg(long, env = "TOLLGATE_REDIS_TLS_KEY", value_name = "FILE")]
    pub redis_tls_key: Option<PathBuf>,

    /// Name in the certificates of Redis, if it differs from the URL; not with sentinels [default: the host of
    /// the URL]
    #[arg(long, env = "TOLLGATE_REDIS_TLS_SERVER_NAME", value_name = "NAME")]
    pub redis_tls_server_name: Option<String>,

    /// Prefix of all keys in Redis
    #[arg(long, env = "TOLLGATE_REDIS_KEY_PREFIX", value_name = "TEXT")]
    pub redis_key_prefix: Option<String>,

    /// Connections to each Redis server, shared by all calls [default: the value of --threads]
    #[arg(long, env = "TOLLGATE_REDIS_CONNECTIONS", value_name = "N")]
    pub redis_connections: Option<usize>,

    /// Number of replicas that must have a charge before the call is answered (`WAIT`)
    #[arg(long, env = "TOLLGATE_REDIS_WAIT_REPLICAS", value_name = "N")]
    pub redis_wait_replicas: Option<usize>,

    /// Maximum time that a call waits for these replicas, in milliseconds; less than --store-deadline-ms
    #[arg(long, env = "TOLLGATE_REDIS_WAIT_MS", value_name = "MS")]
    pub redis_wait_ms: Option<u64>,

    /// Maximum time that a call waits for the store, in milliseconds
    #[arg(long, env = "TOLLGATE_STORE_DEADLINE_MS", value_name = "MS")]
    pub store_deadline_ms: Option<u64>,

    /// Maximum number of concurrent calls to the store; more are refused
    #[arg(long, env = "TOLLGATE_STORE_MAX_IN_FLIGHT", value_name = "N")]
    pub store_max_in_flight: Option<usize>,

    /// Maximum number of counters of one account whose names callers choose (free attributes, or matches of a
    /// wildcard); a call that needs one more is refused
    #[arg(long, env = "TOLLGATE_MAX_COUNTERS_PER_ACCOUNT", value_name = "N")]
    pub max_counters_per_account: Option<u32>,

    /// Number of nodes that share the limits, for quotas with `on_failure: local`
    #[arg(long, env = "TOLLGATE_NODE_COUNT", value_name = "N")]
    pub node_count: Option<usize>,

    /// Maximum number of scopes with counters in memory, without Redis or while it is unavailable
    #[arg(long, env = "TOLLGATE_MEMORY_MAX_SCOPES", value_name = "N")]
    pub memory_max_scopes: Option<usize>,

    /// URL of the Redis that stores accounts and API keys [default: that of the counters, or memory of this process]
    #[arg(long, env = "TOLLGATE_ACCOUNTS_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub accounts_redis: Option<String>,

    /// Maximum number of accounts in memory, without Redis
    #[arg(long, env = "TOLLGATE_MEMORY_MAX_ACCOUNTS", value_name = "N")]
    pub memory_max_accounts: Option<usize>,

    /// Maximum number of cached accounts, of cached keys and of cached secrets
    #[arg(long, env = "TOLLGATE_ACCOUNT_CACHE_ENTRIES", value_name = "N")]
    pub account_cache_entries: Option<usize>,

    /// Maximum age of a cached account, in milliseconds; changes of accounts take effect at once
    #[arg(long, env = "TOLLGATE_ACCOUNT_CACHE_TTL_MS", value_name = "MS")]
    pub account_cache_ttl_ms: Option<u64>,

    /// Maximum number of new accounts per minute (names without a record that are not cached), for each domain and each
    /// set of token domains; 0 for no bound
    #[arg(long, env = "TOLLGATE_MAX_NEW_ACCOUNTS", value_name = "N")]
    pub max_new_accounts: Option<u32>,

    /// Address for REST, metrics and health; beyond loopback only with --service-tokens and TLS
    #[arg(long, env = "TOLLGATE_HTTP_LISTEN", value_name = "ADDR")]
    pub http_listen: Option<SocketAddr>,

    /// Address for gRPC; beyond loopback only with --service-tokens and TLS
    #[arg(long, env = "TOLLGATE_GRPC_LISTEN", value_name = "ADDR")]
    pub grpc_listen: Option<SocketAddr>,

    /// File with the tokens of services, for gRPC and /v1 [default: none; with the embedded policy, loopback
    /// is open to services]
    #[arg(long, env = "TOLLGATE_SERVICE_TOKENS", value_name = "FILE")]
    pub service_tokens: Option<PathBuf>,

    /// Without --service-tokens: everyone who can reach the loopback address may act as any service [default: true only
    /// with the embedded policy]
    #[arg(
        long,
        env = "TOLLGATE_OPEN_LOOPBACK",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub open_loopback: Option<bool>,

    /// File with the tokens of administrators, for /admin/v1 [default: none; /admin/v1 accepts nobody]
    #[arg(long, env = "TOLLGATE_ADMIN_TOKENS", value_name = "FILE")]
    pub admin_tokens: Option<PathBuf>,

    /// Certificate of the node, PEM; with it and --tls-key, REST and gRPC use only TLS
    #[arg(long, env = "TOLLGATE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the node's certificate, PEM
    #[arg(long, env = "TOLLGATE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificate authorities of client certificates, PEM; --service-tokens maps these certificates to services
    #[arg(long, env = "TOLLGATE_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Listen beyond loopback without TLS, because something else encrypts, such as a service mesh
    #[arg(
        long,
        env = "TOLLGATE_PLAINTEXT_BEYOND_LOOPBACK",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub plaintext_beyond_loopback: Option<bool>,

    /// Separate address for metrics and health, in plain text and open to everybody [default: the address of REST]
    #[arg(long, env = "TOLLGATE_OPS_LISTEN", value_name = "ADDR")]
    pub ops_listen: Option<SocketAddr>,

    /// Accepted host names of REST, without ports [default: on loopback the loopback names, else any]
    #[arg(long, env = "TOLLGATE_ALLOWED_HOSTS", value_name = "NAME", value_delimiter = ',')]
    #[serde(default, deserialize_with = "one_or_more")]
    pub allowed_hosts: Vec<String>,

    /// Networks of proxies whose statement of the caller's address is trusted [default: none]
    #[arg(long, env = "TOLLGATE_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',')]
    #[serde(default, deserialize_with = "one_or_more")]
    pub trusted_proxies: Vec<String>,

    /// Header in which these proxies state the address
    #[arg(long, env = "TOLLGATE_FORWARDED_HEADER", value_name = "NAME")]
    pub forwarded_header: Option<ForwardedHeader>,

    /// Failed logins in 30 s from one address, above which further failed logins are blocked for 30 s; services,
    /// administrators and end users are counted separately; 0 for no bound
    #[arg(long, env = "TOLLGATE_MAX_LOGIN_FAILURES", value_name = "N")]
    pub max_login_failures: Option<u32>,

    /// Connections of trusted proxies start with a PROXY protocol header (version 1 or 2) with the client's address
    #[arg(
        long,
        env = "TOLLGATE_PROXY_PROTOCOL",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub proxy_protocol: Option<bool>,

    /// Maximum number of connections on each listener; for more, connections without an open call are closed
    #[arg(long, env = "TOLLGATE_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,

    /// Maximum number of connections of one address on each listener; trusted proxies have no bound [default: a quarter
    /// of --max-connections]
    #[arg(long, env = "TOLLGATE_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N")]
    pub max_connections_per_address: Option<usize>,

    /// Maximum number of TLS handshakes started per second on each listener, a quarter of them from one address; more
    /// wait
    #[arg(long, env = "TOLLGATE_MAX_HANDSHAKES_PER_SECOND", value_name = "N")]
    pub max_handshakes_per_second: Option<u32>,

    /// Maximum time until the headers of an HTTP/1 client's next request have arrived, in milliseconds
    #[arg(long, env = "TOLLGATE_HEADER_TIMEOUT_MS", value_name = "MS")]
    pub header_timeout_ms: Option<u64>,

    /// Maximum time of a connection without an open call, in milliseconds
    #[arg(long, env = "TOLLGATE_IDLE_TIMEOUT_MS", value_name = "MS")]
    pub idle_timeout_ms: Option<u64>,

    /// Time for a client to read an answer before its connection is closed, in milliseconds
    #[arg(long, env = "TOLLGATE_ANSWER_TIMEOUT_MS", value_name = "MS")]
    pub answer_timeout_ms: Option<u64>,

    /// Maximum memory of each thread's connections for open calls and unread answers, in bytes, at least 1048576; above
    /// it the connection with the most memory is closed; one connection may use a quarter
    #[arg(long, env = "TOLLGATE_MAX_PENDING_BYTES", value_name = "N")]
    pub max_pending_bytes: Option<usize>,

    /// Open gRPC reflection to everybody, not only to services
    #[arg(
        long,
        env = "TOLLGATE_OPEN_REFLECTION",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub open_reflection: Option<bool>,

    /// Largest request body or message, in bytes
    #[arg(long, env = "TOLLGATE_MAX_REQUEST_BYTES", value_name = "N")]
    pub max_request_bytes: Option<usize>,

    /// Maximum time for a request body to arrive, in milliseconds; not for `ConsumeStream`, which has an idle timeout
    #[arg(long, env = "TOLLGATE_BODY_TIMEOUT_MS", value_name = "MS")]
    pub body_timeout_ms: Option<u64>,

    /// Maximum memory of incomplete request bodies, for REST and for gRPC separately, in bytes; half of it for one
    /// caller
    #[arg(long, env = "TOLLGATE_MAX_UNREAD_BYTES", value_name = "N")]
    pub max_unread_bytes: Option<usize>,

    /// Maximum number of concurrent calls on each gRPC connection, and over REST in total
    #[arg(long, env = "TOLLGATE_MAX_CONCURRENT_CALLS", value_name = "N")]
    pub max_concurrent_calls: Option<usize>,

    /// Maximum number of concurrent REST calls of one token, or of one address on the end users' routes
    /// [default: half of --max-concurrent-calls]
    #[arg(long, env = "TOLLGATE_MAX_CALLS_PER_CALLER", value_name = "N")]
    pub max_calls_per_caller: Option<usize>,

    /// Maximum time of a call, in milliseconds
    #[arg(long, env = "TOLLGATE_CALL_TIMEOUT_MS", value_name = "MS")]
    pub call_timeout_ms: Option<u64>,

    /// Maximum number of open `ConsumeStream`s; more are refused
    #[arg(long, env = "TOLLGATE_MAX_STREAMS", value_name = "N")]
    pub max_streams: Option<usize>,

    /// Maximum number of open `ConsumeStream`s of one token [default: half of --max-streams]
    #[arg(long, env = "TOLLGATE_MAX_STREAMS_PER_CALLER", value_name = "N")]
    pub max_streams_per_caller: Option<usize>,

    /// Maximum number of calls of one `ConsumeStream` whose answers the client has not read; no more are read
    #[arg(long, env = "TOLLGATE_STREAM_CALLS", value_name = "N")]
    pub stream_calls: Option<usize>,

    /// Maximum idle time of a `ConsumeStream`, in milliseconds
    #[arg(long, env = "TOLLGATE_STREAM_IDLE_TIMEOUT_MS", value_name = "MS")]
    pub stream_idle_timeout_ms: Option<u64>,

    /// Lifetime of a reservation without `ttl_ms`, in milliseconds, from 1000 to 3600000
    #[arg(long, env = "TOLLGATE_RESERVATION_TTL_MS", value_name = "MS")]
    pub reservation_ttl_ms: Option<u32>,

    /// Time for which an admission is remembered by its request id, in milliseconds, from 1000 to 86400000
    #[arg(long, env = "TOLLGATE_REQUEST_ID_TTL_MS", value_name = "MS")]
    pub request_id_ttl_ms: Option<u32>,

    /// Time for which a node still accepts calls after SIGTERM, while `/readyz` already answers 503, in milliseconds
    #[arg(long, env = "TOLLGATE_DRAIN_DELAY_MS", value_name = "MS")]
    pub drain_delay_ms: Option<u64>,

    /// Maximum time for accepted calls to finish after that, in milliseconds
    #[arg(long, env = "TOLLGATE_DRAIN_TIMEOUT_MS", value_name = "MS")]
    pub drain_timeout_ms: Option<u64>,

    /// Number of threads for connections and their calls [default: the number of processors]
    #[arg(long, env = "TOLLGATE_THREADS", value_name = "N")]
    pub threads: Option<usize>,

    /// Format of the log on standard error
    #[arg(long, env = "TOLLGATE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Filter of the log, such as `info,tollgate_server=debug`
    #[arg(long, env = "TOLLGATE_LOG_FILTER", value_name = "FILTER")]
    pub log_filter: Option<String>,

    /// The settings of `tollgate account`, `key` and `tier`. These commands have their own flags.
    #[arg(skip)]
    #[serde(default)]
    pub client: ClientOptions,
}

/// The names of all options in configuration files.
/// Reads a list, or one value as a list of one.
fn one_or_more<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct OneOrMore<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMore<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a list of strings")
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<Vec<T>, E> {
            T::deserialize(value.into_deserializer()).map(|value| vec![value])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(items))
        }
    }

    deserializer.deserialize_any(OneOrMore(PhantomData))
}

pub(super) fn names() -> Vec<String> {
    let node = Options::augment_args(clap::Command::new("node"));
    let client = ClientOptions::augment_args(clap::Command::new("client"));
    let longs = [node, client]
        .into_iter()
        .flat_map(|all| all.get_arguments().filter_map(clap::Arg::get_long).map(str::to_owned).collect::<Vec<_>>());
    longs.chain(["client".to_owned()]).collect()
}

impl Options {
    /// These options, completed by the others.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            policy: if self.policy.is_empty() { other.policy } else { self.policy },
            redis: self.redis.or(other.redis),
            redis_user: self.redis_user.or(other.redis_user),
            redis_password_file: self.redis_password_file.or(other.redis_password_file),
            redis_sentinel_user: self.redis_sentinel_user.or(other.redis_sentinel_user),
            redis_sentinel_password_file: self.redis_sentinel_password_file.or(other.redis_sentinel_password_file),
            redis_tls_ca: self.redis_tls_ca.or(other.redis_tls_ca),
            redis_tls_cert: self.redis_tls_cert.or(other.redis_tls_cert),
            redis_tls_key: self.redis_tls_key.or(other.redis_tls_key),
            redis_tls_server_name: self.redis_tls_server_name.or(other.redis_tls_server_name),
            redis_key_prefix: self.redis_key_prefix.or(other.redis_key_prefix),
            redis_connections: self.redis_connections.or(other.redis_connections),
            redis_wait_replicas: self.redis_wait_replicas.or(other.redis_wait_replicas),
            redis_wait_ms: self.redis_wait_ms.or(other.redis_wait_ms),
            store_deadline_ms: self.store_deadline_ms.or(other.store_deadline_ms),
            store_max_in_flight: self.store_max_in_flight.or(other.store_max_in_flight),
            max_counters_per_account: self.max_counters_per_account.or(other.max_counters_per_account),
            node_count: self.node_count.or(other.node_count),
            memory_max_scopes: self.memory_max_scopes.or(other.memory_max_scopes),
            accounts_redis: self.accounts_redis.or(other.accounts_redis),
            memory_max_accounts: self.memory_max_accounts.or(other.memory_max_accounts),
            account_cache_entries: self.account_cache_entries.or(other.account_cache_entries),
            max_new_accounts: self.max_new_accounts.or(other.max_new_accounts),
            account_cache_ttl_ms: self.account_cache_ttl_ms.or(other.account_cache_ttl_ms),
            http_listen: self.http_listen.or(other.http_listen),
            grpc_listen: self.grpc_listen.or(other.grpc_listen),
            service_tokens: self.service_tokens.or(other.service_tokens),
            open_loopback: self.open_loopback.or(other.open_loopback),
            admin_tokens: self.admin_tokens.or(other.admin_tokens),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            plaintext_beyond_loopback: self.plaintext_beyond_loopback.or(other.plaintext_beyond_loopback),
            ops_listen: self.ops_listen.or(other.ops_listen),
            allowed_hosts: if self.allowed_hosts.is_empty() { other.allowed_hosts } else { self.allowed_hosts },
            trusted_proxies: if self.trusted_proxies.is_empty() { other.trusted_proxies } else { self.trusted_proxies },
            forwarded_header: self.forwarded_header.or(other.forwarded_header),
            max_login_failures: self.max_login_failures.or(other.max_login_failures),
            proxy_protocol: self.proxy_protocol.or(other.proxy_protocol),
            max_connections: self.max_connections.or(other.max_connections),
            max_connections_per_address: self.max_connections_per_address.or(other.max_connections_per_address),
            max_handshakes_per_second: self.max_handshakes_per_second.or(other.max_handshakes_per_second),
            answer_timeout_ms: self.answer_timeout_ms.or(other.answer_timeout_ms),
            max_pending_bytes: self.max_pending_bytes.or(other.max_pending_bytes),
            open_reflection: self.open_reflection.or(other.open_reflection),
            header_timeout_ms: self.header_timeout_ms.or(other.header_timeout_ms),
            idle_timeout_ms: self.idle_timeout_ms.or(other.idle_timeout_ms),
            max_request_bytes: self.max_request_bytes.or(other.max_request_bytes),
            body_timeout_ms: self.body_timeout_ms.or(other.body_timeout_ms),
            max_unread_bytes: self.max_unread_bytes.or(other.max_unread_bytes),
            max_concurrent_calls: self.max_concurrent_calls.or(other.max_concurrent_calls),
            max_calls_per_caller: self.max_calls_per_caller.or(other.max_calls_per_caller),
            call_timeout_ms: self.call_timeout_ms.or(other.call_timeout_ms),
            max_streams: self.max_streams.or(other.max_streams),
            max_streams_per_caller: self.max_streams_per_caller.or(other.max_streams_per_caller),
            stream_calls: self.stream_calls.or(other.stream_calls),
            stream_idle_timeout_ms: self.stream_idle_timeout_ms.or(other.stream_idle_timeout_ms),
            reservation_ttl_ms: self.reservation_ttl_ms.or(other.reservation_ttl_ms),
            request_id_ttl_ms: self.request_id_ttl_ms.or(other.request_id_ttl_ms),
            drain_delay_ms: self.drain_delay_ms.or(other.drain_delay_ms),
            drain_timeout_ms: self.drain_timeout_ms.or(other.drain_timeout_ms),
            threads: self.threads.or(other.threads),
            log_format: self.log_format.or(other.log_format),
            log_filter: self.log_filter.or(other.log_filter),
            client: other.client,
        }
    }
}
