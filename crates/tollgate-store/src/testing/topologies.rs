//! Redis as in production: a cluster, a group with sentinels, a server with TLS and an ACL.

use std::{
    fs,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

use super::{PATIENCE, Program, RedisServer, patient};
use crate::redis::{RedisConfig, RedisTls};

/// Exactly the rights of a node: the line of `docs/operations.md`, with the user and the rules separately.
pub const ACL: &str = include_str!("../../../../deploy/redis/tollgate.acl");

const PASSWORD: &str = "a-password-for-tests";

/// The line, with a password in it.
fn rights() -> String {
    let line = ACL.lines().find(|line| line.starts_with("user ")).expect("a line of rights");
    line.replace("<PASSWORD>", PASSWORD)
}

/// The options of a server that has the user of [`ACL`], besides the default user with all rights.
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
    /// If the server has ended or refuses the connection.
    pub fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        self.0.run(command)
    }

    /// `redis://tollgate:…@127.0.0.1:port`.
    pub fn url(&self) -> String {
        as_user(&self.0.url())
    }
}

/// How long a server may be silent before it counts as failed, if a test wants a failover.
const SILENCE_MS: u32 = 1_000;
/// The same where none is wanted: a server that a busy machine lets wait must not lose its place.
const PATIENT_SILENCE_MS: u32 = 600_000;

