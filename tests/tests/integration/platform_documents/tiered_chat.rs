//! "Rate Limits" of the tiered chat platform.

use tollgate_api::v1::{Call, caller::By};

use super::{Answer, Platforms, answer, on_every_store};

/// Tier, requests a minute, tokens a minute, requests a day, priority.
type Row = (&'static str, u64, u64, u64, &'static str);

/// "Rate Limit Tiers"; Enterprise is unlimited.
const ROWS: [Row; 3] =
    [("free", 10, 40_000, 500, "1"), ("basic", 50, 200_000, 10_000, "2"), ("pro", 100, 1_000_000, 100_000, "3")];

const RESOURCES: [&str; 3] = ["chat", "images", "audio"];

fn call(key: &str, resource: &str, usage: &[(&str, u64)]) -> Call {
    super::call("tiered-chat", By::ApiKeyId(key.to_owned()), resource, usage)
}

/// "Rate Limit Headers": limit, used and reset of requests a minute.
fn headers(
    status: u32,
    (limit, used, reset): (u64, u64, u64),
    (resource, priority): (&str, &str),
    more: &[(&str, &str)],
    body: &str,
) -> Answer {
    let (limit, remaining, used, reset) =
        (limit.to_string(), (limit - used).to_string(), used.to_string(), reset.to_string());
    let mut headers = vec![
        ("X-RateLimit-Limit", &*limit),
        ("X-RateLimit-Remaining", &*remaining),
        ("X-RateLimit-Reset", &*reset),
        ("X-RateLimit-Resource", resource),
        ("X-RateLimit-Used", &*used),
        ("X-Request-Priority", priority),
    ];
    headers.extend(more);
    answer(status, &headers, body)
}

fn exceeded(seconds: u64) -> String {
    format!(
        r#"{{"error":{{"type":"rate_limit_error","message":"Rate limit exceeded. Please retry after {seconds} seconds.","code":"rate_limit_exceeded"}}}}"#
    )
}

/// Each key has one counter over all resources.
async fn requests_a_minute(platforms: &Platforms) {
    for (tier, per_minute, _, _, priority) in ROWS {
        let key = format!("{tier}-1");
        platforms.node.clock.advance_ms(60_250);
        let first = platforms.seconds();
        let mut resources = RESOURCES.into_iter().cycle();
        for used in 1..=per_minute {
            let resource = resources.next().expect("a resource");
            let expected = headers(200, (per_minute, used, first + 60), (resource, priority), &[], "");
            assert_eq!(platforms.consume(call(&key, resource, &[])).await, expected, "{tier}: request {used}");
        }
        platforms.node.clock.advance_ms(48_000);
        for resource in RESOURCES {
            let about = (per_minute, per_minute, first + 60);
            let expected = headers(429, about, (resource, priority), &[("Retry-After", "12")], &exceeded(12));
            assert_eq!(platforms.refused(call(&key, resource, &[])).await, expected, "{tier}: one more");
        }
        platforms.node.clock.advance_ms(12_000);
        assert_eq!(platforms.consume(call(&key, "chat", &[])).await.status, 200, "{tier}: after Retry-After");
    }
}

async fn tokens_a_minute(platforms: &Platforms) {
    for (tier, per_minute, tokens, _, priority) in ROWS {
        let call = |tokens| call(&format!("{tier}-2"), "chat", &[("tokens", tokens)]);
        let about = ("chat", priority);
        let start = platforms.seconds();
        let message = format!(
            r#"{{"error":{{"type":"invalid_request_error","message":"Request too large: it needs {}, and the limit is {tokens} tokens per minute.","code":"request_too_large"}}}}"#,
            tokens + 1
        );
        let never = headers(413, (per_minute, 0, start), about, &[("x-should-retry", "false")], &message);
        assert_eq!(platforms.refused(call(tokens + 1)).await, never, "{tier}: above the limit itself");
        let admitted = headers(200, (per_minute, 1, start + 60), about, &[], "");
        assert_eq!(platforms.consume(call(tokens)).await, admitted, "{tier}: all at once");
        // The headers report requests, which have room; the wait is that of the tokens.
        let refused = headers(429, (per_minute, 1, start + 60), about, &[("Retry-After", "60")], &exceeded(60));
        assert_eq!(platforms.refused(call(1)).await, refused, "{tier}: one more");
    }
}

