//! Two versions of a node on one Redis, as during a rollout. Values with the same layout are shared, whatever the text
//! of the scripts; values with another layout are refused by name and left unchanged; JSON may contain more fields.

use std::sync::Arc;

use redis::cmd;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, ClaimsDecision, Effect, LedgerKey, Mode, Partition, ReservationId},
    reservation::{
        Admission, AdmitOptions, CloseRequest, CloseResult, Extension, IdempotencyKey, NewReservation, Reservation,
        ReservationState,
    },
    store::{Store, StoreError},
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    accounts::{AccountStore, Change, SaveResult, redis::RedisAccounts},
    redis::{RedisClient, RedisStore},
    refusals::{Refusal, RefusalLog, redis::RedisRefusals},
    testing::{RedisServer, accounts::sample},
};

const TTL_MS: u32 = 600_000;
const ID: ReservationId = ReservationId([7; 16]);

/// A node of this version and one of another.
fn versions(server: &RedisServer) -> [Arc<RedisStore>; 2] {
    [RedisStore::connect(server.config()), RedisStore::with_other_text(server.config())]
        .map(|store| Arc::new(store.unwrap()))
}

fn home() -> Partition {
    Partition::of(["versions"])
}

fn claim(span: WindowInstance, unit: &str, cost: u32, limit: u32) -> Claim {
    Claim {
        ledger: LedgerKey::of(home(), ["resource"]),
        span,
        unit: UnitId::of(unit),
        cost: Amount::from(cost),
        limit: Limit::Finite(Amount::from(limit)),
        effect: Effect::Charge,
    }
}

fn requests(limit: u32) -> Vec<Claim> {
    vec![claim(WindowInstance::Sliding(SlidingWindow::from_ms(3_600_000).unwrap()), "requests", 1, limit)]
}

fn with_slot(slots: u32) -> Vec<Claim> {
    [requests(100), vec![claim(WindowInstance::Slots, "concurrent_requests", 1, slots)]].concat()
}

async fn consume(store: &RedisStore, claims: &[Claim]) -> ClaimsDecision {
    match store.apply(claims, Mode::Try).await.unwrap() {
        ApplyResult::Applied(applied) => applied,
        ApplyResult::OutsidePeriod(_) => panic!("there are no periods"),
    }
}

/// Makes the reservation of this id, by a request id if there is one.
async fn reserve(
    store: &RedisStore,
    claims: &[Claim],
    id: ReservationId,
    request: Option<u8>,
) -> Result<Admission, StoreError> {
    let hold = NewReservation { id, ttl_ms: TTL_MS, metadata: b"note" };
    let request = request.map(|id| IdempotencyKey { id: [id; 16], digest: [9; 16], ttl_ms: TTL_MS });
    store.admit(claims, &AdmitOptions { home: home(), hold: Some(hold), request }).await
}

async fn look(store: &RedisStore, id: ReservationId) -> Reservation {
    match store.look(home(), id).await.unwrap() {
        ReservationState::Open { reservation, .. } => reservation,
        other => panic!("{other:?}"),
    }
}

async fn cancel(store: &RedisStore, id: ReservationId, known: &Reservation) -> Result<CloseResult, StoreError> {
    let closing =
        CloseRequest { digest: [1; 16], refunds: &known.charges, debts: &[], reservation: known, metadata: b"end" };
    store.close(home(), id, &closing).await
}

