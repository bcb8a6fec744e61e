//! A node's cache of the store's accounts, so that calls need not wait for the store.
//!
//! Entries are trusted as long as the node hears of changes: every change removes the entries that it concerns. When
//! the feed of changes ends, a change may be missed, so nothing is trusted (every call reads the store) until there is
//! a new feed; then everything is forgotten. Each entry has the generation of trust in which its read began, and only
//! entries of the current generation count. An entry that is removed while it is being read is not stored (the cache
//! gives up its placeholder). As a last safety measure, entries expire after a while.

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

use super::{CachedKey, Identity, compile::CompiledAccount, new_accounts::NewAccounts};
use crate::{
    metrics::{CacheResult, Metrics},
    scope::DomainScope,
};

/// How much a node remembers of accounts, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct CacheBounds {
    /// How many accounts, secrets and key ids, each; an account with many keys counts as several.
    pub entries: usize,
    /// How long an entry is believed if nothing is heard of it.
    pub lifetime: Duration,
    /// How long a call waits for look-ups in total.
    pub deadline: Duration,
    /// How many new accounts are accepted a minute, for each domain and reach of tokens; unbounded if 0.
    pub max_new_accounts: u32,
}

/// How long a node waits before it tries again to hear of changes.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// The accounts of the store, as a node remembers them.
pub struct Accounts {
    store: Arc<dyn AccountStore>,
    bounds: CacheBounds,
    /// Even while the node hears of changes. Each change of that begins a new one.
    generation: AtomicU64,
    places: Cache<KeyHash, Entry<Option<Arc<KeyLocation>>>>,
    keys: Cache<Name, Entry<Option<Arc<str>>>>,
    known: Cache<Name, Entry<Arc<CompiledAccount>>, EntryWeighter>,
    newcomers: NewAccounts,
    metrics: Arc<Metrics>,
}

/// A name within a domain.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Name {
    domain: Arc<str>,
    name: Arc<str>,
}

/// The same, borrowed; it hashes alike.
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

