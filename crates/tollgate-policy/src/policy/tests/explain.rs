//! Rules that no call reaches, quotas that apply in addition, and explanations.

use insta::assert_snapshot;

use super::*;
use crate::{LoadedPolicy, file::read_override};

/// A platform with a budget per tier, a class with limits, and a resource with a pool.
fn policy(tier: &str, class: &str, resource: &str) -> LoadedPolicy {
    let text = format!(
        "
version: 1
domain: shop
units: [tokens]
classes:
  text: {{ {class} }}
  image: {{ quotas: [{{ unit: requests, per: minute, limit: 5 }}] }}
resources:
  chat: {{ class: text, {resource} }}
  draw: {{ class: image }}
tiers:
  free: {{ is_charged: false, priority: 1, {tier} }}
  pro: {{ is_charged: true, priority: 2, {tier} }}
default_tier: free
"
    );
    LoadedPolicy::parse("shop.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

const BUDGET: &str = "[{ name: budget, unit: requests, per: { calendar: month }, limit: 1000, scope: [account] }]";
const POOL: &str = "[{ name: capacity, unit: tokens, per: minute, limit: 5000, scope: [resource], pool: { shares: [10, 20, 30, 40] } }]";
const MINUTELY: &str = "quotas: [{ unit: requests, per: minute, limit: 60 }]";

fn warnings(loaded: &LoadedPolicy) -> String {
    let lines =
        loaded.warnings.iter().map(|warning| format!("{}: {}: {}", warning.line, warning.place, warning.message));
    lines.collect::<Vec<_>>().join("\n")
}

fn explained(loaded: &LoadedPolicy, tier: &str, resource: &str, overrides: &[Override]) -> String {
    let caller = Caller {
        partition: loaded.policy.account_partition("acme"),
        tier: loaded.policy.tier_named(tier).unwrap(),
        account_overrides: overrides,
        key: None,
    };
    loaded.policy.explain(&caller, resource).unwrap().to_string()
}

/// The first rule wins as a whole, so a tier's budget and a class's pool have no effect where another list applies.
#[test]
fn unreachable_quotas_cause_a_warning_that_names_the_winner() {
    let loaded = policy(&format!("quotas: {BUDGET}"), &format!("quotas: {POOL}"), MINUTELY);
    assert_snapshot!(warnings(&loaded), @r"
    6: classes.text.quotas: no call ever reaches these quotas: resources.chat.quotas applies instead; write what is to apply in addition as `also`
    12: tiers.free.quotas: no call ever reaches these quotas: resources.chat.quotas, classes.image.quotas apply instead; write what is to apply in addition as `also`
    13: tiers.pro.quotas: no call ever reaches these quotas: resources.chat.quotas, classes.image.quotas apply instead; write what is to apply in addition as `also`
    ");
}

#[test]
fn also_quotas_apply_in_addition_to_the_winner() {
    let loaded = policy(&format!("also: {BUDGET}"), MINUTELY, &format!("also: {POOL}"));
    assert_eq!(warnings(&loaded), "");
    assert_snapshot!(explained(&loaded, "pro", "chat", &[]), @r#"
    domain shop, tier pro, resource chat, class text

    rules for the quotas of the account, in their order:
      wins      classes.text.quotas

    in addition:
      tiers.pro.also
      resources.chat.also

    quota                limit          window                 counter                   source
    requests_per_minute  60 requests    minute                 account, resource "chat"  classes.text.quotas[0]
    budget               1000 requests  calendar month in UTC  account                   tiers.pro.also[0]
    capacity             5000 tokens    minute                 resource "chat"           resources.chat.also[0] (hidden) (pool)

    a call that names no tokens is not limited by these quotas; `required: true` refuses it
    "#);
    assert_snapshot!(explained(&loaded, "free", "draw", &[]), @r#"
    domain shop, tier free, resource draw, class image

    rules for the quotas of the account, in their order:
      wins      classes.image.quotas

    in addition:
      tiers.free.also

    quota                limit          window                 counter                   source
    requests_per_minute  5 requests     minute                 account, resource "draw"  classes.image.quotas[0]
    budget               1000 requests  calendar month in UTC  account                   tiers.free.also[0]
    "#);
}

#[test]
fn an_explanation_names_losing_rules_and_the_effects_of_overrides() {
    let loaded = policy(&format!("quotas: {BUDGET}"), MINUTELY, "quotas: []");
    let over = |text: &str| read_override(&crate::file::read_yaml(text).unwrap()).unwrap();
    let written = [
        over("{ resource: draw, unit: requests, per: minute, limit: 50 }"),
        over("{ unit: tokens, per: 30s, limit: unlimited }"),
    ];
    let overrides = loaded.policy.overrides(&written, QuotaLevel::Account, &Place::root()).unwrap();
    assert_snapshot!(explained(&loaded, "pro", "draw", &overrides), @r#"
    domain shop, tier pro, resource draw, class image

    rules for the quotas of the account, in their order:
      wins      classes.image.quotas
      loses     tiers.pro.quotas

    quota                limit             window  counter                   source
    requests_per_minute  50 requests       minute  account, resource "draw"  classes.image.quotas[0] (an override replaced 5)
    tokens_per_30s       unlimited tokens  30s     account, resource "draw"  override

    a call that names no tokens is not limited by these quotas; `required: true` refuses it
    "#);
    assert_snapshot!(explained(&loaded, "pro", "chat", &[]), @r"
    domain shop, tier pro, resource chat, class text

    rules for the quotas of the account, in their order:
      wins      resources.chat.quotas
      loses     classes.text.quotas
      loses     tiers.pro.quotas

    no quotas: not limited
    ");
}

#[test]
fn the_matrix_shows_the_limits_of_every_tier_for_every_resource() {
    let loaded = policy(&format!("also: {BUDGET}"), MINUTELY, "quotas: []");
    assert_snapshot!(loaded.policy.matrix(), @r"
    resource  free              pro
    chat      1000 RPMo         1000 RPMo
    draw      5 RPM, 1000 RPMo  5 RPM, 1000 RPMo
    ");
}

#[test]
fn a_counter_that_two_lists_limit_is_a_mistake() {
    let text = "
version: 1
domain: shop
resources: { chat: { also: [{ unit: requests, per: minute, limit: 5, scope: [account] }] } }
tiers: { free: { is_charged: false, quotas: [{ unit: requests, per: minute, limit: 9, scope: [account] }] } }
default_tier: free
";
    let errors = LoadedPolicy::parse("shop.yaml", text).unwrap_err();
    assert_snapshot!(errors, @r"shop.yaml:4: resources.chat.also: requests_per_minute has the same unit, window and scope as a quota of tiers.free.quotas, and both apply to some call; keep one of the two");
}

#[test]
fn different_definitions_of_one_pool_cause_a_warning() {
    let capacity = |limit: u32| {
        format!(
            "[{{ unit: requests, per: minute, limit: {limit}, scope: [resource], pool: {{ shares: [10, 20, 30, 40] }} }}]"
        )
    };
    let text = format!(
        "
version: 1
domain: shop
resources: {{ chat: {{}} }}
tiers:
  free: {{ is_charged: false, quotas: {} }}
  pro: {{ is_charged: true, quotas: {} }}
default_tier: free
",
        capacity(100),
        capacity(200)
    );
    let loaded = LoadedPolicy::parse("shop.yaml", &text).unwrap();
    assert_snapshot!(warnings(&loaded), @r"7: tiers.pro.quotas[0]: describes the same pool as tiers.free.quotas, with another limit or other shares: each call is decided by those of its own tier");
}

/// Regression: a provider class accepted estimates and ignored them.
#[test]
fn estimates_of_a_provider_class_take_precedence_over_those_of_the_class() {
    let text = "
version: 1
domain: shop
units: [tokens]
classes: { text: { quotas: [], estimates: { tokens: [{ input: prompt, default: 7 }] } } }
provider_classes: { acme: { estimates: { tokens: [{ input: prompt, default: 5 }] } } }
resources: { chat: { class: text, provider_class: acme }, talk: { class: text } }
tiers: { free: { is_charged: false } }
default_tier: free
";
    let loaded = LoadedPolicy::parse("shop.yaml", text).unwrap_or_else(|errors| panic!("{errors}"));
    let client = Client::plain();
    let tokens = |resource: &str| {
        let resolved = loaded.policy.resolve(&client.caller(&loaded.policy), resource).unwrap();
        resolved.estimated(loaded.policy.usage([]).unwrap(), |_| None).of(UnitId::of("tokens")).get()
    };
    assert_eq!((tokens("chat"), tokens("talk")), (5, 7));
}
