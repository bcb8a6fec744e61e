//! "Rate Limits" of the Venice API.

use serde_json::json;
use tollgate_api::v1::{Call, ReportOutcomeRequest, caller::By};

use super::{Answer, Platforms, answer, changed, on_every_store, on_every_store_with};

/// Class, a model of it, requests a minute, tokens a minute.
type Row = (&'static str, &'static str, u64, Option<u64>);

/// "Text & Embedding Models", "Image Models" and "Audio Models", every row.
const ROWS: [Row; 16] = [
    ("X-Small", "qwen3-4b", 500, Some(5_000_000)),
    ("Small", "venice-uncensored", 150, Some(3_000_000)),
    ("Medium", "llama-3.3-70b", 100, Some(2_000_000)),
    ("Large", "zai-org-glm-5-1", 100, Some(2_000_000)),
    ("DeepInfra", "deepseek-v3.2", 150, Some(10_000_000)),
    ("Anthropic (direct)", "claude-opus-4-6", 500, Some(5_000_000)),
    ("xAI (direct)", "grok-41-fast", 500, Some(10_000_000)),
    ("OpenRouter", "openai-gpt-52", 1_000, None),
    ("Parasail", "kimi-k2-5", 1_000, None),
    ("Default", "venice-sd35", 20, None),
    ("Bytedance", "seedream-v4", 50, None),
    ("Fal", "flux-2-pro", 50, None),
    ("xAI grok-imagine", "grok-imagine-image", 120, None),
    ("xAI grok-imagine (pro)", "grok-imagine-image-pro", 20, None),
    ("Text-to-speech (TTS)", "tts-kokoro", 60, None),
    ("Speech-to-text (ASR)", "nvidia/parakeet-tdt-0.6b-v3", 60, None),
];

/// "Video & Music Models: Not rate-limited".
const NOT_LIMITED: [&str; 4] =
    ["wan-2.5-preview-text-to-video", "sora-2-text-to-video", "elevenlabs-music", "minimax-music-v2"];

fn call(account: &str, model: &str, usage: &[(&str, u64)]) -> Call {
    super::call("venice", By::Account(account.to_owned()), model, usage)
}

/// The headers of "Response Headers", which every answer carries.
struct Headers {
    requests: (u64, u64, u64),
    tokens: Option<(u64, u64, u64)>,
}

impl Headers {
    fn on(&self, status: u32, more: &[(&str, &str)], body: &str) -> Answer {
        let numbers = |(limit, remaining, reset): (u64, u64, u64)| [limit, remaining, reset].map(|n| n.to_string());
        let [limit, remaining, reset] = &numbers(self.requests);
        let tokens = self.tokens.map(numbers);
        let mut headers = vec![
            ("x-ratelimit-limit-requests", &**limit),
            ("x-ratelimit-remaining-requests", &**remaining),
            ("x-ratelimit-reset-requests", &**reset),
        ];
        if let Some([limit, remaining, reset]) = &tokens {
            headers.push(("x-ratelimit-limit-tokens", limit));
            headers.push(("x-ratelimit-remaining-tokens", remaining));
            headers.push(("x-ratelimit-reset-tokens", reset));
        }
        headers.extend(more);
        answer(status, &headers, body)
    }
}

#[tokio::test]
async fn every_row_of_requests_a_minute_is_enforced() {
    on_every_store(async |platforms| requests_a_minute(platforms, &ROWS).await).await;
}

