//! The cost of finding the claims of a call, with a policy of 200 resources and two quotas each.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Map, json};
use tollgate_core::time::Timestamp;
use tollgate_policy::{
    Caller, CallerKey, Place, Policy, QuotaLevel,
    format::{Override, PolicyFile},
};

fn policy_file() -> Result<PolicyFile, serde_json::Error> {
    let class = |at: u64| {
        let quotas = json!([
            { "unit": "requests", "per": "minute", "limit": 100 + at, "scope": ["account", "resource"] },
            { "unit": "tokens", "per": "minute", "limit": 100_000 + at, "scope": ["account", "resource"] },
            { "unit": "requests", "per": "minute", "limit": 50 + at, "scope": ["api_key", "resource"] },
        ]);
        (format!("class-{at}"), json!({ "quotas": quotas }))
    };
    let resource = |name: String| {
        let class = format!("class-{}", name.len() % 4);
        (name, json!({ "class": class }))
    };
    let models = (0..180).map(|at| format!("model-{at}"));
    let wildcards = (0..20).map(|at| format!("{}/{at}/*", "x".repeat(at)));
    serde_json::from_value(json!({
        "version": 1,
        "domain": "bench",
        "units": ["tokens"],
        "classes": (0..4).map(class).collect::<Map<_, _>>(),
        "resources": models.chain(wildcards).map(resource).collect::<Map<_, _>>(),
        "tiers": { "paid": { "is_charged": true } },
        "default_tier": "paid",
    }))
}

fn resolve(criterion: &mut Criterion) {
    let Ok(file) = policy_file() else { return };
    criterion.bench_function("compile 200 resources", |bench| bench.iter(|| Policy::compile(black_box(&file))));
    let Ok(policy) = Policy::compile(&file) else { return };
    let over = json!({ "resource": "model-*", "unit": "tokens", "per": "minute", "limit": 5 });
    let Ok(over) = serde_json::from_value::<Override>(over) else { return };
    let Ok(overrides) = policy.overrides(&[over], QuotaLevel::Account, &Place::root()) else { return };
    let plain = Caller {
        partition: policy.account_partition("acme"),
        tier: policy.default_tier(),
        account_overrides: &[],
        key: Some(CallerKey { id: "key-1", overrides: &[] }),
    };
    let overridden = Caller { account_overrides: &overrides, ..plain };
    let now = Timestamp::from_ms(1_750_000_000_000);
    let cases =
        [("exact name", &plain, "model-77"), ("wildcard", &plain, "xxx/3/y"), ("override", &overridden, "model-77")];
    for (case, caller, resource) in cases {
        criterion.bench_function(&format!("resolve, {case}"), |bench| {
            bench.iter(|| policy.resolve(black_box(caller), black_box(resource)).is_ok());
        });
        criterion.bench_function(&format!("resolve and claims, {case}"), |bench| {
            bench.iter(|| {
                let usage = policy.usage([("tokens", black_box(1000))]);
                let resolved = policy.resolve(black_box(caller), black_box(resource));
                let (Ok(usage), Ok(resolved)) = (usage, resolved) else { return None };
                Some(resolved.claim_set(&usage, |_| None, None).ok()?.claims(now, &[]))
            });
        });
    }
}

criterion_group!(benches, resolve);
criterion_main!(benches);
