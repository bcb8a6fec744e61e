//! Abuse rules: which guard a call, what they count, what they say.

use tollgate_core::{
    amount::Limit,
    claim::{Applied, ClaimStatus, Effect, Fit, Mode},
};

use super::*;
use crate::{
    decision::{Decision, Verdict},
    policy::{AbuseRule, draft::AbuseRuleDraft},
};

fn rule(scope: &[&str]) -> AbuseRuleDraft {
    AbuseRuleDraft {
        statuses: Vec::new(),
        counts_refusals: true,
        limit: 20,
        per_ms: 30_000,
        block_ms: 30_000,
        scope: (!scope.is_empty()).then(|| names(scope)),
        message: None,
    }
}

fn with_rules(rules: impl IntoIterator<Item = (&'static str, AbuseRuleDraft)>) -> Draft {
    let mut draft = draft([("chat", with_rule(Some(vec![per_minute(10)])))], None);
    draft.abuse.rules = map(rules);
    draft
}

fn guards(policy: &Policy, key: bool, ip: Option<&str>) -> Vec<String> {
    let who = Who::plain();
    let caller = Caller { key: who.caller(policy).key.filter(|_| key), ..who.caller(policy) };
    let resolved = policy.resolve(&caller, "chat").unwrap();
    let attributes = |name: &str| ip.filter(|_| name == "ip");
    let usage = policy.usage([]).unwrap();
    let claim_set = resolved.claim_set(&usage, attributes, None).unwrap();
    let claims = claim_set.claims(Timestamp::from_ms(0), &[]);
    let guards: Vec<&AbuseRule> = claim_set.guards().iter().map(|guard| guard.rule).collect();
    let watches: Vec<_> = resolved.watches(attributes).collect();
    assert_eq!(claims.len(), resolved.quotas().len() + guards.len(), "a claim for each");
    for (at, (guard, watch)) in guards.iter().zip(&watches).enumerate() {
        let claim = claims[resolved.quotas().len() + at];
        assert_eq!(claim, watch.guard(), "the guard looks where failures are counted");
        assert_eq!(claim.effect, Effect::Judge);
        assert_eq!(guard.name, watch.rule.name);
    }
    guards.iter().map(|rule| rule.name.to_string()).collect()
}

#[test]
fn a_rule_guards_the_calls_that_have_a_value_for_its_scope() {
    let rules = [("everybody", rule(&[])), ("keys", rule(&["api_key"])), ("addresses", rule(&["ip", "resource"]))];
    let policy = compiled(&with_rules(rules));
    assert_eq!(guards(&policy, true, Some("192.0.2.1")), ["everybody", "keys", "addresses"]);
    assert_eq!(guards(&policy, true, None), ["everybody", "keys"]);
    assert_eq!(guards(&policy, false, None), ["everybody"]);
    assert_eq!(policy.abuse_rules()[0].scope.to_string(), "account, resource", "that of the account's quotas");
}

/// Two rules of one scope and window must not count in one another's column.
#[test]
fn rules_count_apart_from_each_other_and_from_quotas() {
    let policy = compiled(&with_rules([("one", rule(&[])), ("two", rule(&[]))]));
    let who = Who::plain();
    let caller = who.caller(&policy);
    let resolved = policy.resolve(&caller, "chat").unwrap();
    let claims: Vec<_> = resolved.watches(|_| None).flat_map(|watch| watch.failure()).collect();
    let mut units: Vec<_> = claims.iter().map(|claim| claim.unit).collect();
    units.push(UnitId::of("requests"));
    let counted = units.len();
    units.sort_unstable();
    units.dedup();
    assert_eq!(units.len(), counted);
    let usage = policy.usage([]).unwrap();
    let quota = resolved.claim_set(&usage, |_| None, None).unwrap().claims(Timestamp::from_ms(0), &[])[0];
    assert!(claims.iter().all(|claim| claim.ledger == quota.ledger), "one ledger, so one read and one write");
    assert!(claims.iter().step_by(2).all(|claim| claim.effect == Effect::Charge && claim.limit == Limit::Unlimited));
}

#[test]
fn a_block_outlasts_the_quotas_that_deny_for_less() {
    let policy = compiled(&with_rules([("short", rule(&[])), ("long", rule(&[]))]));
    let who = Who::plain();
    let caller = who.caller(&policy);
    let resolved = policy.resolve(&caller, "chat").unwrap();
    let decided_at = Timestamp::from_ms(1_000);
    let status = |fit| ClaimStatus { used: Amount::from(1), resets_at: decided_at, fit };
    let decision = |fits: [Fit; 3]| {
        let statuses = fits.into_iter().map(status).collect();
        let applied = Applied { decided_at, allowed: false, statuses };
        let usage = policy.usage([]).unwrap();
        resolved.claim_set(&usage, |_| None, None).unwrap().decide(Mode::Try, false, applied).0
    };
    let at = |ms| Fit::At(Timestamp::from_ms(ms));
    let of = |decision: &Decision<'_>| decision.block.map(|block| (block.rule.name.to_string(), block.until.as_ms()));
    let blocked = decision([at(3_000), at(4_000), at(9_000)]);
    assert_eq!(blocked.verdict, Verdict::Wait(Timestamp::from_ms(9_000)));
    assert_eq!(of(&blocked), Some(("long".to_owned(), 9_000)));
    assert_eq!(blocked.quotas.len(), 1, "a guard is no quota");
    let longer_quota = decision([at(20_000), at(4_000), Fit::Now]);
    assert_eq!(longer_quota.retry_after_ms(), Some(19_000));
    assert_eq!(of(&longer_quota), Some(("short".to_owned(), 4_000)));
    let never = decision([Fit::Never, at(4_000), Fit::Now]);
    assert_eq!(never.verdict, Verdict::Never, "waiting for the block does not help either");
    assert_eq!(of(&never), Some(("short".to_owned(), 4_000)));
    assert!(decision([Fit::Now; 3]).block.is_none());
}

#[test]
fn messages_say_the_rule_s_numbers() {
    let message = "{limit} in {window_seconds}, {block_seconds} blocked, {wait_seconds} left}";
    let text = AbuseRuleDraft { per_ms: 30_500, message: Some(message.to_owned()), ..rule(&[]) };
    let policy = compiled(&with_rules([("one", text), ("two", rule(&[]))]));
    let say = |at: usize, wait_ms| policy.abuse_rules()[at].message(wait_ms);
    assert_eq!(say(0, 1_001), "20 in 31, 30 blocked, 2 left}");
    assert_eq!(
        say(1, 5),
        "Too many failed attempts (> 20) resulting in a non-success status code. Please wait 30s and try again."
    );
}

#[test]
fn statuses_from_400_on_are_failures_unless_the_rule_says_otherwise() {
    let some = AbuseRuleDraft { statuses: vec![400..=428, 500..=500], ..rule(&[]) };
    let policy = compiled(&with_rules([("all", rule(&[])), ("some", some)]));
    let counts = |at: usize, statuses: &[u16]| -> Vec<u16> {
        statuses.iter().copied().filter(|status| policy.abuse_rules()[at].statuses.contains(*status)).collect()
    };
    assert_eq!(counts(0, &[100, 200, 399, 400, 429, 500, 599, 600]), [400, 429, 500, 599]);
    assert_eq!(counts(1, &[200, 399, 400, 428, 429, 500, 501]), [400, 428, 500]);
}

#[test]
fn mistakes_in_rules_are_told_with_their_places() {
    let bad = AbuseRuleDraft {
        statuses: vec![
            400..=499,
            #[expect(clippy::reversed_empty_ranges, reason = "the mistake")]
            {
                599..=500
            },
        ],
        limit: MAX_AMOUNT + 1,
        per_ms: 0,
        block_ms: 1 << 40,
        scope: Some(names(&["ip", "ip"])),
        message: Some("wait {seconds}".to_owned()),
        ..rule(&[])
    };
    let mut draft = with_rules([("bad", bad.clone()), ("authentication", rule(&[]))]);
    draft.abuse.authentication = Some(AbuseRuleDraft { per_ms: 0, ..rule(&[]) });
    let said = mistakes(&draft);
    for start in [
        "abuse.rules.bad.statuses[1]: 599-500",
        "abuse.rules.bad.limit: must be at most 9007199254740991",
        "abuse.rules.bad.per: a sliding window",
        "abuse.rules.bad.block: a sliding window",
        "abuse.rules.bad.scope: names \"ip\" twice",
        "abuse.rules.bad.message: {seconds} stands for nothing",
        "abuse.rules.authentication: is the name of",
        "abuse.authentication.per: a sliding window",
    ] {
        assert!(said.iter().any(|mistake| mistake.starts_with(start)), "{start}: {said:#?}");
    }
    assert_eq!(said.len(), 8, "{said:#?}");
    assert!(AbuseRule::about_addresses(&bad).is_err());
    assert_eq!(AbuseRule::about_addresses(&rule(&[])).unwrap().scope.to_string(), "ip");
}

/// What rules count takes room in the ledgers too.
#[test]
fn rules_weigh_in_their_ledgers() {
    let quotas = [1_000, 2_000, 3_000, 4_000].map(|ms| quota("requests", WindowDraft::Sliding { ms }, 10, &[]));
    let mut draft = with_rules([("one", rule(&[]))]);
    draft.resources = map([("chat", with_rule(Some(quotas.to_vec())))]);
    assert!(mistakes(&draft)[0].contains("its sliding windows weigh 32"), "{:?}", mistakes(&draft));
    draft.abuse.rules = map([("one", rule(&["account"]))]);
    compiled(&draft);
}
