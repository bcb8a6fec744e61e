//! Abuse rules: which of them guard a call, what they count, and their messages.

use tollgate_core::{
    amount::Limit,
    claim::{ClaimStatus, ClaimsDecision, Effect, Fit, Mode},
};

use super::*;
use crate::{
    decision::{Decision, Verdict},
    format::{
        Message, StatusText,
        abuse::{self, AuthenticationRule, Status},
        count::Count,
    },
    policy::AbuseRule,
};

fn length(text: &str) -> Length {
    Length(text.to_owned())
}

fn rule(attributes: &[&str]) -> abuse::AbuseRule {
    abuse::AbuseRule {
        statuses: Vec::new(),
        count_refusals: true,
        limit: Count(20),
        per: length("30s"),
        block: length("30s"),
        scope: scope(attributes),
        message: None,
    }
}

fn authentication() -> AuthenticationRule {
    AuthenticationRule { limit: Count(20), per: length("30s"), block: length("30s"), message: None }
}

fn with_rules(rules: impl IntoIterator<Item = (&'static str, abuse::AbuseRule)>) -> PolicyFile {
    let mut file = file([("chat", with_rule(Some(vec![per_minute(10)])))], None);
    file.abuse.rules = map(rules);
    file
}

fn guards(policy: &Policy, key: bool, ip: Option<&str>) -> Vec<String> {
    let who = Client::plain();
    let caller = Caller { key: who.caller(policy).key.filter(|_| key), ..who.caller(policy) };
    let resolved = policy.resolve(&caller, "chat").unwrap();
    let attributes = |name: &str| ip.filter(|_| name == "ip");
    let usage = policy.usage([]).unwrap();
    let claim_set = resolved.claim_set(&usage, attributes, None).unwrap();
    let claims = claim_set.claims(Timestamp::from_ms(0), &[]);
    let guards: Vec<&AbuseRule> = claim_set.guards().iter().map(|guard| guard.rule).collect();
    let watches: Vec<_> = resolved.abuse_counters(attributes).collect();
    assert_eq!(claims.len(), resolved.quotas().len() + guards.len(), "a claim for each");
    for (at, (guard, counter)) in guards.iter().zip(&watches).enumerate() {
        let claim = claims[resolved.quotas().len() + at];
        assert_eq!(claim, counter.block_check(), "the guard looks where failures are counted");
        assert_eq!(claim.effect, Effect::CheckOnly);
        assert_eq!(guard.name, counter.rule.name);
    }
    guards.iter().map(|rule| rule.name.to_string()).collect()
}

#[test]
fn a_rule_applies_to_calls_with_all_attributes_of_its_scope() {
    let rules = [("everybody", rule(&[])), ("keys", rule(&["api_key"])), ("addresses", rule(&["ip", "resource"]))];
    let policy = compiled(&with_rules(rules));
    assert_eq!(guards(&policy, true, Some("192.0.2.1")), ["everybody", "keys", "addresses"]);
    assert_eq!(guards(&policy, true, None), ["everybody", "keys"]);
    assert_eq!(guards(&policy, false, None), ["everybody"]);
    assert_eq!(policy.abuse_rules()[0].scope.to_string(), "account, resource", "that of the account's quotas");
}

/// Two rules of one scope and window must not count in one another's column.
#[test]
fn rules_count_separately_from_each_other_and_from_quotas() {
    let policy = compiled(&with_rules([("one", rule(&[])), ("two", rule(&[]))]));
    let who = Client::plain();
    let caller = who.caller(&policy);
    let resolved = policy.resolve(&caller, "chat").unwrap();
    let claims: Vec<_> = resolved.abuse_counters(|_| None).flat_map(|counter| counter.failure()).collect();
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
fn the_wait_is_that_of_the_block_if_it_is_longer() {
    let policy = compiled(&with_rules([("short", rule(&[])), ("long", rule(&[]))]));
    let who = Client::plain();
    let caller = who.caller(&policy);
    let resolved = policy.resolve(&caller, "chat").unwrap();
    let decided_at = Timestamp::from_ms(1_000);
    let status = |fit| ClaimStatus { used: Amount::from(1), resets_at: decided_at, fit };
    let decision = |fits: [Fit; 3]| {
        let statuses = fits.into_iter().map(status).collect();
        let applied = ClaimsDecision { decided_at, allowed: false, statuses };
        let usage = policy.usage([]).unwrap();
        resolved.claim_set(&usage, |_| None, None).unwrap().decide(Mode::Try, false, applied).0
    };
    let at = |ms| Fit::At(Timestamp::from_ms(ms));
    let of = |decision: &Decision<'_>| decision.block.map(|block| (block.rule.name.to_string(), block.until.as_ms()));
    let blocked = decision([at(3_000), at(4_000), at(9_000)]);
    assert_eq!(blocked.verdict, Verdict::RetryAt(Timestamp::from_ms(9_000)));
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
fn messages_contain_the_numbers_of_the_rule() {
    let message = "{limit} in {window_seconds}, {block_seconds} blocked, {wait_seconds} left}";
    let text = abuse::AbuseRule { per: length("30500ms"), message: Some(Message(message.to_owned())), ..rule(&[]) };
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
    let statuses = vec![Status::Text(StatusText("400-428".to_owned())), Status::One(500)];
    let some = abuse::AbuseRule { statuses, ..rule(&[]) };
    let policy = compiled(&with_rules([("all", rule(&[])), ("some", some)]));
    let counts = |at: usize, statuses: &[u16]| -> Vec<u16> {
        statuses.iter().copied().filter(|status| policy.abuse_rules()[at].statuses.contains(*status)).collect()
    };
    assert_eq!(counts(0, &[100, 200, 399, 400, 429, 500, 599, 600]), [400, 429, 500, 599]);
    assert_eq!(counts(1, &[200, 399, 400, 428, 429, 500, 501]), [400, 428, 500]);
}

#[test]
fn mistakes_in_rules_are_reported_with_their_places() {
    let bad = abuse::AbuseRule {
        statuses: ["4xx", "599-500"].map(|text| Status::Text(StatusText(text.to_owned()))).into(),
        limit: Count(MAX_AMOUNT + 1),
        per: length("0ms"),
        block: length(&format!("{}ms", 1_u64 << 40)),
        scope: scope(&["ip", "ip"]),
        message: Some(Message("wait {seconds}".to_owned())),
        ..rule(&[])
    };
    let mut file = with_rules([("bad", bad), ("authentication", rule(&[]))]);
    file.abuse.authentication = Some(AuthenticationRule { per: length("0ms"), ..authentication() });
    let said = mistakes(&file);
    for start in [
        "abuse.rules.bad.statuses[1]: 599-500",
        "abuse.rules.bad.limit: must be at most 9007199254740991",
        "abuse.rules.bad.per: a sliding window",
        "abuse.rules.bad.block: a block lasts from 1 millisecond to 31 days",
        "abuse.rules.bad.scope: names \"ip\" twice",
        "abuse.rules.bad.message: {seconds} is not a placeholder",
        "abuse.rules.authentication: is the name of",
        "abuse.authentication.per: a sliding window",
    ] {
        assert!(said.iter().any(|mistake| mistake.starts_with(start)), "{start}: {said:#?}");
    }
    assert_eq!(said.len(), 8, "{said:#?}");
}

#[test]
fn failed_authentications_are_counted_by_address() {
    let mut file = with_rules([]);
    file.abuse.authentication = Some(AuthenticationRule { limit: Count(MAX_AMOUNT + 1), ..authentication() });
    assert!(mistakes(&file)[0].starts_with("abuse.authentication.limit: must be at most"));
    file.abuse.authentication = Some(authentication());
    assert_eq!(compiled(&file).authentication_rule().unwrap().scope.to_string(), "ip");
}

/// The counters of abuse rules take space in the ledgers too.
#[test]
fn counters_of_rules_count_toward_the_size_of_ledgers() {
    let quotas = ["1s", "2s", "3s", "4s"].map(|length| quota("requests", length, 10, &[]));
    let mut file = with_rules([("one", rule(&[]))]);
    file.resources = map([("chat", with_rule(Some(quotas.to_vec())))]);
    assert!(mistakes(&file)[0].contains("the weight of its sliding windows is 32,"), "{:?}", mistakes(&file));
    file.abuse.rules = map([("one", rule(&["account"]))]);
    compiled(&file);
}