/// Something that was read from the store.
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
    /// Accounts of `store`, remembered within these bounds.
    pub fn new(store: Arc<dyn AccountStore>, bounds: CacheBounds, metrics: Arc<Metrics>) -> Self {
        let entries = bounds.entries;
        Self {
            store,
            bounds,
            generation: AtomicU64::new(1),
            places: Cache::new(entries),
            keys: Cache::new(entries),
            known: Cache::with_weighter(entries, entries as u64, EntryWeighter),
            newcomers: NewAccounts::new(bounds.max_new_accounts),
            metrics,
        }
    }

    /// Where the key with this secret might be.
    pub async fn place_of(&self, hash: &KeyHash) -> Result<Option<Arc<KeyLocation>>, StoreError> {
        let read = async { Ok(self.store.find_secret(hash).await?.map(Arc::new)) };
        let found = self.through(&self.places, hash, || *hash, |_| true, read).await;
        found.map_err(|(error, _)| error)
    }

    /// What is known about this secret without a look-up in the store. That a key is valid is also taken from untrusted
    /// entries, because here it only means that a look-up is worth its cost.
    pub fn cached_key(&self, hash: &KeyHash, now: Timestamp) -> CachedKey {
        let Some(place) = self.places.peek(hash) else { return CachedKey::Unknown };
        let generation = self.generation.load(Ordering::Acquire);
        let Some(to) = &place.value else {
            return if self.believes(&place, generation) { CachedKey::Invalid } else { CachedKey::Unknown };
        };
        let Some(known) = self.known.peek(&NameRef { domain: &to.domain, name: &to.account }) else {
            return CachedKey::Unknown;
        };
        let key = known.value.keys.get(&*to.key);
        match key.is_some_and(|key| key.check_secret(hash, now).and_then(|()| key.key.check(now)).is_ok()) {
            true => CachedKey::Valid,
            false if self.believes(&known, generation) => CachedKey::Invalid,
            false => CachedKey::Unknown,
        }
    }

    /// The caller with the key `place` leads to, presented by its secret.
    pub async fn by_secret(
        &self,
        place: &KeyLocation,
        hash: &KeyHash,
        policy: &Arc<Policy>,
        now: Timestamp,
    ) -> Result<Result<Identity, InvalidKey>, StoreError> {
        let (known, stale) = self.known(&place.account, policy, now, None).await?;
        let Some(key) = known.keys.get(&*place.key) else { return Ok(Err(InvalidKey::Unknown)) };
        Ok(key.check_secret(hash, now).map(|()| Identity {
            account: Arc::clone(&known.account),
            key: Some(Arc::clone(&key.key)),
            stale,
        }))
    }

    /// The caller with the key of this id.
    pub async fn by_key_id(
        &self,
        id: &str,
        policy: &Arc<Policy>,
        now: Timestamp,
    ) -> Result<Option<Identity>, StoreError> {
        let name = NameRef { domain: policy.domain(), name: id };
        let read = async { Ok(self.store.find_key(policy.domain(), id).await?.map(Arc::from)) };
        let found = self.through(&self.keys, &name, || name.to_owned(), |_| true, read).await;
        let Some(account) = found.map_err(|(error, _)| error)? else { return Ok(None) };
        let (known, stale) = self.known(&account, policy, now, None).await?;
        let found = known.keys.get(id);
        Ok(found.map(|key| Identity { account: Arc::clone(&known.account), key: Some(Arc::clone(&key.key)), stale }))
    }

    /// The account called `id`, for whose name a calling service vouches that may act `within`. One more new account than
    /// are accepted is in stale, with [`StoreError::Overloaded`]. While the store cannot answer and nothing
    /// is known, it is taken for one of the default tier, in stale.
    pub async fn by_vouched_name(
        &self,
        id: &str,
        policy: &Arc<Policy>,
        now: Timestamp,
        within: Option<&DomainScope>,
    ) -> Identity {
        match self.known(id, policy, now, within).await {
            Ok((known, stale)) => Identity { account: Arc::clone(&known.account), key: None, stale },
            Err(error) => {
                Identity { account: CompiledAccount::unknown(id, policy).account, key: None, stale: Some(error) }
            }
        }
    }

    /// The same for callers that bring no new account.
    pub async fn by_name(&self, id: &str, policy: &Arc<Policy>, now: Timestamp) -> Identity {
        self.by_vouched_name(id, policy, now, None).await
    }

    /// The account, and why the store could not be read if this is the last known state. If the calling service is
    /// given, an account without a record counts as new.
    async fn known(
        &self,
        id: &str,
        policy: &Arc<Policy>,
        now: Timestamp,
        vouched_within: Option<&DomainScope>,
    ) -> Result<(Arc<CompiledAccount>, Option<StoreError>), StoreError> {
        let name = NameRef { domain: policy.domain(), name: id };
        let good = |known: &Arc<CompiledAccount>| {
            Arc::ptr_eq(&known.policy, policy) && known.good_until.is_none_or(|end| end > now)
        };
        let is_one_too_many = AtomicBool::new(false);
        let read = async {
            let record = self.store.load(policy.domain(), id).await?;
            // While nothing is remembered, every call would count.
            let counts = record.is_none() && is_trusted(self.generation.load(Ordering::Acquire));
            let accepts = |within| self.newcomers.accepts(policy.domain(), within, Instant::now());
            if counts && !vouched_within.is_none_or(accepts) {
                is_one_too_many.store(true, Ordering::Relaxed);
                return Err(StoreError::Overloaded("too many new accounts a minute in this domain".into()));
            }
            let known = record.map_or_else(
                || CompiledAccount::unknown(id, policy),
                |record| CompiledAccount::of(&record, policy, now),
            );
            self.metrics.overrides_left_out(known.left_out);
            Ok(Arc::new(known))
        };
        match self.through(&self.known, &name, || name.to_owned(), good, read).await {
            Ok(known) => Ok((known, None)),
            // The node remembers it, so it is not new.
            Err((_, Some(_))) if is_one_too_many.load(Ordering::Relaxed) => {
                Ok((Arc::new(CompiledAccount::unknown(id, policy)), None))
            }
            // Handles of tiers belong to their policy.
            Err((error, Some(last))) if Arc::ptr_eq(&last.policy, policy) => Ok((last, Some(error))),
            Err((error, _)) => Err(error),
        }
    }

    /// The trusted entry of `cache` for `key`, or otherwise the result of `read`. If many callers miss the same key,
    /// one of them reads. If the read fails, the last known value is returned with the error.
    async fn through<K, Q, V, W>(
        &self,
        cache: &Cache<K, Entry<V>, W>,
        key: &Q,
        owned: impl FnOnce() -> K,
        good: impl Fn(&V) -> bool,
        read: impl Future<Output = Result<V, StoreError>>,
    ) -> Result<V, (StoreError, Option<V>)>
    where
        K: Clone + Eq + Hash,
        Q: Hash + Equivalent<K>,
        V: Clone,
        W: Weighter<K, Entry<V>> + Clone,
    {
        let generation = self.generation.load(Ordering::Acquire);
        let believed = |entry: &Entry<V>| self.believes(entry, generation) && good(&entry.value);
        let last = cache.get(key);
        if let Some(entry) = last.as_ref().filter(|entry| believed(entry)) {
            self.metrics.account_cache(CacheResult::Hit);
            return Ok(entry.value.clone());
        }
        let found = self.in_time(async {
            if !is_trusted(generation) {
                self.metrics.account_cache(CacheResult::Bypass);
                return read.await;
            }
            self.metrics.account_cache(CacheResult::Miss);
            cache.remove_if(key, |entry| !believed(entry));
            match cache.get_value_or_guard_async(&owned()).await {
                Ok(entry) if believed(&entry) => Ok(entry.value),
                Ok(_) => read.await,
                Err(guard) => {
                    let value = read.await?;
                    // Not kept if a change took the place away meanwhile.
                    let _ = guard.insert(Entry { value: value.clone(), generation, read_at: Instant::now() });
                    Ok(value)
                }
            }
        });
        found.await.map_err(|error| (error, last.map(|entry| entry.value)))
    }

    fn believes<T>(&self, entry: &Entry<T>, generation: u64) -> bool {
        entry.generation == generation && entry.read_at.elapsed() < self.bounds.lifetime
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let bound = self.bounds.deadline;
        let answer = tokio::time::timeout(bound, work)
            .await
            .unwrap_or_else(|_| Err(StoreError::Indeterminate(format!("accounts took longer than {bound:?}"))));
        answer.inspect_err(|error| match error {
            StoreError::Overloaded(_) => self.metrics.account_lookup_refused(),
            _ => self.metrics.account_store_failed(),
        })
    }

    /// Begins to hear of changes, if the store lets it at once.
    pub async fn subscribe(&self) -> Option<Changes> {
        let feed = self.store.changes().await;
        if feed.is_ok() {
            self.mark_consistent();
        }
        feed.inspect_err(|error| tracing::debug!(%error, "cannot subscribe to account changes yet")).ok()
    }

    /// Listens for as long as the node lives, to `feed` first.
    pub async fn run_invalidation(self: Arc<Self>, mut feed: Option<Changes>) {
        let mut pause = RETRY_FIRST;
        loop {
            if let Some(mut feed) = feed.take() {
                while let Some(change) = feed.next().await {
                    self.forget(&change);
                    self.metrics.account_invalidated();
                }
                self.mark_stale();
                pause = RETRY_FIRST;
                tracing::warn!("not subscribed to account changes; every call reads its account");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
            feed = self.subscribe().await;
        }
    }

    /// From now on every change is heard; entries that were read before do not count.
    fn mark_consistent(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.places.clear();
        self.keys.clear();
        self.known.clear();
        self.metrics.account_feed(true);
        tracing::info!("subscribed to account changes");
    }

    fn mark_stale(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.metrics.account_feed(false);
    }

    /// Forgets the entries that a change concerns.
    pub fn forget(&self, change: &AccountChange) {
        self.known.remove(&NameRef { domain: &change.domain, name: &change.account });
        for hash in &change.secrets {
            self.places.remove(hash);
        }
        for key in &change.keys {
            self.keys.remove(&NameRef { domain: &change.domain, name: key });
        }
    }
}

fn is_trusted(generation: u64) -> bool {
    generation.is_multiple_of(2)
}
