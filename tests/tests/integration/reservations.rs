//! Reservations through the API: mistakes that gateways make with tokens and slots, one test each.

mod failed_calls;
mod slots;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tollgate_api::v1::{
    Call, CancelRequest, Decision, ExtendRequest, ReserveRequest, SettleRequest, SettledUnit, Settlement,
    rate_limit_service_client::RateLimitServiceClient,
};
use tollgate_core::time::Timestamp;
use tollgate_store::testing::RedisServer;
use tonic::{Code, Status, transport::Channel};

use crate::harness::{
    KEY, Node, ProcessBuilder, account, allowed, api_key, call, consume, decided_at_ms, folder_with, hash_of,
    memory_node, ms, peek, quota, redis_node, signal, until,
};

type Grpc = RateLimitServiceClient<Channel>;

fn policy(requests: u64, tokens: u64) -> String {
    format!(
        r#"version: 1
domain: shop
units: [tokens, images]
estimates:
  tokens:
    - {{ input: prompt_tokens }}
    - {{ input: max_tokens, default: 4000, at_most: 5000 }}
classes:
  text:
    quotas:
      - {{ unit: requests, per: minute, limit: {requests} }}
      - {{ unit: tokens, per: minute, limit: {tokens} }}
      - {{ unit: tokens, per: {{ calendar: day, zone: Europe/Berlin }}, limit: 1000000 }}
      - {{ unit: images, per: minute, limit: 10 }}
      - {{ unit: concurrent_requests, limit: 2 }}
resources:
  model: {{ class: text }}
  tight: {{ quotas: [{{ unit: tokens, per: 2s, limit: 100 }}] }}
  free: {{ quotas: [] }}
tiers:
  paid: {{ is_charged: true }}
default_tier: paid
bootstrap:
  accounts:
    - id: acme
      tier: paid
      keys: [{{ id: acme-good, hash: "{good}", kind: inference }}]
"#,
        good = hash_of(KEY),
    )
}

fn usage(pairs: &[(&str, u64)]) -> std::collections::BTreeMap<String, u64> {
    pairs.iter().map(|(unit, amount)| ((*unit).to_owned(), *amount)).collect()
}

async fn reserve(grpc: &Grpc, call: Call, inputs: &[(&str, u64)], ttl_ms: u32) -> Result<Decision, Status> {
    let request = ReserveRequest { call: Some(call), inputs: usage(inputs), ttl_ms };
    Ok(grpc.clone().reserve(request).await?.into_inner().decision.expect("a decision"))
}

async fn settle(grpc: &Grpc, id: &str, actual: &[(&str, u64)]) -> Result<Settlement, Status> {
    let request = SettleRequest { reservation_id: id.to_owned(), usage: usage(actual), status: 0 };
    Ok(grpc.clone().settle(request).await?.into_inner().settlement.expect("a settlement"))
}

async fn cancel(grpc: &Grpc, id: &str) -> Result<Settlement, Status> {
    let request = CancelRequest { reservation_id: id.to_owned(), status: 0 };
    Ok(grpc.clone().cancel(request).await?.into_inner().settlement.expect("a settlement"))
}

fn id_of(decision: &Decision) -> String {
    assert!(allowed(decision), "{decision:?}");
    decision.reservation.as_ref().expect("a reservation").id.clone()
}

fn unit<'a>(settlement: &'a Settlement, name: &str) -> &'a SettledUnit {
    settlement.units.iter().find(|unit| unit.unit == name).expect("the unit")
}

fn of(caller: &str, tokens: &[(&str, u64)]) -> Call {
    call(account(caller), "model", tokens)
}

/// Usage of requests, tokens per minute, tokens per day, images, and slots.
async fn used(grpc: &Grpc, caller: &str) -> [u64; 5] {
    let now = peek(grpc, of(caller, &[])).await.unwrap();
    let names = ["requests_per_minute", "tokens_per_minute", "tokens_per_calendar_day", "images_per_minute"];
    let [requests, minute, day, images] = names.map(|name| quota(&now, name).used);
    [requests, minute, day, images, quota(&now, "concurrent_requests").used]
}

