//! Redis as production runs it: a cluster, a group under sentinels, a server behind TLS and an ACL.

use std::{
    fs,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

use super::{Program, RedisServer};
use crate::redis::{RedisConfig, RedisTls};

/// The rights of a node, and no more: the line of `docs/operations.md`, with the user and the rules apart.
pub const ACL: &str = include_str!("../../../../deploy/redis/tollgate.acl");

const PASSWORD: &str = "a-password-for-tests";

/// The line, with a password in it.
fn rights() -> String {
    let line = ACL.lines().find(|line| line.starts_with("user ")).expect("a line of rights");
    line.replace("<PASSWORD>", PASSWORD)
}

/// The options of a server that knows the user of [`ACL`], besides the one that may do everything.
fn start_with_user(program: Program, options: &[&str]) -> RedisServer {
    let user = rights();
    let user = std::iter::once("--user").chain(user.split(' ').skip(1));
    RedisServer::start_program(program, &user.chain(options.iter().copied()).collect::<Vec<_>>())
}

/// The same URL for the user of [`ACL`].
fn as_user(url: &str) -> String {
    url.replacen("://", &format!("://tollgate:{PASSWORD}@"), 1)
}

/// A server of another program than the installed one, which knows the user of [`ACL`].
pub struct OtherServer(RedisServer);

impl OtherServer {
    /// Starts it.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start(program: Program) -> Self {
        Self(start_with_user(program, &[]))
    }

    /// Runs a command as [`RedisServer::run`] does, without the user's bounds.
    ///
    /// # Panics
    /// When the server is gone or refuses.
    pub fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        self.0.run(command)
    }

    /// `redis://tollgate:…@127.0.0.1:port`.
    pub fn url(&self) -> String {
        as_user(&self.0.url())
    }
}

/// Three masters with a replica each.
pub struct RedisCluster {
    /// The masters of the start, in the order of their slots, then their replicas in the same order.
    pub servers: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the servers and waits until all slots are served and every replica follows its master.
    ///
    /// # Panics
    /// When that does not happen within 20 s.
    pub fn start() -> Self {
        let servers: Vec<RedisServer> = (0..6).map(|_| Self::server()).collect();
        let cluster = Self { servers };
        for (at, master) in cluster.servers[..3].iter().enumerate() {
            let (from, to) = (at * 16_384 / 3, (at + 1) * 16_384 / 3 - 1);
            let _: () = master.run(&format!("CLUSTER ADDSLOTSRANGE {from} {to}"));
            let _: () = master.run(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1));
        }
        let first = &cluster.servers[0];
        for other in &cluster.servers[1..] {
            let bus: Vec<String> = other.run("CONFIG GET cluster-port");
            let _: () = first.run(&format!("CLUSTER MEET 127.0.0.1 {} {}", other.port(), bus[1]));
        }
        let met = |server: &RedisServer| server.run::<String>("CLUSTER NODES").lines().count() == 6;
        wait("all nodes know each other", || cluster.servers.iter().all(met));
        for at in 0..3 {
            let id: String = cluster.servers[at].run("CLUSTER MYID");
            let _: () = cluster.servers[at + 3].run(&format!("CLUSTER REPLICATE {id}"));
        }
        cluster.wait_until_whole();
        cluster
    }

    fn server() -> RedisServer {
        let bus = RedisServer::free_port().to_string();
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--cluster-node-timeout",
            "1000",
            "--repl-diskless-sync-delay",
            "0",
            "--cluster-replica-validity-factor",
            "0",
        ];
        start_with_user(Program::Installed, &options)
    }

    /// Waits until every slot is served, every server knows it, and three replicas follow.
    ///
    /// # Panics
    /// When that does not happen within 20 s.
    pub fn wait_until_whole(&self) {
        wait("the cluster is whole", || {
            self.servers.iter().all(|server| {
                let (info, nodes): (String, String) = (server.run("CLUSTER INFO"), server.run("CLUSTER NODES"));
                info.contains("cluster_state:ok")
                    && nodes.lines().filter(|node| node.contains("slave") && node.contains("connected")).count() == 3
            })
        });
        wait("the replicas follow", || {
            let following = |server: &&RedisServer| server.run::<String>("INFO replication").contains("link_status:up");
            self.servers.iter().filter(following).count() == 3
        });
    }

    /// `redis+cluster://…`, by two of the masters.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.servers[0].port(), self.servers[2].port())
    }

    /// The same, as the user of [`ACL`].
    pub fn url_of_user(&self) -> String {
        as_user(&self.url())
    }
}

/// A master, two replicas, three sentinels.
pub struct SentinelTrio {
    /// The master of the start, then its replicas.
    pub servers: Vec<RedisServer>,
    /// The sentinels.
    pub sentinels: Vec<RedisServer>,
}

impl SentinelTrio {
    /// Starts them and waits until the sentinels know each other and both replicas.
    ///
    /// # Panics
    /// When that does not happen within 20 s.
    pub fn start() -> Self {
        let master = start_with_user(Program::Installed, &["--repl-diskless-sync-delay", "0"]);
        let port = master.port().to_string();
        let replica = || {
            let of = ["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"];
            start_with_user(Program::Installed, &of)
        };
        let servers = vec![master, replica(), replica()];
        let sentinels = (0..3).map(|_| Self::sentinel(&port)).collect();
        let trio = Self { servers, sentinels };
        trio.wait_until_whole();
        trio
    }

