//! The requirements for every store of accounts: generated sequences, played on all of them in parallel, and cases that
//! sequences do not reach.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use indexmap::IndexMap;
use proptest::prelude::*;
use tollgate_core::{
    api_key::{KeyHash, KeyKind},
    time::Timestamp,
};

use super::PATIENCE;
use crate::accounts::{
    AccountChange, AccountRecord, AccountStore, Change, Event, KeyRecord, PreviousSecret, SaveResult,
};

const DOMAINS: [&str; 2] = ["shop", "other"];
/// The second contains characters that must not be confused with a part of a key's name.
const ACCOUNTS: [&str; 3] = ["acme", "a}{b:\"c\n", "zoë"];
const REMEMBER: Duration = Duration::from_hours(1);

/// One change, of one of a few accounts.
#[derive(Clone, Debug)]
pub struct Step {
    domain: usize,
    account: usize,
    what: AccountOp,
    /// Whether the change is based on a version before the account's latest change.
    outdated: bool,
    event: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
enum AccountOp {
    Put,
    Delete,
    AddKey,
    DropKey,
    Rotate,
}

/// Any sequence of changes.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let what = prop_oneof![
        4 => Just(AccountOp::Put),
        1 => Just(AccountOp::Delete),
        3 => Just(AccountOp::AddKey),
        1 => Just(AccountOp::DropKey),
        2 => Just(AccountOp::Rotate),
    ];
    let event = prop_oneof![3 => Just(None), 1 => (0_u8..4).prop_map(Some)];
    let step = (0..DOMAINS.len(), 0..ACCOUNTS.len(), what, prop::bool::weighted(0.15), event)
        .prop_map(|(domain, account, what, outdated, event)| Step { domain, account, what, outdated, event });
    prop::collection::vec(step, 1..40)
}

/// A record for tests: `number` distinguishes versions and secrets.
fn next(before: Option<&AccountRecord>, domain: &str, id: &str, what: AccountOp, number: u64) -> Option<AccountRecord> {
    let now = Timestamp::from_ms(1_740_960_000_000 + number);
    let mut record = before.cloned().unwrap_or_else(|| AccountRecord {
        domain: domain.to_owned(),
        id: id.to_owned(),
        version: now.as_ms(),
        tier: "free".to_owned(),
        balances: IndexMap::from([("USD".to_owned(), 1.25)]),
        overrides: IndexMap::new(),
        keys: IndexMap::new(),
        created_at: now,
        changed_at: now,
        later: serde_json::Map::new(),
    });
    record.version = now.as_ms();
    record.changed_at = now;
    match what {
        AccountOp::Put => record.tier = format!("tier-{number}"),
        AccountOp::Delete => return None,
        AccountOp::AddKey => {
            record.keys.insert(format!("key-{number}"), key(number, now));
        }
        AccountOp::DropKey => {
            record.keys.shift_remove_index(0);
        }
        AccountOp::Rotate => {
            if let Some((_, key)) = record.keys.first_mut() {
                key.previous = Some(PreviousSecret { hash: key.hash, good_until: now });
                key.hash = secret(number);
                key.rotated_at = Some(now);
            }
        }
    }
    Some(record)
}

/// An account with one key.
///
/// # Panics
/// Never.
pub fn sample(domain: &str, id: &str) -> AccountRecord {
    let (account, key) = (next(None, domain, id, AccountOp::Put, 1), AccountOp::AddKey);
    next(account.as_ref(), domain, id, key, 2).expect("an account")
}

fn secret(number: u64) -> KeyHash {
    KeyHash::of(&format!("secret-{number}"))
}

fn key(number: u64, now: Timestamp) -> KeyRecord {
    KeyRecord {
        hash: secret(number),
        previous: None,
        kind: KeyKind::Inference,
        prefix: "tg_abcde".to_owned(),
        description: "for tests".to_owned(),
        created_at: now,
        expires_at: number.is_multiple_of(2).then_some(now),
        revoked_at: None,
        rotated_at: None,
        overrides: IndexMap::new(),
        later: serde_json::Map::new(),
    }
}