async fn requests_a_minute(platforms: &Platforms, rows: &[Row]) {
    for &(class, model, per_minute, tokens) in rows {
        let usage: &[(&str, u64)] = if tokens.is_some() { &[("tokens", 10)] } else { &[] };
        let call = || call("requests", model, usage);
        // 7.5 s after a full second.
        platforms.node.clock.advance_ms(67_500);
        let first = platforms.seconds();
        for number in 1..=per_minute {
            let expected = Headers {
                requests: (per_minute, per_minute - number, first + 60),
                tokens: tokens.map(|limit| (limit, limit - 10 * number, 60)),
            };
            assert_eq!(platforms.consume(call()).await, expected.on(200, &[], ""), "{class}: request {number}");
        }
        platforms.node.clock.advance_ms(47_250);
        let refused = Headers {
            requests: (per_minute, 0, first + 60),
            tokens: tokens.map(|limit| (limit, limit - 10 * per_minute, 13)),
        };
        let refused = refused.on(429, &[("Retry-After", "13")], r#"{"error":"Rate limit exceeded"}"#);
        assert_eq!(platforms.refused(call()).await, refused, "{class}: request {}", per_minute + 1);
        platforms.node.clock.advance_ms(13_000);
        assert_eq!(platforms.consume(call()).await.status, 200, "{class}: after Retry-After");
    }
}

#[tokio::test]
async fn every_row_of_tokens_a_minute_is_enforced() {
    on_every_store(async |platforms| tokens_a_minute(platforms, &ROWS).await).await;
}

async fn tokens_a_minute(platforms: &Platforms, rows: &[Row]) {
    for &(class, model, per_minute, tokens) in rows {
        let call = |tokens| call("tokens", model, &[("tokens", tokens)]);
        let start = platforms.seconds();
        let Some(limit) = tokens else {
            // No limit: any amount is admitted.
            let expected = Headers { requests: (per_minute, per_minute - 1, start + 60), tokens: None };
            assert_eq!(platforms.consume(call(9_007_199_254_740_991)).await, expected.on(200, &[], ""), "{class}");
            continue;
        };
        let headers = |requests, remaining, reset: u64| Headers {
            requests: (per_minute, per_minute - requests, start + reset),
            tokens: Some((limit, remaining, reset)),
        };
        // A cost above the limit is never admitted, so there is no wait.
        let message = format!(
            r#"{{"error":"Request too large: it needs {}, and the limit is {limit} tokens per minute"}}"#,
            limit + 1
        );
        let never = platforms.refused(call(limit + 1)).await;
        assert_eq!(never, headers(0, limit, 0).on(413, &[("x-should-retry", "false")], &message), "{class}");
        assert_eq!(platforms.consume(call(limit)).await, headers(1, 0, 60).on(200, &[], ""), "{class}: all at once");
        let refused = headers(1, 0, 60).on(429, &[("Retry-After", "60")], r#"{"error":"Rate limit exceeded"}"#);
        assert_eq!(platforms.refused(call(1)).await, refused, "{class}: one more");
    }
}

#[tokio::test]
async fn video_and_music_are_not_limited() {
    on_every_store(video_and_music).await;
}

async fn video_and_music(platforms: &Platforms) {
    for model in NOT_LIMITED {
        for _ in 0..50 {
            let admitted = platforms.consume(call("video", model, &[("requests", 1_000_000)])).await;
            assert_eq!(admitted, answer(200, &[], ""), "{model}");
        }
    }
}

/// "Each model resolves to a model-specific override if one exists", before the class of its provider and of its size;
/// other models of these classes stay with them.
#[tokio::test]
async fn a_model_may_have_limits_of_its_own() {
    let own = |file: &str, policy: String| {
        let medium = changed(
            "venice.yaml",
            "llama-3.3-70b: { class: text/medium }",
            "llama-3.3-70b: { class: text/medium, quotas: [{ unit: requests, per: minute, limit: 7 }, \
             { unit: tokens, per: minute, limit: 1234567 }] }",
        );
        let provider = changed(
            "venice.yaml",
            "claude-opus-4-6: { class: text/large, provider_class: anthropic }",
            "claude-opus-4-6: { class: text/large, provider_class: anthropic, \
             quotas: [{ unit: requests, per: minute, limit: 3 }] }",
        );
        provider(file, medium(file, policy))
    };
    let rows = [
        ("its own", "llama-3.3-70b", 7, Some(1_234_567)),
        ("its own, not its provider's", "claude-opus-4-6", 3, None),
        ("Medium", "qwen3-next-80b", 100, Some(2_000_000)),
        ("Anthropic (direct)", "claude-sonnet-4-6", 500, Some(5_000_000)),
    ];
    on_every_store_with(&own, async |platforms| {
        requests_a_minute(platforms, &rows).await;
        tokens_a_minute(platforms, &rows).await;
    })
    .await;
}

/// "Each model resolves to a model-specific override if one exists", for partners with numbers of their own.
#[tokio::test]
async fn a_partner_has_limits_of_its_own() {
    on_every_store(partner).await;
}

async fn partner(platforms: &Platforms) {
    for (model, requests, tokens) in [
        ("llama-3.3-70b", 1_000, Some(20_000_000)),
        ("claude-sonnet-4-6", 2_000, Some(20_000_000)),
        ("venice-sd35", 200, None),
        ("qwen3-4b", 500, Some(5_000_000)),
    ] {
        let start = platforms.seconds();
        let usage: &[(&str, u64)] =
            if tokens.is_some() { &[("requests", requests), ("tokens", 1)] } else { &[("requests", requests)] };
        let expected =
            Headers { requests: (requests, 0, start + 60), tokens: tokens.map(|limit| (limit, limit - 1, 60)) };
        assert_eq!(platforms.consume(call("demo-partner", model, usage)).await, expected.on(200, &[], ""), "{model}");
        assert_eq!(platforms.refused(call("demo-partner", model, &[])).await.status, 429, "{model}");
    }
}

/// Counters are separate for each account and model.
#[tokio::test]
async fn accounts_and_models_are_counted_separately() {
    on_every_store(check_counted_separately).await;
}

async fn check_counted_separately(platforms: &Platforms) {
    let full = |account, model| call(account, model, &[("requests", 20)]);
    for (account, model) in [("a", "venice-sd35"), ("a", "upscaler"), ("b", "venice-sd35")] {
        assert_eq!(platforms.consume(full(account, model)).await.status, 200, "{account} {model}");
    }
    assert_eq!(platforms.refused(full("a", "venice-sd35")).await.status, 429);
}

/// Two keys of one account, for every row. By default they share one limit. With a setting, each has the whole limit.
async fn two_keys(platforms: &Platforms, apart: bool) {
    platforms.administer("venice", "", json!({ "id": "two-keys" })).await;
    let keys = [platforms.new_key("venice", "two-keys").await, platforms.new_key("venice", "two-keys").await];
    for (class, model, per_minute, tokens) in ROWS {
        let call = |key: &str, requests: u64| {
            let usage = [("requests", requests), ("tokens", 10)];
            let usage = if tokens.is_some() { &usage[..] } else { &usage[..1] };
            super::call("venice", By::ApiKeyId(key.to_owned()), model, usage)
        };
        let start = platforms.seconds();
        let headers = |requests, calls| Headers {
            requests: (per_minute, per_minute - requests, start + 60),
            tokens: tokens.map(|limit| (limit, limit - 10 * calls, 60)),
        };
        let admitted = async |key: &str, requests, (used, calls): (u64, u64)| {
            let expected = headers(used, calls).on(200, &[], "");
            assert_eq!(platforms.consume(call(key, requests)).await, expected, "{class}: {used} with {key}");
        };
        let refused = async |key: &str| {
            let body = r#"{"error":"Rate limit exceeded"}"#;
            let expected = headers(per_minute, 2).on(429, &[("Retry-After", "60")], body);
            assert_eq!(platforms.refused(call(key, 1)).await, expected, "{class}: one more with {key}");
        };
        let [one, two] = &keys;
        let (almost, full) = ((per_minute - 1, 1), (per_minute, 2));
        admitted(one, per_minute - 1, almost).await;
        if apart {
            admitted(one, 1, full).await;
            refused(one).await;
            admitted(two, per_minute - 1, almost).await;
            admitted(two, 1, full).await;
            refused(two).await;
        } else {
            admitted(two, 1, full).await;
            refused(one).await;
            refused(two).await;
        }
    }
}

#[tokio::test]
async fn keys_of_an_account_share_its_limits() {
    on_every_store(async |platforms| two_keys(platforms, false).await).await;
}

#[tokio::test]
async fn keys_of_an_account_may_be_counted_separately() {
    let scope = "\n  quotas: [account, resource]\n";
    let each = changed("venice.yaml", scope, "\n  quotas: [api_key, resource]\n");
    on_every_store_with(&each, async |platforms| two_keys(platforms, true).await).await;
}

/// "Abuse Protection: more than 20 failed requests in 30 seconds".
#[tokio::test]
async fn too_many_failed_requests_are_blocked() {
    on_every_store(failed_requests).await;
}

async fn failed_requests(platforms: &Platforms) {
    let model = "llama-3.3-70b";
    let attempt = || call("failing", model, &[("tokens", 100)]);
    let start = platforms.seconds();
    for failures in 0..=20 {
        let requests = failures + 1;
        let expected = Headers {
            requests: (100, 100 - requests, start + 60 + failures),
            tokens: Some((2_000_000, 2_000_000 - 100 * requests, 60)),
        };
        assert_eq!(platforms.consume(attempt()).await, expected.on(200, &[], ""), "after {failures} failures");
        let report = ReportOutcomeRequest {
            domain: "venice".to_owned(),
            caller: attempt().caller,
            resource: model.to_owned(),
            status: 500,
            ..ReportOutcomeRequest::default()
        };
        platforms.node.grpc.clone().report_outcome(report).await.unwrap();
        platforms.node.clock.advance_ms(if failures == 20 { 500 } else { 1_000 });
    }
    // 0.5 s into a block of 30 s.
    let blocked = Headers { requests: (100, 79, start + 50), tokens: Some((2_000_000, 1_997_900, 30)) };
    let sentence = concat!(
        r#"{"error":"Too many failed attempts (> 20) resulting in a non-success status code. "#,
        r#"Please wait 30s and try again."}"#
    );
    assert_eq!(platforms.refused(attempt()).await, blocked.on(429, &[("Retry-After", "30")], sentence));
    platforms.node.clock.advance_ms(29_500);
    assert_eq!(platforms.consume(attempt()).await.status, 200, "the block is over");
}

#[tokio::test]
async fn an_invalid_key_is_refused() {
    on_every_store(bad_key).await;
}

async fn bad_key(platforms: &Platforms) {
    let call = super::call("venice", By::ApiKey("sk-nobody".to_owned()), "llama-3.3-70b", &[]);
    assert_eq!(platforms.refused(call).await, no_such_key());
}

fn no_such_key() -> Answer {
    answer(401, &[("WWW-Authenticate", "Bearer")], r#"{"error":"Authentication failed"}"#)
}

#[tokio::test]
async fn an_address_that_guesses_keys_is_blocked_for_a_while() {
    on_every_store(guessing).await;
}

async fn guessing(platforms: &Platforms) {
    let message = concat!(
        r#"{"error":"Too many failed attempts (> 20) resulting in a non-success status code. "#,
        r#"Please wait 30s and try again."}"#
    );
    platforms.guessing("venice", "llama-3.3-70b", 20, 30, &no_such_key(), message).await;
}
