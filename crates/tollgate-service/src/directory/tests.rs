//! The cache of accounts.
//!
//! The tests fail if an entry that is removed while it is being read is stored, if entries of another generation are
//! used, if a new key does not remove the cached result for its secret, and if the expiry of an override is ignored.

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

/// A store whose reads are counted, and can fail or be delayed.
struct ControlledStore {
    memory: std::sync::Mutex<Arc<MemoryAccounts>>,
    reads: AtomicUsize,
    is_down: AtomicBool,
    is_delayed: AtomicBool,
    read_started: Notify,
    delayed_reads: Semaphore,
}

impl ControlledStore {
    fn memory(&self) -> Arc<MemoryAccounts> {
        Arc::clone(&self.memory.lock().unwrap())
    }

    /// Returns `value` like a read of the store.
    async fn read<T>(&self, value: T) -> Result<T, StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            return Err(StoreError::Unreachable("a test".into()));
        }
        if self.is_delayed.load(Ordering::SeqCst) {
            self.read_started.notify_one();
            self.delayed_reads.acquire().await.unwrap().forget();
        }
        Ok(value)
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
            if self.is_down.load(Ordering::SeqCst) {
                return Err(StoreError::Unreachable("a test".into()));
            }
            self.memory().changes().await
        })
    }

    fn health(&self) -> HealthFuture<'_> {
        panic!("not used here")
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
            is_down: AtomicBool::new(false),
            is_delayed: AtomicBool::new(false),
            read_started: Notify::new(),
            delayed_reads: Semaphore::new(0),
        });
        let metrics = Arc::new(Metrics::new("memory").unwrap());
        let bounds = CacheBounds { entries: 1000, lifetime, deadline: Duration::from_secs(20), max_new_accounts: 0 };
        let accounts = Arc::new(Accounts::new(Arc::clone(&store) as _, bounds, Arc::clone(&metrics)));
        tokio::spawn(Arc::clone(&accounts).run_invalidation(None));
        let node = Self { store, accounts, policy: policy(100), metrics };
        node.wait_for_metric("tollgate_account_feed_up", 1).await;
        node
    }

    async fn wait_for_metric(&self, name: &str, value: u64) {
        let line = format!("{name} {value}");
        for _ in 0..2_000 {
            if self.metrics.render().lines().any(|found| found == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never {line}: {}", self.metrics.render());
    }

    /// The caller with this secret.
    async fn caller_by_secret(&self, secret: &str) -> Result<Result<Identity, InvalidKey>, StoreError> {
        let hash = KeyHash::of(secret);
        let Some(location) = self.accounts.key_location(&hash).await? else { return Ok(Err(InvalidKey::Unknown)) };
        let found = self.accounts.identity_by_secret(&location, &hash, &self.policy, NOW).await?;
        Ok(found.and_then(|identity| {
            identity.key.as_ref().unwrap().check(NOW)?;
            Ok(identity)
        }))
    }

    async fn tier_of_account(&self, account: &str) -> String {
        let identity = self.accounts.identity_by_account(account, &self.policy, NOW).await;
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
async fn existing_and_missing_entries_are_cached() {
    let node = Node::start().await;
    let record = with_key(account("paid", 1), "key-1", "good");
    node.store.save(None, &record).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 1).await;
    for _ in 0..5 {
        assert_eq!(&*node.caller_by_secret("good").await.unwrap().unwrap().account.id, "acme");
        assert_eq!(node.caller_by_secret("no such secret").await.unwrap().unwrap_err(), InvalidKey::Unknown);
        let identity_by_key_id = node.accounts.identity_by_key_id("key-1", &node.policy, NOW).await.unwrap().unwrap();
        assert_eq!(&*identity_by_key_id.key.unwrap().id, "key-1");
        assert!(node.accounts.identity_by_key_id("key-2", &node.policy, NOW).await.unwrap().is_none());
        assert_eq!(node.tier_of_account("nobody").await, "free");
    }
    // Two secrets, two keys, two accounts, each read once.
    assert_eq!(node.store.reads(), 6);
}

#[tokio::test]
async fn concurrent_misses_of_an_entry_cause_one_read() {
    let node = Arc::new(Node::start().await);
    node.store.is_delayed.store(true, Ordering::SeqCst);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let node = Arc::clone(&node);
        callers.spawn(async move { node.tier_of_account("acme").await });
    }
    node.store.read_started.notified().await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    node.store.is_delayed.store(false, Ordering::SeqCst);
    node.store.delayed_reads.add_permits(100);
    assert!(callers.join_all().await.iter().all(|tier| tier == "free"));
    assert_eq!(node.store.reads(), 1);
}

/// The change is made and received while the read of the old tier is in progress.
#[tokio::test]
async fn a_read_that_began_before_a_change_is_not_cached() {
    let node = Arc::new(Node::start().await);
    let old = account("free", 1);
    node.store.save(None, &old).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 1).await;
    node.store.is_delayed.store(true, Ordering::SeqCst);
    let reader = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.tier_of_account("acme").await }
    });
    node.store.read_started.notified().await;
    node.store.save(Some(&old), &account("paid", 2)).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 2).await;
    node.store.is_delayed.store(false, Ordering::SeqCst);
    node.store.delayed_reads.add_permits(1);
    assert_eq!(reader.await.unwrap(), "free", "the read began before the change");
    assert_eq!(node.tier_of_account("acme").await, "paid");
}

