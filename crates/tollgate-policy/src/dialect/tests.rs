mod hidden;
mod refused_as;
mod slots;

use std::sync::LazyLock;

use insta::assert_snapshot;
use proptest::prelude::*;
use tollgate_core::{
    amount::{Amount, Limit},
    claim::Fit,
    time::Timestamp,
};

use super::{tables::TABLES, *};
use crate::{
    decision::QuotaStatus,
    loaded::LoadedPolicy,
    policy::{Caller, Quota, Usage},
    reason::{InvalidKey, Reason},
};

const NOW: Timestamp = Timestamp::from_ms(1_746_575_940_250);

const POLICY: &str = r"
version: 1
domain: shop
units: [tokens]
resources:
  chat:
    quotas:
      - { unit: requests, per: minute, limit: 100 }
      - { unit: tokens, per: minute, limit: 40000 }
      - { unit: requests, per: { calendar: day }, limit: 500 }
tiers: { paid: { is_charged: true, priority: 2 } }
default_tier: paid
";

fn load(text: &str) -> LoadedPolicy {
    LoadedPolicy::parse("policy.yaml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn policy(more: &str) -> LoadedPolicy {
    load(&format!("{POLICY}{more}"))
}

fn report(more: &str) -> String {
    let parsed = LoadedPolicy::parse("policy.yaml", &format!("{POLICY}{more}"));
    parsed.map_or_else(|errors| errors.to_string(), |_| "no mistakes".to_owned())
}

fn quotas(policy: &Policy) -> Vec<&Quota> {
    let partition = policy.account_partition("a");
    let caller = Caller { partition, tier: policy.default_tier(), account_overrides: &[], key: None };
    policy.resolve(&caller, "chat").unwrap().quotas().iter().map(|active| active.quota).collect()
}

/// The state of a quota: its limit, its usage, its reset time, and when it admits the call.
fn status(quota: &Quota, limit: Option<u32>, used: u32, resets_ms: u64, fit: Fit) -> QuotaStatus<'_> {
    let limit = limit.map_or(Limit::Unlimited, |limit| Limit::Finite(Amount::from(limit)));
    QuotaStatus { quota, limit, used: Amount::from(used), resets_at: NOW.plus_ms(resets_ms), pool_remaining: None, fit }
}

fn facts<'a>(kind: ResponseKind, quotas: &'a [QuotaStatus<'a>], usage: &'a Usage) -> Facts<'a> {
    Facts {
        kind,
        now: NOW,
        retry_at: None,
        quotas,
        binding: Some(0),
        usage: Some(usage),
        message: None,
        domain: Some("shop"),
        resource: Some("chat"),
        tier: Some("paid"),
        priority: Some(2),
        account: Some("acme"),
        api_key_id: Some("acme-1"),
    }
}

fn shown(rendered: &Rendered) -> String {
    let mut lines = vec![rendered.status.to_string()];
    lines.extend(rendered.headers.iter().map(|(name, value)| format!("  {name}: {value}")));
    lines.extend(rendered.body.iter().map(|body| format!("  {body}")));
    lines.join("\n") + "\n"
}