fn used(applied: &ClaimsDecision) -> u64 {
    applied.statuses[0].used.get()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_with_different_scripts_share_counters() {
    let server = RedisServer::start();
    let nodes = versions(&server);
    for number in 1..=60 {
        if number == 30 {
            let _: () = server.run("SCRIPT FLUSH");
        }
        let applied = consume(&nodes[number % 2], &requests(100)).await;
        assert_eq!((applied.allowed, used(&applied)), (true, number as u64));
    }
    let known: String = server.run("INFO memory");
    assert!(known.contains("number_of_cached_scripts:2\r\n"), "each has a script of its own: {known}");
    // And side by side, to the limit and no further.
    let mut calls = JoinSet::new();
    for number in 0..100 {
        let node = Arc::clone(&nodes[number % 2]);
        calls.spawn(async move { consume(&node, &requests(100)).await.allowed });
    }
    let admitted = calls.join_all().await.into_iter().filter(|allowed| *allowed).count();
    assert_eq!(admitted, 40, "of a hundred sixty were used before");
    for node in &nodes {
        assert_eq!(used(&consume(node, &requests(100)).await), 100);
    }
}

#[tokio::test]
async fn one_version_settles_what_the_other_reserved() {
    let server = RedisServer::start();
    let nodes = versions(&server);
    let claims = with_slot(2);
    for (request, [one, other]) in [(1, [&nodes[0], &nodes[1]]), (2, [&nodes[1], &nodes[0]])] {
        let id = ReservationId([request; 16]);
        let Admission::Decided(made) = reserve(one, &claims, id, Some(request)).await.unwrap() else { panic!() };
        assert!(made.allowed);
        assert_eq!((used(&made), made.statuses[1].used.get()), (1, 1), "nothing is left of the turn before");
        let Admission::Replayed(again) = reserve(other, &claims, id, Some(request)).await.unwrap() else { panic!() };
        assert_eq!((again.applied, again.held.map(|(id, _)| id)), (made, Some(id)));
        let known = look(other, id).await;
        assert_eq!(known, look(one, id).await);
        assert!(matches!(other.extend(home(), id, TTL_MS, &known).await.unwrap(), Extension::Until(_)));
        let CloseResult::Done(done) = cancel(other, id, &known).await.unwrap() else { panic!() };
        assert_eq!(cancel(one, id, &known).await.unwrap(), CloseResult::Before(done.clone()));
        assert_eq!(one.look(home(), id).await.unwrap(), ReservationState::Closed(done));
    }
}

/// Everything that Redis has.
fn everything(redis: &mut redis::Connection) -> Vec<(String, Vec<u8>)> {
    let mut keys: Vec<String> = cmd("KEYS").arg("*").query(redis).unwrap();
    keys.sort();
    keys.into_iter().map(|key| (key.clone(), cmd("DUMP").arg(key).query(redis).unwrap())).collect()
}

/// The key of the one string that begins with this byte.
fn beginning_with(redis: &mut redis::Connection, first: u8) -> String {
    let keys: Vec<String> = cmd("KEYS").arg("*").query(redis).unwrap();
    let mut found = keys.into_iter().filter(|key| {
        let is_string = cmd("TYPE").arg(key).query::<String>(redis).unwrap() == "string";
        is_string && cmd("GETRANGE").arg(key).arg(0).arg(0).query::<Vec<u8>>(redis).unwrap() == [first]
    });
    let key = found.next().unwrap_or_else(|| panic!("nothing begins with {first}"));
    assert_eq!(found.next(), None, "more than one begins with {first}");
    key
}

fn is_refused<T: std::fmt::Debug>(what: &str, version: u8, answer: Result<T, StoreError>) {
    let said = format!("a record is of version {version}");
    match answer {
        Err(StoreError::Refused(text)) if text.contains(&said) => {}
        other => panic!("{what}, version {version}: {other:?}"),
    }
}

#[tokio::test]
async fn a_record_of_another_version_is_refused_by_name_and_left_alone() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let [store, _] = versions(&server);
    let claims = with_slot(100);
    reserve(&store, &claims, ID, Some(1)).await.unwrap();
    let known = look(&store, ID).await;
    let (reservation, request) = (beginning_with(&mut redis, 4), beginning_with(&mut redis, 6));
    let begin = |key: &str, first: u8, redis: &mut redis::Connection| {
        let _: () = cmd("SETRANGE").arg(key).arg(0).arg(&[first][..]).query(redis).unwrap();
    };
    // None, as records had it before there were versions; the next one; the last that fits.
    for version in [0, 2, 63] {
        for state in 0..3 {
            begin(&reservation, 4 * version + state, &mut redis);
            begin(&request, 4 * version + state, &mut redis);
            let before = everything(&mut redis);
            is_refused("look", version, store.look(home(), ID).await);
            is_refused("extend", version, store.extend(home(), ID, TTL_MS, &known).await);
            is_refused("cancel", version, cancel(&store, ID, &known).await);
            is_refused("again", version, reserve(&store, &claims, ReservationId([8; 16]), Some(1)).await);
            assert_eq!(everything(&mut redis), before, "version {version}");
        }
    }
    let faults = store.link().status().faults;
    let met = faults.iter().find(|(fault, _)| fault.name() == "version").map(|(_, met)| *met);
    assert_eq!(met, Some(3 * 3 * 4));
    begin(&reservation, 4, &mut redis);
    assert_eq!(look(&store, ID).await, known);
}

