//! What a node caches of accounts, and when it must not trust it.
//!
//! Tried by breaking the cache in four ways: an entry that is removed while it is being read is stored nevertheless,
//! entries of another generation are trusted, a new key does not remove the cached result for its secret, the end of an
//! override is ignored. The test fails for each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use indexmap::IndexMap;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tollgate_core::{
    api_key::{KeyHash, KeyKind},
    store::{HealthFuture, StoreError},
    time::Timestamp,
};
use tollgate_policy::{LoadedPolicy, Policy, reason::InvalidKey};
use tollgate_store::accounts::{
    AccountFuture, AccountRecord, AccountStore, Change, Changes, KeyLocation, KeyRecord, OverrideRecord, Page,
    PreviousSecret, SaveResult, memory::MemoryAccounts,
};

use super::{Accounts, Identity};
use crate::{directory::CacheBounds, metrics::Metrics};

const NOW: Timestamp = Timestamp::from_ms(1_740_960_000_000);

/// A store whose reads can be counted, held up, and made to fail.
struct ControlledStore {
    memory: std::sync::Mutex<Arc<MemoryAccounts>>,
    reads: AtomicUsize,
    down: AtomicBool,
    held: AtomicBool,
    arrived: Notify,
    released: Semaphore,
}

impl ControlledStore {
    fn memory(&self) -> Arc<MemoryAccounts> {
        Arc::clone(&self.memory.lock().unwrap())
    }

    /// A read that has its answer, and may be held up before it brings it.
    async fn read<T>(&self, answer: T) -> Result<T, StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unreachable("a test".into()));
        }
        if self.held.load(Ordering::SeqCst) {
            self.arrived.notify_one();
            self.released.acquire().await.unwrap().forget();
        }
        Ok(answer)
    }

    fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::SeqCst)
    }

    async fn save(&self, before: Option<&AccountRecord>, after: &AccountRecord) {
        let change = Change { domain: &after.domain, id: &after.id, before, after: Some(after), event: None };
        assert_eq!(self.memory().save(change).await.unwrap(), SaveResult::Done);
    }
}

impl AccountStore for ControlledStore {
    fn load<'a>(&'a self, domain: &'a str, id: &'a str) -> AccountFuture<'a, Option<AccountRecord>> {
        Box::pin(async move { self.read(self.memory().load(domain, id).await?).await })
    }

    fn find_secret<'a>(&'a self, hash: &'a KeyHash) -> AccountFuture<'a, Option<KeyLocation>> {
        Box::pin(async move { self.read(self.memory().find_secret(hash).await?).await })
    }

    fn find_key<'a>(&'a self, domain: &'a str, key: &'a str) -> AccountFuture<'a, Option<String>> {
        Box::pin(async move { self.read(self.memory().find_key(domain, key).await?).await })
    }

    fn save<'a>(&'a self, _: Change<'a>) -> AccountFuture<'a, SaveResult> {
        panic!("nodes only read here")
    }

    fn list<'a>(&'a self, _: &'a str, _: &'a str, _: usize) -> AccountFuture<'a, Page> {
        panic!("nodes only read here")
    }

    fn changes(&self) -> AccountFuture<'_, Changes> {
        Box::pin(async {
            if self.down.load(Ordering::SeqCst) {
                return Err(StoreError::Unreachable("a test".into()));
            }
            self.memory().changes().await
        })
    }

    fn health(&self) -> HealthFuture<'_> {
        panic!("nobody asks here")
    }
}

struct Node {
    store: Arc<ControlledStore>,
    accounts: Arc<Accounts>,
    policy: Arc<Policy>,
    metrics: Arc<Metrics>,
}

impl Node {
    async fn start() -> Self {
        Self::with_lifetime(Duration::from_hours(1)).await
    }