/// The rendering of every kind of answer in a dialect.
fn every_answer(dialect: &Dialect) -> String {
    let loaded = policy("");
    let [minute, tokens, day] = quotas(&loaded.policy)[..] else { panic!("three quotas") };
    let usage = loaded.policy.usage([("tokens", 1500)]).unwrap();
    let at = |ms| Fit::At(NOW.plus_ms(ms));
    let admitted = [
        status(minute, Some(100), 3, 59_001, Fit::Now),
        status(tokens, Some(40_000), 1_500, 59_001, Fit::Now),
        status(day, Some(500), 3, 59_750, Fit::Now),
    ];
    let refused = [
        status(minute, Some(100), 100, 59_001, at(11_050)),
        status(tokens, Some(40_000), 39_000, 59_001, at(900)),
        status(day, Some(500), 100, 59_750, Fit::Now),
    ];
    let out_for_today = [
        status(minute, Some(100), 100, 59_001, at(11_050)),
        status(tokens, Some(40_000), 0, 0, Fit::Now),
        status(day, Some(500), 500, 3_600_000, at(3_600_000)),
    ];
    let never = [
        status(minute, Some(100), 3, 59_001, Fit::Now),
        status(tokens, Some(1_000), 500, 59_001, Fit::Never),
        status(day, None, 3, 59_750, Fit::Now),
    ];
    let unlimited = [
        status(minute, None, 3, 59_001, Fit::Now),
        status(tokens, None, 1_500, 59_001, Fit::Now),
        status(day, None, 3, 59_750, Fit::Now),
    ];
    let refused_for = ResponseKind::Refused;
    let answer = |facts: Facts<'_>| shown(&dialect.render(&facts));
    let after = |ms, facts: Facts<'_>| answer(Facts { retry_at: Some(NOW.plus_ms(ms)), ..facts });
    let exceeded = refused_for(Reason::QuotaExceeded);
    let message = "Too many failed attempts (> 20). Please wait 30s and try again.";
    let upload = "The image has 10485761 bytes; img2img takes at most 10 MB (10485760 bytes).";
    let bad_key = |why| Facts {
        binding: None,
        usage: None,
        resource: None,
        tier: None,
        priority: None,
        account: None,
        api_key_id: None,
        ..facts(refused_for(Reason::InvalidKey(why)), &[], &usage)
    };
    [
        "allowed: ".to_owned() + &answer(facts(ResponseKind::Allowed, &admitted, &usage)),
        "unlimited: ".to_owned() + &answer(facts(ResponseKind::Allowed, &unlimited, &usage)),
        "for seconds: ".to_owned() + &after(11_050, facts(exceeded, &refused, &usage)),
        "for today: ".to_owned()
            + &after(3_600_000, Facts { binding: Some(2), ..facts(exceeded, &out_for_today, &usage) }),
        "for ever: ".to_owned()
            + &answer(Facts { binding: Some(1), ..facts(refused_for(Reason::CostAboveLimit), &never, &usage) }),
        "blocked: ".to_owned()
            + &after(
                29_001,
                Facts { message: Some(message.to_owned()), ..facts(refused_for(Reason::Blocked), &admitted, &usage) },
            ),
        "upload: ".to_owned()
            + &answer(Facts {
                message: Some(upload.to_owned()),
                ..facts(refused_for(Reason::UploadTooLarge), &admitted, &usage)
            }),
        "no such key: ".to_owned() + &answer(bad_key(InvalidKey::Unknown)),
    ]
    .join("\n")
}

#[test]
fn every_built_in_dialect() {
    for (name, _) in TABLES {
        assert_snapshot!(name, every_answer(built_in::named(name).unwrap()));
    }
}

#[test]
fn built_in_tables_are_valid_in_policy_files() {
    for (name, table) in TABLES {
        let indented = table.replace('\n', "\n    ");
        let policy =
            format!("units: [tokens]\n{}dialects:\n  own:\n    {indented}", POLICY.replace("units: [tokens]", ""));
        // Anthropic's table names units that few policies have.
        let policy = policy.replace("units: [tokens]", "units: [tokens, input_tokens, output_tokens]");
        assert!(LoadedPolicy::parse("policy.yaml", &policy).map_err(|errors| panic!("{name}: {errors}")).is_ok());
    }
}

#[test]
fn a_platforms_own_dialect() {
    let loaded = policy(
        r#"
dialect: acme
dialects:
  acme:
    headers:
      - { name: X-Acme-Left, quota: { unit: requests, per: minute }, value: remaining, unlimited: plenty }
      - { name: X-Acme-Day, quota: { name: requests_per_calendar_day }, value: [retry_at, reset], format: rfc3339 }
      - { name: X-Acme-Hour, quota: { unit: requests, per: hour }, value: remaining, missing: none }
      - { name: X-Acme-Slow-Down, value: retry_after, format: go_duration, on: quota_exceeded }
    answers:
      quota_exceeded: { status: 420, body: { "{hint}": "{{{resource}}}: {used} of {limit}", wait: "{retry_after}", left: ["{remaining}"] } }
"#,
    );
    assert_snapshot!(every_answer(loaded.dialects.choose("").unwrap()));
    assert_eq!(
        every_answer(loaded.dialects.choose("venice").unwrap()),
        every_answer(built_in::named("venice").unwrap())
    );
}

/// The units of the reset headers are settings, and so is everything else of a built-in dialect.
#[test]
fn a_built_in_dialect_changed_in_a_few_lines() {
    let loaded = policy(
        r#"
dialect: venice
dialects:
  venice:
    extends: venice
    headers:
      - { name: X-RateLimit-Reset-Requests, format: epoch_milliseconds }
      - { name: x-ratelimit-reset-tokens, format: go_duration }
      - { name: x-ratelimit-limit-requests, unlimited: "0" }
      - { name: WWW-Authenticate, on: never }
    answers:
      bad_key: { status: 403 }
"#,
    );
    assert_snapshot!(every_answer(loaded.dialects.choose("").unwrap()));
}