/// Two nodes on one Redis, and one node in memory used twice.
async fn pairs(redis: &RedisServer, policy: &str) -> [[Node; 2]; 1] {
    [[redis_node(policy, redis.url()).await, redis_node(policy, redis.url()).await]]
}

#[tokio::test]
async fn settling_refunds_unused_tokens_and_charges_excess_as_debt() {
    let redis = RedisServer::start();
    let [[one, other]] = pairs(&redis, &policy(100, 20_000)).await;
    let memory = memory_node(&policy(100, 20_000)).await;
    for (first, second) in [(&one.grpc, &other.grpc), (&memory.grpc, &memory.grpc)] {
        let less = id_of(&reserve(first, of("a", &[("tokens", 1_000)]), &[], 0).await.unwrap());
        assert_eq!(used(first, "a").await, [1, 1_000, 1_000, 0, 1]);
        let settled = settle(second, &less, &[("tokens", 300)]).await.unwrap();
        assert_eq!((unit(&settled, "tokens").returned, unit(&settled, "tokens").debt), (700, 0));
        assert_eq!(used(first, "a").await, [1, 300, 300, 0, 0]);

        let equal = id_of(&reserve(second, of("a", &[("tokens", 50)]), &[], 0).await.unwrap());
        settle(first, &equal, &[]).await.unwrap();
        assert_eq!(used(first, "a").await, [2, 350, 350, 0, 0], "what is not named stays as it was reserved");

        let more = id_of(&reserve(first, of("a", &[("tokens", 100)]), &[], 0).await.unwrap());
        let settled = settle(second, &more, &[("tokens", 19_800), ("images", 3)]).await.unwrap();
        assert_eq!((unit(&settled, "tokens").debt, unit(&settled, "images").debt), (19_700, 3));
        assert_eq!(used(first, "a").await, [3, 20_150, 20_150, 3, 0], "nothing is refused afterwards");
        let refused = reserve(first, of("a", &[("tokens", 1)]), &[], 0).await.unwrap();
        assert!(!allowed(&refused) && refused.retry_after_ms.is_some(), "the next call waits");
        let again = settle(first, &more, &[("images", 3), ("tokens", 19_800)]).await.unwrap();
        assert!(again.replayed && again.units == settled.units && again.settled_at == settled.settled_at);
        let otherwise = settle(first, &more, &[("tokens", 19_801)]).await.unwrap_err();
        assert_eq!(otherwise.code(), Code::FailedPrecondition, "{otherwise}");
        assert_eq!(used(first, "a").await, [3, 20_150, 20_150, 3, 0]);

        let given_back = id_of(&reserve(first, of("b", &[("tokens", 700)]), &[], 0).await.unwrap());
        let cancelled = cancel(second, &given_back).await.unwrap();
        assert_eq!((unit(&cancelled, "requests").returned, unit(&cancelled, "tokens").returned), (1, 700));
        assert_eq!(used(first, "b").await, [0; 5], "everything");
        assert!(cancel(first, &given_back).await.unwrap().replayed);
        assert_eq!(settle(first, &given_back, &[]).await.unwrap_err().code(), Code::FailedPrecondition);
    }
}

#[tokio::test]
async fn a_first_call_is_never_refused_by_an_estimate() {
    for (limit, inputs, reserved) in [
        (20_000, &[][..], 4_000),
        (20_000, &[("prompt_tokens", 1_200), ("max_tokens", 300)], 1_500),
        (20_000, &[("max_tokens", 1 << 60)], 5_000),
        (500, &[], 500),
        (500, &[("prompt_tokens", 1_000_000)], 500),
    ] {
        let node = memory_node(&policy(100, limit)).await;
        let first = reserve(&node.grpc, of("a", &[]), inputs, 0).await.unwrap();
        id_of(&first);
        assert_eq!(quota(&first, "tokens_per_minute").used, reserved, "{limit} {inputs:?}");
        // A cost stated in the call replaces the estimate.
        let output = reserve(&node.grpc, of("b", &[("tokens", limit + 1)]), &[], 0).await.unwrap();
        assert!(!allowed(&output) && output.retry_after_ms.is_none(), "never, not later");
    }
}