    async fn with_lifetime(lifetime: Duration) -> Self {
        let store = Arc::new(ControlledStore {
            memory: std::sync::Mutex::new(Arc::new(MemoryAccounts::new(100))),
            reads: AtomicUsize::new(0),
            down: AtomicBool::new(false),
            held: AtomicBool::new(false),
            arrived: Notify::new(),
            released: Semaphore::new(0),
        });
        let metrics = Arc::new(Metrics::new("memory").unwrap());
        let bounds = CacheBounds { entries: 1000, lifetime, deadline: Duration::from_secs(20), max_new_accounts: 0 };
        let accounts = Arc::new(Accounts::new(Arc::clone(&store) as _, bounds, Arc::clone(&metrics)));
        tokio::spawn(Arc::clone(&accounts).run_invalidation(None));
        let node = Self { store, accounts, policy: policy(100), metrics };
        node.until_metric("tollgate_account_feed_up", 1).await;
        node
    }

    async fn until_metric(&self, name: &str, value: u64) {
        let line = format!("{name} {value}");
        for _ in 0..2_000 {
            if self.metrics.render().lines().any(|said| said == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never {line}: {}", self.metrics.render());
    }

    /// The holder of this secret, if the store can tell.
    async fn secret(&self, secret: &str) -> Result<Result<Identity, InvalidKey>, StoreError> {
        let hash = KeyHash::of(secret);
        let Some(place) = self.accounts.place_of(&hash).await? else { return Ok(Err(InvalidKey::Unknown)) };
        let found = self.accounts.by_secret(&place, &hash, &self.policy, NOW).await?;
        Ok(found.and_then(|identity| {
            identity.key.as_ref().unwrap().check(NOW)?;
            Ok(identity)
        }))
    }

    async fn tier(&self, account: &str) -> String {
        let identity = self.accounts.by_name(account, &self.policy, NOW).await;
        identity.check().unwrap();
        self.policy.tier(identity.account.tier).unwrap().name.to_string()
    }
}

fn policy(limit: u64) -> Arc<Policy> {
    let text = format!(
        "{{version: 1, domain: shop, tiers: {{free: {{is_charged: false}}, paid: {{is_charged: true}}}}, default_tier: free, \
         resources: {{model: {{quotas: [{{unit: requests, per: minute, limit: {limit}}}]}}}}}}"
    );
    LoadedPolicy::parse("test", &text).unwrap().policy
}

fn account(tier: &str, version: u64) -> AccountRecord {
    AccountRecord {
        domain: "shop".into(),
        id: "acme".into(),
        version,
        tier: tier.into(),
        balances: IndexMap::new(),
        overrides: IndexMap::new(),
        keys: IndexMap::new(),
        created_at: NOW,
        changed_at: NOW,
        later: serde_json::Map::new(),
    }
}

fn with_key(mut account: AccountRecord, id: &str, secret: &str) -> AccountRecord {
    let key = KeyRecord {
        hash: KeyHash::of(secret),
        previous: None,
        kind: KeyKind::Inference,
        prefix: String::new(),
        description: String::new(),
        created_at: NOW,
        expires_at: None,
        revoked_at: None,
        rotated_at: None,
        overrides: IndexMap::new(),
        later: serde_json::Map::new(),
    };
    account.keys.insert(id.into(), key);
    account.version += 1;
    account
}

#[tokio::test]
async fn what_was_read_is_remembered_known_or_not() {
    let node = Node::start().await;
    let record = with_key(account("paid", 1), "key-1", "good");
    node.store.save(None, &record).await;
    node.until_metric("tollgate_account_invalidations_total", 1).await;
    for _ in 0..5 {
        assert_eq!(&*node.secret("good").await.unwrap().unwrap().account.id, "acme");
        assert_eq!(node.secret("no such secret").await.unwrap().unwrap_err(), InvalidKey::Unknown);
        let by_id = node.accounts.by_key_id("key-1", &node.policy, NOW).await.unwrap().unwrap();
        assert_eq!(&*by_id.key.unwrap().id, "key-1");
        assert!(node.accounts.by_key_id("key-2", &node.policy, NOW).await.unwrap().is_none());
        assert_eq!(node.tier("nobody").await, "free");
    }
    // Two secrets, two keys, two accounts, each read once.
    assert_eq!(node.store.reads(), 6);
}

#[tokio::test]
async fn of_many_who_miss_the_same_one_reads() {
    let node = Arc::new(Node::start().await);
    node.store.held.store(true, Ordering::SeqCst);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let node = Arc::clone(&node);
        callers.spawn(async move { node.tier("acme").await });
    }
    node.store.arrived.notified().await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    node.store.held.store(false, Ordering::SeqCst);
    node.store.released.add_permits(100);
    assert!(callers.join_all().await.iter().all(|tier| tier == "free"));
    assert_eq!(node.store.reads(), 1);
}

/// The read finds the old tier, the change comes, is heard, and only then the read ends.
#[tokio::test]
async fn what_is_read_before_a_change_is_not_remembered_after_it() {
    let node = Arc::new(Node::start().await);
    let old = account("free", 1);
    node.store.save(None, &old).await;
    node.until_metric("tollgate_account_invalidations_total", 1).await;
    node.store.held.store(true, Ordering::SeqCst);
    let reader = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.tier("acme").await }
    });
    node.store.arrived.notified().await;
    node.store.save(Some(&old), &account("paid", 2)).await;
    node.until_metric("tollgate_account_invalidations_total", 2).await;
    node.store.held.store(false, Ordering::SeqCst);
    node.store.released.add_permits(1);
    assert_eq!(reader.await.unwrap(), "free", "the read began before the change");
    assert_eq!(node.tier("acme").await, "paid");
}