/// If waiting is useless, or takes longer than SDKs wait, the answer tells SDKs not to retry. deAPI's page has no such
/// header; a few lines add it.
#[test]
fn sdks_are_told_when_not_to_retry() {
    let loaded = policy(
        r"
dialect: deapi
dialects:
  deapi:
    extends: deapi
    retry_within: 120s
    headers:
      - { name: x-should-retry, value: should_retry, on: [quota_exceeded, cost_above_limit, blocked] }
",
    );
    let kinds = |dialect: &Dialect| -> Vec<String> {
        let answers = every_answer(dialect);
        let told = answers.split("\n\n").filter(|answer| answer.contains("x-should-retry: false"));
        told.map(|answer| answer.split(':').next().unwrap().to_owned()).collect()
    };
    for (name, _) in TABLES {
        let expected: &[&str] = match name {
            "deapi" | "none" => &[],
            // Its SDKs wait for hours.
            "anthropic" => &["for ever"],
            _ => &["for today", "for ever"],
        };
        assert_eq!(kinds(built_in::named(name).unwrap()), expected, "{name}");
    }
    assert_eq!(kinds(loaded.dialects.choose("").unwrap()), ["for today", "for ever"]);
}

#[test]
fn every_mistake_in_a_table_is_reported_at_once() {
    let more = r#"
dialect: acne
dialects:
  acme:
    extends: vienna
    headers:
      - { name: "X Acme", value: limit }
      - { name: Content-Length, value: limit }
      - { name: X-A, value: limit, text: both }
      - { name: x-a, text: twice }
      - { name: X-B, value: limit, format: rfc3339 }
      - { name: X-C, value: retry_at, format: stardate }
      - { name: X-D, quota: { unit: token }, value: limit }
      - { name: X-E, text: "two\r\nlines" }
      - { name: X-F, on: sometimes, text: f }
      - { name: X-G, first_refusing: [{ quota: { unit: bytes }, text: bytes }] }
    answers:
      quota_exceeded: { status: 200 }
      cost_above_limit: { body: { a: "{retry_after}", b: "{colour}", c: "{ open", d: "} closed" } }
      bad_key: { body: "{resource}" }
      blocked: { body: "{message:rfc3339}", quota: { unit: bytes } }
      forbidden: {}
"#;
    assert_snapshot!(report(more));
    assert!(report("dialect: acne\n").contains("there is no dialect \"acne\"; there is: venice, tiered-chat, deapi"));
}

#[test]
fn an_unknown_dialect_is_refused_by_name() {
    let loaded = policy("dialects: { acme: {}, zebra: {} }");
    let refused = loaded.dialects.choose("vienna").err().map(|unknown| unknown.to_string());
    assert_eq!(
        refused.as_deref(),
        Some(
            "dialect: there is no dialect \"vienna\"; there is: acme, zebra, venice, tiered-chat, deapi, openai, \
             anthropic, ietf, none"
        )
    );
}

/// Of several quotas the strictest is chosen, whether it is the account's or the key's.
#[test]
fn the_strictest_of_several_quotas_is_chosen() {
    let loaded = policy("");
    let [minute, ..] = quotas(&loaded.policy)[..] else { panic!("quotas") };
    let selector = Selector { unit: Some(minute.unit.id), length_ms: Some(60_000), name: None };
    let now = Fit::Now;
    let roomy = status(minute, Some(100), 10, 0, now);
    let tight = status(minute, Some(50), 45, 0, now);
    let unlimited = status(minute, None, 45, 0, now);
    let refusing = status(minute, Some(100), 1, 0, Fit::At(NOW.plus_ms(5)));
    let never = status(minute, Some(1), 0, 0, Fit::Never);
    assert_eq!(selector.choose(&[roomy, tight, unlimited]), Some(1));
    assert_eq!(selector.choose(&[unlimited, roomy]), Some(1));
    assert_eq!(selector.choose(&[unlimited]), Some(0));
    assert_eq!(selector.choose(&[tight, refusing, roomy]), Some(1));
    assert_eq!(selector.choose(&[refusing, never]), Some(1));
    assert_eq!(selector.choose(&[roomy, roomy]), Some(0));
    assert_eq!(selector.choose(&[]), None);
}

