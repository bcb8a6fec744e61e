//! Shadow quotas through the API: what is reported, counted and logged.

use tollgate_api::v1::Call;

use crate::harness::{
    KEY, ProcessBuilder, account, allowed, call, consume, folder_with, memory_node, peek, quota, shop,
};

/// The shop policy with a stricter shadow limit beside the enforced one.
fn trial() -> String {
    let enforced = "- { unit: requests, per: minute, limit: 5 }\n";
    let on_trial = "      - { unit: requests, per: minute, limit: 2, name: trial, shadow: true }\n";
    let policy = shop(5).replace(enforced, &format!("{enforced}{on_trial}"));
    assert!(policy.contains("trial"));
    policy
}

#[tokio::test]
async fn a_shadow_quota_reports_what_it_would_refuse_and_refuses_nothing() {
    let node = memory_node(&trial()).await;
    for number in 1..=7 {
        let decision = consume(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
        assert_eq!(allowed(&decision), number <= 5, "the enforced limthe node decides");
        let expected: &[&str] = if number > 2 { &["trial"] } else { &[] };
        assert_eq!(decision.shadow_refusals, expected, "{number}");
        let trial = quota(&decision, "trial");
        assert!(trial.shadow && !trial.denies && trial.retry_at.is_none(), "{trial:?}");
        assert_eq!((trial.limit, trial.used), (Some(2), number.min(5)), "it is charged with what happened");
        assert_eq!(trial.remaining, Some(2_u64.saturating_sub(number)));
        assert_ne!(decision.quota, "trial", "it does not speak for the decision");
    }
    // The rendered response does not mention the shadow quota.
    let rendered = Call { render: true, dialect: "ietf".into(), ..call(account("c"), "model", &[("requests", 3)]) };
    let decision = consume(&node.grpc, rendered).await.unwrap();
    assert_eq!(decision.shadow_refusals, ["trial"]);
    let rendered = format!("{:?}", decision.rendered.unwrap());
    assert!(rendered.contains("requests_per_minute") && !rendered.contains("trial"), "{rendered}");
    let looked = peek(&node.grpc, call(account("a"), "model", &[])).await.unwrap();
    assert_eq!(looked.shadow_refusals, ["trial"]);
    let (_, metrics) = node.rest.text("/metrics").await;
    let labels = r#"domain="shop",tier="paid",class="text""#;
    assert!(metrics.contains(&format!("tollgate_shadow_refusals_total{{{labels},quota=\"trial\"}} 6")), "{metrics}");
    assert!(metrics.contains(&format!("tollgate_decisions_total{{{labels},verdict=\"denied\",quota=\"trial\"}} 0")));
    let body = r#"{"caller":{"account":"b"},"resource":"model","usage":{"requests":3}}"#;
    let (_, answer) = node.rest.post("/v1/consume", body).await;
    assert_eq!((&answer["verdict"], &answer["shadow_refusals"]), (&"allowed".into(), &serde_json::json!(["trial"])));
    assert_eq!(answer["quotas"][1]["shadow"], true, "{answer}");
    assert!(answer["quotas"][0].get("shadow").is_none(), "{answer}");
    let limits = node.rest.limits(KEY).await;
    let model = &limits["data"]["rateLimits"][0]["rateLimits"];
    assert_eq!((&model[0]["shadow"], &model[1]["shadow"]), (&serde_json::Value::Null, &true.into()), "{limits}");
}

/// `shadow: true` for the whole policy: nothing is refused, and every quota reports what it would refuse.
#[tokio::test]
async fn a_shadow_policy_refuses_nothing() {
    let (_folder, policy) = folder_with(&shop(2).replace("domain: shop", "domain: shop\nshadow: true"));
    let node = ProcessBuilder::new(&policy).start();
    for number in 1..=50 {
        let decision = consume(&node.grpc, call(account("a"), "model", &[("tokens", 9_000)])).await.unwrap();
        assert!(allowed(&decision) && decision.quota.is_empty(), "{decision:?}");
        assert_eq!(decision.shadow_refusals.len(), usize::from(number > 2) * 2, "{number}");
    }
    let never = consume(&node.grpc, call(account("b"), "model", &[("tokens", 20_001)])).await.unwrap();
    assert!(allowed(&never), "not even what never fits");
    assert_eq!(never.shadow_refusals, ["tokens_per_minute"]);
    let logged = node.stderr();
    let lines = logged.lines().filter(|line| line.contains("a shadow would have refused a call")).count();
    assert!((1..=20).contains(&lines), "a sample, not a line a call: {logged}");
    assert!(logged.contains("requests_per_minute"), "{logged}");
}