#[tokio::test]
async fn changes_take_effect_whatever_was_remembered() {
    let node = Node::start().await;
    assert_eq!(node.tier("acme").await, "free");
    assert_eq!(node.secret("good").await.unwrap().unwrap_err(), InvalidKey::Unknown);
    assert!(node.accounts.by_key_id("key-1", &node.policy, NOW).await.unwrap().is_none());
    let made = with_key(account("paid", 1), "key-1", "good");
    node.store.save(None, &made).await;
    node.until_metric("tollgate_account_invalidations_total", 1).await;
    assert_eq!(node.tier("acme").await, "paid");
    assert!(node.secret("good").await.unwrap().is_ok());
    assert!(node.accounts.by_key_id("key-1", &node.policy, NOW).await.unwrap().is_some());

    let mut revoked = made.clone();
    revoked.version += 1;
    revoked.keys["key-1"].revoked_at = Some(NOW);
    node.store.save(Some(&made), &revoked).await;
    node.until_metric("tollgate_account_invalidations_total", 2).await;
    assert_eq!(node.secret("good").await.unwrap().unwrap_err(), InvalidKey::Revoked);
}

#[tokio::test]
async fn while_no_change_is_heard_nothing_is_believed() {
    let node = Node::start().await;
    let record = account("paid", 1);
    node.store.save(None, &record).await;
    node.until_metric("tollgate_account_invalidations_total", 1).await;
    assert_eq!(node.tier("acme").await, "paid");
    // Another store with other contents, whose changes were not heard; the feed of the old one ends.
    node.store.down.store(true, Ordering::SeqCst);
    let other = Arc::new(MemoryAccounts::new(100));
    let moved = account("free", 1);
    other.save(Change { domain: "shop", id: "acme", before: None, after: Some(&moved), event: None }).await.unwrap();
    drop(std::mem::replace(&mut *node.store.memory.lock().unwrap(), other));
    node.until_metric("tollgate_account_feed_up", 0).await;
    let stale = node.accounts.by_name("acme", &node.policy, NOW).await;
    assert!(stale.check().is_err(), "the store cannot be asked");
    assert_eq!(stale.account.tier, node.policy.tier_named("paid").unwrap(), "what was last known");
    assert!(node.secret("good").await.is_err(), "a secret that cannot be looked up is not unknown");

    node.store.down.store(false, Ordering::SeqCst);
    assert_eq!(node.tier("acme").await, "free");
    node.until_metric("tollgate_account_feed_up", 1).await;
    node.store.reads();
    for _ in 0..3 {
        assert_eq!(node.tier("acme").await, "free");
    }
    assert_eq!(node.store.reads(), 1, "what was remembered before is forgotten, and nothing else");
}

