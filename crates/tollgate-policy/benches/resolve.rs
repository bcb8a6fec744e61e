//! What it takes to find the claims of a call: a policy of 200 resources, two quotas each.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tollgate_core::time::Timestamp;
use tollgate_policy::{
    Caller, CallerKey, Chain, Place, Policy,
    draft::{Draft, OverrideDraft, QuotaDraft, ResourceDraft, TierDraft, WindowDraft},
};

const MINUTE: WindowDraft = WindowDraft::Sliding { ms: 60_000 };

fn draft() -> Draft {
    let quota = |unit: &str, limit, scope: &str| QuotaDraft {
        unit: unit.to_owned(),
        per: MINUTE,
        limit: Some(limit),
        scope: Some(vec![scope.to_owned(), "resource".to_owned()]),
        name: None,
        label: None,
        on_failure: None,
        shadow: false,
        pool: None,
    };
    let class = |at: u64| {
        let quotas = vec![
            quota("requests", 100 + at, "account"),
            quota("tokens", 100_000 + at, "account"),
            quota("requests", 50 + at, "api_key"),
        ];
        (format!("class-{at}"), Some(quotas))
    };
    let resource = |name: String| {
        let class = format!("class-{}", name.len() % 4);
        (name, ResourceDraft { class: Some(class), ..ResourceDraft::default() })
    };
    Draft {
        domain: "bench".to_owned(),
        units: vec!["tokens".to_owned()],
        classes: (0..4).map(class).collect(),
        resources: (0..180)
            .map(|at| format!("model-{at}"))
            .chain((0..20).map(|at| format!("{}/{at}/*", "x".repeat(at))))
            .map(resource)
            .collect(),
        tiers: [("paid".to_owned(), TierDraft::default())].into_iter().collect(),
        default_tier: "paid".to_owned(),
        ..Draft::default()
    }
}

fn resolve(criterion: &mut Criterion) {
    let draft = draft();
    criterion.bench_function("compile 200 resources", |bench| bench.iter(|| Policy::compile(black_box(&draft))));
    let Ok(policy) = Policy::compile(&draft) else { return };
    let over = OverrideDraft {
        resource: Some("model-*".to_owned()),
        unit: "tokens".to_owned(),
        per: MINUTE,
        limit: Some(5),
        scope: None,
    };
    let Ok(overrides) = policy.overrides(&[over], Chain::Account, &Place::root()) else { return };
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
