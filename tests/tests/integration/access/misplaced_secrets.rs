//! Secrets in the wrong place of a file or setting are shown to nobody.
//!
//! Seen to fail: with unredacted messages of a policy file, with paths shown as they stand in a file, and with the
//! messages of serde.

use std::{path::Path, time::Duration};

use reqwest::Method;

use crate::harness::{KEY, Process, ProcessBuilder, folder_with, hash_of, shop, until};

/// A platform's own key, a token and a key in Tollgate's format, and a key made of words.
const SECRETS: [&str; 4] = [
    "sk-integration-misplaced-7f3a91c2d4",
    "tgt_Q2hhcmxvdHRlc1dlYkFuZE90aGVyU3RvcmllcyAxOTUy",
    "tg_demoVeniceKeyForLoopbackUseOnly04QjPeg",
    "swordfish-of-the-admiral",
];
const ADMIN: &str = "tgt_integration-token-of-the-administrators-31";
const BOUND: Duration = Duration::from_secs(20);

/// Asserts that no eight consecutive characters of the secret are shown, except those in every message.
fn assert_not_shown(error_text: &str, secret: &str, place: &str) {
    for start in (0..secret.len() - 8).step_by(4) {
        let part = &secret[start..start + 8];
        let line = error_text.lines().find(|line| line.contains(part));
        assert_eq!(line, None, "{place}: {part} of {secret}");
    }
}

/// All output of a node: log, `/readyz`, metrics.
async fn all_output(node: &Process) -> String {
    let mut error_text = node.stderr();
    for path in ["/readyz", "/metrics", "/healthz", "/openapi.json"] {
        error_text += &node.rest.text(path).await.1;
    }
    let status = node.rest.request(Method::GET, "/admin/v1/status").bearer_auth(ADMIN).send().await.unwrap();
    error_text + &status.text().await.unwrap()
}

/// Writes each wrong text to the file, waits until it is read, and then restores a valid one.
async fn try_all(node: &Process, file: &Path, part: &str, good: &str, wrong: &[(&str, String)], secret: &str) {
    let write = |text: &str| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, file).unwrap();
        node.signal("HUP");
    };
    let detail_is = async |place: &str, expected: Option<&str>| {
        until(&format!("{place}: {part} are {expected:?}"), BOUND, async || {
            let (_, ready) = node.rest.json("/readyz").await;
            (ready[part]["detail"].as_str() == expected).then_some(())
        })
        .await;
    };
    for (place, text) in wrong {
        write(text);
        detail_is(place, Some("not reloaded")).await;
        assert_not_shown(&all_output(node).await, secret, place);
        write(good);
        detail_is(place, None).await;
    }
}