/// A caller that sends ever more names and secrets uses no more memory.
#[tokio::test]
async fn no_more_is_remembered_than_fits() {
    let node = Node::start().await;
    // Of 5,000 names and as many secrets, 1,000 each are remembered at most.
    for least in [10_000, 8_000] {
        for number in 0..5_000 {
            node.tier(&format!("account-{number}")).await;
            assert!(node.secret(&format!("secret-{number}")).await.unwrap().is_err());
        }
        let reads = node.store.reads();
        assert!(reads >= least, "{reads} of {least}");
    }
}

#[tokio::test]
async fn what_is_remembered_ends() {
    let node = Node::with_lifetime(Duration::ZERO).await;
    for _ in 0..3 {
        node.tier("acme").await;
    }
    assert_eq!(node.store.reads(), 3);
}

#[tokio::test]
async fn an_override_ends_by_the_clock_without_a_write() {
    let node = Node::start().await;
    let mut record = account("free", 1);
    let end = NOW.plus_ms(1_000);
    let written = json!({"unit": "requests", "per": "minute", "limit": 7});
    record.overrides.insert("sale".into(), OverrideRecord { written, expires_at: Some(end) });
    node.store.save(None, &record).await;
    node.until_metric("tollgate_account_invalidations_total", 1).await;
    let count = async |now| node.accounts.by_name("acme", &node.policy, now).await.caller().account_overrides.len();
    assert_eq!(count(NOW).await, 1);
    assert_eq!(count(Timestamp::from_ms(end.as_ms() - 1)).await, 1);
    assert_eq!(count(end).await, 0);
}

#[tokio::test]
async fn a_rotated_secret_is_good_until_its_time() {
    let node = Node::start().await;
    let mut record = with_key(account("free", 1), "key-1", "new");
    for (secret, ends) in [("old", NOW.plus_ms(1)), ("older", NOW)] {
        let before = (record.version > 2).then(|| record.clone());
        record.version += 1;
        record.keys["key-1"].previous = Some(PreviousSecret { hash: KeyHash::of(secret), good_until: ends });
        node.store.save(before.as_ref(), &record).await;
        node.until_metric("tollgate_account_invalidations_total", record.version - 2).await;
        assert!(node.secret("new").await.unwrap().is_ok());
        assert_eq!(node.secret(secret).await.unwrap().is_ok(), ends > NOW);
    }
    assert_eq!(node.secret("old").await.unwrap().unwrap_err(), InvalidKey::Unknown);
}

#[tokio::test]
async fn another_policy_compiles_anew_and_leaves_out_what_does_not_fit() {
    let mut node = Node::start().await;
    let mut record = account("gone", 1);
    let over = |resource: &str| OverrideRecord {
        written: json!({"resource": resource, "unit": "requests", "per": "minute", "limit": 7}),
        expires_at: None,
    };
    record.overrides.extend([("fits".to_owned(), over("model")), ("does not".to_owned(), over("no-such"))]);
    node.store.save(None, &record).await;
    node.until_metric("tollgate_account_invalidations_total", 1).await;
    let before = node.accounts.by_name("acme", &node.policy, NOW).await;
    assert_eq!(before.caller().account_overrides.len(), 1);
    assert_eq!(before.account.tier, node.policy.default_tier(), "a tier that is gone");
    node.until_metric("tollgate_overrides_ignored_total", 1).await;
    node.policy = policy(5);
    node.accounts.by_name("acme", &node.policy, NOW).await;
    node.until_metric("tollgate_overrides_ignored_total", 2).await;
}
