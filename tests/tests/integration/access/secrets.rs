//! Secrets never appear in the log or the metrics.

use reqwest::Method;

use crate::harness::{ProcessBuilder, api_key, call, consume, folder_with, hash_of, shop};

/// Valid and invalid tokens and keys are sent in every place that accepts one: neither they nor their hashes appear in
/// the log or the metrics.
#[tokio::test]
async fn no_secret_is_logged() {
    let (folder, policy) = folder_with(&shop(100));
    let good = "tgt_integration-token-of-the-shop-0123456789";
    let plain = "tgt_integration-token-in-a-mounted-file-987654321";
    let (bad, key, bad_key) = ("tgt_a-token-that-nobody-has", crate::harness::KEY, "sk-a-key-that-nobody-has");
    let tokens = folder.path().join("tokens.yaml");
    std::fs::write(folder.path().join("secret"), plain).unwrap();
    let text = format!(
        "tokens: [{{ name: shop, hash: '{}', domains: all }}, {{ name: plain, file: secret, domains: all }}]",
        hash_of(good)
    );
    std::fs::write(&tokens, &text).unwrap();
    for filter in ["debug", "trace"] {
        let builder =
            ProcessBuilder::new(&policy).arg("--service-tokens").arg(&tokens).arg("--admin-tokens").arg(&tokens);
        let node = builder.arg(format!("--log-filter={filter}")).arg("--max-login-failures=0").start();
        for secret in [good, plain, bad, key, bad_key] {
            let body = format!(r#"{{"caller":{{"api_key":"{secret}"}},"resource":"model"}}"#);
            for (method, route) in [
                (Method::POST, "/v1/consume"),
                (Method::GET, "/api_keys/rate_limits"),
                (Method::GET, "/admin/v1/accounts"),
            ] {
                for token in [secret, good] {
                    let request = node.rest.request(method.clone(), route).bearer_auth(token);
                    let request = request.header("content-type", "application/json").body(body.clone());
                    request.header("traceparent", secret).send().await.unwrap();
                }
                node.rest.request(method, &format!("{route}?key={secret}")).send().await.unwrap();
            }
            let _ = consume(&node.grpc, call(api_key(secret), "model", &[])).await;
            let mut request = tonic::Request::new(tollgate_api::v1::ConsumeRequest {
                call: Some(call(api_key(secret), "model", &[])),
            });
            request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
            let _ = node.grpc.clone().consume(request).await;
        }
        // An invalid file whose error is next to a secret.
        std::fs::write(&tokens, text.replace("domains: all }]", &format!("domains: [], '{plain}': 1 }}]"))).unwrap();
        node.signal("HUP");
        crate::harness::until("the bad file is reported", std::time::Duration::from_secs(10), async || {
            node.stderr().contains("not reloaded").then_some(())
        })
        .await;
        let (_, metrics) = node.rest.text("/metrics").await;
        let (_, ready) = node.rest.text("/readyz").await;
        std::fs::write(&tokens, &text).unwrap();
        let written = [node.stderr(), metrics, ready].join("\n");
        for secret in [good, plain, bad, key, bad_key] {
            let hash = hash_of(secret);
            // Nor a part from which the rest could be guessed.
            for part in [&secret[..16], &hash["sha256:".len()..][..16]] {
                let line = written.lines().find(|line| line.contains(part));
                assert_eq!(line, None, "{filter}: {part}");
            }
        }
    }
}

/// The `Debug` output of a message shows only whether it has a key. (Seen to fail when it printed the key.)
#[test]
fn a_call_cannot_be_printed_with_its_key() {
    let printed = format!("{:?}", call(api_key(crate::harness::KEY), "model", &[]));
    assert!(printed.contains("ApiKey(…)") && !printed.contains(crate::harness::KEY), "{printed}");
}
