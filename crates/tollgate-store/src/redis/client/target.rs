//! Which Redis, by URL and a few settings.

use redis::{ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use tollgate_core::store::StoreError;

use super::{RedisConfig, dial::KEEPALIVE_AFTER};

/// Certificates for `rediss://` and its kin, each a text in PEM. Without `Debug`, as it holds a key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// The authorities to trust; the system's if there is none.
    pub ca: Option<Vec<u8>>,
    /// The client's certificate chain and its private key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that certificates of servers have to carry; that of the URL if there is none. Not with sentinels.
    pub server_name: Option<String>,
}

/// The target of a URL.
pub(super) enum Target {
    /// One server.
    Single(ConnectionInfo),
    /// The master that the sentinels name.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        service: String,
        /// How to log in at the master; its address is not used.
        master: ConnectionInfo,
    },
    /// A Redis Cluster, found by any of these nodes.
    Cluster(Vec<ConnectionInfo>),
}

impl Target {
    /// Reads the URL of a configuration.
    ///
    /// `redis://[user:password@]host[:port][/db]` and `rediss://` (TLS); `unix:///path[?db=&user=&pass=]`;
    /// `redis+sentinel://[user:password@]host[:port][,host…]/service[/db]`; `redis+cluster://[…@]host[:port][,host…]`;
    /// the latter two with `rediss+` for TLS.
    pub(super) fn of(config: &RedisConfig) -> Result<Self, StoreError> {
        let certificates = certificates(config.tls.as_ref());
        let (scheme, rest) = config.url.split_once("://").ok_or_else(|| wrong("has no scheme, as in redis://host"))?;
        if let Some((_, fragment)) = rest.split_once('#') {
            return Err(wrong(if fragment == "insecure" {
                "ends in #insecure, which would trust any server and is not offered: name its authority by redis-tls-ca"
            } else {
                "has a #; in a user or password write %23"
            }));
        }
        let (base, kind) = match scheme {
            "redis" | "rediss" | "unix" => {
                return Ok(Self::Single(info(&config.url, config, certificates.as_ref())?));
            }
            "redis+sentinel" | "rediss+sentinel" | "redis+cluster" | "rediss+cluster" => {
                scheme.split_once('+').unwrap_or((scheme, ""))
            }
            other => {
                let known = "redis, rediss, unix, redis+sentinel, rediss+sentinel, redis+cluster, rediss+cluster";
                // Text that is no scheme may be a password.
                let is_scheme = other.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
                let named = if is_scheme { format!("has the scheme {other:?}") } else { "has a scheme".to_owned() };
                return Err(wrong(&format!("{named}, not one of {known}")));
            }
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
        let at = if login.is_empty() { "" } else { "@" };
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.iter().any(|host| host.is_empty()) {
            return Err(wrong("names no host, or an empty one between commas"));
        }
        if kind == "cluster" {
            if !path.is_empty() {
                return Err(wrong("names a database; a cluster has only one"));
            }
            let nodes =
                hosts.iter().map(|host| info(&format!("{base}://{login}{at}{host}"), config, certificates.as_ref()));
            return Ok(Self::Cluster(nodes.collect::<Result<_, _>>()?));
        }
        if config.tls.as_ref().is_some_and(|tls| tls.server_name.is_some()) {
            return Err(wrong("names sentinels, whose servers have names of their own: none can be set for all"));
        }
        let (service, db) = path.split_once('/').unwrap_or((path, ""));
        if service.is_empty() {
            return Err(wrong("names no service, as in redis+sentinel://host:26379/mymaster"));
        }
        let sentinel = |host: &&str| {
            let host = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
                (*host).to_owned()
            } else {
                format!("{host}:26379")
            };
            let info = info(&format!("{base}://{host}"), config, certificates.as_ref())?;
            // The sentinels' users are their own.
            let mut login = redis::RedisConnectionInfo::default().set_skip_set_lib_name();
            if let Some(password) = &config.sentinel_password {
                login = login.set_password(password);
            }
            if let Some(user) = &config.sentinel_user {
                login = login.set_username(user);
            }
            Ok(info.set_redis_settings(login))
        };
        Ok(Self::Sentinel {
            sentinels: hosts.iter().map(sentinel).collect::<Result<_, StoreError>>()?,
            service: service.to_owned(),
            master: info(&format!("{base}://{login}{at}{}/{db}", hosts[0]), config, certificates.as_ref())?,
        })
    }
}

/// The certificates as the client wants them.
pub(super) fn certificates(tls: Option<&RedisTls>) -> Option<TlsCertificates> {
    // The client uses the process's provider of cryptography, which may not be set yet.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tls.map(|tls| TlsCertificates {
        client_tls: tls.identity.clone().map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
        root_cert: tls.ca.clone(),
    })
}

/// A server and how to log in there.
fn info(url: &str, config: &RedisConfig, certificates: Option<&TlsCertificates>) -> Result<ConnectionInfo, StoreError> {
    // The client says of most mistakes only that they "did not parse". Neither message repeats text that may be a
    // password.
    if let Err(error) = url::Url::parse(url) {
        return Err(wrong(&format!("cannot be read: {error}; in a user or password write / ? @ : as %2F %3F %40 %3A")));
    }
    let unreadable = |error: redis::RedisError| wrong(&format!("cannot be used: {error}"));
    let mut info = url.into_connection_info().map_err(unreadable)?;
    if let Some(certificates) = certificates {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Err(StoreError::Refused("certificates for Redis go with rediss:// only".into()));
        }
        let client = redis::Client::build_with_tls(info, certificates.clone())
            .map_err(|error| StoreError::Refused(format!("the certificates for Redis: {error}")))?;
        info = client.get_connection_info().clone();
    }
    // CLIENT SETINFO is unknown before 7.2, even to ACLs.
    let mut login = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(user) = config.user.as_ref().filter(|_| login.username().is_none()) {
        login = login.set_username(user);
    }
    if let Some(password) = config.password.as_ref().filter(|_| login.password().is_none()) {
        login = login.set_password(password);
    }
    let tcp = redis::io::tcp::TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(redis::io::tcp::socket2::TcpKeepalive::new().with_time(KEEPALIVE_AFTER));
    Ok(info.set_redis_settings(login).set_tcp_settings(tcp))
}

/// The same login at another address, such as that of `MOVED` and `CLUSTER SLOTS`.
pub(super) fn elsewhere(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let addr = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    info.clone().set_addr(addr)
}

fn wrong(text: &str) -> StoreError {
    StoreError::Refused(format!("the Redis URL {text}"))
}
