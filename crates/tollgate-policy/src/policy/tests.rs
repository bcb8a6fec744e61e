use proptest::prelude::*;
use tollgate_core::{
    amount::{Amount, Limit, MAX_AMOUNT, UnitId},
    claim::LedgerKey,
    time::Timestamp,
};

use self::written::{
    DAY, MINUTE, counter, file, map, name, over, per_key, per_minute, quota, scope, trailing, with_rule,
};
use super::*;
use crate::format::{self, Length, PolicyFile, Quotas, Rule};

mod abuse;
mod explain;
mod written;

fn compiled(file: &PolicyFile) -> Policy {
    Policy::compile(file).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn mistakes(file: &PolicyFile) -> Vec<String> {
    Policy::compile(file).unwrap_err().iter().map(ToString::to_string).collect()
}

struct Client {
    account: Vec<Override>,
    key: Vec<Override>,
}

impl Client {
    fn plain() -> Self {
        Self { account: Vec::new(), key: Vec::new() }
    }

    fn with(policy: &Policy, account: &[format::Override], key: &[format::Override]) -> Self {
        let root = Place::root();
        Self {
            account: policy.overrides(account, QuotaLevel::Account, &root).unwrap(),
            key: policy.overrides(key, QuotaLevel::Key, &root).unwrap(),
        }
    }

    fn caller(&self, policy: &Policy) -> Caller<'_> {
        Caller {
            partition: policy.account_partition("acme"),
            tier: policy.default_tier(),
            account_overrides: &self.account,
            key: Some(CallerKey { id: "key-1", overrides: &self.key }),
        }
    }

    /// `name limit [scope]` of every quota.
    fn sees(&self, policy: &Policy, resource: &str) -> Vec<String> {
        let caller = self.caller(policy);
        let resolved = policy.resolve(&caller, resource).unwrap();
        let quotas = resolved.quotas().iter();
        quotas
            .map(|active| format!("{} {} [{}]", active.quota.name, number(active.limit), active.quota.scope))
            .collect()
    }

    fn ledgers(&self, policy: &Policy, resource: &str, ip: &str) -> Vec<LedgerKey> {
        let caller = self.caller(policy);
        let resolved = policy.resolve(&caller, resource).unwrap();
        let usage = policy.usage([]).unwrap();
        let claims = resolved.claim_set(&usage, |name| (name == "ip").then_some(ip), None).unwrap();
        let claims = claims.claims(Timestamp::from_ms(0), &[]);
        assert_eq!(claims.len(), resolved.quotas().len());
        claims.iter().map(|claim| claim.ledger).collect()
    }
}

fn number(limit: Limit) -> String {
    match limit {
        Limit::Finite(amount) => amount.to_string(),
        Limit::Unlimited => "unlimited".to_owned(),
    }
}

/// The quotas of one source of rules.
#[derive(Clone, Copy, Debug, PartialEq)]
enum RuleSource {
    Nothing,
    Unlimited,
    Account,
    Key,
    Both,
}

fn says() -> impl Strategy<Value = RuleSource> {
    prop_oneof![
        4 => Just(RuleSource::Nothing),
        1 => Just(RuleSource::Unlimited),
        1 => Just(RuleSource::Account),
        1 => Just(RuleSource::Key),
        1 => Just(RuleSource::Both),
    ]
}

fn rule(says: RuleSource, limit: u64) -> Option<Vec<format::Quota>> {
    match says {
        RuleSource::Nothing => None,
        RuleSource::Unlimited => Some(Vec::new()),
        RuleSource::Account => Some(vec![per_minute(limit)]),
        RuleSource::Key => Some(vec![per_key(limit)]),
        RuleSource::Both => Some(vec![per_key(limit), per_minute(limit)]),
    }
}