#[tokio::test]
async fn a_refusal_without_a_free_slot_charges_nothing() {
    let redis = RedisServer::start();
    let [[one, other]] = pairs(&redis, &policy(100, 20_000)).await;
    let memory = memory_node(&policy(100, 20_000)).await;
    for (first, second) in [(&one.grpc, &other.grpc), (&memory.grpc, &memory.grpc)] {
        let call = || of("a", &[("tokens", 10)]);
        let held = [reserve(first, call(), &[], 0).await.unwrap(), reserve(second, call(), &[], 60_000).await.unwrap()];
        let before = used(first, "a").await;
        let refused = reserve(second, call(), &[], 0).await.unwrap();
        assert!(!allowed(&refused) && refused.reservation.is_none());
        assert_eq!(refused.quota, "concurrent_requests", "the quota that refuses speaks");
        let ends = held[1].reservation.as_ref().and_then(|reservation| reservation.expires_at.as_ref()).map(ms);
        let retry_at = quota(&refused, "concurrent_requests").retry_at.as_ref().map(ms);
        assert_eq!(retry_at, Some(decided_at_ms(&refused) + 1_000), "a short wait");
        assert!(retry_at < ends, "not the earliest end of a reservation");
        assert_eq!(used(first, "a").await, before, "a refusal charges nothing");
        // A refusal by another quota occupies no slot.
        settle(second, &id_of(&held[0]), &[]).await.unwrap();
        assert!(!allowed(&reserve(first, of("a", &[("tokens", 19_990)]), &[], 0).await.unwrap()));
        assert_eq!(used(first, "a").await[4], 1);
        id_of(&reserve(first, call(), &[], 0).await.unwrap());
        // `Consume` cannot hold a slot, so a call with a concurrency quota is an error.
        let consumed = consume(first, call()).await.unwrap_err();
        assert_eq!((consumed.code(), consumed.message().split(':').next()), (Code::InvalidArgument, Some("resource")));
    }
}

#[tokio::test]
async fn a_request_id_charges_once_on_any_node() {
    let redis = RedisServer::start();
    let [[one, other]] = pairs(&redis, &policy(100, 20_000)).await;
    let memory = memory_node(&policy(100, 20_000)).await;
    for (first, second) in [(&one.grpc, &other.grpc), (&memory.grpc, &memory.grpc)] {
        let named = |tokens| Call { request_id: "call-1".to_owned(), ..of("a", &[("tokens", tokens)]) };
        // The same call again, as after a lost answer.
        let lost = reserve(first, named(10), &[], 0).await.unwrap();
        let again = reserve(second, named(10), &[], 0).await.unwrap();
        assert!(again.replayed && !lost.replayed);
        assert_eq!((&again.reservation, &again.quotas), (&lost.reservation, &lost.quotas));
        assert_eq!(used(first, "a").await, [1, 10, 10, 0, 1]);
        let other_call = reserve(second, named(11), &[], 0).await.unwrap_err();
        let field = other_call.message().split(':').next();
        assert_eq!((other_call.code(), field), (Code::InvalidArgument, Some("request_id")));
        // Request ids are separate for each account.
        let elsewhere = Call { caller: Some(account("b")), ..named(10) };
        assert!(!reserve(second, elsewhere, &[], 0).await.unwrap().replayed);

        let bulk = |id: &str| Call { request_id: id.to_owned(), ..call(account("c"), "tight", &[("tokens", 60)]) };
        assert!(allowed(&consume(first, bulk("x")).await.unwrap()));
        let again = consume(second, bulk("x")).await.unwrap();
        assert!(allowed(&again) && again.replayed && quota(&again, "tokens_per_2s").used == 60);
        // A refusal is not remembered under the request id: the same id may be admitted later.
        assert!(!allowed(&consume(second, bulk("y")).await.unwrap()));
        let bound = Duration::from_secs(10);
        let later = until("there is room", bound, async || {
            one.clock.advance_ms(100);
            other.clock.advance_ms(100);
            memory.clock.advance_ms(100);
            let decision = consume(first, bulk("y")).await.unwrap();
            allowed(&decision).then_some(decision)
        });
        assert!(!later.await.replayed);
    }
}