/// Plays `steps` on every store, and compares each answer with a plain list of the expected contents.
///
/// # Panics
/// Where a store differs.
pub async fn play(stores: &[&dyn AccountStore], steps: &[Step]) {
    // The current record, and the one before the latest change.
    let mut truth: BTreeMap<(usize, usize), (Option<AccountRecord>, Option<AccountRecord>)> = BTreeMap::new();
    let mut events = BTreeSet::new();
    let mut feeds = Vec::new();
    for store in stores {
        feeds.push(store.changes().await.expect("a feed"));
    }
    for (number, step) in steps.iter().enumerate() {
        let (domain, id) = (DOMAINS[step.domain], ACCOUNTS[step.account]);
        let (current, earlier) = truth.entry((step.domain, step.account)).or_default();
        let before = if step.outdated { earlier.clone() } else { current.clone() };
        let after = next(before.as_ref(), domain, id, step.what, number as u64);
        let named = step.event.map(|event| format!("event-{event}"));
        let event = named.as_deref().map(|id| Event { id, remember: REMEMBER });
        let change = Change { domain, id, before: before.as_ref(), after: after.as_ref(), event };
        let repeated = step.event.is_some_and(|event| events.contains(&(step.domain, step.account, event)));
        let same = before.as_ref().map(|record| record.version) == current.as_ref().map(|record| record.version);
        let expected = match (repeated, same) {
            (true, _) => SaveResult::Repeated,
            (false, true) => SaveResult::Done,
            (false, false) => SaveResult::Conflict,
        };
        for (store, feed) in stores.iter().zip(&mut feeds) {
            assert_eq!(store.save(change).await.expect("saved"), expected, "step {number}: {step:?}");
            if expected == SaveResult::Done && (before.is_some() || after.is_some()) {
                let heard = tokio::time::timeout(Duration::from_secs(10), feed.next()).await;
                let heard = heard.expect("heard in time").expect("the feed goes on");
                assert_eq!(heard, expected_notice(domain, id, before.as_ref(), after.as_ref()), "step {number}");
            }
        }
        if expected == SaveResult::Done {
            *earlier = std::mem::replace(current, after);
            events.extend(step.event.map(|event| (step.domain, step.account, event)));
        }
        for store in stores {
            assert_eq!(&store.load(domain, id).await.expect("read"), current, "step {number}: {step:?}");
        }
    }
    for store in stores {
        everything_is_there(*store, truth.values().filter_map(|(current, _)| current.as_ref()).collect()).await;
        nothing_else_is_usable(*store, steps.len() as u64).await;
    }
}

fn expected_notice(
    domain: &str,
    id: &str,
    before: Option<&AccountRecord>,
    after: Option<&AccountRecord>,
) -> AccountChange {
    let secrets = |record: Option<&AccountRecord>| -> Vec<KeyHash> {
        record.iter().flat_map(|record| record.keys.values()).flat_map(KeyRecord::secrets).copied().collect()
    };
    let keys = |record: Option<&AccountRecord>| -> Vec<String> {
        record.iter().flat_map(|record| record.keys.keys()).cloned().collect()
    };
    let (old_secrets, old_keys) = (secrets(before), keys(before));
    AccountChange {
        domain: domain.to_owned(),
        account: id.to_owned(),
        secrets: secrets(after).into_iter().filter(|hash| !old_secrets.contains(hash)).collect(),
        keys: keys(after).into_iter().filter(|key| !old_keys.contains(key)).collect(),
    }
}

async fn everything_is_there(store: &dyn AccountStore, records: Vec<&AccountRecord>) {
    for record in &records {
        for (id, key) in &record.keys {
            assert_eq!(store.find_key(&record.domain, id).await.expect("found").as_ref(), Some(&record.id));
            for hash in key.secrets() {
                let place = store.find_secret(hash).await.expect("found").expect("every secret is found");
                assert_eq!((&place.domain, &place.account, &place.key), (&record.domain, &record.id, id));
            }
        }
    }
    for domain in DOMAINS {
        let mut expected: Vec<&AccountRecord> =
            records.iter().filter(|record| record.domain == domain).copied().collect();
        expected.sort_by(|one, other| one.id.cmp(&other.id));
        let (mut listed, mut after) = (Vec::new(), String::new());
        loop {
            let page = store.list(domain, &after, 2).await.expect("a page");
            assert!(page.accounts.len() <= 2);
            listed.extend(page.accounts);
            let Some(next) = page.next else { break };
            after = next;
        }
        assert_eq!(listed.iter().collect::<Vec<_>>(), expected, "the list of {domain}");
    }
}

