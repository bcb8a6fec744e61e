//! A node's cache of the store's accounts.
//!
//! The cache is consistent while the node is subscribed to changes: every change removes the entries that it concerns.
//! When the subscription ends, a change may be missed, so the cache is stale: every call reads the store until the node
//! is subscribed again, and then the cache is cleared. Each entry has the generation in which its read began; only
//! entries of the current generation are used. An entry that is removed while it is being read is not stored (the cache
//! removes its placeholder). In addition, entries expire.

use std::{
    future::Future,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quick_cache::{Equivalent, Weighter, sync::Cache};
use tollgate_core::{api_key::KeyHash, store::StoreError, time::Timestamp};
use tollgate_policy::{Policy, reason::InvalidKey};
use tollgate_store::accounts::{AccountChange, AccountStore, Changes, KeyLocation};

use super::{CachedKey, Identity, compile::CompiledAccount, new_accounts::NewAccountLimiter};
use crate::{
    metrics::{CacheResult, Metrics},
    scope::DomainScope,
};

/// The bounds of the cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheBounds {
    /// The maximum number of accounts, of secrets and of key ids; an account with many keys counts as several.
    pub entries: usize,
    /// The lifetime of an entry.
    pub lifetime: Duration,
    /// The maximum time of a lookup.
    pub deadline: Duration,
    /// The maximum number of new accounts per minute, for each domain and scope of tokens; unlimited if 0.
    pub max_new_accounts: u32,
}

/// The first and the longest pause between attempts to subscribe.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(1);

/// The accounts of the store, with a cache.
pub struct Accounts {
    store: Arc<dyn AccountStore>,
    bounds: CacheBounds,
    /// Even while the node is subscribed. It grows whenever a subscription begins or ends.
    generation: AtomicU64,
    locations: Cache<KeyHash, Entry<Option<Arc<KeyLocation>>>>,
    keys: Cache<Name, Entry<Option<Arc<str>>>>,
    compiled: Cache<Name, Entry<Arc<CompiledAccount>>, EntryWeighter>,
    new_account_limiter: NewAccountLimiter,
    metrics: Arc<Metrics>,
}

/// A name within a domain.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Name {
    domain: Arc<str>,
    name: Arc<str>,
}

/// A borrowed [`Name`], with the same hash.
#[derive(Clone, Copy, Hash)]
struct NameRef<'a> {
    domain: &'a str,
    name: &'a str,
}

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        *self.domain == *name.domain && *self.name == *name.name
    }
}

impl NameRef<'_> {
    fn to_owned(self) -> Name {
        Name { domain: self.domain.into(), name: self.name.into() }
    }
}

/// A value that was read from the store.
#[derive(Clone)]
struct Entry<T> {
    value: T,
    generation: u64,
    read_at: Instant,
}

#[derive(Clone)]
struct EntryWeighter;

impl Weighter<Name, Entry<Arc<CompiledAccount>>> for EntryWeighter {
    fn weight(&self, _: &Name, entry: &Entry<Arc<CompiledAccount>>) -> u64 {
        entry.value.weight()
    }
}

impl Accounts {
    /// The accounts of `store`, with a cache within these bounds.
    pub fn new(store: Arc<dyn AccountStore>, bounds: CacheBounds, metrics: Arc<Metrics>) -> Self {
        let entries = bounds.entries;
        Self {
            store,
            bounds,
            generation: AtomicU64::new(1),
            locations: Cache::new(entries),
            keys: Cache::new(entries),
            compiled: Cache::with_weighter(entries, entries as u64, EntryWeighter),
            new_account_limiter: NewAccountLimiter::new(bounds.max_new_accounts),
            metrics,
        }
    }

    /// The location of a key with this secret. It may be out of date.
    pub async fn key_location(&self, hash: &KeyHash) -> Result<Option<Arc<KeyLocation>>, StoreError> {
        let read = async { Ok(self.store.find_secret(hash).await?.map(Arc::new)) };
        let location = self.read_through(&self.locations, hash, || *hash, |_| true, read).await;
        location.map_err(|(error, _)| error)
    }

    /// The cached state of this secret. Stale entries of valid keys are used too, because here the result only means
    /// that a lookup is worth its cost.
    pub fn cached_key(&self, hash: &KeyHash, now: Timestamp) -> CachedKey {
        let Some(location) = self.locations.peek(hash) else { return CachedKey::Unknown };
        let generation = self.generation.load(Ordering::Acquire);
        let Some(key_location) = &location.value else {
            return if self.is_fresh(&location, generation) { CachedKey::Invalid } else { CachedKey::Unknown };
        };
        let name = NameRef { domain: &key_location.domain, name: &key_location.account };
        let Some(account) = self.compiled.peek(&name) else { return CachedKey::Unknown };
        let key = account.value.keys.get(&*key_location.key);
        match key.is_some_and(|key| key.check_secret(hash, now).and_then(|()| key.key.check(now)).is_ok()) {
            true => CachedKey::Valid,
            false if self.is_fresh(&account, generation) => CachedKey::Invalid,
            false => CachedKey::Unknown,
        }
    }

