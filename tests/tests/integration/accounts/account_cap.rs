//! Account names without a record: a node accepts a bounded number of new ones per minute.

use reqwest::StatusCode;
use serde_json::json;
use tollgate_api::v1::ConsumeRequest;
use tollgate_store::testing::RedisServer;
use tonic::Code;

use super::{Client, Deployment};
use crate::harness::{account, call};

/// Seen to fail without the bound, and with one that counts accounts with a record.
#[tokio::test]
async fn new_accounts_are_bounded_for_each_domain_and_known_ones_are_not() {
    let redis = RedisServer::start();
    let deployment = Deployment::new();
    for store in [None, Some(&redis)] {
        // So low a rate (one in 12 s) that a slow machine does not earn another one meanwhile.
        let node = deployment.process().arg("--max-new-accounts=5");
        let node = if let Some(redis) = store { node.redis(&redis.url()) } else { node }.start();
        let admin = Client::new(&node);
        let consume = async |domain: &str, name: &str| {
            let body = json!({"domain": domain, "caller": {"account": name}, "resource": "model"});
            node.rest.post("/v1/consume", body.to_string()).await
        };
        let accepted = async |domain: &str, prefix: &str| {
            let mut accepted = Vec::new();
            for number in 0..30 {
                let name = format!("{prefix}-{number}");
                let (status, answer) = consume(domain, &name).await;
                if status == StatusCode::OK {
                    accepted.push(name);
                } else {
                    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
                    assert!(answer["error"]["code"] == "resource_exhausted", "{answer}");
                }
            }
            accepted
        };
        let keys = || store.map_or(0, |redis| redis.run::<usize>("DBSIZE"));
        let before = keys();
        let names = accepted("shop", "new").await;
        assert!((5..=12).contains(&names.len()), "{names:?}");
        assert!(keys() - before <= 2 * names.len(), "what is refused brings nothing into the store");
        let request = ConsumeRequest {
            call: Some(tollgate_api::v1::Call { domain: "shop".into(), ..call(account("one more"), "model", &[]) }),
        };
        if let Err(refused) = node.grpc.clone().consume(request).await {
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        }
        // Remembered accounts, stored accounts, accounts in the policy file, and accounts of another domain.
        for name in names.iter().chain([&"fixed".to_owned()]) {
            assert_eq!(consume("shop", name).await.0, StatusCode::OK, "{name}");
        }
        for number in 0..8 {
            let id = format!("made-{number}");
            admin.create(&id, "basic").await;
            assert_eq!(consume("shop", &id).await.0, StatusCode::OK, "{id} has a record");
        }
        assert!(accepted("other", "new").await.len() >= 5, "another domain has its own");
        let (_, metrics) = node.rest.text("/metrics").await;
        assert!(metrics.contains("tollgate_account_lookups_refused_total"), "{metrics}");
    }
}
