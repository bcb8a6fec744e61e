//! `tollgate doctor` on a Redis that lacks rights, is slow, or has a wrong clock.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::{Duration, Instant},
};

use tollgate_store::testing::{
    Program, RedisServer,
    topologies::{ACL, OtherServer},
};

use super::doctor;
use crate::harness::Proxy;

/// Bound on the run time of `doctor`, including the start of the process.
const IN_ALL: Duration = Duration::from_secs(10);

/// Rights that a single server does not need.
const NOT_NEEDED: [&str; 5] = ["role", "asking", "cluster|slots", "wait", "info"];

#[test]
fn the_doctor_names_every_missing_right() {
    let server = OtherServer::start(Program::Installed);
    let settings = [format!("--redis={}", server.url())];
    let rights = || ACL.split_whitespace().filter_map(|word| word.strip_prefix('+'));
    assert!(rights().count() > 30, "{ACL}");
    for right in rights().filter(|right| !NOT_NEEDED.contains(right)) {
        let _: () = server.run(&format!("ACL SETUSER tollgate -{right}"));
        let (code, output) = doctor(&settings);
        assert_eq!(code, 1, "without {right}: {output}");
        let complaint = output.lines().find(|line| line.starts_with("BAD ") && line.contains(" rights: "));
        let named = format!(" {} (", right.to_uppercase());
        assert!(complaint.is_some_and(|line| line.contains(&named)), "without {right}: {output}");
        let _: () = server.run(&format!("ACL SETUSER tollgate +{right}"));
    }
    for (taken, given, complaint) in [
        ("resetkeys ~other{*}*", "resetkeys ~tg{*}*", "GET ("),
        ("resetchannels &other:*", "resetchannels &tg:*", "SUBSCRIBE ("),
        (">another <a-password-for-tests", ">a-password-for-tests", "user or password is wrong"),
    ] {
        let _: () = server.run(&format!("ACL SETUSER tollgate {taken}"));
        let (code, output) = doctor(&settings);
        assert_eq!((code, output.contains(complaint)), (1, true), "{taken}: {output}");
        let _: () = server.run(&format!("ACL SETUSER tollgate {given}"));
    }
    let (code, output) = doctor(&settings);
    assert_eq!((code, output.contains("all commands of a node may be used")), (0, true), "{output}");
    let _: () = server.run("ACL SETUSER tollgate -info");
    let (code, output) = doctor(&settings);
    assert_eq!((code, output.contains("version, memory and persistence were not checked")), (0, true), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_warns_of_a_redis_too_slow_for_the_deadline() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    proxy.delay(Duration::from_millis(30));
    let of = |deadline_ms: u64| [format!("--redis={}", proxy.url()), format!("--store-deadline-ms={deadline_ms}")];
    let (code, output) = doctor(&of(40));
    assert_eq!(
        (code, output.contains("the deadline is 40ms: move Redis closer, or raise the deadline")),
        (1, true),
        "{output}"
    );
    let (code, output) = doctor(&of(20_000));
    assert_eq!((code, output.contains("the deadline is")), (0, false), "{output}");
}

#[test]
fn the_doctor_checks_the_redis_of_accounts() {
    let (counters, accounts) = (RedisServer::start(), RedisServer::start());
    let settings = [format!("--redis={}", counters.url()), format!("--accounts-redis={}", accounts.url())];
    let (code, output) = doctor(&settings);
    assert_eq!((code, output.matches("all commands of a node may be used").count()), (0, 2), "{output}");
    let _: () = accounts.run("CONFIG SET maxmemory-policy allkeys-lru");
    for settings in [&settings[..], &settings[1..]] {
        let (code, output) = doctor(settings);
        let complaint = format!("BAD  127.0.0.1:{} eviction:", accounts.port());
        assert_eq!((code, output.contains(&complaint)), (1, true), "{output}");
    }
}

#[test]
fn the_doctor_warns_of_a_wrong_clock() {
    let server = RedisServer::start_program(Program::OwnClock, &[]);
    let settings = [format!("--redis={}", server.url())];
    let (code, output) = doctor(&settings);
    assert_eq!((code, output.contains("ms of this machine's")), (0, true), "{output}");
    for ahead_s in [5, -3_600] {
        server.set_clock(ahead_s);
        let (code, output) = doctor(&settings);
        // Some milliseconds pass between the two clocks.
        let off = output.lines().find_map(|line| {
            let (_, ms) = line.strip_prefix("warn ")?.split_once("clock: ")?;
            ms.split_once(" ms from this machine's")?.0.parse::<u64>().ok()
        });
        let real = 1_000 * ahead_s.unsigned_abs();
        assert!(code == 0 && off.is_some_and(|off| off.abs_diff(real) < 1_000), "{ahead_s} s: {output}");
    }
}

/// Starts a server that is not Redis and runs `with` on each connection, for as long as the test runs.
fn start_fake_server(with: impl Fn(std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().filter_map(Result::ok).for_each(with));
    format!("redis://{address}")
}

/// Runs `doctor` and asserts that it ends within the bound.
fn doctor_output_within_bound(settings: &[String]) -> String {
    let started = Instant::now();
    let (code, output) = doctor(settings);
    assert_eq!(code, 1, "{output}");
    assert!(started.elapsed() < IN_ALL, "{:?}: {output}", started.elapsed());
    output
}

/// Seen to fail when rights were tested on any server that accepts connections: `doctor` reported missing rights, after
/// up to 45 seconds.
#[test]
fn a_server_that_is_not_redis_is_not_reported_as_missing_rights() {
    // Kept open.
    let held = std::sync::Mutex::new(Vec::new());
    let mute = start_fake_server(move |stream| held.lock().unwrap().push(stream));
    let web = start_fake_server(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 1024]);
    });
    let closing = start_fake_server(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
    });
    let odd = start_fake_server(|mut stream| {
        while let Ok(1..) = stream.read(&mut [0; 1024]) {
            let _ = stream.write_all(b":1\r\n");
        }
    });
    let hung = RedisServer::start();
    hung.pause();
    let user = mute.replace("redis://", "redis://:password@");
    for (url, complaint) in [
        (mute, "accepts connections and does not answer"),
        (user, "accepts connections and does not answer"),
        (hung.url(), "accepts connections and does not answer"),
        (web, "another program listens there"),
        (odd, "another program listens there"),
        (closing, "accepts connections and closes them"),
        (format!("redis://127.0.0.1:{}", RedisServer::free_port()), "cannot be reached"),
        ("redis://no-such-host.invalid".to_owned(), "cannot be reached"),
    ] {
        let output = doctor_output_within_bound(&[format!("--redis={url}")]);
        assert!(output.contains(complaint), "{url}: {output}");
        assert!(!output.contains(" rights: ") && !output.contains("ACL"), "{url}: {output}");
    }
    // Both at once.
    let output =
        doctor_output_within_bound(&[format!("--redis={}", hung.url()), format!("--accounts-redis={}", hung.url())]);
    assert_eq!(output.matches("does not answer").count(), 2, "{output}");
    hung.resume();
    // A full or read-only Redis is not reported as missing rights either.
    for (command, complaint) in [("REPLICAOF 127.0.0.1 1", "read only replica"), ("CONFIG SET maxmemory 1", "OOM")] {
        let _: () = hung.run(command);
        let output = doctor_output_within_bound(&[format!("--redis={}", hung.url())]);
        assert!(output.contains(complaint) && !output.contains(" rights: not allowed"), "{command}: {output}");
        let _: () = hung.run("REPLICAOF NO ONE");
    }
}