/// Three masters with a replica each.
pub struct RedisCluster {
    /// The masters of the start, in the order of their slots, then their replicas in the same order.
    pub servers: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the servers and waits until all slots are served and every replica follows its master. No replica takes over
    /// by itself: see [`RedisCluster::allow_failover`].
    ///
    /// # Panics
    /// When that does not happen within two minutes.
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
        let met = |server: &RedisServer| {
            let nodes: String = server.run("CLUSTER NODES");
            nodes.lines().count() == 6 && !nodes.contains("handshake")
        };
        wait("all nodes know each other", || cluster.servers.iter().all(met));
        for at in 0..3 {
            let id: String = cluster.servers[at].run("CLUSTER MYID");
            let _: () = cluster.servers[at + 3].run(&format!("CLUSTER REPLICATE {id}"));
        }
        cluster.wait_until_whole();
        // With the short time, which also sets how often servers contact each other, the start is faster.
        cluster.set_silence(PATIENT_SILENCE_MS);
        // Servers that were missing before are known now.
        cluster.wait_until_whole();
        cluster
    }

    /// From now on a replica takes over from a master that is silent for a second.
    ///
    /// # Panics
    /// If a server has ended.
    pub fn allow_failover(&self) {
        self.set_silence(SILENCE_MS);
    }

    fn set_silence(&self, ms: u32) {
        for server in &self.servers {
            let _: () = server.run(&format!("CONFIG SET cluster-node-timeout {ms}"));
        }
    }

    /// Has one of the replicas take over from its master, which lives, and waits until it has.
    ///
    /// # Panics
    /// When that does not happen within two minutes.
    pub fn fail_over_to(&self, replica: usize) {
        let mut next_try = Instant::now();
        wait("the replica takes over", || {
            // An attempt that is not done after 5 s is given up by the servers.
            if Instant::now() >= next_try {
                let _ = self.servers[replica].try_run::<()>("CLUSTER FAILOVER");
                next_try = Instant::now() + Duration::from_secs(6);
            }
            self.servers[replica].says("INFO replication", "role:master")
        });
    }

    fn server() -> RedisServer {
        let bus = RedisServer::free_port().to_string();
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--cluster-node-timeout",
            &SILENCE_MS.to_string(),
            "--repl-diskless-sync-delay",
            "0",
            "--cluster-replica-validity-factor",
            "0",
        ];
        start_with_user(Program::Installed, &options)
    }

    /// Waits until every slot is served, every server knows it, and three replicas follow and have all that was written.
    ///
    /// # Panics
    /// When that does not happen within two minutes.
    pub fn wait_until_whole(&self) {
        let is_replica = |node: &&str| node.contains("slave") && node.contains("connected");
        let sees_all = |server: &RedisServer| {
            let nodes = server.try_run::<String>("CLUSTER NODES").unwrap_or_default();
            server.says("CLUSTER INFO", "cluster_state:ok")
                && nodes.lines().filter(is_replica).count() == 3
                && !nodes.contains("fail")
        };
        wait("the cluster is whole", || self.servers.iter().all(sees_all));
        let follows = |server: &&RedisServer| server.says("INFO replication", "link_status:up");
        wait("the replicas follow", || self.servers.iter().filter(follows).count() == 3);
        wait_until_replicated(&self.servers, 1);
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
    /// Starts them and waits until the sentinels know each other and both replicas. No replica takes over by itself: see
    /// [`SentinelTrio::allow_failover`].
    ///
    /// # Panics
    /// When that does not happen within two minutes.
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
        // With the short time, which also sets how often sentinels ask, the start is faster.
        trio.set_silence(PATIENT_SILENCE_MS);
        trio.wait_until_whole();
        trio
    }

    /// From now on a replica takes over from a master that is silent for a second.
    ///
    /// # Panics
    /// If a sentinel has ended.
    pub fn allow_failover(&self) {
        self.set_silence(SILENCE_MS);
    }

    fn set_silence(&self, ms: u32) {
        for sentinel in &self.sentinels {
            let _: () = sentinel.run(&format!("SENTINEL SET tollgate down-after-milliseconds {ms}"));
        }
    }

    /// Has a replica take over from the master, which lives, and waits until every sentinel names it; its place among
    /// `servers`.
    ///
    /// # Panics
    /// When that does not happen within two minutes.
    pub fn fail_over(&self) -> usize {
        let (before, mut next_try) = (self.master(), Instant::now());
        let mut now = None;
        wait("another master", || {
            // A sentinel refuses if it has not heard from a replica recently, and while another attempt is active.
            if Instant::now() >= next_try {
                let _ = self.sentinels[0].try_run::<()>("SENTINEL FAILOVER tollgate");
                next_try = Instant::now() + Duration::from_secs(10);
            }
            now = self.named_by(self.sentinels.len());
            now.is_some() && now != before
        });
        now.expect("it is named")
    }

    fn sentinel(port: &str) -> RedisServer {
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let notes = folder.join("sentinel.conf");
        let text = format!(
            "sentinel monitor tollgate 127.0.0.1 {port} 2\nsentinel down-after-milliseconds tollgate \
             {SILENCE_MS}\nsentinel failover-timeout tollgate 4000\nsentinel parallel-syncs tollgate 1\n"
        );
        fs::write(&notes, text).expect("the notes are written");
        RedisServer::start_with(&[&notes.to_string_lossy(), "--sentinel"])
    }

    /// Waits until every sentinel sees the two others and two replicas of a live master, and both replicas have all that
    /// was written.
    ///
    /// # Panics
    /// When that does not happen within two minutes.
    pub fn wait_until_whole(&self) {
        let sees_all = |sentinel: &RedisServer| {
            let info = sentinel.try_run::<String>("INFO sentinel").unwrap_or_default();
            let others = sentinel.try_run::<Vec<redis::Value>>("SENTINEL sentinels tollgate");
            info.contains("status=ok,address=")
                && info.contains("slaves=2,sentinels=3")
                && others.is_ok_and(|others| others.len() == 2)
        };
        wait("the sentinels know everybody", || self.sentinels.iter().all(sees_all));
        let follows = |server: &&RedisServer| server.says("INFO replication", "link_status:up");
        wait("the replicas follow", || self.servers.iter().filter(follows).count() == 2);
        wait_until_replicated(&self.servers, 2);
    }

    /// The place among `servers` of the master that a majority of the sentinels names.
    pub fn master(&self) -> Option<usize> {
        self.named_by(self.sentinels.len() / 2 + 1)
    }

    /// The place of the master that so many sentinels name.
    fn named_by(&self, sentinels: usize) -> Option<usize> {
        let named: Vec<String> = self
            .sentinels
            .iter()
            .filter_map(|sentinel| {
                let address = sentinel.try_run::<Vec<String>>("SENTINEL get-master-addr-by-name tollgate").ok()?;
                address.into_iter().nth(1)
            })
            .collect();
        self.servers
            .iter()
            .position(|server| named.iter().filter(|port| **port == server.port().to_string()).count() >= sentinels)
    }

    /// `redis+sentinel://…/tollgate`.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
        format!("redis+sentinel://{}/tollgate", hosts.join(","))
    }

    /// The same, as the user of [`ACL`] at the servers; the sentinels ask for no password.
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
    /// The settings of a client.
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

    /// The settings that a node needs to reach it.
    pub fn config(&self) -> RedisConfig {
        RedisConfig { tls: Some(self.tls.clone()), ..patient(self.url()) }
    }
}

/// A private certificate authority, and its certificates.
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

/// Waits until this many replicas of each master have its current writes.
fn wait_until_replicated(servers: &[RedisServer], replicas: usize) {
    for master in servers.iter().filter(|server| server.says("INFO replication", "role:master")) {
        let Some((written, _)) = master.replication() else { continue };
        wait("the replicas have what was written", || {
            let received = master.replication().map(|(_, received)| received).unwrap_or_default();
            received.into_iter().filter(|received| *received >= written).count() >= replicas
        });
    }
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let started = Instant::now();
    while !until() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