proptest! {
    /// For each level, the first rule that applies to it wins. Tried by breaking it: by exchanging two sources
    /// in the order of the candidates, and by letting a rule of one level win both.
    #[test]
    fn the_first_rule_that_applies_wins(sources in proptest::collection::vec(says(), 9)) {
        let at = |at: usize| rule(sources[at], 1 + at as u64);
        let chat = || format::Resource {
            class: Some(name("text")),
            provider_class: Some(name("acme")),
            ..with_rule(at(5))
        };
        let class = |from: usize| format::Class { quotas: at(from).map(Quotas), ..format::Class::default() };
        // A rule of a tier always has quotas, so a source without quotas is no rule.
        let tier_rules = |rules: &[(&'static str, usize)]| {
            let rules = rules.iter().filter_map(|(name, from)| Some((*name, Rule { quotas: Quotas(at(*from)?) })));
            map(rules.collect::<Vec<_>>())
        };
        let tier = format::Tier {
            resources: tier_rules(&[("*", 2), ("chat/*", 1), ("chat/a", 0)]),
            provider_classes: tier_rules(&[("acme", 3)]),
            classes: tier_rules(&[("text", 4)]),
            quotas: at(8).map(Quotas),
            ..format::Tier::default()
        };
        let file = PolicyFile {
            classes: map([("text", class(7))]),
            provider_classes: map([("acme", class(6))]),
            tiers: map([("paid", tier)]),
            ..file([("chat/a", chat())], None)
        };
        let winner = |own: RuleSource| {
            let applies = |says: &RuleSource| [own, RuleSource::Both, RuleSource::Unlimited].contains(says);
            let first = sources.iter().position(applies)?;
            Some((sources[first] != RuleSource::Unlimited).then_some(first + 1))
        };
        let (account, key) = (winner(RuleSource::Account), winner(RuleSource::Key));
        if account.is_none() && key.is_none() {
            prop_assert!(mistakes(&file)[0].contains("no rule gives it quotas in tier \"paid\""));
            return Ok(());
        }
        let of_account = account.flatten().map(|limit| format!("requests_per_minute {limit} [account, resource]"));
        let of_key = key.flatten().map(|limit| format!("requests_per_minute {limit} [api_key, resource]"));
        let expected: Vec<String> = of_account.into_iter().chain(of_key).collect();
        prop_assert_eq!(Client::plain().sees(&compiled(&file), "chat/a"), expected);
    }

    /// Names and usages of callers never cause a panic, and invalid ones are refused.
    #[test]
    fn no_input_causes_a_panic(name in ".{0,140}", unit in ".{0,80}", amount: u64) {
        let policy = compiled(&file([("é*", with_rule(Some(vec![per_minute(1)])))], None));
        let who = Client::plain();
        let resolved = policy.resolve(&who.caller(&policy), &name).is_ok();
        prop_assert_eq!(resolved, name.starts_with('é') && pattern::is_name(&name));
        let usage = policy.usage([(unit.as_str(), amount)]);
        prop_assert!(usage.is_ok() || usage.unwrap_err().field().starts_with("usage."));
    }
}

#[test]
fn exact_names_take_precedence_over_wildcards() {
    let rule = |limit| with_rule(Some(vec![per_minute(limit)]));
    let each = format::Resource { counter: CounterSharing::PerName, ..rule(4) };
    let resources = [("prompt/*", rule(1)), ("prompt/long/*", rule(2)), ("prompt/exact", rule(3)), ("own/*", each)];
    let policy = compiled(&PolicyFile {
        unknown_resources: format::UnknownResources::Resource(rule(5)),
        ..file(resources, None)
    });
    let who = Client::plain();
    let check = |name: &str, canonical: &str, limit: &str| {
        let caller = who.caller(&policy);
        assert_eq!(policy.resolve(&caller, name).unwrap().resource(), canonical);
        assert_eq!(who.sees(&policy, name), [format!("requests_per_minute {limit} [account, resource]")]);
    };
    check("prompt/a", "prompt/*", "1");
    check("prompt/", "prompt/*", "1");
    check("prompt/long/a", "prompt/long/*", "2");
    check("prompt/exact", "prompt/exact", "3");
    check("own/a", "own/a", "4");
    check("prompt", "*", "5");
    let ledger = |name| who.ledgers(&policy, name, "");
    assert_eq!(ledger("prompt/a"), ledger("prompt/b"));
    assert_ne!(ledger("prompt/a"), ledger("prompt/exact"));
    assert_ne!(ledger("own/a"), ledger("own/b"));
    assert_eq!(ledger("x"), ledger("y"));
    let listed = policy.resolve_all(&who.caller(&policy)).map(|resolved| resolved.unwrap().resource().to_owned());
    assert_eq!(listed.collect::<Vec<_>>(), ["prompt/*", "prompt/long/*", "prompt/exact", "own/*"]);
}

#[test]
fn unknown_and_invalid_names_are_refused() {
    let policy = compiled(&file([("chat", with_rule(Some(Vec::new())))], None));
    let who = Client::plain();
    let refused = |name: &str| policy.resolve(&who.caller(&policy), name).unwrap_err();
    assert_eq!(refused("speech"), ResolveError::UnknownResource);
    for name in ["", "a\nb", &"a".repeat(129)] {
        assert_eq!(refused(name), ResolveError::InvalidResource);
    }
    let caller = Caller { tier: TierId(7), ..who.caller(&policy) };
    assert_eq!(policy.resolve(&caller, "chat").unwrap_err(), ResolveError::UnknownTier);
}

#[test]
fn overrides_change_only_quotas_of_their_own_level() {
    let pool = quota("requests", MINUTE, 1000, &["resource"]);
    let chat = with_rule(Some(vec![per_minute(10), pool, per_key(5)]));
    let free = with_rule(Some(Vec::new()));
    let policy = compiled(&file([("chat/a", chat.clone()), ("chat/b", chat), ("free", free)], None));
    let sees = |account: &[format::Override], key: &[format::Override], name: &str| {
        Client::with(&policy, account, key).sees(&policy, name).join(", ")
    };
    let base = "requests_per_minute 10 [account, resource], requests_per_minute 1000 [resource], \
                requests_per_minute 5 [api_key, resource]";
    assert_eq!(sees(&[], &[], "chat/a"), base);
    // Same unit and window: replaced, but not the pool, which the account shares.
    assert_eq!(sees(&[over(None, MINUTE, 7, &[])], &[], "chat/a"), base.replace("10 ", "7 "));
    assert_eq!(sees(&[], &[over(None, MINUTE, 7, &[])], "chat/a"), base.replace("5 ", "7 "));
    assert_eq!(sees(&[over(None, MINUTE, 7, &["resource"])], &[], "chat/a"), base.replace("1000", "7"));
    // Another window: added.
    let added = "requests_per_minute 10 [account, resource], requests_per_minute 1000 [resource], \
                 requests_per_day 7 [account, resource], requests_per_minute 5 [api_key, resource]";
    assert_eq!(sees(&[over(None, DAY, 7, &[])], &[], "chat/a"), added);
    assert_eq!(sees(&[over(None, DAY, 7, &[])], &[], "free"), "requests_per_day 7 [account, resource]");
    // The most specific pattern wins, whatever the order.
    let nested =
        [over(Some("chat/b"), MINUTE, 3, &[]), over(None, MINUTE, 1, &[]), over(Some("chat/*"), MINUTE, 2, &[])];
    assert_eq!(sees(&nested, &[], "chat/b"), base.replace("10 ", "3 "));
    assert_eq!(sees(&nested, &[], "chat/a"), base.replace("10 ", "2 "));
    // A caller without a key has no key quotas, whatever overrides there are.
    let who = Client::with(&policy, &[], &[over(None, DAY, 7, &[])]);
    let caller = Caller { key: None, account_overrides: &who.key, ..who.caller(&policy) };
    let resolved = policy.resolve(&caller, "chat/a").unwrap();
    assert_eq!(resolved.quotas().len(), 2);
}

#[test]
fn only_the_scope_names_a_ledger() {
    let scopes: [&[&str]; 6] =
        [&["resource", "account"], &["account"], &["api_key"], &["account", "api_key"], &["resource"], &["ip"]];
    let quotas = scopes.iter().enumerate().map(|(at, scope)| quota("requests", MINUTE, at as u64, scope));
    let mut quotas: Vec<format::Quota> = quotas.collect();
    // `account` together with `api_key` adds nothing, so these two scopes are one counter.
    let twice = file([("chat", with_rule(Some(quotas.clone())))], None);
    assert!(
        mistakes(&twice)[0].starts_with("resources.chat.quotas[3]: has the same unit, window and scope as number 2")
    );
    quotas.remove(3);
    let policy = compiled(&file([("chat", with_rule(Some(quotas.clone()))), ("b", with_rule(Some(quotas)))], None));
    let who = Client::plain();
    let ledgers = who.ledgers(&policy, "chat", "192.0.2.1");
    let of_account = policy.account_partition("acme");
    let within: Vec<bool> = ledgers.iter().map(|ledger| ledger.partition == of_account).collect();
    assert_eq!(within, [true, true, false, false, true]);
    let distinct: std::collections::HashSet<_> = ledgers.iter().collect();
    assert_eq!(distinct.len(), ledgers.len());
    // Only attributes in the scope change the counter.
    let differ = |other: Vec<LedgerKey>| ledgers.iter().zip(other).map(|(a, b)| *a != b).collect::<Vec<_>>();
    assert_eq!(differ(who.ledgers(&policy, "b", "192.0.2.1")), [true, false, true, false, false]);
    assert_eq!(differ(who.ledgers(&policy, "chat", "192.0.2.2")), [false, false, false, true, false]);
    let caller = who.caller(&policy);
    let (resolved, usage) = (policy.resolve(&caller, "chat").unwrap(), policy.usage([]).unwrap());
    let missing = resolved.claim_set(&usage, |_| None, None);
    assert_eq!(missing.unwrap_err().to_string(), "attributes.ip: is required here");
}

#[test]
fn the_usage_determines_the_costs_of_claims() {
    let quotas = vec![per_minute(10), quota("tokens", MINUTE, 100, &[]), quota("requests", DAY, 50, &[])];
    let policy = compiled(&file([("chat", with_rule(Some(quotas)))], None));
    let who = Client::plain();
    let costs = |pairs: &[(&str, u64)]| {
        let usage = policy.usage(pairs.iter().copied()).unwrap();
        let caller = who.caller(&policy);
        let resolved = policy.resolve(&caller, "chat").unwrap();
        let claims = resolved.claim_set(&usage, |_| None, None).unwrap().claims(Timestamp::from_ms(0), &[]);
        claims.iter().map(|claim| claim.cost.get()).collect::<Vec<_>>()
    };
    assert_eq!(costs(&[]), [1, 0, 1]);
    assert_eq!(costs(&[("tokens", 7)]), [1, 7, 1]);
    assert_eq!(costs(&[("tokens", 0), ("requests", 0)]), [0, 0, 0], "upstreams report amounts of 0");
    assert_eq!(costs(&[("tokens", MAX_AMOUNT), ("requests", 2)]), [2, MAX_AMOUNT, 2]);
    let wrong = |pairs: &[(&str, u64)]| policy.usage(pairs.iter().copied()).unwrap_err().to_string();
    assert_eq!(wrong(&[("tokens", u64::MAX)]), "usage.tokens: must be at most 9007199254740991 (2^53 - 1)");
    assert_eq!(wrong(&[("tokens", 1), ("tokens", 1)]), "usage.tokens: named twice");
    assert_eq!(wrong(&[("img\n", 1)]), "usage.img: there is no such unit; the units are: requests, tokens");
    assert_eq!(policy.usage([]).unwrap().of(UnitId::of("requests")), Amount::from(1));
}

/// Fails if only adjacent quotas of one unit are merged.
#[test]
fn units_that_a_call_leaves_out_are_named_once() {
    let quotas = vec![quota("tokens", MINUTE, 100, &[]), quota("images", DAY, 5, &[]), quota("tokens", DAY, 500, &[])];
    let mut file = file([("chat", with_rule(Some(quotas)))], None);
    file.units = written::words(&["tokens", "images"]);
    let policy = compiled(&file);
    let who = Client::plain();
    let caller = who.caller(&policy);
    let resolved = policy.resolve(&caller, "chat").unwrap();
    let left_out = |pairs: &[(&str, u64)]| {
        let usage = policy.usage(pairs.iter().copied()).unwrap();
        (resolved.quotas_left_out(&usage).count(), resolved.units_left_out(&usage).to_vec())
    };
    assert_eq!(left_out(&[]), (3, ["tokens", "images"].map(UnitId::of).to_vec()));
    assert_eq!(left_out(&[("tokens", 0)]), (1, vec![UnitId::of("images")]));
    let text = policy.explain(&caller, "chat").unwrap().to_string();
    assert!(text.contains("a call that names no tokens, images is not limited"), "{text}");
}

#[test]
fn quotas_have_default_names_and_labels() {
    let check = |unit: &str, per: format::Window, name: &str, label: &str| {
        let quota = format::Quota { counter: counter(unit, per, 1, &[]), ..quota(unit, MINUTE, 1, &[]) };
        let policy = compiled(&file([("chat", with_rule(Some(vec![quota])))], None));
        let who = Client::plain();
        let caller = who.caller(&policy);
        let resolved = policy.resolve(&caller, "chat").unwrap();
        let quota = resolved.quotas()[0].quota;
        assert_eq!((&*quota.name, &*quota.label), (name, label));
    };
    let berlin = || Some(format::Zone("Europe/Berlin".to_owned()));
    let calendar = |unit| format::Window::Calendar(format::quota::Calendar { calendar: unit, zone: berlin() });
    check("requests", trailing(MINUTE), "requests_per_minute", "RPM");
    check("tokens", trailing(DAY), "tokens_per_day", "TPD");
    check("tokens", trailing("30s"), "tokens_per_30s", "TP30S");
    check("tokens", trailing("12h"), "tokens_per_12h", "TP12H");
    check("tokens", trailing("1500ms"), "tokens_per_1500ms", "TP1500MS");
    check("requests", calendar(format::quota::CalendarUnit::Day), "requests_per_calendar_day", "RPD");
    check("requests", calendar(format::quota::CalendarUnit::Month), "requests_per_calendar_month", "RPMo");
}

#[test]
fn ledgers_that_are_too_large_are_refused() {
    let windows = |count: u64| (1..=count).map(|at| quota("requests", &format!("{at}ms"), 1, &["account"]));
    let of = |count| file([("chat", with_rule(Some(windows(count).collect())))], None);
    compiled(&of(5));
    assert!(
        mistakes(&of(6))[0]
            .starts_with("tiers: scope [account] has too many counters: the weight of its sliding windows is 36,")
    );
    // Calendar windows are single numbers, and do not count.
    let day = |unit: &str| {
        let per = format::Window::Calendar(format::quota::Calendar {
            calendar: format::quota::CalendarUnit::Day,
            zone: None,
        });
        format::Quota { counter: counter(unit, per, 1, &["account"]), ..quota(unit, MINUTE, 1, &[]) }
    };
    let quotas = windows(5).chain([day("requests"), day("tokens")]).collect();
    let policy = compiled(&file([("chat", with_rule(Some(quotas)))], None));
    // A scope shared over resources contains the counters of all of them.
    let one = |ms: u64| with_rule(Some(vec![quota("requests", &format!("{ms}ms"), 1, &["account"])]));
    let spread = file([("a", one(1)), ("b", one(2)), ("c", one(3)), ("d", one(4)), ("e", one(5)), ("f", one(6))], None);
    assert_eq!(mistakes(&spread).len(), 1);
    // An override must fit together with the counters of the rules.
    let one_more = [over(None, DAY, 1, &["account"])];
    let refused = policy.overrides(&one_more, QuotaLevel::Account, &Place::root()).unwrap_err();
    assert!(matches!(refused[0].problem, Problem::LedgerTooLarge { weight: 36, .. }));
}

#[test]
fn calls_have_a_bounded_number_of_quotas() {
    let pools = |count: usize| (0..count).map(|at| quota("requests", MINUTE, 1, &["resource", &format!("a{at}")]));
    let of = |count| file([("chat", with_rule(Some(pools(count).collect())))], None);
    let policy = compiled(&of(16));
    assert_eq!(mistakes(&of(17)), ["resources.chat: has 17 quotas in tier \"paid\"; at most 16 can apply to one call"]);
    let overrides = |count| (1..=count).map(|ms| over(None, &format!("{ms}ms"), 1, &[])).collect::<Vec<_>>();
    let refused = policy.overrides(&overrides(9), QuotaLevel::Account, &Place::root()).unwrap_err();
    assert_eq!(refused[0].problem, Problem::TooManyOverriddenCounters(8));
}