/// A hint that is left must not lead to a record that has the secret, unless the truth has it.
async fn nothing_else_is_usable(store: &dyn AccountStore, numbers: u64) {
    for number in 0..numbers {
        let Some(place) = store.find_secret(&secret(number)).await.expect("found") else { continue };
        let record = store.load(&place.domain, &place.account).await.expect("read");
        let key = record.as_ref().and_then(|record| record.keys.get(&place.key));
        assert!(
            key.is_some_and(|key| key.secrets().any(|hash| *hash == secret(number))),
            "secret {number} leads nowhere"
        );
    }
}

/// Many change one account at once through several stores on the same data: no change is lost, and of one
/// event's many tellings one is done.
///
/// # Panics
/// Where that does not hold.
pub async fn nothing_is_lost(stores: &[Arc<dyn AccountStore>]) {
    let (domain, id) = (DOMAINS[0], ACCOUNTS[0]);
    let start = next(None, domain, id, AccountOp::Put, 0);
    let made = Change { domain, id, before: None, after: start.as_ref(), event: None };
    assert_eq!(stores[0].save(made).await.expect("saved"), SaveResult::Done);
    let adding = |writers: std::ops::Range<u64>, event: Option<&'static str>| {
        let mut adding = tokio::task::JoinSet::new();
        for (writer, store) in writers.zip(stores.iter().cycle()) {
            adding.spawn(add_key(Arc::clone(store), domain, id, writer, event));
        }
        adding.join_all()
    };
    assert!(adding(0..16, None).await.into_iter().all(|done| done));
    let done = adding(16..32, Some("payment-1")).await.into_iter().filter(|done| *done).count();
    assert_eq!(done, 1, "one telling of an event is done");
    let record = stores[0].load(domain, id).await.expect("read").expect("it is there");
    assert_eq!(record.keys.len(), 17);
    everything_is_there(stores[0].as_ref(), vec![&record]).await;
    nothing_else_is_usable(stores[0].as_ref(), 32).await;
}

/// Adds a key, and repeats this while other changes are faster. Returns whether it was added.
async fn add_key(store: Arc<dyn AccountStore>, domain: &str, id: &str, writer: u64, event: Option<&str>) -> bool {
    loop {
        let before = store.load(domain, id).await.expect("read").expect("it is there");
        let mut after = before.clone();
        after.version += 1;
        after.keys.insert(format!("key-{writer}"), key(writer, after.created_at));
        let event = event.map(|id| Event { id, remember: REMEMBER });
        let change = Change { domain, id, before: Some(&before), after: Some(&after), event };
        match store.save(change).await.expect("saved") {
            SaveResult::Done => return true,
            SaveResult::Repeated => return false,
            SaveResult::Conflict => tokio::task::yield_now().await,
        }
    }
}

/// An event for an account that does not exist is remembered too.
///
/// # Panics
/// Where it is not.
pub async fn events_need_no_account(store: &dyn AccountStore) {
    let event = Some(Event { id: "payment-1", remember: REMEMBER });
    let change = Change { domain: DOMAINS[0], id: "nobody", before: None, after: None, event };
    assert_eq!(store.save(change).await.expect("saved"), SaveResult::Done);
    assert_eq!(store.save(change).await.expect("saved"), SaveResult::Repeated);
    let other = Change { domain: DOMAINS[1], ..change };
    assert_eq!(store.save(other).await.expect("saved"), SaveResult::Done, "another account's event of the same id");
    assert_eq!(store.load(DOMAINS[0], "nobody").await.expect("read"), None);
}

/// An event is done again once it is forgotten, and not before.
///
/// # Panics
/// Where it is not, or is forgotten at once.
pub async fn events_are_forgotten(store: &dyn AccountStore) {
    let event = |id, remember| {
        let event = Some(Event { id, remember });
        Change { domain: DOMAINS[0], id: "nobody", before: None, after: None, event }
    };
    let (short, long) = (event("payment-1", Duration::from_secs(1)), event("payment-2", REMEMBER));
    let started = std::time::Instant::now();
    for event in [short, long] {
        assert_eq!(store.save(event).await.expect("saved"), SaveResult::Done);
    }
    assert_eq!(store.save(long).await.expect("saved"), SaveResult::Repeated);
    while store.save(short).await.expect("saved") == SaveResult::Repeated {
        assert!(started.elapsed() < PATIENCE, "it is never forgotten");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(started.elapsed() > Duration::from_millis(900), "it is forgotten at once");
    assert_eq!(store.save(long).await.expect("saved"), SaveResult::Repeated);
}