#[tokio::test]
async fn changes_remove_cached_entries() {
    let node = Node::start().await;
    assert_eq!(node.tier_of_account("acme").await, "free");
    assert_eq!(node.caller_by_secret("good").await.unwrap().unwrap_err(), InvalidKey::Unknown);
    assert!(node.accounts.identity_by_key_id("key-1", &node.policy, NOW).await.unwrap().is_none());
    let active = with_key(account("paid", 1), "key-1", "good");
    node.store.save(None, &active).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 1).await;
    assert_eq!(node.tier_of_account("acme").await, "paid");
    assert!(node.caller_by_secret("good").await.unwrap().is_ok());
    assert!(node.accounts.identity_by_key_id("key-1", &node.policy, NOW).await.unwrap().is_some());

    let mut revoked = active.clone();
    revoked.version += 1;
    revoked.keys["key-1"].revoked_at = Some(NOW);
    node.store.save(Some(&active), &revoked).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 2).await;
    assert_eq!(node.caller_by_secret("good").await.unwrap().unwrap_err(), InvalidKey::Revoked);
}

#[tokio::test]
async fn without_a_subscription_the_cache_is_not_used() {
    let node = Node::start().await;
    let record = account("paid", 1);
    node.store.save(None, &record).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 1).await;
    assert_eq!(node.tier_of_account("acme").await, "paid");
    // The store is replaced by one with other contents, and the subscription ends.
    node.store.is_down.store(true, Ordering::SeqCst);
    let other = Arc::new(MemoryAccounts::new(100));
    let moved = account("free", 1);
    other.save(Change { domain: "shop", id: "acme", before: None, after: Some(&moved), event: None }).await.unwrap();
    drop(std::mem::replace(&mut *node.store.memory.lock().unwrap(), other));
    node.wait_for_metric("tollgate_account_feed_up", 0).await;
    let stale = node.accounts.identity_by_account("acme", &node.policy, NOW).await;
    assert!(stale.check().is_err(), "the store cannot be read");
    assert_eq!(stale.account.tier, node.policy.tier_named("paid").unwrap(), "the cached tier");
    assert!(node.caller_by_secret("good").await.is_err(), "a secret that cannot be read is not unknown");

    node.store.is_down.store(false, Ordering::SeqCst);
    assert_eq!(node.tier_of_account("acme").await, "free");
    node.wait_for_metric("tollgate_account_feed_up", 1).await;
    node.store.reads();
    for _ in 0..3 {
        assert_eq!(node.tier_of_account("acme").await, "free");
    }
    assert_eq!(node.store.reads(), 1, "the cache was cleared once");
}