    /// The caller with this secret and the key at `location`.
    pub async fn identity_by_secret(
        &self,
        location: &KeyLocation,
        hash: &KeyHash,
        policy: &Arc<Policy>,
        now: Timestamp,
    ) -> Result<Result<Identity, InvalidKey>, StoreError> {
        let (compiled, stale) = self.compiled_account(&location.account, policy, now, None).await?;
        let Some(key) = compiled.keys.get(&*location.key) else { return Ok(Err(InvalidKey::Unknown)) };
        Ok(key.check_secret(hash, now).map(|()| Identity {
            account: Arc::clone(&compiled.account),
            key: Some(Arc::clone(&key.key)),
            stale,
        }))
    }

    /// The caller with the key of this id.
    pub async fn identity_by_key_id(
        &self,
        id: &str,
        policy: &Arc<Policy>,
        now: Timestamp,
    ) -> Result<Option<Identity>, StoreError> {
        let name = NameRef { domain: policy.domain(), name: id };
        let read = async { Ok(self.store.find_key(policy.domain(), id).await?.map(Arc::from)) };
        let account = self.read_through(&self.keys, &name, || name.to_owned(), |_| true, read).await;
        let Some(account) = account.map_err(|(error, _)| error)? else { return Ok(None) };
        let (compiled, stale) = self.compiled_account(&account, policy, now, None).await?;
        let key = compiled.keys.get(id);
        Ok(key.map(|key| Identity { account: Arc::clone(&compiled.account), key: Some(Arc::clone(&key.key)), stale }))
    }

    /// The account with this id, for a service that has authenticated the caller; `scope` is that of the service. If
    /// the rate of new accounts is exceeded, the identity is stale with [`StoreError::Overloaded`]. If the account
    /// cannot be read and is not cached, the identity is stale and has the default tier.
    pub async fn identity_for_service(
        &self,
        id: &str,
        policy: &Arc<Policy>,
        now: Timestamp,
        scope: Option<&DomainScope>,
    ) -> Identity {
        match self.compiled_account(id, policy, now, scope).await {
            Ok((compiled, stale)) => Identity { account: Arc::clone(&compiled.account), key: None, stale },
            Err(error) => {
                Identity { account: CompiledAccount::without_record(id, policy).account, key: None, stale: Some(error) }
            }
        }
    }

    /// The account with this id, without the limit on new accounts.
    pub async fn identity_by_account(&self, id: &str, policy: &Arc<Policy>, now: Timestamp) -> Identity {
        self.identity_for_service(id, policy, now, None).await
    }

    /// The account; if its cached state is used because the store could not be read, also the error. With a
    /// `service_scope`, an account without a record counts as new.
    async fn compiled_account(
        &self,
        id: &str,
        policy: &Arc<Policy>,
        now: Timestamp,
        service_scope: Option<&DomainScope>,
    ) -> Result<(Arc<CompiledAccount>, Option<StoreError>), StoreError> {
        let name = NameRef { domain: policy.domain(), name: id };
        let is_valid = |compiled: &Arc<CompiledAccount>| {
            Arc::ptr_eq(&compiled.policy, policy) && compiled.valid_until.is_none_or(|end| end > now)
        };
        let is_over_limit = AtomicBool::new(false);
        let read = async {
            let record = self.store.load(policy.domain(), id).await?;
            // While the cache is stale, no account counts as new, because every call reads its record.
            let is_new = record.is_none() && is_subscribed(self.generation.load(Ordering::Acquire));
            let accept = |scope| self.new_account_limiter.accept(policy.domain(), scope, tokio::time::Instant::now());
            if is_new && !service_scope.is_none_or(accept) {
                is_over_limit.store(true, Ordering::Relaxed);
                return Err(StoreError::Overloaded("too many new accounts a minute in this domain".into()));
            }
            let compiled = record.map_or_else(
                || CompiledAccount::without_record(id, policy),
                |record| CompiledAccount::new(&record, policy, now),
            );
            self.metrics.count_ignored_overrides(compiled.ignored_overrides);
            Ok(Arc::new(compiled))
        };
        match self.read_through(&self.compiled, &name, || name.to_owned(), is_valid, read).await {
            Ok(compiled) => Ok((compiled, None)),
            // The account is in the cache, so it is not new.
            Err((_, Some(_))) if is_over_limit.load(Ordering::Relaxed) => {
                Ok((Arc::new(CompiledAccount::without_record(id, policy)), None))
            }
            // The tier ids of an account belong to the policy for which it was compiled.
            Err((error, Some(cached))) if Arc::ptr_eq(&cached.policy, policy) => Ok((cached, Some(error))),
            Err((error, _)) => Err(error),
        }
    }

