use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::redis::RedisConfig;

/// The settings of a store at `url` that waits for as long as a busy machine may need. A test that is about deadlines sets
/// its own.
pub fn patient(url: String) -> RedisConfig {
    RedisConfig { deadline: PATIENCE, ..RedisConfig::new(url) }
}

/// How long tests wait for an expected event. It is long, because other work may share the machine.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// The programs that can be started as a Redis server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The `redis-server` that is installed.
    Installed,
    /// The last Redis 6.2.
    Redis62,
    /// Valkey 9.
    Valkey,
    /// The last Redis 6.2, with a clock that [`RedisServer::set_clock`] sets.
    OwnClock,
}

/// Where a server of [`Program::OwnClock`] reads how far its clock is from the real one.
const CLOCK: &str = "clock";

impl Program {
    fn path(self) -> PathBuf {
        let name = match self {
            Self::Installed => return "redis-server".into(),
            Self::Redis62 | Self::OwnClock => "redis-server-6.2",
            Self::Valkey => "valkey-server",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/servers").join(name)
    }
}

/// A private Redis server: on a free loopback port, with a temporary folder, ended when dropped.
pub struct RedisServer {
    program: Program,
    child: Child,
    port: u16,
    folder: TempDir,
    options: Vec<String>,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    /// When `redis-server` is not installed or does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further options, such as `["--maxmemory", "5mb"]`. `{folder}` in an option is the
    /// server's own folder.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_program(Program::Installed, options)
    }

    /// Starts another program than the installed one, with further options.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_program(program: Program, options: &[&str]) -> Self {
        // Another test may take the port between its choice and its use.
        let started = (0..5).find_map(|_| Self::try_start(program, Self::free_port(), options).ok());
        started.unwrap_or_else(|| panic!("{} does not start", program.path().display()))
    }

    /// Starts a server on `port`.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_on(port: u16) -> Self {
        Self::try_start(Program::Installed, port, &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A loopback port without a listener.
    ///
    /// # Panics
    /// When there is none.
    pub fn free_port() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.local_addr().expect("an address").port()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How tests reach it: see [`patient`].
    pub fn config(&self) -> RedisConfig {
        patient(self.url())
    }

    /// Where the server works.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// A blocking connection for reading and changing data without the store.
    ///
    /// # Panics
    /// If the server has ended.
    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).and_then(|client| client.get_connection()).expect("the server answers")
    }

    /// Runs a command, such as `"CONFIG SET maxmemory 1"`, and returns its reply.
    ///
    /// # Panics
    /// If the server has ended or refuses the connection.
    pub fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        self.try_run(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The same for a server that may have ended, or that takes part in a failover, which closes connections.
    ///
    /// # Errors
    /// If the server has ended, refuses, or closes the connection.
    pub fn try_run<T: redis::FromRedisValue>(&self, command: &str) -> redis::RedisResult<T> {
        let mut words = redis::Cmd::new();
        command.split(' ').for_each(|word| {
            words.arg(word);
        });
        words.query(&mut redis::Client::open(self.url())?.get_connection()?)
    }

    /// Whether the answer to a command contains `text`.
    pub fn says(&self, command: &str, text: &str) -> bool {
        self.try_run::<String>(command).is_ok_and(|answer| answer.contains(text))
    }

    /// How much this server has written, in bytes of its replication stream, and how much of that each of its replicas has.
    pub fn replication(&self) -> Option<(u64, Vec<u64>)> {
        let info = self.try_run::<String>("INFO replication").ok()?;
        let written = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")?.trim().parse().ok())?;
        let replicas = info.lines().filter(|line| line.starts_with("slave"));
        let received = replicas.filter_map(|line| line.split_once(",offset=")?.1.split(',').next()?.parse().ok());
        Some((written, received.collect()))
    }

    /// Waits until the answer to a command contains `text`.
    ///
    /// # Panics
    /// When it does not within two minutes.
    pub async fn wait_for(&self, command: &str, text: &str) {
        for _ in 0..2_400 {
            if self.says(command, text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within two minutes: {text} in the answer to {command}");
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the server as it is, as a stalled machine does; [`RedisServer::resume`] lets it go on.
    ///
    /// # Panics
    /// If the server has ended.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets a paused server go on.
    ///
    /// # Panics
    /// If the server has ended.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Sets the clock of [`Program::OwnClock`] to so many seconds after the real one, or before.
    ///
    /// # Panics
    /// If the server's folder is missing.
    pub fn set_clock(&self, ahead_s: i64) {
        set_clock(self.folder.path(), ahead_s);
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "no redis-server on port {}", self.port);
    }

    /// Kills the server and starts it again on the same port, empty unless its options save its data.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.program, self.port, &self.folder, &self.options);
        self.wait_until_up().unwrap_or_else(|error| panic!("{error}"));
    }

    pub(super) fn try_start(program: Program, port: u16, options: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let own = folder.path().to_string_lossy().into_owned();
        let options: Vec<String> = options.iter().map(|option| option.replace("{folder}", &own)).collect();
        let child = spawn(program, port, &folder, &options);
        let mut server = Self { program, child, port, folder, options };
        server.wait_until_up()?;
        Ok(server)
    }

    fn wait_until_up(&mut self) -> Result<(), String> {
        for _ in 0..2_000 {
            if let Some(status) = self.child.try_wait().expect("a child process") {
                let said = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(format!("redis-server ended at once: {status}: {said}"));
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("redis-server did not listen on port {} within 20 s", self.port))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Options that come later win.
fn spawn(program: Program, port: u16, folder: &TempDir, options: &[String]) -> Child {
    let path = program.path();
    let mut command = Command::new(&path);
    if program == Program::OwnClock {
        set_clock(folder.path(), 0);
        command
            .env("LD_PRELOAD", faketime())
            .env("FAKETIME_TIMESTAMP_FILE", folder.path().join(CLOCK))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    command
        // A sentinel keeps its notes in a file, which has to be the first argument.
        .args(options.iter().filter(|option| is_notes(option)))
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(if options.iter().any(|option| option == "--sentinel") { &[][..] } else { &["--save", ""] })
        .args(["--dir", &folder.path().to_string_lossy(), "--logfile", "log"])
        .args(options.iter().filter(|option| !is_notes(option)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; tests/run installs it", path.display()))
}

fn set_clock(folder: &Path, ahead_s: i64) {
    let fresh = folder.join("clock.new");
    let written = fs::write(&fresh, format!("{ahead_s:+}s\n")).and_then(|()| fs::rename(fresh, folder.join(CLOCK)));
    written.expect("the clock is set");
}

/// The library that puts another clock before a program, <https://github.com/wolfcw/libfaketime>.
fn faketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").expect("Linux").filter_map(Result::ok);
    let mut places = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    places.find(|place| place.exists()).expect("libfaketime is missing: tests/run installs it")
}

fn is_notes(option: &str) -> bool {
    option.ends_with("/sentinel.conf")
}