#[tokio::test]
async fn the_number_of_cached_entries_is_bounded() {
    let node = Node::start().await;
    // Of 5,000 names and 5,000 secrets, at most 1,000 each are cached.
    for min_reads in [10_000, 8_000] {
        for number in 0..5_000 {
            node.tier_of_account(&format!("account-{number}")).await;
            assert!(node.caller_by_secret(&format!("secret-{number}")).await.unwrap().is_err());
        }
        let reads = node.store.reads();
        assert!(reads >= min_reads, "{reads} of {min_reads}");
    }
}

#[tokio::test]
async fn entries_expire() {
    let node = Node::with_lifetime(Duration::ZERO).await;
    for _ in 0..3 {
        node.tier_of_account("acme").await;
    }
    assert_eq!(node.store.reads(), 3);
}

#[tokio::test]
async fn an_override_expires_without_a_change() {
    let node = Node::start().await;
    let mut record = account("free", 1);
    let end = NOW.plus_ms(1_000);
    let written = json!({"unit": "requests", "per": "minute", "limit": 7});
    record.overrides.insert("sale".into(), OverrideRecord { written, expires_at: Some(end) });
    node.store.save(None, &record).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 1).await;
    let count =
        async |now| node.accounts.identity_by_account("acme", &node.policy, now).await.caller().account_overrides.len();
    assert_eq!(count(NOW).await, 1);
    assert_eq!(count(Timestamp::from_ms(end.as_ms() - 1)).await, 1);
    assert_eq!(count(end).await, 0);
}

#[tokio::test]
async fn a_rotated_secret_is_valid_until_its_expiry() {
    let node = Node::start().await;
    let mut record = with_key(account("free", 1), "key-1", "new");
    for (secret, ends) in [("old", NOW.plus_ms(1)), ("older", NOW)] {
        let before = (record.version > 2).then(|| record.clone());
        record.version += 1;
        record.keys["key-1"].previous = Some(PreviousSecret { hash: KeyHash::of(secret), good_until: ends });
        node.store.save(before.as_ref(), &record).await;
        node.wait_for_metric("tollgate_account_invalidations_total", record.version - 2).await;
        assert!(node.caller_by_secret("new").await.unwrap().is_ok());
        assert_eq!(node.caller_by_secret(secret).await.unwrap().is_ok(), ends > NOW);
    }
    assert_eq!(node.caller_by_secret("old").await.unwrap().unwrap_err(), InvalidKey::Unknown);
}

#[tokio::test]
async fn after_a_policy_change_accounts_are_compiled_again_without_overrides_that_do_not_fit() {
    let mut node = Node::start().await;
    let mut record = account("gone", 1);
    let over = |resource: &str| OverrideRecord {
        written: json!({"resource": resource, "unit": "requests", "per": "minute", "limit": 7}),
        expires_at: None,
    };
    record.overrides.extend([("fits".to_owned(), over("model")), ("does not".to_owned(), over("no-such"))]);
    node.store.save(None, &record).await;
    node.wait_for_metric("tollgate_account_invalidations_total", 1).await;
    let before = node.accounts.identity_by_account("acme", &node.policy, NOW).await;
    assert_eq!(before.caller().account_overrides.len(), 1);
    assert_eq!(before.account.tier, node.policy.default_tier(), "a tier that is gone");
    node.wait_for_metric("tollgate_overrides_ignored_total", 1).await;
    node.policy = policy(5);
    node.accounts.identity_by_account("acme", &node.policy, NOW).await;
    node.wait_for_metric("tollgate_overrides_ignored_total", 2).await;
}