/// A sliding day, filled one minute's limit at a time.
async fn requests_a_day(platforms: &Platforms) {
    for (tier, per_minute, _, per_day, priority) in ROWS {
        let key = format!("{tier}-3");
        let full_minute = || call(&key, "chat", &[("requests", per_minute)]);
        let first = platforms.seconds();
        for _ in 0..per_day / per_minute {
            let expected =
                headers(200, (per_minute, per_minute, platforms.seconds() + 60), ("chat", priority), &[], "");
            assert_eq!(platforms.consume(full_minute()).await, expected, "{tier}");
            platforms.node.clock.advance_ms(60_000);
        }
        let (now, wait) = (platforms.seconds(), first + 86_400 - platforms.seconds());
        let more = [("Retry-After", &*wait.to_string()), ("x-should-retry", "false")];
        let refused = headers(429, (per_minute, 0, now), ("chat", priority), &more, &exceeded(wait));
        assert_eq!(platforms.refused(call(&key, "chat", &[])).await, refused, "{tier}: request {}", per_day + 1);
        platforms.node.clock.advance_ms(wait * 1000);
        assert_eq!(platforms.consume(call(&key, "chat", &[])).await.status, 200, "{tier}: a day later");
    }
}

#[tokio::test]
async fn every_row_of_the_document_is_enforced() {
    on_every_store(async |platforms| {
        requests_a_minute(platforms).await;
        tokens_a_minute(platforms).await;
        requests_a_day(platforms).await;
    })
    .await;
}

/// "Enterprise: Unlimited, Unlimited, Unlimited".
#[tokio::test]
async fn enterprise_is_unlimited() {
    on_every_store(enterprise).await;
}

async fn enterprise(platforms: &Platforms) {
    for number in 1..=200_u64 {
        let usage = [("requests", 1_000), ("tokens", 10_000_000)];
        let used = (number * 1_000).to_string();
        let expected = [("X-RateLimit-Resource", "audio"), ("X-RateLimit-Used", &*used), ("X-Request-Priority", "4")];
        assert_eq!(platforms.consume(call("enterprise-1", "audio", &usage)).await, answer(200, &expected, ""));
    }
}

/// The decision carries the priority too, for callers that render nothing.
#[tokio::test]
async fn the_priority_comes_from_the_tier() {
    on_every_store(priority).await;
}

async fn priority(platforms: &Platforms) {
    for (tier, priority) in [("free", 1), ("basic", 2), ("pro", 3), ("enterprise", 4)] {
        let decision = platforms.decide(call(&format!("{tier}-1"), "chat", &[])).await;
        assert_eq!(decision.priority, priority, "{tier}");
        let body = format!(r#"{{"domain":"tiered-chat","caller":{{"api_key_id":"{tier}-1"}},"resource":"chat"}}"#);
        let (_, decision) = platforms.node.rest.post("/v1/check", body).await;
        assert_eq!(decision["priority"], priority, "{tier}");
    }
}

/// Each key has limits of its own.
#[tokio::test]
async fn keys_are_counted_separately() {
    on_every_store(check_counted_separately).await;
}

async fn check_counted_separately(platforms: &Platforms) {
    let full = |key| call(key, "chat", &[("requests", 10)]);
    assert_eq!(platforms.consume(full("free-1")).await.status, 200);
    assert_eq!(platforms.refused(full("free-1")).await.status, 429);
    assert_eq!(platforms.consume(full("free-2")).await.status, 200);
}

#[tokio::test]
async fn an_invalid_key_is_refused() {
    on_every_store(bad_key).await;
}

async fn bad_key(platforms: &Platforms) {
    let call = super::call("tiered-chat", By::ApiKey("sk-nobody".to_owned()), "chat", &[]);
    assert_eq!(platforms.refused(call).await, no_such_key());
}

fn no_such_key() -> Answer {
    let body = r#"{"error":{"type":"authentication_error","message":"Invalid API key.","code":"invalid_api_key"}}"#;
    answer(401, &[("WWW-Authenticate", "Bearer")], body)
}

#[tokio::test]
async fn an_address_that_guesses_keys_is_blocked_for_a_while() {
    on_every_store(guessing).await;
}

async fn guessing(platforms: &Platforms) {
    let message = concat!(
        r#"{"error":{"type":"rate_limit_error","message":"Too many failed attempts (> 10) to authenticate. "#,
        r#"Please wait 300s and try again.","code":"rate_limit_exceeded"}}"#
    );
    platforms.guessing("tiered-chat", "chat", 10, 300, &no_such_key(), message).await;
}
