//! That calls go the short way: a script that fell back to the general one would decide alike, and take twice as long.

use std::sync::Arc;

use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Claim, Effect, LedgerKey, Mode, Partition},
    store::Store,
    time::Timestamp,
    window::{CalendarUnit, CalendarWindow, SlidingWindow, Window, WindowInstance},
};
use tollgate_store::{
    clock::ManualClock,
    redis::{Fault, RedisConfig, RedisStore},
    testing::RedisServer,
};

const START: Timestamp = Timestamp::from_ms(1_800_000_000_000);
const CALLS: usize = 64;

fn claim(ledger: &str, unit: &str, span: WindowInstance, effect: Effect) -> Claim {
    Claim {
        ledger: LedgerKey::of(Partition::of(["account"]), [ledger]),
        span,
        unit: UnitId::of(unit),
        cost: Amount::from(300),
        limit: Limit::Finite(Amount::from(1_000_000)),
        effect,
    }
}

fn sliding(ms: u64) -> WindowInstance {
    WindowInstance::Sliding(SlidingWindow::from_ms(ms).unwrap())
}

/// How often Redis ran `command`.
fn calls(stats: &str, command: &str) -> usize {
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// A store on a server of its own, and its clock.
fn store() -> (RedisServer, Arc<ManualClock>, RedisStore) {
    let server = RedisServer::start();
    let clock = Arc::new(ManualClock::at(START));
    let store = RedisStore::with_injected_clock(RedisConfig::new(server.url()), Arc::clone(&clock)).unwrap();
    (server, clock, store)
}

async fn admit(store: &RedisStore, claims: &[Claim]) {
    let ApplyResult::Applied(applied) = store.apply(claims, Mode::Try).await.unwrap() else { panic!() };
    assert!(applied.allowed);
}

/// Makes calls and returns how many looks at values they took, beyond one for each of `ledgers`.
async fn further_looks(claims: &[Claim], ledgers: usize) -> usize {
    let (server, clock, store) = store();
    for _ in 0..CALLS {
        clock.advance_ms(100);
        admit(&store, claims).await;
    }
    let stats: String = server.run("INFO commandstats");
    assert!(calls(&stats, "setrange") >= CALLS * ledgers, "{stats}");
    calls(&stats, "getrange") + calls(&stats, "get") - CALLS * ledgers
}

#[tokio::test]
async fn usual_calls_take_one_look_at_each_ledger() {
    let day = CalendarWindow::new(CalendarUnit::Day, "UTC").unwrap();
    let day = Window::Calendar(day.into()).span_at(START);
    let (minute, hour) = (sliding(60_000), sliding(3_600_000));
    let charge = |ledger, unit, span| claim(ledger, unit, span, Effect::Charge);
    let requests = charge("a", "requests", minute);
    for (what, ledgers, claims) in [
        ("one quota", 1, vec![charge("a", "requests", sliding(172_800_000))]),
        ("three quotas", 1, vec![requests, charge("a", "tokens", minute), charge("a", "requests", hour)]),
        ("a day of the calendar", 1, vec![requests, charge("a", "requests", day)]),
        ("a key and its account", 2, vec![requests, charge("k", "requests", minute), charge("k", "tokens", hour)]),
        ("a guard that never failed", 1, vec![requests, claim("g", "failures", minute, Effect::CheckOnly)]),
    ] {
        let looks = further_looks(&claims, ledgers).await;
        // The first call and rings that grow need the general script; did all, there were a second look at each.
        assert!(looks < CALLS * ledgers * 3 / 4, "{what}: {looks} further looks");
    }
}

/// A life is given for an eighth longer than is needed, and then for as long again.
#[tokio::test]
async fn a_counter_in_use_lives_on() {
    let (server, clock, store) = store();
    let day = [claim("a", "requests", sliding(86_400_000), Effect::Charge)];
    admit(&store, &day).await;
    clock.advance_ms(86_400_000 / 8 + 2_000);
    admit(&store, &day).await;
    assert_eq!(calls(&server.run::<String>("INFO commandstats"), "pexpire"), 1);
}

/// Nodes with another layout may run in parallel: their values are refused by name, and left unchanged.
#[tokio::test]
async fn a_counter_of_another_version_is_refused_and_left_alone() {
    let (server, _clock, store) = store();
    let claims = [claim("a", "requests", sliding(60_000), Effect::Charge)];
    admit(&store, &claims).await;
    let mut redis = server.connection();
    let key = server.run::<Vec<String>>("KEYS *").remove(0);
    for version in [3_u8, 9] {
        let _: () = redis::cmd("SETRANGE").arg(&key).arg(0).arg(&[version][..]).query(&mut redis).unwrap();
        let before: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut redis).unwrap();
        for mode in [Mode::Try, Mode::Force, Mode::Peek] {
            let refused = store.apply(&claims, mode).await.unwrap_err().to_string();
            assert!(refused.contains(&format!("a counter is of version {version}")), "{mode:?}: {refused}");
        }
        let after: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut redis).unwrap();
        assert_eq!(after, before);
    }
    let met = |faults: &[(Fault, u64)]| faults.iter().find(|(fault, _)| fault.name() == "version").map(|(_, met)| *met);
    assert_eq!(met(&store.link().status().faults), Some(6));
}
