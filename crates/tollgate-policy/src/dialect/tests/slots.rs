//! Refusals because no slot is free: short advice, and sentences about concurrent requests.

use super::*;

const QUOTAS: &str = r"
version: 1
domain: shop
units: [tokens]
resources:
  chat:
    quotas:
      - { unit: tokens, per: minute, limit: 40000 }
      - { unit: concurrent_requests, limit: 5 }
tiers: { paid: { is_charged: true, priority: 2 } }
default_tier: paid
";

fn slots_policy(more: &str) -> LoadedPolicy {
    load(&format!("{QUOTAS}{more}"))
}

/// A refusal because all five slots are held for ten minutes, a refusal by a limit of no slots at all, and an admission.
fn answers(loaded: &LoadedPolicy, dialect: &Dialect) -> String {
    let [tokens, slots] = quotas(&loaded.policy)[..] else { panic!("two quotas") };
    let usage = loaded.policy.usage([("tokens", 10)]).unwrap().with_slot();
    let free = status(tokens, Some(40_000), 10, 59_001, Fit::Now);
    let statuses = |limit, used, fit| [free, status(slots, Some(limit), used, 599_000, fit)];
    let render = |kind, retry_at, statuses: &[QuotaStatus<'_>]| {
        shown(&dialect.render(&Facts { binding: Some(1), retry_at, ..facts(kind, statuses, &usage) }))
    };
    let refused = ResponseKind::Refused;
    let wait = NOW.plus_ms(1_000);
    [
        "held: ".to_owned() + &render(refused(Reason::QuotaExceeded), Some(wait), &statuses(5, 5, Fit::At(wait))),
        "none: ".to_owned() + &render(refused(Reason::CostAboveLimit), None, &statuses(0, 0, Fit::Never)),
        "free: ".to_owned() + &render(ResponseKind::Allowed, None, &statuses(5, 1, Fit::Now)),
    ]
    .concat()
}

#[test]
fn every_dialect_speaks_of_concurrent_requests() {
    let loaded = slots_policy("");
    let shown = TABLES.iter().map(|(name, _)| format!("{name}\n{}", answers(&loaded, built_in::named(name).unwrap())));
    let shown = shown.collect::<Vec<_>>().join("\n");
    assert!(!shown.contains("concurrent_requests ") && !shown.contains("per ."), "{shown}");
    assert_snapshot!("concurrency", shown);
}

/// An own dialect without the answer uses the one to other refusals by quotas, and `{measure}` has no gap.
#[test]
fn an_own_dialect_may_have_one_answer_for_all_quotas() {
    let more = r#"
dialects:
  one: { answers: { quota_exceeded: { status: 420, body: { error: "over {limit} {measure}" } } } }
  two:
    extends: one-that-is-built-in
    answers: { quota_exceeded: { body: { error: "own" } }, concurrency_exceeded: { status: 503 } }
"#;
    let loaded = slots_policy(&more.replace("one-that-is-built-in", "openai"));
    let held =
        |name| answers(&loaded, loaded.dialects.choose(name).unwrap()).split("none: ").next().unwrap().to_owned();
    assert!(held("one").contains("held: 420") && held("one").contains(r#"{"error":"over 5 concurrent requests"}"#));
    assert!(held("two").contains("held: 503") && held("two").contains(r#"{"error":"own"}"#), "{}", held("two"));
}

#[test]
fn a_sentence_about_slots_has_no_window() {
    let more = r#"
dialects: { own: { answers: { concurrency_exceeded: { body: "{limit} per {window}, {resets_at}" } } } }
"#;
    let wrong = LoadedPolicy::parse("policy.yaml", &format!("{QUOTAS}{more}")).unwrap_err().to_string();
    assert_eq!(wrong.matches("only exists for quotas with a window; `{measure}` is").count(), 2, "{wrong}");
}

#[test]
fn the_advised_wait_for_a_slot_is_a_setting() {
    let parse = |quota: &str| LoadedPolicy::parse("policy.yaml", &QUOTAS.replace("limit: 5", quota));
    let waits = |loaded: &LoadedPolicy| {
        quotas(&loaded.policy).iter().map(|quota| quota.slot_retry_after_ms).collect::<Vec<_>>()
    };
    assert_eq!(waits(&slots_policy("")), [None, Some(1_000)]);
    assert_eq!(waits(&parse("limit: 5, retry_after: 250ms").unwrap()), [None, Some(250)]);
    let wrong = LoadedPolicy::parse("policy.yaml", &QUOTAS.replace("limit: 40000", "limit: 40000, retry_after: 2s"));
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "policy.yaml:8: resources.chat.quotas[0].retry_after: is only for concurrent_requests; the wait for a window is \
         computed"
    );
}

/// The end of the reservation is used only if it is sooner than the advised wait.
#[test]
fn the_advised_wait_is_short() {
    let loaded = slots_policy("");
    let [tokens, slots] = quotas(&loaded.policy)[..] else { panic!("two quotas") };
    let at = |ms| Fit::At(NOW.plus_ms(ms));
    assert_eq!(slots.advised(at(600_000), NOW), at(1_000));
    assert_eq!(slots.advised(at(300), NOW), at(300));
    assert_eq!((slots.advised(Fit::Now, NOW), slots.advised(Fit::Never, NOW)), (Fit::Now, Fit::Never));
    assert_eq!(tokens.advised(at(600_000), NOW), at(600_000));
}
