//! Every RPC and every route once, on Redis as production runs it; and what the doctor says of it.

use std::time::Duration;

use tollgate_proto::v1::GetRateLimitsRequest;
use tollgate_store::testing::{
    RedisServer,
    topologies::{ACL, RedisCluster, SecureRedis, SentinelTrio},
};

use crate::harness::{
    KEY, ProcessBuilder, account, allowed, api_key, call, consume, folder_with, peek, quota, shop, until,
};

/// A node with these settings answers everything it is asked, and its counters are in Redis.
async fn smoke(settings: &[String]) {
    let (_folder, policy) = folder_with(&shop(100));
    let start = || settings.iter().fold(ProcessBuilder::new(&policy), ProcessBuilder::arg).start();
    let (node, other) = (start(), start());
    until("the node is ready", Duration::from_secs(10), async || {
        (node.rest.text("/readyz").await.0.as_u16() == 200).then_some(())
    })
    .await;
    for number in 1..=3 {
        let decision = consume(&node.grpc, call(api_key(KEY), "model", &[("tokens", 7)])).await.unwrap();
        assert!(allowed(&decision));
        assert_eq!(quota(&decision, "requests_per_minute").used, number);
    }
    let seen = peek(&other.grpc, call(api_key(KEY), "model", &[])).await.unwrap();
    assert_eq!(quota(&seen, "tokens_per_minute").used, 21, "nodes share their counters");
    let request = GetRateLimitsRequest { caller: Some(account("acme")), ..GetRateLimitsRequest::default() };
    let listed = node.grpc.clone().get_rate_limits(request).await.unwrap().into_inner();
    assert!(!listed.resources.is_empty());
    assert!(node.rest.limits(KEY).await["data"].is_object());
    let body = r#"{"caller":{"account":"acme"},"resource":"model"}"#;
    for route in ["/v1/check", "/v1/consume"] {
        let (status, answer) = node.rest.post(route, body).await;
        assert_eq!((status.as_u16(), &answer["verdict"]), (200, &"allowed".into()), "{route}: {answer}");
    }
    for route in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(node.rest.text(route).await.0.as_u16(), 200, "{route}");
    }
}

fn doctor(settings: &[String]) -> (i32, String) {
    let (status, said, error) =
        settings.iter().fold(ProcessBuilder::bare().arg("doctor"), ProcessBuilder::arg).output();
    (status.code().unwrap_or(-1), said + &error)
}

#[tokio::test]
async fn a_cluster() {
    let cluster = RedisCluster::start();
    let settings = [format!("--redis={}", cluster.url())];
    smoke(&settings).await;
    let (code, said) = doctor(&settings);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("all slots are served, by 3 masters"), "{said}");
    let (code, said) = doctor(&[format!("--redis={}", cluster.servers[0].url())]);
    assert_eq!((code, said.contains("use redis+cluster://")), (1, true), "{said}");
    for master in &cluster.servers[..3] {
        let _: () = master.run("CLUSTER DELSLOTS 0");
    }
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.contains("1 slots are not served")), (1, true), "{said}");
}

#[tokio::test]
async fn a_master_under_sentinels() {
    let trio = SentinelTrio::start();
    let settings = [format!("--redis={}", trio.url())];
    smoke(&settings).await;
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.contains("3 of 3 answer")), (0, true), "{said}");
}

/// With the rights of the documentation and no more, the password in a file.
#[tokio::test]
async fn tls_and_an_acl() {
    let secure = SecureRedis::start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let (cert, key) = secure.tls.identity.as_ref().unwrap();
    let (with_password, without) = (secure.url(), format!(":{}@", SecureRedis::PASSWORD));
    let settings = [
        format!("--redis={}", with_password.replace(&without, "@")),
        format!("--redis-password-file={}", file("password", format!("{}\n", SecureRedis::PASSWORD).as_bytes())),
        format!("--redis-tls-ca={}", file("ca.pem", secure.tls.ca.as_ref().unwrap())),
        format!("--redis-tls-cert={}", file("client.pem", cert)),
        format!("--redis-tls-key={}", file("client.key", key)),
    ];
    smoke(&settings).await;
    let (code, said) = doctor(&settings);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("all commands of a node may be used"), "{said}");
    let (code, said) = doctor(&settings[..3]);
    assert_eq!((code, said.contains("connection: ")), (1, true), "{said}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md")).unwrap();
    assert!(page.contains(ACL.trim()), "the page has another ACL line than the tests");
}

#[tokio::test]
async fn a_unix_socket() {
    let server = RedisServer::start_with(&["--unixsocket", "{folder}/redis.sock"]);
    smoke(&[format!("--redis=unix://{}/redis.sock", server.folder().display())]).await;
}

#[test]
fn the_doctor_says_what_is_wrong() {
    let server = RedisServer::start_with(&["--maxmemory", "100mb", "--appendonly", "yes"]);
    let settings = [format!("--redis={}", server.url())];
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.contains("All is well.")), (0, true), "{said}");
    for (command, back, complaint) in [
        ("CONFIG SET maxmemory-policy allkeys-lru", "CONFIG SET maxmemory-policy noeviction", "set noeviction"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "counters can be written at a master only"),
        ("ACL SETUSER default -zadd", "ACL SETUSER default +zadd", "ZADD"),
    ] {
        let _: () = server.run(command);
        let (code, said) = doctor(&settings);
        assert_eq!((code, said.contains(complaint)), (1, true), "{command}: {said}");
        let _: () = server.run(back);
    }
    let _: () = server.run("CONFIG SET appendonly no");
    let (code, said) = doctor(&settings);
    assert_eq!((code, said.contains("a restart forgets all counters")), (0, true), "{said}");
    let (code, said) = doctor(&[format!("--redis=redis://127.0.0.1:{}", RedisServer::free_port())]);
    assert_eq!((code, said.contains("cannot be reached")), (1, true), "{said}");
}