/// Seen to fail when only each single answer had a bound.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_answers_in_time_when_redis_is_slow() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    proxy.delay(Duration::from_millis(900));
    let output = doctor_output_within_bound(&[format!("--redis={}", proxy.url())]);
    assert!(output.contains("too slow to finish all checks"), "{output}");
}

/// `doctor` checks Redis only, and accepts the settings of a node in every form.
///
/// Seen to fail when `--config` was accepted by nodes only.
#[test]
fn the_doctor_accepts_the_settings_of_a_node() {
    let redis = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.yaml");
    std::fs::write(&config, format!("redis: {}\npolicy: [{}]\n", redis.url(), folder.path().display())).unwrap();
    for settings in [
        vec![format!("--redis={}", redis.url()), "--policy=/nowhere".to_owned()],
        vec![format!("--redis={}", redis.url()), "--http-listen=0.0.0.0:80".to_owned()],
        vec![format!("--config={}", config.display())],
    ] {
        let (code, output) = doctor(&settings);
        assert_eq!((code, output.contains("all commands of a node may be used")), (0, true), "{settings:?}: {output}");
    }
    let (code, output) = doctor(&["--redis=rediss://h/#insecure".to_owned()]);
    assert!(code == 1 && output.starts_with("redis: ") && output.contains("#insecure"), "{output}");
}
