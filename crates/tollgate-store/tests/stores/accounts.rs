//! Stores of accounts: memory and Redis in parallel, and cases that only Redis can have.
//!
//! Tried by breaking them, one thing at a time: the version not compared, the event not remembered, a secret's
//! place written after the record. Each fails here.

use std::{sync::Arc, time::Duration};

use tollgate_core::store::StoreError;
use tollgate_store::{
    accounts::{AccountStore, Change, SaveResult, memory::MemoryAccounts, redis::RedisAccounts},
    redis::{RedisClient, RedisConfig},
    testing::{
        RedisServer,
        accounts::{events_are_forgotten, events_need_no_account, nothing_is_lost, play, sample, steps},
        check_property, patient,
    },
};

fn on(url: String, prefix: &str) -> RedisAccounts {
    RedisAccounts::on(RedisClient::open(RedisConfig { key_prefix: prefix.into(), ..patient(url) }).unwrap())
}

#[test]
fn memory_and_redis_agree_on_any_sequence_of_changes() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    check_property(60, &steps(), |case, steps| {
        runtime.block_on(async {
            let redis = on(server.url(), &format!("case{case}"));
            play(&[&MemoryAccounts::new(100), &redis], &steps).await;
        });
        Ok(())
    });
    no_record_ends(&server);
}

/// Only events end by themselves; and nothing in Redis is a secret.
fn no_record_ends(server: &RedisServer) {
    let mut connection = server.connection();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        let ttl: i64 = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
        assert_eq!(ttl > 0, key.contains("}event"), "{key} has a TTL of {ttl} ms");
        if key.ends_with("}account") || key.ends_with("}secret") {
            let value: String = redis::cmd("GET").arg(&key).query(&mut connection).unwrap();
            assert!(!value.contains("secret-") && !key.contains("secret-"), "a secret is in {key}: {value}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_is_lost_in_memory() {
    let store: Arc<dyn AccountStore> = Arc::new(MemoryAccounts::new(10));
    nothing_is_lost(&[Arc::clone(&store)]).await;
    events_need_no_account(store.as_ref()).await;
    events_are_forgotten(&MemoryAccounts::new(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_is_lost_in_redis() {
    let server = RedisServer::start();
    let nodes = [(); 3].map(|()| Arc::new(on(server.url(), "tg")) as Arc<dyn AccountStore>);
    nothing_is_lost(&nodes).await;
    events_need_no_account(nodes[0].as_ref()).await;
    events_are_forgotten(&on(server.url(), "later")).await;
}

#[tokio::test]
async fn the_memory_store_of_accounts_is_bounded() {
    let store = MemoryAccounts::new(1);
    let [one, two] = ["one", "two"].map(|id| sample("shop", id));
    let make = |record| Change { domain: "shop", id: "", before: None, after: Some(record), event: None };
    assert_eq!(store.save(Change { id: "one", ..make(&one) }).await.unwrap(), SaveResult::Done);
    let full = store.save(Change { id: "two", ..make(&two) }).await.unwrap_err();
    assert!(matches!(full, StoreError::Overloaded(_)), "{full}");
}

/// A writer that ends between its writes leaves nothing that can be used: here scripts are forbidden to it, and the
/// record is the script's to write.
#[tokio::test]
async fn a_half_written_account_cannot_be_used() {
    let server = RedisServer::start();
    let mut connection = server.connection();
    let _: () = redis::cmd("ACL")
        .arg(&["SETUSER", "half", "on", ">pass", "~*", "&*", "+@all", "-eval", "-evalsha"])
        .query(&mut connection)
        .unwrap();
    let half = on(server.url().replace("redis://", "redis://half:pass@"), "tg");
    let record = sample("shop", "acme");
    let change = Change { domain: "shop", id: "acme", before: None, after: Some(&record), event: None };
    half.save(change).await.unwrap_err();
    let whole = on(server.url(), "tg");
    let (_, key) = record.keys.first().unwrap();
    let hint = whole.find_secret(&key.hash).await.unwrap().expect("the secret's place was written first");
    assert_eq!(whole.load(&hint.domain, &hint.account).await.unwrap(), None);
    assert!(whole.list("shop", "", 10).await.unwrap().accounts.is_empty());
    // The same change can be made after all.
    assert_eq!(whole.save(change).await.unwrap(), SaveResult::Done);
    assert_eq!(whole.list("shop", "", 10).await.unwrap().accounts, [record]);
}

/// A feed ends when its connection breaks, so that no listener believes that nothing happens.
#[tokio::test]
async fn a_feed_ends_with_its_connection() {
    let mut server = RedisServer::start();
    let store = on(server.url(), "tg");
    let mut feed = store.changes().await.unwrap();
    let record = sample("shop", "acme");
    let change = Change { domain: "shop", id: "acme", before: None, after: Some(&record), event: None };
    assert_eq!(store.save(change).await.unwrap(), SaveResult::Done);
    assert_eq!(feed.next().await.unwrap().account, "acme");
    server.kill();
    let ended = tokio::time::timeout(Duration::from_secs(5), feed.next()).await;
    assert!(ended.expect("it ends in time").is_none());
}
