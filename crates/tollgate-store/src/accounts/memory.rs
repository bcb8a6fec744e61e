//! Accounts in this process's memory: the embedded default. They end with the process.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tollgate_core::store::{HealthFuture, StoreError, StoreHealth};

use super::{
    AccountChange, AccountFuture, AccountRecord, AccountStore, Change, Changes, KeyHash, KeyLocation,
    MAX_WAITING_CHANGES, Page, SaveResult,
};

/// The most events that are remembered; the oldest are forgotten for newer ones.
const MAX_EVENTS: usize = 65_536;

/// A store of a bounded number of accounts. Every answer comes at once.
pub struct MemoryAccounts {
    max_accounts: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    accounts: BTreeMap<(String, String), AccountRecord>,
    secrets: HashMap<KeyHash, KeyLocation>,
    keys: HashMap<(String, String), String>,
    events: HashMap<EventName, Instant>,
    events_by_age: VecDeque<EventName>,
    listeners: Vec<mpsc::Sender<AccountChange>>,
}

/// Domain, account, event.
type EventName = (String, String, String);

impl MemoryAccounts {
    /// Room for `max_accounts`.
    pub fn new(max_accounts: usize) -> Self {
        Self { max_accounts, state: Mutex::default() }
    }

    fn change(&self, change: &Change<'_>) -> Result<SaveResult, StoreError> {
        let mut state = self.state.lock();
        let name = (change.domain.to_owned(), change.id.to_owned());
        let event = change.event.map(|event| (name.0.clone(), name.1.clone(), event.id.to_owned()));
        if event.as_ref().is_some_and(|event| state.events.get(event).is_some_and(|until| *until > Instant::now())) {
            return Ok(SaveResult::Repeated);
        }
        if state.accounts.get(&name).map(|record| record.version) != change.before.map(|record| record.version) {
            return Ok(SaveResult::Conflict);
        }
        if change.before.is_none() && change.after.is_some() && state.accounts.len() >= self.max_accounts {
            return Err(StoreError::Overloaded(format!("memory keeps at most {} accounts", self.max_accounts)));
        }
        if let (Some(event), Some(name)) = (change.event, event) {
            state.remember(name, Instant::now() + event.remember);
        }
        state.index(change);
        match change.after {
            Some(record) => state.accounts.insert(name, record.clone()),
            None => state.accounts.remove(&name),
        };
        if change.before.is_some() || change.after.is_some() {
            state.publish(&change.notice());
        }
        Ok(SaveResult::Done)
    }

    fn page(&self, domain: &str, after: &str, take: usize) -> Page {
        let state = self.state.lock();
        let from = (domain.to_owned(), after.to_owned());
        let behind = state.accounts.range((Bound::Excluded(from), Bound::Unbounded));
        let mut accounts: Vec<AccountRecord> =
            behind.take_while(|((of, _), _)| of == domain).take(take + 1).map(|(_, record)| record.clone()).collect();
        let more = accounts.len() > take;
        accounts.truncate(take);
        Page { next: accounts.last().filter(|_| more).map(|last| last.id.clone()), accounts, unreadable: Vec::new() }
    }
}

impl State {
    fn index(&mut self, change: &Change<'_>) {
        for (hash, _) in change.gone() {
            self.secrets.remove(&hash);
        }
        for key in change.gone_keys() {
            self.keys.remove(&(change.domain.to_owned(), key.to_owned()));
        }
        for (hash, key) in change.added() {
            let (domain, account) = (change.domain.to_owned(), change.id.to_owned());
            self.keys.insert((domain.clone(), key.to_owned()), account.clone());
            self.secrets.insert(hash, KeyLocation { domain, account, key: key.to_owned() });
        }
    }

    fn remember(&mut self, event: EventName, until: Instant) {
        while self.events_by_age.len() >= MAX_EVENTS {
            if let Some(oldest) = self.events_by_age.pop_front() {
                self.events.remove(&oldest);
            }
        }
        if self.events.insert(event.clone(), until).is_none() {
            self.events_by_age.push_back(event);
        }
    }

    /// A listener that has fallen behind loses its feed, and so learns that it missed changes.
    fn publish(&mut self, change: &AccountChange) {
        self.listeners.retain(|listener| listener.try_send(change.clone()).is_ok());
    }
}

impl AccountStore for MemoryAccounts {
    fn load<'a>(&'a self, domain: &'a str, id: &'a str) -> AccountFuture<'a, Option<AccountRecord>> {
        let found = self.state.lock().accounts.get(&(domain.to_owned(), id.to_owned())).cloned();
        Box::pin(async { Ok(found) })
    }

    fn find_secret<'a>(&'a self, hash: &'a KeyHash) -> AccountFuture<'a, Option<KeyLocation>> {
        let found = self.state.lock().secrets.get(hash).cloned();
        Box::pin(async { Ok(found) })
    }

    fn find_key<'a>(&'a self, domain: &'a str, key: &'a str) -> AccountFuture<'a, Option<String>> {
        let found = self.state.lock().keys.get(&(domain.to_owned(), key.to_owned())).cloned();
        Box::pin(async { Ok(found) })
    }

    fn save<'a>(&'a self, change: Change<'a>) -> AccountFuture<'a, SaveResult> {
        Box::pin(async move { self.change(&change) })
    }

    fn list<'a>(&'a self, domain: &'a str, after: &'a str, take: usize) -> AccountFuture<'a, Page> {
        Box::pin(async move { Ok(self.page(domain, after, take)) })
    }

    fn health(&self) -> HealthFuture<'_> {
        Box::pin(std::future::ready(StoreHealth::good()))
    }

    fn changes(&self) -> AccountFuture<'_, Changes> {
        let (tell, told) = mpsc::channel(MAX_WAITING_CHANGES);
        self.state.lock().listeners.push(tell);
        Box::pin(async { Ok(Changes(told)) })
    }
}