/// A later version may put more into a slot's member.
#[tokio::test]
async fn a_slot_with_unknown_fields_is_counted() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let [store, _] = versions(&server);
    let claims = with_slot(3);
    reserve(&store, &claims, ID, None).await.unwrap();
    let keys: Vec<String> = cmd("KEYS").arg("*").query(&mut redis).unwrap();
    let is_set = |key: &&String| cmd("TYPE").arg(*key).query::<String>(&mut server.connection()).unwrap() == "zset";
    let set = keys.iter().find(is_set).unwrap();
    let held: Vec<(Vec<u8>, u64)> = cmd("ZRANGE").arg(set).arg(0).arg(-1).arg("WITHSCORES").query(&mut redis).unwrap();
    let (_, ends_at) = held.iter().find(|(member, _)| member.len() == 20).unwrap();
    let more = [&[5; 16][..], &TTL_MS.to_le_bytes(), b"and more"].concat();
    let _: () = cmd("ZADD").arg(set).arg(ends_at + 1).arg(more).query(&mut redis).unwrap();
    let Admission::Decided(third) = reserve(&store, &claims, ReservationId([8; 16]), None).await.unwrap() else {
        panic!()
    };
    assert_eq!((third.allowed, third.statuses[1].used.get()), (true, 3));
    let Admission::Decided(fourth) = reserve(&store, &claims, ReservationId([9; 16]), None).await.unwrap() else {
        panic!()
    };
    assert!(!fourth.allowed, "three of three slots are held");
}

/// Adds fields to the JSON after the first bytes of a value, as a later version would write it.
fn with_more(written: &[u8], skip: usize, more: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&written[skip..]).unwrap();
    more(&mut value);
    [&written[..skip], &serde_json::to_vec(&value).unwrap()].concat()
}

#[tokio::test]
async fn an_account_keeps_fields_of_a_later_version() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = RedisAccounts::on(RedisClient::open(server.config()).unwrap());
    let record = sample("shop", "acme");
    let change = Change { domain: "shop", id: "acme", before: None, after: Some(&record), event: None };
    assert_eq!(store.save(change).await.unwrap(), SaveResult::Done);
    let keys: Vec<String> = cmd("KEYS").arg("*}account").query(&mut redis).unwrap();
    let (key, id) = (&keys[0], record.keys.first().unwrap().0);
    let written: Vec<u8> = cmd("GET").arg(key).query(&mut redis).unwrap();
    let later = with_more(&written, 16, |account| {
        account["region"] = json!({ "home": ["eu", 1] });
        account["keys"][id]["scopes"] = json!(["read"]);
    });
    let _: () = cmd("SET").arg(key).arg(later).query(&mut redis).unwrap();

    let read = store.load("shop", "acme").await.unwrap().unwrap();
    assert_eq!((&read.tier, read.keys.len()), (&record.tier, record.keys.len()));
    let mut changed = read.clone();
    changed.version += 1;
    changed.tier = "paid".into();
    let change = Change { before: Some(&read), after: Some(&changed), ..change };
    assert_eq!(store.save(change).await.unwrap(), SaveResult::Done);
    let written: Vec<u8> = cmd("GET").arg(key).query(&mut redis).unwrap();
    let written: Value = serde_json::from_slice(&written[16..]).unwrap();
    assert_eq!(written["tier"], "paid");
    assert_eq!((&written["region"], &written["keys"][id]["scopes"]), (&json!({ "home": ["eu", 1] }), &json!(["read"])));
}

#[tokio::test]
async fn a_refusal_with_more_or_fewer_fields_is_read() {
    let server = RedisServer::start();
    let log = RedisRefusals::on(RedisClient::open(server.config()).unwrap());
    let refusal = Refusal { key: None, resource: "model".into(), tier: "paid".into(), label: "RPM".into(), at_ms: 7 };
    log.append(home(), &[Refusal { key: Some("key".into()), ..refusal.clone() }]).await.unwrap();
    let mut redis = server.connection();
    let keys: Vec<String> = cmd("KEYS").arg("*}refusals").query(&mut redis).unwrap();
    let written: Vec<u8> = cmd("LPOP").arg(&keys[0]).query(&mut redis).unwrap();
    let other = with_more(&written, 0, |refusal| {
        refusal["why"] = json!("more");
        refusal.as_object_mut().unwrap().remove("k");
    });
    let _: () = cmd("LPUSH").arg(&keys[0]).arg(other).query(&mut redis).unwrap();
    assert_eq!(log.latest(home()).await.unwrap(), [refusal]);
}
