//! Accounts in one Redis, counters in another: what each contains, and what works without the other.

use std::{collections::BTreeSet, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_store::testing::RedisServer;

use super::{Client, Deployment, call, hourly};
use crate::harness::{Process, until};

const PATIENCE: Duration = Duration::from_secs(10);
/// Suffixes of the keys of accounts, after the braces.
const OF_ACCOUNTS: [&str; 5] = ["account", "accounts", "event", "key", "secret"];

struct SeparateStores {
    deployment: Deployment,
    accounts: RedisServer,
    counters: RedisServer,
}

impl SeparateStores {
    fn start() -> Self {
        let saved = || RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
        Self { deployment: Deployment::new(), accounts: saved(), counters: saved() }
    }

    /// Starts a node and waits until it is subscribed to changes.
    async fn node(&self) -> Process {
        let node = self.deployment.process().redis(&self.counters.url());
        // The cache does not expire within the test.
        let node = node.arg("--account-cache-ttl-ms=3600000").arg("--store-deadline-ms=1000");
        let node = node.arg(format!("--accounts-redis={}", self.accounts.url())).start();
        until_accounts(&node, true).await;
        node
    }
}

/// The kinds of keys in a Redis, and whether each has a time to live.
fn kinds(redis: &RedisServer) -> BTreeSet<(String, bool)> {
    let mut connection = redis.connection();
    let of = |key: String| {
        let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
        let name = key.split_once('}').expect("every key has a partition").1;
        let kind = OF_ACCOUNTS.iter().find(|kind| name == **kind || (**kind == "event" && name.starts_with(*kind)));
        (kind.map_or("counter", |kind| kind).to_owned(), ttl != -1)
    };
    let all = redis.run::<Vec<String>>("KEYS *").into_iter().filter(|key| !key.contains("}probe"));
    all.map(of).collect()
}

async fn until_accounts(node: &Process, well: bool) {
    until(&format!("accounts are well: {well}"), PATIENCE, async || {
        (node.rest.json("/readyz").await.1["accounts"]["ok"] == well).then_some(())
    })
    .await;
}

async fn until_limit(nodes: &[Process], caller: &Value, limit: u64) {
    for node in nodes {
        until(&format!("the limit is {limit}"), PATIENCE, async || {
            let (status, answer) = decide(node, "check", caller).await;
            (status == 200 && hourly(&answer).0 == limit).then_some(())
        })
        .await;
    }
}

async fn decide(node: &Process, verb: &str, caller: &Value) -> (u16, Value) {
    let body = json!({"caller": caller, "resource": "model", "domain": "shop"});
    let (status, answer) = node.rest.post(&format!("/v1/{verb}"), body.to_string()).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn accounts_and_counters_stay_in_their_own_redis() {
    let stores = SeparateStores::start();
    let nodes = [stores.node().await, stores.node().await];
    let admin = Client::new(&nodes[0]);
    admin.create("acme", "basic").await;
    let (_, secret) = admin.key("acme").await;
    let (by_name, by_key) = (json!({"account": "acme"}), json!({"api_key": secret}));
    for node in &nodes {
        for caller in [&by_name, &by_key] {
            assert_eq!(call(&node.rest, "consume", caller.clone()).await["verdict"], "allowed");
        }
    }
    assert_eq!(hourly(&call(&nodes[1].rest, "check", by_name.clone()).await), (10, 4), "nodes share the counters");

    let paid = json!({"id": "payment-1", "type": "payment"});
    admin.send_ok(Method::POST, "/accounts/acme/events", Some(paid)).await;
    until_limit(&nodes, &by_name, 300).await;
    Client::new(&nodes[1]).tier("acme", "basic").await;
    until_limit(&nodes, &by_name, 10).await;

    let kind = |kind: &str, ends| (kind.to_owned(), ends);
    let of_accounts = [
        kind("account", false),
        kind("accounts", false),
        kind("event", true),
        kind("key", false),
        kind("secret", false),
    ];
    assert_eq!(kinds(&stores.accounts), BTreeSet::from(of_accounts));
    assert_eq!(kinds(&stores.counters), BTreeSet::from([kind("counter", true)]));
    for (redis, listeners) in [(&stores.accounts, 2), (&stores.counters, 0)] {
        let (_, hear): (String, u64) = redis.run("PUBSUB NUMSUB tg:accounts");
        assert_eq!(hear, listeners);
    }
}

#[tokio::test]
async fn without_the_redis_of_counters_accounts_can_still_be_changed() {
    let mut stores = SeparateStores::start();
    let nodes = [stores.node().await, stores.node().await];
    let admin = Client::new(&nodes[0]);
    admin.create("acme", "basic").await;
    let acme = json!({"account": "acme"});
    until_limit(&nodes, &acme, 10).await;

    stores.counters.kill();
    for node in &nodes {
        for caller in [&acme, &json!({"account": "fixed"}), &json!({"account": "nobody"})] {
            let (status, answer) = decide(node, "consume", caller).await;
            assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{answer}");
        }
        let ready = until("the outage is reported", PATIENCE, async || {
            let (status, ready) = node.rest.json("/readyz").await;
            (status == 503).then_some(ready)
        })
        .await;
        assert_eq!((&ready["store"]["ok"], &ready["accounts"]["ok"]), (&json!(false), &json!(true)));
    }
    admin.tier("acme", "premium").await;
    let (_, secret) = Client::new(&nodes[1]).key("acme").await;
    let read = Client::new(&nodes[1]).send_ok(Method::GET, "/accounts/acme", None).await;
    assert_eq!(read["tier"], "premium");

    stores.counters.restart();
    for node in &nodes {
        until("the node is ready", PATIENCE, async || {
            (node.rest.text("/readyz").await.0 == StatusCode::OK).then_some(())
        })
        .await;
    }
    // The changes made meanwhile hold on both nodes. Each thread reconnects by itself, so a call may still fail.
    until_limit(&nodes, &acme, 300).await;
    until_limit(&nodes, &json!({"api_key": secret}), 300).await;
}

#[tokio::test]
async fn without_the_redis_of_accounts_policy_accounts_are_still_decided() {
    let mut stores = SeparateStores::start();
    let node = stores.node().await;
    let admin = Client::new(&node);
    admin.create("acme", "premium").await;
    let (_, secret) = admin.key("acme").await;
    let (known, key) = (json!({"account": "acme"}), json!({"api_key": secret}));
    for caller in [&known, &key] {
        assert_eq!(call(&node.rest, "consume", caller.clone()).await["verdict"], "allowed");
    }

    stores.accounts.kill();
    until_accounts(&node, false).await;
    for caller in [&known, &key, &json!({"account": "nobody"}), &json!({"api_key": "of-another-kind"})] {
        for verb in ["consume", "check"] {
            let (status, answer) = decide(&node, verb, caller).await;
            assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{caller}: {answer}");
        }
    }
    for caller in [json!({"account": "fixed"}), json!({"api_key": "secret of shop"})] {
        let decided = call(&node.rest, "consume", caller).await;
        assert_eq!((&decided["verdict"], hourly(&decided).0), (&json!("allowed"), 77), "{decided}");
    }
    for (method, path, body) in
        [(Method::GET, "/accounts/acme", None), (Method::PATCH, "/accounts/acme", Some(json!({"tier": "basic"})))]
    {
        let (status, answer) = admin.send(method, path, body).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    }
    let (status, ready) = node.rest.json("/readyz").await;
    assert_eq!((status.as_u16(), &ready["store"]["ok"]), (200, &json!(true)), "{ready}");
    assert!(ready["accounts"]["detail"].as_str().unwrap().contains("not subscribed"), "{ready}");

    stores.accounts.restart();
    until_accounts(&node, true).await;
    // A connection that is not yet restored fails a call.
    let decided = until("the node decides", PATIENCE, async || {
        let (status, answer) = decide(&node, "consume", &key).await;
        (status == 200).then_some(answer)
    })
    .await;
    assert_eq!((hourly(&decided), &decided["verdict"]), ((300, 3), &json!("allowed")), "what failed was not charged");
}
