//! Quotas that customers do not see: answers have nothing of them but the time to retry.

use super::*;

const SHARED: &str = r"
version: 1
domain: shop
units: [tokens]
resources:
  chat:
    quotas:
      - { unit: tokens, per: minute, limit: 4000 }
      - { unit: tokens, per: minute, limit: 20000000, name: everyones, scope: [resource] }
tiers: { paid: { is_charged: true, priority: 2 } }
default_tier: paid
dialects:
  speaking:
    headers: [{ name: Left, value: remaining }, { name: Limit, value: limit }, { name: Retry-After, value: retry_after }]
    answers: { quota_exceeded: { body: '{quota}: {used} of {limit}' } }
";

/// An admission, and refusals by the capacity: for nine seconds, and for ever.
fn answers(loaded: &LoadedPolicy, dialect: &Dialect) -> [Rendered; 3] {
    let [own, capacity] = quotas(&loaded.policy)[..] else { panic!("two quotas") };
    let usage = loaded.policy.usage([("tokens", 10)]).unwrap();
    let statuses = |used, fit| {
        [status(own, Some(4_000), 10, 59_001, Fit::Now), status(capacity, Some(20_000_000), used, 59_001, fit)]
    };
    let wait = NOW.plus_ms(9_000);
    let render = |kind, retry_at, statuses: &[QuotaStatus<'_>]| {
        dialect.render(&Facts { binding: Some(1), retry_at, ..facts(kind, statuses, &usage) })
    };
    let refused = ResponseKind::Refused;
    [
        render(ResponseKind::Allowed, None, &statuses(19_998_569, Fit::Now)),
        render(refused(Reason::QuotaExceeded), Some(wait), &statuses(19_999_991, Fit::At(wait))),
        render(refused(Reason::CostAboveLimit), None, &statuses(19_999_991, Fit::Never)),
    ]
}

#[test]
fn no_dialect_shows_a_quota_that_accounts_share() {
    let loaded = load(SHARED);
    for (name, _) in TABLES {
        for answer in answers(&loaded, built_in::named(name).unwrap()) {
            let text = shown(&answer);
            for secret in ["everyones", "20000000", "19998569", "19999991", "1431"] {
                assert!(!text.contains(secret), "{name}: {secret} is in {text}");
            }
        }
    }
    let shown: Vec<String> = TABLES
        .iter()
        .map(|(name, _)| format!("{name}: {}", shown(&answers(&loaded, built_in::named(name).unwrap())[1])))
        .collect();
    assert_snapshot!("overloaded", shown.join("\n"));
}

/// Values of the binding quota are those of the binding one of the others.
#[test]
fn an_own_dialect_shows_only_what_customers_may_see() {
    let loaded = load(SHARED);
    let [allowed, refused, never] = answers(&loaded, loaded.dialects.choose("speaking").unwrap());
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let (left, limit, wait) = (header("Left", "3990"), header("Limit", "4000"), header("Retry-After", "9"));
    assert_eq!(allowed.headers, [left.clone(), limit.clone()]);
    assert_eq!(refused, Rendered { status: 503, headers: vec![left.clone(), limit.clone(), wait], body: None });
    assert_eq!(never, Rendered { status: 503, headers: vec![left, limit], body: None });
}

#[test]
fn a_policy_may_show_a_shared_quota_and_hide_another() {
    let visible = |text: &str| quotas(&load(text).policy).iter().map(|quota| quota.visible).collect::<Vec<_>>();
    assert_eq!(visible(SHARED), [true, false]);
    assert_eq!(visible(&SHARED.replace("name: everyones", "name: everyones, visible: true")), [true, true]);
    assert_eq!(visible(&SHARED.replace("limit: 4000 ", "limit: 4000, visible: false ")), [false, false]);
    assert_eq!(visible(&SHARED.replace("scope: [resource]", "scope: [account]")), [true, true]);
    let loaded = load(&SHARED.replace("name: everyones", "name: everyones, visible: true"));
    let [_, refused, _] = answers(&loaded, loaded.dialects.choose("speaking").unwrap());
    assert_eq!((refused.status, refused.body.as_deref()), (429, Some(r#""everyones: 19999991 of 20000000""#)));
}