    fn sentinel(port: &str) -> RedisServer {
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let notes = folder.join("sentinel.conf");
        let text = format!(
            "sentinel monitor tollgate 127.0.0.1 {port} 2\nsentinel down-after-milliseconds tollgate 1000\nsentinel \
             failover-timeout tollgate 4000\nsentinel parallel-syncs tollgate 1\n"
        );
        fs::write(&notes, text).expect("the notes are written");
        RedisServer::start_with(&[&notes.to_string_lossy(), "--sentinel"])
    }

    /// Waits until every sentinel sees the two others and two replicas of a live master.
    ///
    /// # Panics
    /// When that does not happen within 20 s.
    pub fn wait_until_whole(&self) {
        wait("the sentinels know everybody", || {
            self.sentinels.iter().all(|sentinel| {
                sentinel.run::<String>("INFO sentinel").contains("status=ok,address=")
                    && sentinel.run::<Vec<redis::Value>>("SENTINEL sentinels tollgate").len() == 2
                    && sentinel.run::<String>("INFO sentinel").contains("slaves=2,sentinels=3")
            })
        });
        wait("the replicas follow", || {
            let following = |server: &&RedisServer| server.run::<String>("INFO replication").contains("link_status:up");
            self.servers.iter().filter(following).count() == 2
        });
    }

    /// The place among `servers` of the master that a majority of the sentinels names.
    pub fn master(&self) -> Option<usize> {
        let named: Vec<String> = self
            .sentinels
            .iter()
            .filter_map(|sentinel| {
                sentinel.run::<Vec<String>>("SENTINEL get-master-addr-by-name tollgate").into_iter().nth(1)
            })
            .collect();
        self.servers.iter().position(|server| {
            named.iter().filter(|port| **port == server.port().to_string()).count() * 2 > self.sentinels.len()
        })
    }

    /// `redis+sentinel://…/tollgate`.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
        format!("redis+sentinel://{}/tollgate", hosts.join(","))
    }

    /// The same, as the user of [`ACL`] at the servers; the sentinels ask for nobody.
    pub fn url_of_user(&self) -> String {
        as_user(&self.url())
    }
}

impl Drop for SentinelTrio {
    fn drop(&mut self) {
        for sentinel in &self.sentinels {
            let notes = sentinel.run::<String>("INFO server");
            let file = notes.lines().find_map(|line| line.strip_prefix("config_file:"));
            if let Some(folder) = file.and_then(|file| std::path::Path::new(file.trim()).parent()) {
                let _ = fs::remove_dir_all(folder);
            }
        }
    }
}

/// A server that speaks TLS only, wants a client's certificate, and knows one user with the rights of [`ACL`].
pub struct SecureRedis {
    server: RedisServer,
    _folder: tempfile::TempDir,
    /// What a client needs.
    pub tls: RedisTls,
}

impl SecureRedis {
    /// The password of the user `tollgate`.
    pub const PASSWORD: &str = PASSWORD;

    /// Starts the server.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start() -> Self {
        let certificates = Certificates::new();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("a file is written");
            path.to_string_lossy().into_owned()
        };
        let (ca, (cert, key)) = (file("ca.pem", &certificates.ca), &certificates.server);
        let (cert, key) = (file("server.pem", cert), file("server.key", key));
        let port = RedisServer::free_port();
        let tls_port = port.to_string();
        let acl = file("users.acl", &format!("user default off\n{}\n", rights()));
        let options = ["--tls-port", &tls_port, "--port", "0", "--tls-ca-cert-file", &ca, "--tls-cert-file", &cert];
        let more = ["--tls-key-file", &key, "--tls-auth-clients", "yes", "--aclfile", &acl];
        let server = RedisServer::try_start(Program::Installed, port, &[&options[..], &more].concat())
            .expect("redis-server starts");
        let (cert, key) = certificates.client;
        let tls = RedisTls {
            ca: Some(certificates.ca.into_bytes()),
            identity: Some((cert.into_bytes(), key.into_bytes())),
            server_name: None,
        };
        Self { server, _folder: folder, tls }
    }

    /// `rediss://tollgate:…@127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("rediss://tollgate:{}@127.0.0.1:{}", Self::PASSWORD, self.server.port())
    }

    /// What a node needs to reach it.
    pub fn config(&self) -> RedisConfig {
        RedisConfig { tls: Some(self.tls.clone()), ..RedisConfig::new(self.url()) }
    }
}

/// An authority of the test's own, and what it vouches for.
pub struct Certificates {
    /// The authority's certificate, PEM.
    pub ca: String,
    /// Certificate and key for 127.0.0.1 and localhost, PEM.
    pub server: (String, String),
    /// Certificate and key of a client, PEM.
    pub client: (String, String),
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// Makes them.
    ///
    /// # Panics
    /// Never in practice.
    pub fn new() -> Self {
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        authority.distinguished_name.push(DnType::CommonName, "the authority of a test");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(authority, key).expect("a certificate");
        let vouch = |purpose| {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            // With the name of its authority it would pass for one that vouches for itself.
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &authority).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        };
        Self {
            server: vouch(ExtendedKeyUsagePurpose::ServerAuth),
            client: vouch(ExtendedKeyUsagePurpose::ClientAuth),
            ca: authority.pem(),
        }
    }
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let started = Instant::now();
    while !until() {
        assert!(started.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
