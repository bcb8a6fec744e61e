//! Nodes without service tokens: on loopback, with the embedded policy or with `--open-loopback`.

use tollgate_store::testing::RedisServer;
use tonic::Code;

use crate::harness::{Process, ProcessBuilder, account, call, consume, folder_with, hash_of, shop};

/// A node on free loopback ports, without other settings.
fn bare() -> ProcessBuilder {
    ProcessBuilder::bare().arg("--http-listen=127.0.0.1:0").arg("--grpc-listen=127.0.0.1:0")
}

/// The error of a node that does not start.
fn start_error(node: ProcessBuilder) -> String {
    let (status, stdout, stderr) = node.output();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stdout.is_empty(), "{stdout}");
    stderr
}

/// The gRPC code and HTTP status for a caller without a token, or `None` if it is admitted.
async fn rejection_codes(node: &Process) -> Option<(Code, u16)> {
    let body = r#"{"caller":{"account":"a"},"resource":"llama-3.3-70b"}"#;
    let (status, _) = node.rest.post("/v1/consume", body).await;
    let code = consume(&node.grpc, call(account("a"), "llama-3.3-70b", &[])).await.err().map(|status| status.code());
    assert_eq!(code.is_none(), status.is_success(), "{code:?} {status}");
    code.map(|code| (code, status.as_u16()))
}

#[tokio::test]
async fn a_node_with_its_own_policy_needs_service_tokens_or_open_loopback() {
    let (folder, policy) = folder_with(&shop(100).replace("  model:", "  llama-3.3-70b:"));
    let own = || bare().arg("--policy").arg(&policy);
    for node in [own(), own().redis("redis://127.0.0.1:1"), own().env("TOLLGATE_OPEN_LOOPBACK", "false")] {
        let text = start_error(node);
        assert!(text.starts_with("service-tokens: is missing"), "{text}");
        for setting in ["service-tokens", "tls-client-ca", "open-loopback"] {
            assert!(text.contains(setting), "no {setting} in {text}");
        }
    }
    let config = folder.path().join("tollgate.conf");
    std::fs::write(&config, "open-loopback: true\n").unwrap();
    for open in
        [own().arg("--open-loopback"), own().env("TOLLGATE_OPEN_LOOPBACK", "true"), own().arg("--config").arg(&config)]
    {
        assert_eq!(rejection_codes(&open.start()).await, None);
    }
    let tokens = folder.path().join("services.yaml");
    let hash = hash_of("tgt_integration-token-of-the-shop-0123456789");
    std::fs::write(&tokens, format!("tokens: [{{ name: shop, hash: '{hash}', domains: all }}]")).unwrap();
    let closed = || own().arg("--service-tokens").arg(&tokens);
    assert_eq!(rejection_codes(&closed().start()).await, Some((Code::Unauthenticated, 401)));
    let text = start_error(closed().arg("--open-loopback"));
    assert!(text.starts_with("open-loopback: cannot be combined with service-tokens"), "{text}");
}

#[tokio::test]
async fn a_node_with_the_embedded_policy_is_open_on_loopback() {
    let redis = RedisServer::start();
    for open in [bare(), bare().redis(&redis.url())] {
        assert_eq!(rejection_codes(&open.start()).await, None);
    }
    let text = start_error(bare().arg("--open-loopback=false"));
    assert!(text.starts_with("service-tokens: is missing"), "{text}");
}

#[test]
fn only_loopback_can_be_open_without_tokens() {
    let (_folder, policy) = folder_with(&shop(100));
    for setting in ["http-listen", "grpc-listen"] {
        for node in [ProcessBuilder::bare(), ProcessBuilder::bare().arg("--policy").arg(&policy)] {
            let text = start_error(node.arg("--open-loopback").arg(format!("--{setting}=0.0.0.0:0")));
            assert!(text.contains(&format!("open-loopback: cannot be combined with {setting}")), "{text}");
            assert!(text.contains(&format!("\n{setting}: ")) && text.contains("set service-tokens"), "{text}");
        }
    }
}
