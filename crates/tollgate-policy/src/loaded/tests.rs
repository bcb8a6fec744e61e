mod listing;
mod mistakes;

use std::{collections::HashSet as Set, path::PathBuf};

use insta::assert_snapshot;
use sha2::{Digest, Sha256};
use tollgate_core::amount::{Amount, Limit};

use super::*;
use crate::policy::{Caller, CallerKey};

fn policies() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/policies")
}

fn load(file: &str) -> LoadedPolicy {
    let text = std::fs::read_to_string(policies().join(file)).unwrap();
    LoadedPolicy::parse(file, &text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn report(text: &str) -> String {
    LoadedPolicy::parse("policy.yaml", text).map_or_else(|errors| errors.to_string(), |_| "no mistakes".to_owned())
}

const GOOD: &str = "version: 1\ndomain: d\ntiers: {t: {is_charged: false, quotas: []}}\ndefault_tier: t\n";

#[test]
fn layout_and_comments_do_not_change_the_fingerprint() {
    let fingerprint = |text: &str| LoadedPolicy::parse("policy.yaml", text).unwrap().fingerprint;
    let rewritten = GOOD
        .replace("{t: {is_charged: false, quotas: []}}", "\n  # Nobody pays.\n  t: { is_charged: false, quotas: [] }");
    assert_eq!(fingerprint(GOOD), fingerprint(&rewritten));
    assert_ne!(fingerprint(GOOD), fingerprint(&GOOD.replace("false", "true")));
    assert!(fingerprint(GOOD) < 1 << 48);
}

#[test]
fn a_minimal_policy_is_valid() {
    assert_eq!(report(GOOD), "no mistakes");
}

#[test]
fn every_structural_mistake_is_reported_at_once() {
    let text = r#"
version: 2
domain: "Venice AI"
units: [Tokens]
limits: {}
classes:
  text:
    quotas:
      - { unit: requests, per: fortnight, limit: 10 }
      - { unit: requests, per: minute, limit: -1 }
      - { unit: requests, per: { calendar: year }, limit: 10 }
      - { unit: requests, per: { calendar: day, timezone: UTC }, limit: 10 }
      - { unit: requests, per: hour, limit: many }
      - { unit: requests, limit: 9007199254740992, per: hour, colour: red }
resources:
  "tab\there": { class: text }
  chat: { class: text, counter: mine }
unknown_resources: allow
tiers:
  paid: { is_charged: "yes", priority: 5 }
bootstrap:
  accounts:
    - id: a
      tier: paid
      keys:
        - { id: k, hash: "md5:00", kind: root, expires_at: tomorrow }
"#;
    assert_snapshot!(report(text), @r#"
    policy.yaml:2: needs the key default_tier
    policy.yaml:2: version: 2 must be at most 1
    policy.yaml:3: domain: "Venice AI" is not right here; it should be: 1 to 63 lower-case letters, digits and hyphens, such as `venice`
    policy.yaml:4: units[0]: "Tokens" is not right here; it should be: up to 32 lower-case letters, digits and underscores, starting with a letter
    policy.yaml:5: limits: is not known here; the keys are: version, domain, units, scopes, classes, provider_classes, resources, unknown_resources, tiers, default_tier, shadow, self_service, on_failure, abuse, dialect, retry_jitter, dialects, uploads, estimates, promotions, keys, bootstrap
    policy.yaml:9: classes.text.quotas[0].per: "fortnight" is not right here; it should be: `second`, `minute`, `hour`, `day`, `week`, or a length such as `30s`, `12h` or `7d` (units: ms, s, m, h, d, w)
    policy.yaml:10: classes.text.quotas[1].limit: -1 is not right here; it should be: a whole number from 0 (never) to 9007199254740991, such as 20000000, 20_000_000 or 20M (k, M, G), or `unlimited`
    policy.yaml:11: classes.text.quotas[2].per.calendar: "year" is not one of: "second", "minute", "hour", "day", "week", "month"
    policy.yaml:12: classes.text.quotas[3].per.timezone: is not known here; the keys are: calendar, zone
    policy.yaml:13: classes.text.quotas[4].limit: "many" is not right here; it should be: a whole number from 0 (never) to 9007199254740991, such as 20000000, 20_000_000 or 20M (k, M, G), or `unlimited`
    policy.yaml:14: classes.text.quotas[5].limit: 9007199254740992 must be at most 9007199254740991
    policy.yaml:14: classes.text.quotas[5].colour: is not known here; the keys are: unit, per, limit, scope, name, label, shadow, visible, required, refused_as, on_failure, retry_after, pool
    policy.yaml:16: resources."tab\there": cannot be a name here; it should be: a name of up to 128 characters, none of them a control or invisible character, or a wildcard such as `prompt/*`
    policy.yaml:17: resources.chat.counter: "mine" is not one of: "shared", "each"
    policy.yaml:18: unknown_resources: "allow" is not right here; it should be: `refuse`, or how they are treated, such as `{class: text/small}`
    policy.yaml:20: tiers.paid.is_charged: "yes" must be true or false
    policy.yaml:20: tiers.paid.priority: 5 must be at most 4
    policy.yaml:26: bootstrap.accounts[0].keys[0].hash: "md5:00" is not right here; it should be: `sha256:` and the 64 lower-case hexadecimal digits of the key's SHA-256
    policy.yaml:26: bootstrap.accounts[0].keys[0].kind: "root" is not one of: "inference", "admin"
    policy.yaml:26: bootstrap.accounts[0].keys[0].expires_at: "tomorrow" is not right here; it should be: a time such as `2027-01-31T00:00:00Z`
    "#);
}

/// What people write at first, and what they are told. Seen to fail with each word before it was read or answered.
#[test]
fn usual_slips_are_read_or_answered_with_what_would_be_right() {
    let quota = |quota: &str| GOOD.replace("quotas: []", &format!("quotas: [{quota}]"));
    for limit in ["20M", "1.5M", "20_000_000", "0.5k"] {
        assert_eq!(
            report(&quota(&format!("{{unit: requests, per: minute, limit: {limit}}}"))),
            "no mistakes",
            "{limit}"
        );
    }
    let twice = "version: 1\ndomain: d\ndefault_tier: a\ntiers:\n  a: {is_charged: true, quotas: &q [{unit: requests, per: month, \
                 limit: 5}]}\n  b: {is_charged: true, quotas: *q}\n";
    let slips = [
        quota("{unit: requests, per: month, limit: 5}"),
        quota("{unit: requests, per: minute, limit: 20MB}"),
        quota("{unit: requests, per: minute, limit: 9_007_199_254_740_992}"),
        quota("{unit: concurrent, limit: 5}"),
        twice.to_owned(),
    ];
    assert_snapshot!(slips.map(|text| report(&text)).join("\n"), @r#"
    policy.yaml:3: tiers.t.quotas[0].per: "month" is not right here, as months differ in length; for calendar months write {calendar: month}
    policy.yaml:3: tiers.t.quotas[0].limit: "20MB" is not right here; it should be: a whole number from 0 (never) to 9007199254740991, such as 20000000, 20_000_000 or 20M (k, M, G), or `unlimited`
    policy.yaml:3: tiers.t.quotas[0].limit: must be at most 9007199254740991 (2^53 - 1); write `unlimited` for no limit
    policy.yaml:3: tiers.t.quotas[0].unit: there is no unit "concurrent"; did you mean "concurrent_requests"? there is: requests, concurrent_requests
    policy.yaml:3: tiers.t.quotas[0].per: is required: the length of the window; only concurrent_requests has none
    policy.yaml:5: tiers.a.quotas[0].per: "month" is not right here, as months differ in length; for calendar months write {calendar: month}; an alias repeats it in tiers.b.quotas[0].per
    "#);
}

/// Names are also checked if the policy does not compile. Tried by checking them against an empty policy, and by
/// reporting the override of an hour for a ledger that is too large without it.
#[test]
fn every_semantic_mistake_is_reported_at_once() {
    // `costarring` and `liquid` are the standard example of an FNV-1a collision.
    let text = r#"
version: 1
domain: d
units: [tokens, costarring, liquid]
scopes: { account: [api_key] }
classes:
  text:
    quotas:
      - { unit: token, per: minute, limit: 10 }
      - { unit: requests, per: 5w, limit: 10 }
      - { unit: requests, per: { calendar: day, zone: Mars/Olympus }, limit: 10 }
      - { unit: requests, per: minute, limit: 10, scope: [ip, ip] }
      - { unit: tokens, per: minute, limit: 10 }
      - { unit: tokens, per: 60s, limit: 20 }
  heavy:
    quotas:
      - { unit: requests, per: second, limit: 1 }
      - { unit: requests, per: minute, limit: 1 }
      - { unit: requests, per: hour, limit: 1 }
      - { unit: requests, per: day, limit: 1 }
      - { unit: tokens, per: day, limit: 1 }
      - { unit: requests, per: week, limit: 1 }
  silent: {}
resources:
  chat: { class: txt }
  images: { class: text, provider_class: nobody }
  "a*b": { class: text }
  code: { class: heavy }
  idle: { class: silent }
tiers:
  paid:
    is_charged: true
    resources:
      speech: { quotas: [] }
    classes:
      audio: { quotas: [] }
default_tier: free
bootstrap:
  accounts:
    - { id: a, tier: paid }
    - { id: "..", tier: paid, keys: [{ id: ".", hash: "sha256:0000000000000000000000000000000000000000000000000000000000000000", kind: admin }] }
    - id: a
      tier: paid
      keys:
        - { id: k, hash: "sha256:1bc988390885531b24f20c5ef0caac79b645f9791ab2ade6a1cabfac0dbdcc1b", kind: admin }
        - { id: k, hash: "sha256:1bc988390885531b24f20c5ef0caac79b645f9791ab2ade6a1cabfac0dbdcc1b", kind: admin,
            expires_at: "2027-02-30T00:00:00Z" }
    - id: b
      tier: silver
      overrides:
        - { unit: bananas, per: minute, limit: 1 }
        - { unit: requests, per: minute, limit: 1, resource: speech }
        - { unit: requests, per: hour, limit: 1 }
      keys:
        - { id: l, hash: "sha256:2bc988390885531b24f20c5ef0caac79b645f9791ab2ade6a1cabfac0dbdcc1b", kind: admin,
            overrides: [{ unit: requests, per: minute, limit: 1, scope: [account] }] }
promotions:
  - { on: payment, from: paid, to: gold }
uploads:
  limits: [{ media: audio, resource: music, size: 1MB }]
dialects:
  own: { headers: [{ name: X-Left, value: remaining, quota: { unit: bytes } }] }
"#;
    assert_snapshot!(report(text), @r#"
    policy.yaml:4: units[2]: "liquid" is counted in the same column as "costarring"; rename one of the two units
    policy.yaml:5: scopes.account: must not contain api_key; quotas with it are the key's
    policy.yaml:9: classes.text.quotas[0].unit: there is no unit "token"; did you mean "tokens"? there is: requests, tokens, costarring, concurrent_requests
    policy.yaml:10: classes.text.quotas[1].per: a sliding window lasts from 1 millisecond to 31 days
    policy.yaml:11: classes.text.quotas[2].per.zone: "Mars/Olympus" is not a time zone of the IANA database, such as UTC or Europe/Berlin
    policy.yaml:12: classes.text.quotas[3].scope: names "ip" twice; once is enough
    policy.yaml:14: classes.text.quotas[5]: has the same unit, window and scope as number 4 of this list (counted from 0); keep one of the two
    policy.yaml:25: resources.chat.class: there is no class "txt"; did you mean "text"? there is: text, heavy, silent
    policy.yaml:26: resources.images.provider_class: there is no provider class "nobody"; there is: none yet
    policy.yaml:27: resources."a*b": a `*` is allowed only at the end, as in `prompt/*`
    policy.yaml:29: resources.idle: no rule gives it quotas in tier "paid"; write `quotas: []` where it is not limited
    policy.yaml:30: tiers: scope [account] has too many counters: the weight of its sliding windows is 34, at most 30 is allowed (4 for each window; for each unit in it 2 for requests, 2 for each counter of an abuse rule, 4 for any other; over all tiers); use fewer windows or units, or another scope
    policy.yaml:34: tiers.paid.resources.speech: "speech" matches none of `resources`; name one of them, or a wildcard that covers one
    policy.yaml:36: tiers.paid.classes.audio: there is no class "audio"; there is: text, heavy, silent
    policy.yaml:37: default_tier: there is no tier "free"; there is: paid
    policy.yaml:41: bootstrap.accounts[1].id: cannot be "." or "..", because no URL can contain these
    policy.yaml:41: bootstrap.accounts[1].keys[0].id: cannot be "." or "..", because no URL can contain these
    policy.yaml:42: bootstrap.accounts[2].id: is the account id of another one in this file; each needs its own
    policy.yaml:46: bootstrap.accounts[2].keys[1].id: is the key id of another one in this file; each needs its own
    policy.yaml:46: bootstrap.accounts[2].keys[1].hash: is the hash of another one in this file; each needs its own
    policy.yaml:47: bootstrap.accounts[2].keys[1].expires_at: is not a time; write it like 2027-01-31T00:00:00Z
    policy.yaml:49: bootstrap.accounts[3].tier: there is no tier "silver"; there is: paid
    policy.yaml:51: bootstrap.accounts[3].overrides[0].unit: there is no unit "bananas"; there is: requests, tokens, costarring, concurrent_requests
    policy.yaml:52: bootstrap.accounts[3].overrides[1].resource: "speech" matches none of `resources`; name one of them, or a wildcard that covers one
    policy.yaml:56: bootstrap.accounts[3].keys[0].overrides[0].scope: must contain api_key; quotas without it are the account's
    policy.yaml:58: promotions[0].to: there is no tier "gold"; there is: paid
    policy.yaml:60: uploads.limits[0].resource: "music" matches none of `resources`
    policy.yaml:62: dialects.own.headers[0].quota.unit: there is no unit "bytes"; there is: requests, tokens, costarring
    "#);
}

#[test]
fn mistakes_of_the_bootstrap_section() {
    let text = GOOD.to_owned()
        + r#"resources: { chat: { quotas: [] } }
bootstrap:
  accounts:
    - id: a
      tier: gold
      overrides:
        - { unit: requests, per: minute, limit: 1, scope: [api_key] }
        - { unit: tokens, per: minute, limit: 1 }
        - { unit: requests, per: hour, limit: 1, resource: speech }
        - { unit: requests, per: day, limit: 1 }
        - { unit: requests, per: 24h, limit: 2 }
      keys:
        - id: k
          hash: "sha256:1bc988390885531b24f20c5ef0caac79b645f9791ab2ade6a1cabfac0dbdcc1b"
          kind: inference
          overrides: [{ unit: requests, per: minute, limit: 1, scope: [account] }]
"#;
    assert_snapshot!(report(&text), @r#"
    policy.yaml:9: bootstrap.accounts[0].tier: there is no tier "gold"; there is: t
    policy.yaml:11: bootstrap.accounts[0].overrides[0].scope: must not contain api_key; quotas with it are the key's
    policy.yaml:12: bootstrap.accounts[0].overrides[1].unit: there is no unit "tokens"; there is: requests, concurrent_requests
    policy.yaml:13: bootstrap.accounts[0].overrides[2].resource: "speech" matches none of `resources`; name one of them, or a wildcard that covers one
    policy.yaml:15: bootstrap.accounts[0].overrides[4]: has the same unit, window and scope as number 3 of this list (counted from 0); keep one of the two
    policy.yaml:20: bootstrap.accounts[0].keys[0].overrides[0].scope: must contain api_key; quotas without it are the account's
    "#);
}

#[test]
fn texts_that_are_not_policies_are_refused() {
    assert_snapshot!(report(""), @"policy.yaml:1: is empty; a policy is a map with the keys `version`, `domain`, …");
    assert_snapshot!(report("a: 1\nb: [1\n"), @"policy.yaml:3: is not YAML: while parsing a flow sequence, expected ',' or ']'");
    assert_snapshot!(report("version: 1\ndomain: d\nversion: 1\n"), @"policy.yaml:3: is not YAML: duplicated key in mapping");
    assert_snapshot!(report("version: 1\n---\nversion: 1\n"), @"policy.yaml:3: contains several documents (`---`); it must contain one");
    assert_snapshot!(report("1: one\n"), @"policy.yaml:1: has a key that is not a string; put it in quotes");
    assert_snapshot!(report("version: .nan\n"), @"policy.yaml:1: version: must be a finite number");
    assert_snapshot!(report("version: !!int x\n"), @"policy.yaml:1: version: is not plain YAML; write it without a tag");
    assert_snapshot!(report("[]"), @"policy.yaml:1: a list must be a map");
    assert_snapshot!(report(&"[".repeat(100_000)), @"policy.yaml:1: is not YAML: recursion limit exceeded");
    let laughs = (1..9).fold("a0: &a0 [1,1,1,1,1,1,1,1,1]\n".to_owned(), |text, at| {
        let before = format!("*a{},", at - 1).repeat(9);
        format!("{text}a{at}: &a{at} [{before}]\n")
    });
    assert_snapshot!(report(&laughs), @"policy.yaml:6: is not YAML: alias expansion exceeded the maximum node budget (possible billion-laughs attack)");
    assert_snapshot!(report(&" ".repeat(1 << 20 | 1)), @"policy.yaml:1: is too large; a policy file has at most 1048576 bytes");
}

#[test]
fn the_schema_file_matches_the_types() {
    let path = policies().join("policy.schema.json");
    let generated = serde_json::to_string_pretty(&format::schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(on_disk == generated, "{} is stale; run this test with UPDATE_SCHEMA=1", path.display());
}

/// Each row of the page: a model, then the limits it must have, requests and tokens a minute.
const VENICE: &[(&str, &[(&str, u32)])] = &[
    ("qwen3-4b", &[("RPM", 500), ("TPM", 5_000_000)]),
    ("text-embedding-bge-m3", &[("RPM", 500), ("TPM", 5_000_000)]),
    ("mistral-31-24b", &[("RPM", 150), ("TPM", 3_000_000)]),
    ("llama-3.3-70b", &[("RPM", 100), ("TPM", 2_000_000)]),
    ("zai-org-glm-5-1", &[("RPM", 100), ("TPM", 2_000_000)]),
    ("deepseek-v3.2", &[("RPM", 150), ("TPM", 10_000_000)]),
    ("claude-opus-4-6", &[("RPM", 500), ("TPM", 5_000_000)]),
    ("grok-41-fast", &[("RPM", 500), ("TPM", 10_000_000)]),
    ("openai-gpt-52", &[("RPM", 1000)]),
    ("kimi-k2-5", &[("RPM", 1000)]),
    ("venice-sd35", &[("RPM", 20)]),
    ("upscaler", &[("RPM", 20)]),
    ("qwen-edit", &[("RPM", 20)]),
    ("seedream-v4", &[("RPM", 50)]),
    ("flux-2-pro", &[("RPM", 50)]),
    ("grok-imagine-image", &[("RPM", 120)]),
    ("grok-imagine-image-pro", &[("RPM", 20)]),
    ("tts-kokoro", &[("RPM", 60)]),
    ("nvidia/parakeet-tdt-0.6b-v3", &[("RPM", 60)]),
    ("sora-2-text-to-video", &[]),
    ("elevenlabs-music", &[]),
];

fn limits(loaded: &LoadedPolicy, account: &str, resource: &str) -> Vec<(String, Limit)> {
    let account = loaded.bootstrap.iter().find(|known| &*known.id == account).unwrap();
    let key = account.keys.first().map(|key| CallerKey { id: &key.id, overrides: &key.overrides });
    let caller =
        Caller { partition: account.partition, tier: account.tier, account_overrides: &account.overrides, key };
    let resolved = loaded.policy.resolve(&caller, resource).unwrap();
    resolved.quotas().iter().map(|active| (active.quota.label.to_string(), active.limit)).collect()
}

fn finite(limits: &[(&str, u32)]) -> Vec<(String, Limit)> {
    limits.iter().map(|(label, limit)| ((*label).to_owned(), Limit::Finite(Amount::from(*limit)))).collect()
}

#[test]
fn venice_has_every_row_of_its_page() {
    let loaded = load("venice.yaml");
    for (model, expected) in VENICE {
        assert_eq!(limits(&loaded, "demo", model), finite(expected), "{model}");
    }
    let classes: Set<_> =
        loaded.policy.resources().iter().map(|resource| (&resource.class, &resource.provider_class)).collect();
    let tested: Set<_> = (loaded.policy.resources().iter())
        .filter(|resource| VENICE.iter().any(|(model, _)| *model == &*resource.name))
        .map(|resource| (&resource.class, &resource.provider_class))
        .collect();
    assert_eq!(classes, tested, "a class without a row in this table");
    let unknown = Caller {
        partition: loaded.bootstrap[0].partition,
        tier: loaded.policy.default_tier(),
        account_overrides: &[],
        key: None,
    };
    assert!(loaded.policy.resolve(&unknown, "no-such-model").is_err());
}

/// "Partners sit above the standard tier": higher where an override names the model or covers it, and nowhere lower.
#[test]
fn venice_partners_have_higher_limits_only_where_overridden() {
    let loaded = load("venice.yaml");
    // The second by `claude-*`.
    let overridden = ["llama-3.3-70b", "claude-opus-4-6", "venice-sd35"];
    for (model, page) in VENICE {
        let (partner, standard) = (limits(&loaded, "demo-partner", model), finite(page));
        assert_eq!(partner.len(), standard.len(), "{model}");
        for ((label, limit), (same_label, of_page)) in partner.iter().zip(&standard) {
            assert_eq!(label, same_label, "{model}");
            let is_higher = limit.ceiling() > of_page.ceiling();
            assert_eq!(is_higher, overridden.contains(model), "{model}: {limit:?}, and {of_page:?} on the page");
            assert!(is_higher || limit == of_page, "{model}: {limit:?}, and {of_page:?} on the page");
        }
    }
}

#[test]
fn venice_has_a_demo_key_of_the_known_format() {
    let loaded = load("venice.yaml");
    let key = &loaded.bootstrap[0].keys[0];
    let secret = concat!("tg_", "demoVeniceKeyForLoopbackUseOnly0", "4QjPeg");
    assert_eq!(key.hash[..], Sha256::digest(secret)[..]);
    assert!(key.demo && !key.revoked && key.kind == tollgate_core::api_key::KeyKind::Inference);
}

/// Scopes by default and by quota, calendar days and wildcards, as the other shipped policies have them.
#[test]
fn scopes_windows_and_wildcards_of_the_shipped_policies() {
    let said = |file: &str, tier: &str, resource: &str| {
        let loaded = load(file);
        let policy = &loaded.policy;
        let caller = Caller {
            partition: policy.account_partition("a"),
            tier: policy.tier_named(tier).unwrap(),
            account_overrides: &[],
            key: Some(CallerKey { id: "k", overrides: &[] }),
        };
        let resolved = policy.resolve(&caller, resource).unwrap();
        let quotas = resolved.quotas().iter();
        let quotas = quotas.map(|active| format!("{} {:?} [{}]", active.quota.name, active.limit, active.quota.scope));
        format!("{}: {}", resolved.resource(), quotas.collect::<Vec<_>>().join(", "))
    };
    assert_snapshot!(said("deapi.yaml", "basic", "txt2img"), @"txt2img: requests_per_minute Finite(Amount(3)) [api_key, resource], requests_per_calendar_day Finite(Amount(100)) [api_key, resource]");
    assert_snapshot!(said("deapi.yaml", "basic", "prompt/any"), @"prompt/*: requests_per_minute Finite(Amount(10)) [api_key, resource], requests_per_calendar_day Finite(Amount(100)) [api_key, resource]");
    assert_snapshot!(said("deapi.yaml", "premium", "prompt/any"), @"prompt/*: requests_per_minute Finite(Amount(300)) [api_key]");
    assert_snapshot!(said("tiered-chat.yaml", "enterprise", "audio"), @"audio: requests_per_minute Unlimited [api_key], tokens_per_minute Unlimited [api_key], requests_per_day Unlimited [api_key]");
}

/// One line in the policy limits each key of an account separately.
#[test]
fn venice_can_limit_every_key_separately() {
    let text = std::fs::read_to_string(policies().join("venice.yaml")).unwrap();
    let changed = text.replace("\n  quotas: [account, resource]\n", "\n  quotas: [api_key, resource]\n");
    assert_ne!(changed, text);
    let policy = LoadedPolicy::parse("venice.yaml", &changed).unwrap_or_else(|errors| panic!("{errors}")).policy;
    let caller = Caller {
        partition: policy.account_partition("a"),
        tier: policy.default_tier(),
        account_overrides: &[],
        key: Some(CallerKey { id: "k", overrides: &[] }),
    };
    let resolved = policy.resolve(&caller, "llama-3.3-70b").unwrap();
    let scopes: Vec<String> = resolved.quotas().iter().map(|active| active.quota.scope.to_string()).collect();
    assert_eq!(scopes, ["api_key, resource", "api_key, resource"]);
}

#[test]
fn abuse_rules_are_checked_like_the_rest() {
    let good = format!(
        "{GOOD}abuse:\n  rules:\n    failed: {{ statuses: [4xx, 500, \"502-504\"], limit: 20, per: 30s, block: 1m, scope: [ip] }}\n  \
         authentication: {{ limit: 10, per: minute, block: 5m }}\n"
    );
    let policy = LoadedPolicy::parse("policy.yaml", &good).unwrap().policy;
    let [failed] = policy.abuse_rules() else { panic!("one rule") };
    let counted: Vec<u16> =
        [399, 400, 499, 500, 501, 502, 504, 505].into_iter().filter(|s| failed.statuses.contains(*s)).collect();
    assert_eq!(counted, [400, 499, 500, 502, 504]);
    assert!(failed.counts_refusals);
    assert_eq!((failed.limit.get(), failed.window.ms(), failed.block.ms()), (20, 30_000, 60_000));
    assert_eq!(policy.authentication_rule().map(|rule| rule.block.ms()), Some(300_000));
    let bad = format!(
        "{GOOD}abuse:\n  rules:\n    Failed: {{ limit: 20, per: 30s, block: 30s }}\n    \
         late: {{ statuses: [6xx, 99, 504-502], limit: -1, per: {{ calendar: day }}, block: 40d, message: \"wait {{time}}\" }}\n  \
         authentication: {{ limit: 10, per: minute, statuses: [401] }}\n"
    );
    assert_snapshot!(report(&bad), @r#"
    policy.yaml:7: abuse.rules.Failed: cannot be a name here; it should be: up to 32 lower-case letters, digits and underscores, starting with a letter
    policy.yaml:8: abuse.rules.late.statuses[0]: "6xx" is not right here; it should be: `4xx`, a status such as `429`, or a range such as `500-599`
    policy.yaml:8: abuse.rules.late.statuses[1]: 99 must be at least 100
    policy.yaml:8: abuse.rules.late.limit: -1 is not right here; it should be: a whole number from 0 to 9007199254740991, such as 20000000, 20_000_000 or 20M (k, M, G)
    policy.yaml:8: abuse.rules.late.per: a map must be a string
    policy.yaml:9: abuse.authentication: needs the key block
    policy.yaml:9: abuse.authentication.statuses: is not known here; the keys are: limit, per, block, message
    "#);
}