fn policies(good: &str, secret: &str) -> Vec<(&'static str, String)> {
    let instead = |what: &str, by: &str| {
        assert!(good.contains(what), "{what}");
        good.replacen(what, by, 1)
    };
    let hash = format!("\"{}\"", hash_of(KEY));
    vec![
        ("hash", instead(&hash, secret)),
        ("hash in quotes", instead(&hash, &format!("'{secret}'"))),
        ("behind sha256", instead(&hash, &format!("'sha256:{secret}'"))),
        ("kind", instead("kind: inference", &format!("kind: {secret}"))),
        ("a list as kind", instead("kind: inference", &format!("kind: [{secret}]"))),
        ("name of a field", instead("kind: inference", &format!("{secret}: inference"))),
        ("one field more", instead("kind: inference", &format!("kind: inference, secret: {secret}"))),
        ("id", instead("id: acme-good", &format!("id: {secret}"))),
        ("expires_at", instead("kind: inference", &format!("kind: inference, expires_at: {secret}"))),
        ("tier of an account", instead("- id: acme\n      tier: paid", &format!("- id: acme\n      tier: {secret}"))),
        ("account", instead("- id: acme\n", &format!("- id: {secret}\n"))),
        ("domain", instead("domain: shop", &format!("domain: {secret}"))),
        ("version", instead("version: 1", &format!("version: {secret}"))),
        ("unit", instead("unit: tokens, per: minute", &format!("unit: {secret}, per: minute"))),
        ("limit", instead("limit: 20000", &format!("limit: {secret}"))),
        ("per", instead("per: 10s", &format!("per: {secret}"))),
        ("zone", instead("per: 10s", &format!("per: {{ calendar: day, zone: {secret} }}"))),
        ("class", instead("class: text", &format!("class: {secret}"))),
        ("default_tier", instead("default_tier: paid", &format!("default_tier: {secret}"))),
        ("self_service", instead("self_service: venice", &format!("self_service: {secret}"))),
        ("dialect", instead("self_service: venice", &format!("self_service: venice\ndialect: {secret}"))),
        ("scope", instead("per: 10s,", &format!("per: 10s, scope: [account, {secret}, {secret}],"))),
        ("a new section", format!("{good}{secret}: 1\n")),
        ("a new section with a map", format!("{good}keys: {{ {secret}: {{ {secret}: 1 }} }}\n")),
        (
            "a message",
            format!("{good}abuse: {{ rules: {{ a: {{ limit: 1, per: 1s, block: 1s, message: '{{{secret}}}' }} }} }}\n"),
        ),
        ("name of a rule", format!("{good}abuse: {{ rules: {{ {secret}: {{ limit: {secret} }} }} }}\n")),
        ("the file", secret.to_owned()),
        ("a list", format!("- {secret}\n")),
        ("not YAML", format!("{good}a: [{secret}\n")),
        ("an alias", format!("{good}a: *{secret}\n")),
        ("a tag", format!("{good}a: !{secret} x\n")),
        ("a key that is none", format!("{good}? [{secret}]\n: 1\n")),
        ("twice", format!("{good}{secret}: 1\n{secret}: 2\n")),
        ("two documents", format!("{good}---\n{secret}: 1\n")),
    ]
}

fn tokens(good: &str, secret: &str) -> Vec<(&'static str, String)> {
    let one = |fields: &str| format!("{good}- {{ {fields} }}\n");
    let hash = hash_of("tgt_another-token-of-the-integration-tests-000");
    vec![
        ("hash", one(&format!("name: b, hash: '{secret}', domains: all"))),
        ("behind sha256", one(&format!("name: b, hash: 'sha256:{secret}', domains: all"))),
        ("file", one(&format!("name: b, file: '{secret}', domains: all"))),
        ("folder of a file", one(&format!("name: b, file: '{secret}/x', domains: all"))),
        ("name", one(&format!("name: '{secret}', hash: '{}', domains: all", hash_of(secret)))),
        ("a list as name", one(&format!("name: ['{secret}'], hash: '{hash}', domains: all"))),
        ("domains", one(&format!("name: b, hash: '{hash}', domains: '{secret}'"))),
        ("domain", one(&format!("name: b, hash: '{}', domains: ['{secret}']", hash_of(secret)))),
        ("certificate", one(&format!("name: b, certificate: '{secret}', domains: all"))),
        ("kind of a certificate", one(&format!("name: b, certificate: {{ '{secret}': x }}, domains: all"))),
        ("name of a field", one(&format!("name: b, '{secret}': x, domains: all"))),
        ("hash and more", one(&format!("name: b, hash: '{hash}', token: '{secret}', domains: all"))),
        ("a token", format!("{good}- '{secret}'\n")),
        ("tokens", format!("tokens: '{secret}'\n")),
        ("a section", format!("{good}'{secret}': 1\n")),
        ("instead of tokens", format!("'{secret}': []\n")),
        ("the file itself", secret.to_owned()),
        ("a list", format!("- '{secret}'\n")),
        ("not YAML", format!("tokens: [{{ name: '{secret}'\n")),
        ("an alias", format!("tokens: *{secret}\n")),
        ("two documents", format!("{good}---\n{secret}\n")),
    ]
}

