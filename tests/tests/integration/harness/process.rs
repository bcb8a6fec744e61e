//! A node as a process: the production binary, without test features.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tollgate_api::v1::rate_limit_service_client::RateLimitServiceClient;
use tonic::transport::Channel;

use super::{Rest, until};

/// The path of the binary, built once, with the profile and target folder of this test.
fn tollgate() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("this test has a path");
        let folder = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
        let target = folder.parent().expect("target/<profile>");
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("no profile in {}", folder.display()),
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // Cargo sets these variables for this test's package. Passed to the build, they would make it rebuild
        // dependencies whose build scripts read them.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_package(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let built = command
            .args(["build", "--quiet", "--package", "tollgate-server", "--bin", "tollgate", "--profile", profile])
            .arg("--target-dir")
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(built.success(), "tollgate does not build");
        folder.join("tollgate")
    })
}

fn is_of_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of_package| variable.starts_with(of_package))
}

/// Builder of a [`Process`].
pub(crate) struct ProcessBuilder {
    command: Command,
    /// Whether to add `--open-loopback`: true for a node without service tokens.
    open: bool,
}

impl ProcessBuilder {
    /// A node with the policy file at `policy`, on free loopback ports, with none of the test's `TOLLGATE_` variables.
    /// It is open to services unless `--service-tokens` is added. Its store deadline is long unless a flag changes it,
    /// as Redis shares the machine with all tests.
    pub(crate) fn new(policy: &Path) -> Self {
        let node = Self::bare().arg("--policy").arg(policy).env("TOLLGATE_STORE_DEADLINE_MS", "4000");
        let node = node.arg("--http-listen=127.0.0.1:0").arg("--grpc-listen=127.0.0.1:0");
        Self { open: true, ..node }
    }

    /// The binary without any setting.
    pub(crate) fn bare() -> Self {
        let mut builder = Self::program(tollgate());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TOLLGATE_")) {
            builder.command.env_remove(name);
        }
        builder
    }

    /// Another program than the binary.
    pub(crate) fn program(program: &Path) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, open: false }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        let arg = arg.as_ref();
        self.open &= !arg.to_string_lossy().starts_with("--service-tokens");
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<'a>(self, args: impl IntoIterator<Item = &'a str>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Uses the Redis at `url`.
    pub(crate) fn redis(self, url: &str) -> Self {
        self.arg("--redis").arg(url)
    }

    /// Runs a program that ends by itself, for at most 30 seconds. Returns its status, standard output and standard
    /// error.
    pub(crate) fn output(self) -> (ExitStatus, String, String) {
        let child = self.spawn();
        let id = child.id();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(child.wait_with_output()));
        let output = ended.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| {
            signal(id, "KILL");
            panic!("the program did not end by itself")
        });
        let output = output.expect("its output");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status, text(&output.stdout), text(&output.stderr))
    }

    fn spawn(mut self) -> Child {
        if self.open {
            self.command.arg("--open-loopback");
        }
        self.command.spawn().expect("the binary runs")
    }

    /// Starts a node, and returns once it has printed its addresses.
    pub(crate) fn start(self) -> Process {
        self.try_start().unwrap_or_else(|output| panic!("the process did not start: {output}"))
    }

    /// Like [`start`](Self::start); the output of the process as an error if it ended instead.
    pub(crate) fn try_start(self) -> Result<Process, String> {
        let mut child = self.spawn();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let mut from = child.stderr.take().expect("piped");
        let to = Arc::clone(&stderr);
        let errors = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut chunk) {
                to.lock().expect("no panic").extend_from_slice(&chunk[..read]);
            }
        });
        let mut reader = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        // The rest of the output is read too, so that the node never blocks on writing it.
        let stdout = Arc::new(Mutex::new(String::new()));
        let to = Arc::clone(&stdout);
        std::thread::spawn(move || {
            let mut line = String::new();
            while let Ok(1..) = reader.read_line(&mut line) {
                to.lock().expect("no panic").push_str(&line);
                line.clear();
            }
        });
        let after = |mark: &str| line.split_once(mark).and_then(|(_, rest)| rest.split([',', ';']).next());
        let http = after("REST on http://").or_else(|| after("REST on https://"));
        let (Some(http), Some(grpc)) = (http, after("gRPC on ")) else {
            let _ = child.kill();
            let _ = child.wait();
            errors.join().expect("no panic");
            return Err(format!("{line:?} and {}", String::from_utf8_lossy(&stderr.lock().expect("no panic"))));
        };
        let channel = Channel::from_shared(format!("http://{}", grpc.trim())).expect("an address").connect_lazy();
        Ok(Process {
            rest: Rest::new(http),
            grpc: RateLimitServiceClient::new(channel.clone()),
            channel,
            grpc_address: grpc.trim().to_owned(),
            http_address: http.to_owned(),
            first_line: line.clone(),
            child,
            stdout,
            stderr,
        })
    }
}

/// A running process, killed when dropped.
pub(crate) struct Process {
    pub(crate) rest: Rest,
    pub(crate) grpc: RateLimitServiceClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) grpc_address: String,
    pub(crate) http_address: String,
    /// The first line of its standard output.
    pub(crate) first_line: String,
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    /// The listener of health and metrics, of a node with `--ops-listen`.
    pub(crate) fn ops(&self) -> Rest {
        let (_, address) =
            self.first_line.split_once("health and metrics on http://").expect("a node with --ops-listen");
        Rest::new(address.split([',', ';']).next().expect("an address").trim())
    }

    /// Sends a signal, such as `HUP`.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Resident memory, if the process is alive.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| 1024 * kb)
    }

    /// Number of open descriptors, if the process is alive.
    pub(crate) fn descriptors(&self) -> Option<usize> {
        Some(std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).ok()?.count())
    }

    /// Standard output so far, after the first line.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().expect("no panic").clone()
    }

    /// Standard error so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("no panic")).into_owned()
    }

    /// Waits for the process to end.
    pub(crate) async fn ended(&mut self, bound: Duration) -> ExitStatus {
        until("the process exits", bound, async || self.child.try_wait().expect("a child process")).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that the test started.
pub(crate) fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "no process {id}");
}
