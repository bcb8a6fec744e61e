//! "Limits & Quotas" of deAPI.

use serde_json::json;
use tollgate_api::v1::{Call, Reason, Upload, caller::By};

use super::{Answer, Platforms, answer, changed, on_every_store, on_every_store_with};

/// Endpoint, requests a minute, daily limit: "Basic Tier (Free)", every row.
const ROWS: [(&str, u64, u64); 18] = [
    ("txt2img", 3, 100),
    ("img2img", 3, 100),
    ("txt2audio", 3, 50),
    ("txt2video", 1, 15),
    ("img2video", 1, 15),
    ("aud2video", 1, 15),
    ("txt2music", 1, 15),
    ("transcribe", 3, 50),
    ("vid2txt", 3, 50),
    ("aud2txt", 3, 50),
    ("videofile2txt", 3, 50),
    ("audiofile2txt", 3, 50),
    ("img2txt", 5, 100),
    ("txt2embedding", 10, 100),
    ("img-rmbg", 5, 100),
    ("img-upscale", 5, 100),
    ("videos/replace", 1, 15),
    ("prompt/*", 10, 100),
];

const DAY: u64 = 86_400;
const MB: u64 = 1_048_576;

fn call(key: &str, endpoint: &str) -> Call {
    super::call("deapi", By::ApiKeyId(key.to_owned()), endpoint, &[])
}

/// Endpoints of a row; the last one matches several.
fn endpoints(row: &str) -> Vec<String> {
    match row.strip_suffix('*') {
        Some(prefix) => vec![format!("{prefix}enhance"), format!("{prefix}image")],
        None => vec![row.to_owned()],
    }
}