/// Tries one secret in every wrong place, on a node of its own.
async fn try_secret(secret: &str) {
    // The file also has the secret's hash in the right place.
    let policy = shop(100).replace(&hash_of("sk-integration-revoked"), &hash_of(secret));
    let (folder, file) = folder_with(&policy);
    let admins = folder.path().join("admins.yaml");
    let good = format!("tokens:\n- {{ name: root, hash: '{}', domains: all }}\n", hash_of(ADMIN));
    std::fs::write(&admins, &good).unwrap();
    let node = ProcessBuilder::new(&file).arg("--admin-tokens").arg(&admins).arg("--log-filter=debug").start();
    // The node has read its files once it answers.
    assert_not_shown(&all_output(&node).await, secret, "nothing is wrong yet");
    let (policies, tokens) = (policies(&policy, secret), tokens(&good, secret));
    tokio::join!(
        try_all(&node, &file, "policies", &policy, &policies, secret),
        try_all(&node, &admins, "credentials", &good, &tokens, secret),
    );
}

#[tokio::test]
async fn a_misplaced_secret_in_a_file_is_not_shown() {
    let [a, b, c, d] = SECRETS;
    tokio::join!(try_secret(a), try_secret(b), try_secret(c), try_secret(d));
}

/// A node that does not start names only the place of the error.
#[test]
fn a_misplaced_secret_in_the_settings_is_not_shown() {
    let (folder, policy) = folder_with(&shop(100));
    let config = folder.path().join("tollgate.yaml");
    for secret in SECRETS {
        for wrong in [
            format!("{secret}: 1"),
            format!("redis-user: [{secret}]"),
            format!("redis: '{secret}'"),
            format!("accounts-redis: 'redis://{secret}:{secret}@'"),
            format!("redis-password: {secret}"),
            format!("redis: 'redis://127.0.0.1:1'\nredis-password-file: {secret}"),
            format!("redis: 'redis://127.0.0.1:1'\nredis-key-prefix: '{{{secret}}}'"),
            format!("http-listen: {secret}"),
            format!("service-tokens: {secret}"),
            format!("admin-tokens: [{secret}]"),
            format!("admin-tokens: {secret}"),
            format!("tls-cert: {secret}\ntls-key: {secret}"),
            format!("policy: [{secret}]"),
            format!("policy: {secret}"),
            format!("allowed-hosts: ['{secret}/x']"),
            format!("trusted-proxies: [{secret}]"),
            format!("log-format: {secret}"),
            format!("max-connections: {secret}"),
            format!("client: {{ {secret}: 1 }}"),
            format!("client: {secret}"),
            secret.to_owned(),
            format!("- {secret}"),
            format!("a: [{secret}"),
        ] {
            let open = if wrong.starts_with("service-tokens") { "" } else { "\nopen-loopback: true" };
            let rest =
                if wrong.starts_with("policy") { String::new() } else { format!("\npolicy: [{}]", policy.display()) };
            let listen = "\ngrpc-listen: 127.0.0.1:0\n";
            let text = if wrong.contains(':') { format!("{wrong}{open}{rest}{listen}") } else { wrong.clone() };
            let text =
                if wrong.starts_with("http-listen") { text } else { format!("{text}http-listen: 127.0.0.1:0\n") };
            std::fs::write(&config, if wrong.contains(": ") { &text } else { &wrong }).unwrap();
            let (status, stdout, stderr) = ProcessBuilder::bare().arg("--config").arg(&config).output();
            assert_eq!(status.code(), Some(1), "{wrong}: {stderr}");
            assert!(!stderr.trim().is_empty(), "{wrong}");
            assert_not_shown(&format!("{stdout}{stderr}"), secret, &wrong);
        }
    }
}