/// Shadows refuse no call, and callers do not see them.
#[test]
fn shadow_quotas_are_not_rendered() {
    let loaded = policy("shadow: true\n");
    let usage = loaded.policy.usage([]).unwrap();
    let quotas = quotas(&loaded.policy);
    let statuses: Vec<_> = quotas.iter().map(|quota| status(quota, Some(1), 2, 9, Fit::At(NOW.plus_ms(9)))).collect();
    let facts = Facts { binding: None, ..facts(ResponseKind::Allowed, &statuses, &usage) };
    for name in ["venice", "openai", "deapi", "ietf"] {
        let rendered = built_in::named(name).unwrap().render(&facts);
        assert_eq!(rendered, Rendered { status: 200, headers: Vec::new(), body: None }, "{name}");
    }
}

/// A policy with a dialect that renders every name.
static SHOP: LazyLock<LoadedPolicy> = LazyLock::new(|| {
    policy(
        r#"
dialects:
  names:
    headers:
      - { name: A, value: resource }
      - { name: B, value: tier }
      - { name: C, value: account }
      - { name: D, value: message }
      - { name: E, value: violated }
    answers:
      quota_exceeded: { body: { x: "{resource} {tier}", y: "{account}" } }
"#,
    )
});

/// A quota's limit, use and wait.
fn numbers() -> impl Strategy<Value = (Option<u32>, u32, u64, Option<u64>)> {
    (prop::option::of(any::<u32>()), any::<u32>(), 0..40_000_000_000_u64, prop::option::of(1..40_000_000_000_u64))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// For all decisions and names: headers are valid, no caller is told to retry too early, and bodies are JSON.
    #[test]
    fn every_answer_is_valid_http(
        numbers in prop::collection::vec(numbers(), 3),
        resource in ".{1,40}",
        tier in ".{0,20}",
        account in ".{0,20}",
        message in ".{0,60}",
        kind in 0..ResponseKind::COUNT,
        wait in 0..40_000_000_000_u64,
        which in 0..TABLES.len(),
    ) {
        let usage = SHOP.policy.usage([("tokens", 7)]).unwrap();
        let quotas = quotas(&SHOP.policy);
        let kind = ResponseKind::ALL[kind];
        let statuses: Vec<QuotaStatus<'_>> = quotas
            .iter()
            .zip(&numbers)
            .map(|(quota, (limit, used, resets, wait))| {
                let fit = match (kind, wait) {
                    (ResponseKind::Refused(Reason::QuotaExceeded), Some(wait)) => Fit::At(NOW.plus_ms(*wait)),
                    (ResponseKind::Refused(Reason::CostAboveLimit), _) => Fit::Never,
                    _ => Fit::Now,
                };
                status(quota, *limit, *used, *resets, fit)
            })
            .collect();
        let waits = matches!(kind, ResponseKind::Refused(Reason::QuotaExceeded | Reason::Blocked));
        let facts = Facts {
            retry_at: waits.then(|| NOW.plus_ms(wait)),
            message: Some(message),
            resource: Some(&resource),
            tier: Some(&tier),
            account: Some(&account),
            ..facts(kind, &statuses, &usage)
        };
        let names = SHOP.dialects.choose("names").unwrap();
        for dialect in [built_in::named(TABLES[which].0).unwrap(), names] {
            let rendered = dialect.render(&facts);
            prop_assert!((200..600).contains(&rendered.status));
            for (name, value) in &rendered.headers {
                prop_assert!(http::HeaderName::from_bytes(name.as_bytes()).is_ok(), "{}", name);
                let value = http::HeaderValue::from_str(value);
                prop_assert!(value.as_ref().is_ok_and(|value| value.to_str().is_ok()), "{}: {:?}", name, value);
                if name.eq_ignore_ascii_case("retry-after") {
                    let seconds: u64 = value.unwrap().to_str().unwrap().parse().unwrap();
                    prop_assert!(seconds * 1000 >= wait && seconds * 1000 < wait + 1000);
                }
            }
            let promised = TABLES[which].0 != "none" && waits;
            let said = rendered.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
            prop_assert!(said == promised || std::ptr::eq(dialect, names));
            if let Some(body) = &rendered.body {
                prop_assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{}", body);
            }
        }
    }

    /// Decoding a header's value gives the name back.
    #[test]
    fn encoding_is_reversible(text in ".{0,60}") {
        let value = header::encoded(&text);
        let mut bytes = Vec::new();
        let mut rest = value.as_bytes();
        while let [first, behind @ ..] = rest {
            if *first == b'%' {
                let (digits, behind) = behind.split_at(2);
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap());
                rest = behind;
            } else {
                bytes.push(*first);
                rest = behind;
            }
        }
        prop_assert_eq!(bytes, text.as_bytes());
    }
}