    /// The current entry of `cache` for `key`, or otherwise the result of `read`. If many callers miss the same key,
    /// one of them reads. If the read fails, the cached value is returned with the error.
    async fn read_through<K, Q, V, W>(
        &self,
        cache: &Cache<K, Entry<V>, W>,
        key: &Q,
        owned: impl FnOnce() -> K,
        is_valid: impl Fn(&V) -> bool,
        read: impl Future<Output = Result<V, StoreError>>,
    ) -> Result<V, (StoreError, Option<V>)>
    where
        K: Clone + Eq + Hash,
        Q: Hash + Equivalent<K>,
        V: Clone,
        W: Weighter<K, Entry<V>> + Clone,
    {
        let generation = self.generation.load(Ordering::Acquire);
        let is_current = |entry: &Entry<V>| self.is_fresh(entry, generation) && is_valid(&entry.value);
        let cached = cache.get(key);
        if let Some(entry) = cached.as_ref().filter(|entry| is_current(entry)) {
            self.metrics.count_account_lookup(CacheResult::Hit);
            return Ok(entry.value.clone());
        }
        let result = self.with_timeout(async {
            if !is_subscribed(generation) {
                self.metrics.count_account_lookup(CacheResult::Bypass);
                return read.await;
            }
            self.metrics.count_account_lookup(CacheResult::Miss);
            cache.remove_if(key, |entry| !is_current(entry));
            match cache.get_value_or_guard_async(&owned()).await {
                Ok(entry) if is_current(&entry) => Ok(entry.value),
                Ok(_) => read.await,
                Err(placeholder) => {
                    let value = read.await?;
                    // Not stored if a change has removed the placeholder meanwhile.
                    let _ = placeholder.insert(Entry { value: value.clone(), generation, read_at: Instant::now() });
                    Ok(value)
                }
            }
        });
        result.await.map_err(|error| (error, cached.map(|entry| entry.value)))
    }

    fn is_fresh<T>(&self, entry: &Entry<T>, generation: u64) -> bool {
        entry.generation == generation && entry.read_at.elapsed() < self.bounds.lifetime
    }

    async fn with_timeout<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let deadline = self.bounds.deadline;
        let result = tokio::time::timeout(deadline, work)
            .await
            .unwrap_or_else(|_| Err(StoreError::Indeterminate(format!("accounts took longer than {deadline:?}"))));
        result.inspect_err(|error| match error {
            StoreError::Overloaded(_) => self.metrics.count_refused_account_lookup(),
            _ => self.metrics.count_account_store_error(),
        })
    }

    /// Tries once to subscribe to changes.
    pub async fn subscribe(&self) -> Option<Changes> {
        let feed = self.store.changes().await;
        if feed.is_ok() {
            self.mark_consistent();
        }
        feed.inspect_err(|error| tracing::debug!(%error, "cannot subscribe to account changes yet")).ok()
    }

    /// Processes changes as long as the node runs, first those of `feed`.
    pub async fn run_invalidation(self: Arc<Self>, mut feed: Option<Changes>) {
        let mut pause = FIRST_RETRY;
        loop {
            if let Some(mut feed) = feed.take() {
                while let Some(change) = feed.next().await {
                    self.invalidate(&change);
                    self.metrics.count_account_invalidation();
                }
                self.mark_stale();
                pause = FIRST_RETRY;
                tracing::warn!("not subscribed to account changes; every call reads its account");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_RETRY);
            feed = self.subscribe().await;
        }
    }

    /// Clears the cache at the start of a subscription.
    fn mark_consistent(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.locations.clear();
        self.keys.clear();
        self.compiled.clear();
        self.metrics.set_account_feed(true);
        tracing::info!("subscribed to account changes");
    }

    fn mark_stale(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.metrics.set_account_feed(false);
    }

    /// Removes the entries that a change concerns.
    pub fn invalidate(&self, change: &AccountChange) {
        self.compiled.remove(&NameRef { domain: &change.domain, name: &change.account });
        for hash in &change.secrets {
            self.locations.remove(hash);
        }
        for key in &change.keys {
            self.keys.remove(&NameRef { domain: &change.domain, name: key });
        }
    }
}

fn is_subscribed(generation: u64) -> bool {
    generation.is_multiple_of(2)
}
