//! Quotas that choose the answer to their refusals.

use super::*;

const BUDGET: &str = r"
version: 1
domain: shop
resources:
  chat:
    quotas:
      - { unit: requests, per: minute, limit: 100 }
      - { unit: requests, per: { calendar: month }, limit: 500, name: budget, refused_as: insufficient_quota }
tiers: { paid: { is_charged: true, priority: 2 } }
default_tier: paid
";

fn mistakes(text: &str) -> String {
    LoadedPolicy::parse("policy.yaml", text).map_or_else(|errors| errors.to_string(), |_| "none".to_owned())
}

/// Refusals by the minute, by the budget for three days, and by the budget for ever.
fn answers(loaded: &LoadedPolicy, dialect: &Dialect) -> [Rendered; 3] {
    let [minute, budget] = quotas(&loaded.policy)[..] else { panic!("two quotas") };
    let usage = loaded.policy.usage([]).unwrap();
    let at = |ms| Fit::At(NOW.plus_ms(ms));
    let render = |kind, retry_ms: Option<u64>, binding, fits: [Fit; 2]| {
        let statuses =
            [status(minute, Some(100), 100, 59_001, fits[0]), status(budget, Some(500), 500, 259_200_000, fits[1])];
        let retry_at = retry_ms.map(|ms| NOW.plus_ms(ms));
        dialect.render(&Facts { binding: Some(binding), retry_at, ..facts(kind, &statuses, &usage) })
    };
    let refused = ResponseKind::Refused;
    [
        render(refused(Reason::QuotaExceeded), Some(11_050), 0, [at(11_050), Fit::Now]),
        render(refused(Reason::QuotaExceeded), Some(259_200_000), 1, [Fit::Now, at(259_200_000)]),
        render(refused(Reason::CostAboveLimit), None, 1, [Fit::Now, Fit::Never]),
    ]
}

#[test]
fn a_spent_budget_is_named_as_the_platform_names_it() {
    let loaded = load(BUDGET);
    let shown: Vec<String> = TABLES
        .iter()
        .map(|(name, _)| {
            let [minute, spent, never] = answers(&loaded, built_in::named(name).unwrap());
            assert_eq!((minute.status, &spent.body), (429, &never.body), "{name}");
            format!("{name}: {}", shown(&spent))
        })
        .collect();
    assert_snapshot!("insufficient_quota", shown.join("\n"));
}

#[test]
fn a_platform_may_have_answers_of_its_own() {
    let own = r#"
dialect: acme
dialects:
  acme:
    extends: venice
    answers:
      out_of_credit: { status: 402, body: { error: "{label} is spent, back in {retry_after} s" } }
"#;
    let text = BUDGET.replace("insufficient_quota", "out_of_credit") + own;
    let loaded = load(&text);
    let bodies =
        |dialect| answers(&loaded, loaded.dialects.choose(dialect).unwrap()).map(|answer| (answer.status, answer.body));
    let [minute, spent, never] = bodies("acme");
    assert_eq!(minute, (429, Some(r#"{"error":"Rate limit exceeded"}"#.to_owned())));
    assert_eq!(spent, (402, Some(r#"{"error":"RPMo is spent, back in 259200 s"}"#.to_owned())));
    // Its sentence has a time to retry, so a call that can never be admitted gets the usual answer.
    let too_large = r#"{"error":"Request too large: it needs 1, and the limit is 500 requests per month"}"#;
    assert_eq!(never, (413, Some(too_large.to_owned())));
    // In a dialect that a call chooses, the quota is refused like others.
    let [_, spent, _] = bodies("tiered-chat");
    assert_eq!(spent.0, 429);
    assert!(spent.1.unwrap().contains("rate_limit_exceeded"));
}

#[test]
fn an_answer_that_does_not_exist_is_a_mistake() {
    assert_eq!(
        mistakes(&(BUDGET.replace("insufficient_quota", "insuficient_quota") + "dialect: openai\n")),
        "policy.yaml:8: resources.chat.quotas[1].refused_as: the dialect \"openai\" has no answer \"insuficient_quota\" to \
         refusals by quotas; did you mean \"insufficient_quota\"? there is: quota_exceeded, concurrency_exceeded, \
         insufficient_quota, overloaded"
    );
    assert!(
        mistakes(&BUDGET.replace("insufficient_quota", "blocked")).contains("has no answer \"blocked\" to refusals by")
    );
    assert_eq!(mistakes(&BUDGET.replace("insufficient_quota", "quota_exceeded")), "none");
}

#[test]
fn an_answer_that_no_quota_names_is_a_mistake() {
    let table = "dialects: { acme: { answers: { quota_exceded: { status: 420 }, insufficient_quota: {} } } }\n";
    assert_eq!(
        mistakes(&format!("{BUDGET}{table}")),
        "policy.yaml:11: dialects.acme.answers.quota_exceded: no quota is `refused_as: quota_exceded`; did you mean \
         \"quota_exceeded\"? the other answers are: quota_exceeded, cost_above_limit, blocked, upload_too_large, \
         unknown_resource, unknown_key, revoked_key, expired_key, bad_key, concurrency_exceeded, overloaded, \
         insufficient_quota, unavailable"
    );
}

/// The numbers of a hidden quota are in no sentence, and slots have no window.
#[test]
fn an_answer_suits_its_quota() {
    let own = |quota: &str, body: &str| {
        let quotas = BUDGET.replace("name: budget, refused_as: insufficient_quota", "name: budget") + "dialect: acme\n";
        let quotas = quotas.replace("name: budget }\n", &format!("name: budget }}\n      - {quota}\n"));
        mistakes(&format!("{quotas}dialects: {{ acme: {{ answers: {{ own: {{ body: \"{body}\" }} }} }} }}\n"))
    };
    let shared = "{ unit: requests, per: hour, limit: 9, scope: [resource], refused_as: own }";
    assert!(
        own(shared, "{limit}").contains("quotas[2].refused_as: the answer \"own\" of the dialect \"acme\" has values")
    );
    assert_eq!(own(shared, "back in {retry_after} s"), "none");
    assert_eq!(own(&shared.replace("refused_as", "visible: true, refused_as"), "{limit}"), "none");
    let slots = "{ unit: concurrent_requests, limit: 9, refused_as: own }";
    assert!(
        own(slots, "{limit} per {window}").contains("has a value of the window, and concurrent_requests have none")
    );
    assert_eq!(own(slots, "{limit} {measure}"), "none");
}

/// A hidden quota may be refused as others, if the sentence has no numbers.
#[test]
fn a_hidden_quota_may_be_refused_like_others() {
    let text = BUDGET.replace("refused_as: insufficient_quota", "visible: false, refused_as: quota_exceeded");
    let loaded = load(&(text.clone() + "dialect: venice\n"));
    let [_, spent, never] = answers(&loaded, loaded.dialects.choose("").unwrap());
    assert_eq!((spent.status, spent.body.as_deref()), (429, Some(r#"{"error":"Rate limit exceeded"}"#)));
    assert_eq!(never.status, 503, "the answer for ever has numbers");
    let [_, spent, _] = answers(&loaded, loaded.dialects.choose("openai").unwrap());
    assert_eq!(spent.status, 503, "the sentence of this dialect has numbers");
    assert!(mistakes(&(text + "dialect: openai\n")).contains("has values of the quota, which customers do not see"));
}