#[tokio::test]
async fn an_invalid_reservation_call_names_its_error_and_charges_nothing() {
    let node = memory_node(&policy(100, 20_000)).await;
    let grpc = &node.grpc;
    let held = id_of(&reserve(grpc, call(api_key(KEY), "model", &[("tokens", 10)]), &[], 0).await.unwrap());
    let field = |status: &Status| status.message().split(':').next().unwrap_or_default().to_owned();
    let long = "i".repeat(129);
    let wrong_calls = [
        (Call { request_id: long.clone(), ..of("a", &[]) }, &[][..], 0, "request_id"),
        (Call { request_id: "a\u{0}".to_owned(), ..of("a", &[]) }, &[], 0, "request_id"),
        (of("a", &[("concurrent_requests", 1)]), &[], 0, "usage.concurrent_requests"),
        (of("a", &[]), &[("max_token", 1)], 0, "inputs.max_token"),
        (of("a", &[]), &[], 999, "ttl_ms"),
        (of("a", &[]), &[], 3_600_001, "ttl_ms"),
    ];
    for (call, inputs, ttl_ms, name) in wrong_calls {
        let refused = reserve(grpc, call, inputs, ttl_ms).await.unwrap_err();
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, name), "{refused}");
    }
    let other_domain = held.replacen("rs_", "rs_AAAAAAAAAA", 1)[..51].to_owned();
    let mut guessed = held.clone().into_bytes();
    guessed[50] = if guessed[50] == b'A' { b'B' } else { b'A' };
    for (id, code) in [
        (String::new(), Code::InvalidArgument),
        ("rs_short".to_owned(), Code::InvalidArgument),
        ("x".repeat(10_000), Code::InvalidArgument),
        (other_domain, Code::NotFound),
        (String::from_utf8(guessed).unwrap(), Code::NotFound),
    ] {
        for refused in [
            settle(grpc, &id, &[]).await.unwrap_err(),
            cancel(grpc, &id).await.unwrap_err(),
            grpc.clone().extend(ExtendRequest { reservation_id: id.clone(), ttl_ms: 0 }).await.unwrap_err(),
        ] {
            assert_eq!((refused.code(), field(&refused).as_str()), (code, "reservation_id"), "{id}: {refused}");
        }
    }
    for (wrong, name) in [
        (&[("requests", 2)][..], "usage.requests"),
        (&[("concurrent_requests", 0)], "usage.concurrent_requests"),
        (&[("bananas", 2)], "usage.bananas"),
        (&[("tokens", u64::MAX)], "usage.tokens"),
    ] {
        let refused = settle(grpc, &held, wrong).await.unwrap_err();
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, name));
    }
    assert_eq!(used(grpc, "a").await, [0; 5]);
    assert_eq!(used(grpc, "acme").await, [1, 10, 10, 0, 1], "still as reserved");
    settle(grpc, &held, &[("tokens", 0)]).await.unwrap();
    assert_eq!(used(grpc, "acme").await, [1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_reservation_survives_a_reload_and_expires() {
    let node = memory_node(&policy(100, 20_000)).await;
    let kept = id_of(&reserve(&node.grpc, of("a", &[("tokens", 1_000)]), &[], 0).await.unwrap());
    let left = id_of(&reserve(&node.grpc, of("a", &[("tokens", 500)]), &[], 30_000).await.unwrap());
    let changed = policy(100, 7).replace("calendar: day, zone: Europe/Berlin", "calendar: day, zone: Asia/Tokyo");
    std::fs::write(&node.policy, changed).unwrap();
    until("the policy is the new one", Duration::from_secs(10), async || {
        let now = peek(&node.grpc, of("a", &[])).await.unwrap();
        (quota(&now, "tokens_per_minute").limit == Some(7)).then_some(())
    })
    .await;
    let settled = settle(&node.grpc, &kept, &[("tokens", 1_100)]).await.unwrap();
    assert_eq!(unit(&settled, "tokens").debt, 100);
    assert_eq!(used(&node.grpc, "a").await, [2, 1_600, 0, 0, 1]);
    node.clock.advance_ms(20_000);
    let extended = ExtendRequest { reservation_id: left.clone(), ttl_ms: 0 };
    let extended = node.grpc.clone().extend(extended).await.unwrap().into_inner().reservation.unwrap();
    assert_eq!(extended.id, left);
    node.clock.advance_ms(29_999);
    assert_eq!(used(&node.grpc, "a").await[4], 1, "kept alive");
    node.clock.advance_ms(1);
    assert_eq!(used(&node.grpc, "a").await, [2, 1_600, 0, 0, 0], "its slot returns, and what it charged stays");
    assert_eq!(settle(&node.grpc, &left, &[]).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reservations_over_rest_equal_those_over_grpc() {
    let node = memory_node(&policy(100, 20_000)).await;
    let post = async |path: &str, body: Value| node.rest.post(path, body.to_string()).await;
    let call = json!({"caller": {"account": "a"}, "resource": "model", "request_id": "one"});
    let body = json!({"call": call, "inputs": {"prompt_tokens": 7, "max_tokens": 3}, "ttl_ms": 5_000});
    let (status, reserved) = post("/v1/reserve", body.clone()).await;
    assert_eq!((status.as_u16(), &reserved["verdict"]), (200, &json!("allowed")), "{reserved}");
    let id = &reserved["reservation"]["id"];
    assert_eq!(post("/v1/reserve", body).await.1["replayed"], json!(true));
    let (status, extended) = post("/v1/extend", json!({"reservation_id": id, "ttl_ms": 9_000})).await;
    assert_eq!((status.as_u16(), &extended["id"]), (200, id));
    let (status, settled) =
        post("/v1/settle", json!({"reservation_id": id, "usage": {"tokens": 4}, "status": 200})).await;
    assert_eq!(status.as_u16(), 200, "{settled}");
    let tokens = json!({"unit": "tokens", "reserved": 10, "actual": 4, "returned": 6, "debt": 0});
    assert!(settled["units"].as_array().unwrap().contains(&tokens), "{settled}");
    assert_eq!(post("/v1/cancel", json!({"reservation_id": id})).await.0.as_u16(), 409);
    assert_eq!(post("/v1/settle", json!({"reservation_id": "rs_no"})).await.0.as_u16(), 400);
    let (_, metrics) = node.rest.text("/metrics").await;
    for line in ["tollgate_reservations_total{domain=\"shop\",event=\"reserved\"} 1", "event=\"settled\"} 1"] {
        assert!(metrics.contains(line), "{line}");
    }
}

/// 64 callers share a limit of 100 tokens and each uses 120: they run one at a time, and the reported debt equals the
/// measured debt.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_callers_exceed_the_limit_by_the_debt_at_most() {
    let redis = RedisServer::start();
    let (_folder, file) = folder_with(&policy(100, 20_000));
    let node = || ProcessBuilder::new(&file).redis(&redis.url()).start();
    let nodes = Arc::new([node(), node()]);
    let (debt, until) = (Arc::new(AtomicU64::new(0)), Instant::now() + Duration::from_secs(7));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..64 {
        let (nodes, debt) = (Arc::clone(&nodes), Arc::clone(&debt));
        callers.spawn(async move {
            let mut admitted = Vec::new();
            while Instant::now() < until {
                let grpc = |at: usize| nodes[(caller + at) % 2].grpc.clone();
                let decision = reserve(&grpc(0), call(account("hot"), "tight", &[]), &[], 0).await.expect("a decision");
                let tokens = quota(&decision, "tokens_per_2s");
                if allowed(&decision) {
                    assert_eq!(tokens.used, 100, "alone in its window, by an estimate cut to the limit");
                    let settled = settle(&grpc(1), &id_of(&decision), &[("tokens", 120)]).await.expect("a settlement");
                    debt.fetch_add(unit(&settled, "tokens").debt, Ordering::Relaxed);
                    admitted.push(decision.decided_at.as_ref().map(ms).expect("a time"));
                } else {
                    assert!(tokens.used <= 120, "no more than the limit and one debt: {}", tokens.used);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            admitted
        });
    }
    let mut admitted: Vec<u64> = callers.join_all().await.into_iter().flatten().collect();
    admitted.sort_unstable();
    assert!(admitted.len() >= 2, "more than one window went by");
    assert!(admitted.windows(2).all(|pair| pair[0] + 2_000 <= pair[1]), "one at a time: {admitted:?}");
    let debt = debt.load(Ordering::Relaxed);
    assert_eq!(debt, 20 * admitted.len() as u64);
    let mut measured = 0;
    for node in nodes.iter() {
        let (_, metrics) = node.rest.text("/metrics").await;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("tollgate_settlement_debt_total{domain=\"shop\",unit=\"tokens\"}"));
        measured += line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
    }
    assert_eq!(measured, debt, "the metric shows it");
}

/// The caller is killed while it streams. Its slot is held until the reservation's time to live has passed by Redis's
/// clock, exactly, and the estimate stays charged. Every answer carries its decision time, so a slow machine does not
/// matter.
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_a_killed_caller_is_freed() {
    const TTL_MS: u32 = 4_000;
    let redis = RedisServer::start();
    let (_folder, file) =
        folder_with(&policy(100, 20_000).replace("concurrent_requests, limit: 2", "concurrent_requests, limit: 1"));
    let node = ProcessBuilder::new(&file).redis(&redis.url()).start();
    let address =
        node.first_line.split_once("http://").and_then(|(_, rest)| rest.split(',').next()).expect("an address");
    let body =
        json!({"call": {"caller": {"account": "a"}, "resource": "model", "usage": {"tokens": 900}}, "ttl_ms": TTL_MS});
    // Reserves, prints the answer, then keeps running.
    let script = format!(
        "curl -s http://{address}/v1/reserve -H 'content-type: application/json' -d '{body}' && echo && exec sleep 600"
    );
    let mut caller = Command::new("bash").args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("a caller");
    let mut output = String::new();
    BufReader::new(caller.stdout.take().expect("piped")).read_line(&mut output).expect("a line");
    signal(caller.id(), "KILL");
    caller.wait().expect("it ends");
    let output: Value = serde_json::from_str(&output).expect("a decision");

    let ask = async || reserve(&node.grpc, of("a", &[("tokens", 5)]), &[], 0).await.expect("a decision");
    let mut expiry = None;
    let admitted = until("the slot is back", Duration::from_secs(20), async || {
        let decision = ask().await;
        if allowed(&decision) {
            return Some(decision);
        }
        let slots = quota(&decision, "concurrent_requests");
        let end = slots.resets_at.as_ref().map(ms).expect("a time");
        let expires_at = *expiry.get_or_insert(end);
        assert_eq!(expires_at, end, "asking does not put it off");
        let at = slots.retry_at.as_ref().map(ms).expect("advice");
        let now = decided_at_ms(&decision);
        assert!(now < expires_at, "still refused {} ms after the reservation has expired", now - expires_at);
        assert_eq!(at, expires_at.min(now + 1_000), "a short wait, or the end of the reservation if that is sooner");
        None
    })
    .await;
    let expires_at = expiry.expect("the slot outlives the caller");
    let text = |at| json!(Timestamp::from_ms(at).to_string());
    assert_eq!(output["reservation"]["expires_at"], text(expires_at), "{output}");
    assert_eq!(output["decided_at"], text(expires_at - u64::from(TTL_MS)), "the time to live, by Redis's clock");
    let now = decided_at_ms(&admitted);
    assert!(expires_at <= now, "admitted {} ms before the slot was free", expires_at - now);
    assert_eq!(quota(&admitted, "tokens_per_minute").used, 905, "the estimate of the killed caller stays");
    assert_eq!(quota(&admitted, "requests_per_minute").used, 2);
}
