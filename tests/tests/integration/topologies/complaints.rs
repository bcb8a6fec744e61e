//! What the doctor says of a Redis that forbids something, is far away, or goes by another clock.

use std::time::Duration;

use tollgate_store::testing::{
    Program, RedisServer,
    topologies::{ACL, OtherServer},
};

use super::doctor;
use crate::harness::Proxy;

/// Of single servers nobody needs these, and `INFO` is no need of a node.
const NOT_NEEDED: [&str; 5] = ["role", "asking", "cluster|slots", "wait", "info"];

#[test]
fn every_right_that_is_missing_is_named() {
    let server = OtherServer::start(Program::Installed);
    let settings = [format!("--redis={}", server.url())];
    let rights = || ACL.split_whitespace().filter_map(|word| word.strip_prefix('+'));
    assert!(rights().count() > 30, "{ACL}");
    for right in rights().filter(|right| !NOT_NEEDED.contains(right)) {
        let _: () = server.run(&format!("ACL SETUSER tollgate -{right}"));
        let (code, said) = doctor(&settings);
        assert_eq!(code, 1, "without {right}: {said}");
        let complaint = said.lines().find(|line| line.starts_with("BAD ") && line.contains(" rights: "));
        let named = format!(" {} (", right.to_uppercase());
        assert!(complaint.is_some_and(|line| line.contains(&named)), "without {right}: {said}");
        let _: () = server.run(&format!("ACL SETUSER tollgate +{right}"));
    }
    for (taken, given, complaint) in [
        ("resetkeys ~other{*}*", "resetkeys ~tg{*}*", "GET ("),
        ("resetchannels &other:*", "resetchannels &tg:*", "SUBSCRIBE ("),
        (">another <a-password-for-tests", ">a-password-for-tests", "user or password is wrong"),
    ] {
        let _: () = server.run(&format!("ACL SETUSER tollgate {taken}"));
        let (code, said) = doctor(&settings);
        assert_eq!((code, said.contains(complaint)), (1, true), "{taken}: {said}");
        let _: () = server.run(&format!("ACL SETUSER tollgate {given}"));
    }
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.contains("all commands of a node may be used")), (0, true), "{said}");
    let _: () = server.run("ACL SETUSER tollgate -info");
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.contains("version, memory and persistence were not looked at")), (0, true), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_too_far_away_for_the_deadline() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    proxy.delay(Duration::from_millis(30));
    let of = |deadline_ms: u64| [format!("--redis={}", proxy.url()), format!("--store-deadline-ms={deadline_ms}")];
    let (code, said) = doctor(&of(40));
    assert_eq!(
        (code, said.contains("the deadline is 40ms: bring it nearer, or raise the deadline")),
        (1, true),
        "{said}"
    );
    let (code, said) = doctor(&of(20_000));
    assert_eq!((code, said.contains("the deadline is")), (0, false), "{said}");
}

#[test]
fn a_redis_of_accounts_is_looked_at_too() {
    let (counters, accounts) = (RedisServer::start(), RedisServer::start());
    let settings = [format!("--redis={}", counters.url()), format!("--accounts-redis={}", accounts.url())];
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.matches("all commands of a node may be used").count()), (0, 2), "{said}");
    let _: () = accounts.run("CONFIG SET maxmemory-policy allkeys-lru");
    for settings in [&settings[..], &settings[1..]] {
        let (code, said) = doctor(settings);
        let complaint = format!("BAD  127.0.0.1:{} eviction:", accounts.port());
        assert_eq!((code, said.contains(&complaint)), (1, true), "{said}");
    }
}

#[test]
fn a_clock_that_is_off() {
    let server = RedisServer::start_program(Program::OwnClock, &[]);
    let settings = [format!("--redis={}", server.url())];
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.contains("ms of this machine's")), (0, true), "{said}");
    for ahead_s in [5, -3_600] {
        server.set_clock(ahead_s);
        let (code, said) = doctor(&settings);
        // Some milliseconds pass between the two clocks.
        let off = said.lines().find_map(|line| {
            let (_, ms) = line.strip_prefix("warn ")?.split_once("clock: ")?;
            ms.split_once(" ms from this machine's")?.0.parse::<u64>().ok()
        });
        let real = 1_000 * ahead_s.unsigned_abs();
        assert!(code == 0 && off.is_some_and(|off| off.abs_diff(real) < 1_000), "{ahead_s} s: {said}");
    }
}
