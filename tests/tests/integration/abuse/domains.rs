//! Failed authentications without a domain count for callers with the same domains, and for no others.

use tollgate_api::v1::{ConsumeRequest, Decision, Reason};
use tollgate_server::settings::Options;
use tollgate_store::testing::RedisServer;

use super::{from, guarded};
use crate::harness::{KEY, Node, allowed, api_key, call, hash_of, memory_node_with, redis_node_with};

/// The address of the tests, as self-service records it.
const HERE: &str = "127.0.0.1";
const TOKENS: [(&str, &str); 4] = [("ab", "[a, b]"), ("cd", "[c, d]"), ("bc", "[b, c]"), ("all", "all")];

fn token(name: &str) -> String {
    format!("tgt_integration-token-{name}-of-a-platform-0123456789")
}

fn key_of(domain: &str) -> String {
    format!("{KEY}-{domain}")
}

/// Four domains, each of which blocks at the fourth failure; each token covers some of them.
fn folder() -> (tempfile::TempDir, Options, String) {
    let folder = tempfile::tempdir().unwrap();
    let policy = |domain: &str| {
        let policy = guarded("  authentication: { limit: 3, per: minute, block: 5m }\n");
        let policy = policy.replace(&hash_of(KEY), &hash_of(&key_of(domain)));
        policy.replace("domain: guarded", &format!("domain: {domain}\nself_service: plain"))
    };
    let mut options = Options { service_tokens: Some(folder.path().join("tokens.yaml")), ..Options::default() };
    for domain in ["b", "c", "d"] {
        let file = folder.path().join(format!("{domain}.yaml"));
        std::fs::write(&file, policy(domain)).unwrap();
        options.policy.push(file);
    }
    let entry =
        |(name, domains)| format!("- {{ name: {name}, hash: '{}', domains: {domains} }}\n", hash_of(&token(name)));
    let tokens = TOKENS.map(entry).concat();
    std::fs::write(folder.path().join("tokens.yaml"), format!("tokens:\n{tokens}")).unwrap();
    (folder, options, policy("a"))
}

async fn consume(node: &Node, name: &str, key: &str) -> Decision {
    let call = from(HERE, call(api_key(key), "free", &[]));
    let mut request = tonic::Request::new(ConsumeRequest { call: Some(call) });
    request.metadata_mut().insert("authorization", format!("Bearer {}", token(name)).parse().unwrap());
    node.grpc.clone().consume(request).await.unwrap().into_inner().decision.unwrap()
}

async fn self_service(node: &Node, key: &str) -> u16 {
    let request = node.rest.request(reqwest::Method::GET, "/api_keys/rate_limits").bearer_auth(key);
    request.send().await.unwrap().status().as_u16()
}

/// The callers that are admitted, by the first letters of their domains; `s` is self-service.
async fn passing(node: &Node) -> String {
    let mut passing = String::new();
    for (name, key) in [("ab", "a"), ("cd", "c"), ("bc", "b"), ("all", "d")] {
        if allowed(&consume(node, name, &key_of(key)).await) {
            passing.extend([name, " "]);
        }
    }
    if self_service(node, &key_of("a")).await == 200 {
        passing.push_str("self");
    }
    passing
}

async fn check_blocks_stay_within_the_domains_of_a_token(node: &Node) {
    assert_eq!(passing(node).await, "ab cd bc all self");
    for _ in 0..6 {
        consume(node, "ab", "sk-guess").await;
    }
    assert_eq!(consume(node, "ab", &key_of("a")).await.reason(), Reason::Blocked);
    assert_eq!(passing(node).await, "cd bc all self");
    for _ in 0..6 {
        self_service(node, "sk-guess").await;
    }
    assert_eq!(self_service(node, &key_of("a")).await, 429);
    assert_eq!(passing(node).await, "cd bc all ");
    for _ in 0..6 {
        consume(node, "all", "sk-guess").await;
    }
    assert_eq!(passing(node).await, "cd bc ");
    node.clock.advance_ms(300_000);
    assert_eq!(passing(node).await, "ab cd bc all self");
}

/// Seen to fail with one counter for all failures without a domain.
#[tokio::test]
async fn a_token_cannot_block_an_address_in_other_domains() {
    let redis = RedisServer::start();
    let (_folder, options, policy) = folder();
    check_blocks_stay_within_the_domains_of_a_token(&memory_node_with(options.clone(), &policy).await).await;
    check_blocks_stay_within_the_domains_of_a_token(&redis_node_with(options, &policy, redis.url()).await).await;
}