/// "Rate Limit Headers", and the body.
fn too_many(minute: (u64, u64), daily: Option<(u64, u64)>, kind: &str, retry_after: u64) -> Answer {
    let text = |(limit, remaining): (u64, u64)| (limit.to_string(), remaining.to_string());
    let ((limit, remaining), daily) = (text(minute), daily.map(text));
    let retry_after = retry_after.to_string();
    let mut headers = vec![("X-RateLimit-Limit", &*limit), ("X-RateLimit-Remaining", &*remaining)];
    if let Some((limit, remaining)) = &daily {
        headers.push(("X-RateLimit-Daily-Limit", limit));
        headers.push(("X-RateLimit-Daily-Remaining", remaining));
    }
    headers.extend([("X-RateLimit-Type", kind), ("Retry-After", &*retry_after)]);
    answer(429, &headers, r#"{"message":"Too Many Attempts."}"#)
}

#[tokio::test]
async fn every_row_of_the_basic_tier_is_enforced() {
    on_every_store(basic_tier).await;
}

async fn basic_tier(platforms: &Platforms) {
    let admitted = answer(200, &[], "");
    for (row, per_minute, per_day) in ROWS {
        let mut endpoints = endpoints(row).into_iter().cycle();
        let mut call = || call("basic-1", &endpoints.next().expect("an endpoint"));
        // Starts 250 ms after midnight UTC; the previous row ended after another midnight.
        let next_midnight = |now: u64| now.next_multiple_of(DAY * 1000);
        platforms.node.clock.advance_ms(next_midnight(platforms.ms()) - platforms.ms() + 250);
        let mut today = 0;
        while today < per_day {
            let in_this_minute = per_minute.min(per_day - today);
            for _ in 0..in_this_minute {
                assert_eq!(platforms.consume(call()).await, admitted, "{row}: request {today} of the day");
                today += 1;
            }
            if today == per_day {
                break;
            }
            platforms.node.clock.advance_ms(20_000);
            let refused = too_many((per_minute, 0), Some((per_day, per_day - today)), "minute", 40);
            assert_eq!(platforms.refused(call()).await, refused, "{row}: one more in a minute");
            platforms.node.clock.advance_ms(40_000);
        }
        // In the minute of the last request both limits may be reached; a minute later only the daily one is.
        let left = per_minute - ((per_day - 1) % per_minute + 1);
        let wait = (next_midnight(platforms.ms()) - platforms.ms()).div_ceil(1000);
        let refused = too_many((per_minute, left), Some((per_day, 0)), "daily", wait);
        assert_eq!(platforms.refused(call()).await, refused, "{row}: request {} of the day", per_day + 1);
        platforms.node.clock.advance_ms(60_000);
        let refused = too_many((per_minute, per_minute), Some((per_day, 0)), "daily", wait - 60);
        assert_eq!(platforms.refused(call()).await, refused, "{row}: a minute later");
        platforms.node.clock.advance_ms((wait - 60) * 1000);
        assert_eq!(platforms.consume(call()).await, admitted, "{row}: the next day");
    }
}

/// Both limits are reached shortly before midnight: the type is `daily`, although the wait for the minute is longer.
#[tokio::test]
async fn when_both_limits_are_reached_the_daily_one_is_named() {
    on_every_store(both_limits).await;
}

async fn both_limits(platforms: &Platforms) {
    for _ in 0..14 {
        assert_eq!(platforms.consume(call("basic-2", "txt2video")).await.status, 200);
        platforms.node.clock.advance_ms(60_000);
    }
    let to_midnight = DAY - platforms.seconds() % DAY;
    platforms.node.clock.advance_ms((to_midnight - 10) * 1000);
    assert_eq!(platforms.consume(call("basic-2", "txt2video")).await.status, 200);
    let refused = too_many((1, 0), Some((15, 0)), "daily", 60);
    assert_eq!(platforms.refused(call("basic-2", "txt2video")).await, refused);
}

/// "300 (all endpoints)", "Daily Limit: Unlimited".
#[tokio::test]
async fn premium_is_one_counter_over_all_endpoints() {
    on_every_store(premium).await;
}

async fn premium(platforms: &Platforms) {
    let all: Vec<String> = ROWS.iter().flat_map(|(row, ..)| endpoints(row)).collect();
    // More than any daily limit, over three minutes.
    for _ in 0..3 {
        for number in 0..300 {
            let endpoint = &all[number % all.len()];
            assert_eq!(platforms.consume(call("premium-1", endpoint)).await, answer(200, &[], ""), "{number}");
        }
        platforms.node.clock.advance_ms(1_500);
        for endpoint in &all {
            let refused = too_many((300, 0), None, "minute", 59);
            assert_eq!(platforms.refused(call("premium-1", endpoint)).await, refused, "{endpoint}");
        }
        platforms.node.clock.advance_ms(58_500);
    }
}

/// The other reading of the document is a setting.
#[tokio::test]
async fn premium_may_be_counted_by_endpoint() {
    let each = changed("deapi.yaml", "limit: 300, scope: [api_key] }", "limit: 300 }");
    on_every_store_with(&each, premium_by_endpoint).await;
}

async fn premium_by_endpoint(platforms: &Platforms) {
    for (row, ..) in ROWS {
        let endpoint = endpoints(row).remove(0);
        let all = Call { usage: [("requests".to_owned(), 300)].into(), ..call("premium-1", &endpoint) };
        assert_eq!(platforms.consume(all).await, answer(200, &[], ""), "{row}");
        let refused = too_many((300, 0), None, "minute", 60);
        assert_eq!(platforms.refused(call("premium-1", &endpoint)).await, refused, "{row}");
    }
}

/// "Activated automatically when you sign up", and "activated after making any payment": at once.
#[tokio::test]
async fn a_payment_makes_a_basic_account_premium() {
    on_every_store(payment).await;
}

async fn payment(platforms: &Platforms) {
    platforms.administer("deapi", "", json!({ "id": "customer" })).await;
    let key = &platforms.new_key("deapi", "customer").await;
    for _ in 0..15 {
        assert_eq!(platforms.consume(call(key, "txt2video")).await.status, 200);
        platforms.node.clock.advance_ms(60_000);
    }
    let refused = platforms.refused(call(key, "txt2video")).await;
    assert!(refused.headers.contains(&("X-RateLimit-Type".to_owned(), "daily".to_owned())), "{refused:?}");
    let payment = json!({ "id": "payment-1", "type": "payment" });
    let report = platforms.administer("deapi", "/customer/events", payment).await;
    assert_eq!(report["promoted"], json!({ "from": "basic", "to": "premium" }));
    for _ in 0..300 {
        assert_eq!(platforms.consume(call(key, "txt2video")).await, answer(200, &[], ""));
    }
    assert_eq!(platforms.refused(call(key, "txt2img")).await, too_many((300, 0), None, "minute", 60));
}

fn upload(endpoint: &str, media_type: &str, bytes: u64, duration_seconds: u64) -> Call {
    let upload = Upload { media_type: media_type.to_owned(), bytes, duration_seconds };
    Call { upload: Some(upload), ..call("premium-2", endpoint) }
}

/// "File Upload Limits", every row.
#[tokio::test]
async fn every_row_of_the_upload_limits_is_enforced() {
    on_every_store(uploads).await;
}

async fn uploads(platforms: &Platforms) {
    let rows = [
        ("img2img", "image", 10, "image"),
        ("img-upscale", "image/png", 10, "image"),
        ("transcribe", "audio", 10, "audio file"),
        ("audiofile2txt", "audio/mpeg", 10, "audio file"),
        ("aud2video", "audio", 20, "audio file"),
        ("aud2video", "audio/wav", 20, "audio file"),
        ("videofile2txt", "video", 10, "video file"),
        ("videos/replace", "video/mp4", 10, "video file"),
        ("aud2video", "image", 10, "image"),
    ];
    for (endpoint, media, megabytes, said) in rows {
        let most = megabytes * MB;
        let passes = platforms.consume(upload(endpoint, media, most, 36_000)).await;
        assert_eq!(passes, answer(200, &[], ""), "{endpoint}: {media}");
        let bytes = most + 1;
        let message = format!(
            r#"{{"message":"The {said} has {bytes} bytes; {endpoint} takes at most {megabytes} MB ({most} bytes)."}}"#
        );
        let refused = platforms.refused(upload(endpoint, media, bytes, 0)).await;
        assert_eq!(refused, answer(413, &[], &message), "{endpoint}: {media}");
        let length = platforms.consume(upload(endpoint, media, 1, 36_001)).await;
        let message =
            format!(r#"{{"message":"The {said} lasts 36001 seconds; {endpoint} takes at most 600 minutes."}}"#);
        let plays = !media.starts_with("image");
        let expected = if plays { answer(413, &[], &message) } else { answer(200, &[], "") };
        assert_eq!(length, expected, "{endpoint}: {media}");
    }
}

/// A refused upload charges nothing, and the decision reports the current usage.
#[tokio::test]
async fn a_refused_upload_charges_nothing() {
    on_every_store(refused_upload).await;
}

async fn refused_upload(platforms: &Platforms) {
    let large = || Call { caller: call("basic-3", "aud2video").caller, ..upload("aud2video", "audio", 20 * MB + 1, 0) };
    for _ in 0..5 {
        let decision = platforms.decide(large()).await;
        assert_eq!(decision.reason(), Reason::UploadTooLarge);
        assert_eq!((decision.quota.as_str(), decision.retry_after_ms), ("", None));
        assert!(decision.quotas.iter().all(|quota| quota.used == 0 && !quota.denies), "{decision:?}");
    }
    assert_eq!(platforms.consume(call("basic-3", "aud2video")).await.status, 200);
}

#[tokio::test]
async fn an_invalid_key_is_refused() {
    on_every_store(bad_key).await;
}

async fn bad_key(platforms: &Platforms) {
    let call = super::call("deapi", By::ApiKey("sk-nobody".to_owned()), "txt2img", &[]);
    assert_eq!(platforms.refused(call).await, no_such_key());
}

fn no_such_key() -> Answer {
    answer(401, &[("WWW-Authenticate", "Bearer")], r#"{"message":"Unauthenticated."}"#)
}

#[tokio::test]
async fn an_address_that_guesses_keys_is_blocked_for_a_while() {
    on_every_store(guessing).await;
}

async fn guessing(platforms: &Platforms) {
    let message = r#"{"message":"Too many failed attempts (> 10) to authenticate. Please wait 300s and try again."}"#;
    platforms.guessing("deapi", "txt2embedding", 10, 300, &no_such_key(), message).await;
}
