use std::collections::BTreeSet;

use super::{
    Dialer, Info, RedisConfig, Server, Severity,
    rights::{NEEDED, NEEDED_IN_A_CLUSTER, NEEDED_UNDER_SENTINELS, name_of},
};

/// These are checked separately from the others: a node works without `INFO`, and only some configurations need `WAIT`.
const APART: [&str; 4] = ["info", "wait", "subscribe", "unsubscribe"];

#[test]
fn what_is_tried_is_what_the_acl_line_grants() {
    let line = include_str!("../../../../../deploy/redis/tollgate.acl");
    let granted: BTreeSet<String> =
        line.split_whitespace().filter_map(|word| word.strip_prefix('+')).map(str::to_owned).collect();
    let tried = [NEEDED, NEEDED_UNDER_SENTINELS, NEEDED_IN_A_CLUSTER].concat();
    let tried = tried.into_iter().map(|words| name_of(words).to_lowercase().replace(' ', "|"));
    assert_eq!(tried.chain(APART.map(str::to_owned)).collect::<BTreeSet<_>>(), granted);
}

#[test]
fn a_version_is_new_enough_or_not() {
    let config = RedisConfig::new("redis://localhost");
    let verdict_on = |info: &str| {
        let mut server = Server::new("redis".into(), &config, Dialer::default());
        server.read_info(&Info(info.into()));
        let found = server.findings.iter().find(|finding| finding.text.starts_with("version: ")).unwrap();
        (found.verdict, found.text.clone())
    };
    for (info, text) in [
        ("redis_version:6.0.16\r\n", "version: Redis 6.0.16; 6.2 or later is needed"),
        ("redis_version:5.9.9\r\n", "version: Redis 5.9.9; 6.2 or later is needed"),
        ("# Server\r\n", "version: Redis without a version; 6.2 or later is needed"),
    ] {
        assert_eq!(verdict_on(info), (Severity::Error, text.to_owned()));
    }
    for (info, text) in [
        ("redis_version:6.2.0\r\n", "version: Redis 6.2.0"),
        ("redis_version:10.0.1\r\n", "version: Redis 10.0.1"),
        ("redis_version:7.2.4\r\nvalkey_version:9.1.2\r\n", "version: Valkey 9.1.2"),
    ] {
        assert_eq!(verdict_on(info), (Severity::Ok, text.to_owned()));
    }
}
