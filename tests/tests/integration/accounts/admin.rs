//! The admin API, on one node with its embedded store.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use tollgate_core::time::Timestamp;
use tollgate_server::settings::Options;

use super::{ADMIN, Client, Deployment, OTHER_ADMIN, call, hourly, policy, quota};
use crate::harness::{START, memory_node_with};

#[tokio::test]
async fn an_account_is_created_changed_and_deleted() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    let body = json!({"id": "acme", "balances": {"USD": 1.5}});
    let (status, tag, made) = admin.send_if_match(Method::POST, "/accounts", Some(body.clone()), None).await;
    assert_eq!((status, &made["tier"], &made["domain"]), (StatusCode::CREATED, &json!("basic"), &json!("shop")));
    assert_eq!(tag, format!("\"{}\"", made["version"]));
    assert_eq!(made["balances"], json!({"USD": 1.5}));
    let (status, answer) = admin.send(Method::POST, "/accounts", Some(body)).await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::CONFLICT, &json!("already_exists")), "{answer}");
    assert_eq!(admin.send_ok(Method::GET, "/accounts/acme", None).await, made);

    // A change of an outdated version is refused.
    let patch = Some(json!({"tier": "premium"}));
    let (status, newer, changed) =
        admin.send_if_match(Method::PATCH, "/accounts/acme", patch.clone(), Some(&tag)).await;
    assert_eq!((status, &changed["tier"]), (StatusCode::OK, &json!("premium")));
    let back = Some(json!({"tier": "basic"}));
    let (status, _, answer) = admin.send_if_match(Method::PATCH, "/accounts/acme", back.clone(), Some(&tag)).await;
    assert_eq!(status, StatusCode::PRECONDITION_FAILED, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().starts_with("if-match: "), "{answer}");
    let (status, _, _) = admin.send_if_match(Method::PATCH, "/accounts/acme", back, Some(&newer)).await;
    assert_eq!(status, StatusCode::OK);
    admin.send_ok(Method::PATCH, "/accounts/acme", patch).await;

    assert_eq!(hourly(&call(&node.rest, "check", json!({"account": "acme"})).await).0, 300);
    let (status, _) = admin.send(Method::DELETE, "/accounts/acme", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = admin.send(Method::GET, "/accounts/acme", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(hourly(&call(&node.rest, "check", json!({"account": "acme"})).await).0, 10, "the default tier");
}

#[tokio::test]
async fn accounts_are_listed_page_by_page() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    let mut expected: Vec<String> = (0..7).map(|number| format!("account {number} ü/?#")).collect();
    for id in expected.iter().rev() {
        admin.create(id, "basic").await;
        admin.in_domain("other").create(&format!("other {id}"), "basic").await;
    }
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = admin.send_ok(Method::GET, &format!("/accounts?limit=3&cursor={}", escaped(&cursor)), None).await;
        let accounts = page["accounts"].as_array().unwrap();
        assert!(accounts.len() <= 3);
        listed.extend(accounts.iter().map(|account| account["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        next.clone_into(&mut cursor);
    }
    expected.sort();
    assert_eq!(listed, expected);
    let path = format!("/accounts/{}", escaped(&expected[0]));
    assert_eq!(admin.send_ok(Method::GET, &path, None).await["id"], expected[0]);
}

fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02X}"))
}

#[tokio::test]
async fn a_key_is_issued_rotated_and_revoked() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let body = json!({"kind": "admin", "description": "for the build", "expires_at": "2099-01-31T00:00:00Z"});
    let (status, issued) = admin.send(Method::POST, "/accounts/acme/keys", Some(body)).await;
    assert_eq!(status, StatusCode::CREATED);
    let (key, secret) = (&issued["key"], issued["secret"].as_str().unwrap());
    let id = key["id"].as_str().unwrap();
    assert_eq!((&key["kind"], &key["state"], &key["account"]), (&json!("admin"), &json!("active"), &json!("acme")));
    assert_eq!(
        (&key["description"], &key["expires_at"]),
        (&json!("for the build"), &json!("2099-01-31T00:00:00.000Z"))
    );
    assert_eq!(key["prefix"], secret[..8], "people know it by its beginning");

    let used = call(&node.rest, "consume", json!({"api_key": secret})).await;
    assert_eq!((&used["account"], &used["api_key_id"], hourly(&used)), (&json!("acme"), &json!(id), (10, 1)));
    let by_id = call(&node.rest, "consume", json!({"api_key_id": id})).await;
    assert_eq!(hourly(&by_id), (10, 2));
    // No answer ever shows the secret again.
    for path in [format!("/keys/{id}"), "/accounts/acme/keys".to_owned(), "/accounts/acme".to_owned()] {
        let shown = admin.send_ok(Method::GET, &path, None).await.to_string();
        assert!(!shown.contains(&secret[9..]), "{shown}");
    }

    let path = format!("/keys/{id}");
    let patched = admin.send_ok(Method::PATCH, &path, Some(json!({"expires_at": null}))).await;
    assert_eq!((patched.get("expires_at"), &patched["description"]), (None, &json!("for the build")));
    let patched = admin.send_ok(Method::PATCH, &path, Some(json!({"description": "new"}))).await;
    assert_eq!(patched["description"], "new");

    // With an overlap both secrets are valid, and the key keeps its counters.
    let rotate = format!("/keys/{id}/rotate");
    let rotated = admin.send_ok(Method::POST, &rotate, Some(json!({"overlap_s": 3600}))).await;
    let second = rotated["secret"].as_str().unwrap();
    assert_ne!(second, secret);
    assert!(rotated["key"]["previous_good_until"].is_string(), "{rotated}");
    for secret in [secret, second] {
        assert_eq!(call(&node.rest, "consume", json!({"api_key": secret})).await["api_key_id"], id);
    }
    // Without an overlap every earlier secret is invalid at once.
    let rotated = admin.send_ok(Method::POST, &rotate, Some(json!({}))).await;
    let third = rotated["secret"].as_str().unwrap();
    for old in [secret, second] {
        let refused = call(&node.rest, "consume", json!({"api_key": old})).await;
        assert_eq!(refused["verdict"], "denied", "{refused}");
    }
    assert_eq!(hourly(&call(&node.rest, "consume", json!({"api_key": third})).await), (10, 5));

    let revoked = admin.send_ok(Method::POST, &format!("/keys/{id}/revoke"), None).await;
    assert_eq!(revoked["state"], "revoked");
    let again = admin.send_ok(Method::POST, &format!("/keys/{id}/revoke"), None).await;
    assert_eq!(again, revoked, "it stays as it is");
    let refused = call(&node.rest, "consume", json!({"api_key": third})).await;
    assert_eq!((&refused["verdict"], &refused["reason"]), (&json!("denied"), &json!("revoked_key")), "{refused}");
    let (status, _) = admin.send(Method::POST, &rotate, Some(json!({}))).await;
    assert_eq!(status, StatusCode::CONFLICT, "a key that is no good stays so");
}

/// A key, an override and the previous secret of a rotation expire by the clock alone.
#[tokio::test]
async fn keys_and_overrides_expire_by_the_clock() {
    let deployment = Deployment::new();
    let options = Options { admin_tokens: Some(deployment.tokens.clone()), ..Options::default() };
    let node = memory_node_with(options, &policy("shop")).await;
    let admin = Client { rest: node.rest.clone(), token: ADMIN, domain: "shop" };
    let in_an_hour = Timestamp::from_ms(START.as_ms() + 3_600_000).to_string();
    admin.create("acme", "basic").await;
    let ends = json!({"kind": "inference", "expires_at": in_an_hour});
    let ending = admin.send_ok(Method::POST, "/accounts/acme/keys", Some(ends)).await["secret"].clone();
    let over = json!({"resource": "model", "unit": "requests", "per": "hour", "limit": 50, "expires_at": in_an_hour});
    admin.send_ok(Method::PUT, "/accounts/acme/overrides/sale", Some(over)).await;
    let (key, first) = admin.key("acme").await;
    let rotate = format!("/keys/{key}/rotate");
    let second = admin.send_ok(Method::POST, &rotate, Some(json!({"overlap_s": 3600}))).await["secret"].clone();
    let check = async |secret: &Value| call(&node.rest, "check", json!({"api_key": secret})).await;
    let first = json!(first);
    let for_ever = json!({"resource": "model", "unit": "requests", "per": "day", "limit": 5, "expires_at": "9999-12-31T23:59:59Z"});
    admin.send_ok(Method::PUT, "/accounts/acme/overrides/for_ever", Some(for_ever)).await;
    node.clock.advance_ms(3_599_999);
    for secret in [&ending, &first, &second] {
        assert_eq!(hourly(&check(secret).await).0, 50);
    }
    node.clock.advance_ms(1);
    for secret in [&ending, &first] {
        assert_eq!(check(secret).await["reason"], "expired_key");
    }
    assert_eq!(hourly(&check(&second).await).0, 10, "the override is over");
    let keys = admin.send_ok(Method::GET, "/accounts/acme/keys", None).await;
    assert_eq!((&keys["keys"][0]["state"], &keys["keys"][1]["state"]), (&json!("expired"), &json!("active")));
}

#[tokio::test]
async fn keys_are_counted_and_listed() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(admin.key("acme").await.0);
    }
    let one_more = Some(json!({"kind": "inference"}));
    let (status, answer) = admin.send(Method::POST, "/accounts/acme/keys", one_more).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().starts_with("keys: "), "{answer}");
    admin.send_ok(Method::POST, &format!("/keys/{}/revoke", ids[1]), None).await;
    ids.push(admin.key("acme").await.0);
    assert_eq!(admin.send_ok(Method::GET, "/accounts/acme", None).await["active_keys"], 3);

    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = admin.send_ok(Method::GET, &format!("/accounts/acme/keys?limit=3&cursor={cursor}"), None).await;
        listed.extend(page["keys"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        next.clone_into(&mut cursor);
    }
    assert_eq!(listed, ids, "oldest first, revoked ones too");
}

/// An override changes the limit and keeps usage; an unknown unit or resource is refused.
#[tokio::test]
async fn overrides_are_set_and_cleared() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let (key, secret) = admin.key("acme").await;
    for _ in 0..4 {
        call(&node.rest, "consume", json!({"api_key": secret})).await;
    }
    let over = json!({"resource": "model", "unit": "requests", "per": "hour", "limit": 50, "expires_at": "2099-01-01T00:00:00Z"});
    let path = "/accounts/acme/overrides/black-friday";
    let set = admin.send_ok(Method::PUT, path, Some(over)).await;
    let shown = json!({"resource": "model", "unit": "requests", "per": "hour", "limit": 50, "expires_at": "2099-01-01T00:00:00.000Z"});
    assert_eq!(set["overrides"]["black-friday"], shown);
    assert_eq!(hourly(&call(&node.rest, "check", json!({"api_key": secret})).await), (50, 4));
    let (status, answer) = admin
        .send(
            Method::PUT,
            "/accounts/acme/overrides/again",
            Some(json!({"resource": "model", "unit": "requests", "per": "1h", "limit": 9})),
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "the same counter twice: {answer}");
    admin.send_ok(Method::DELETE, path, None).await;
    assert_eq!(hourly(&call(&node.rest, "check", json!({"api_key": secret})).await), (10, 4));
    let (status, _) = admin.send(Method::DELETE, path, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    // The key's quota applies beside the account's, and neither loosens the other.
    let own = json!({"unit": "tokens", "per": "minute", "limit": 7});
    admin.send_ok(Method::PUT, &format!("/keys/{key}/overrides/tokens"), Some(own)).await;
    let decision = call(&node.rest, "check", json!({"api_key": secret})).await;
    let names: Vec<&str> = decision["quotas"].as_array().unwrap().iter().map(|q| q["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"tokens_per_minute") && names.contains(&"requests_per_hour"), "{names:?}");
    admin.send_ok(Method::DELETE, &format!("/keys/{key}/overrides/tokens"), None).await;

    // The quota of concurrent requests has no window.
    let slots = json!({"unit": "concurrent_requests", "limit": 2});
    let set = admin.send_ok(Method::PUT, "/accounts/acme/overrides/slots", Some(slots.clone())).await;
    assert_eq!(set["overrides"]["slots"], slots);
    let decision = call(&node.rest, "check", json!({"account": "acme"})).await;
    assert_eq!(quota(&decision, "concurrent_requests").map(|slots| &slots["limit"]), Some(&json!(2)), "{decision}");
}

#[tokio::test]
async fn a_payment_promotes_once_and_keeps_usage() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    for account in ["known", "unknown"] {
        if account == "known" {
            admin.create(account, "basic").await;
        }
        let caller = || json!({"account": account});
        for _ in 0..10 {
            assert_eq!(call(&node.rest, "consume", caller()).await["verdict"], "allowed");
        }
        let refused = call(&node.rest, "consume", caller()).await;
        assert_eq!((&refused["verdict"], refused["quotas"].as_array().unwrap().len()), (&json!("denied"), 2));

        let path = format!("/accounts/{account}/events");
        let payment = || Some(json!({"id": "pi_1", "type": "payment"}));
        let report = admin.send_ok(Method::POST, &path, payment()).await;
        assert_eq!(report["promoted"], json!({"from": "basic", "to": "premium"}));
        assert_eq!((&report["account"]["tier"], &report["repeated"]), (&json!("premium"), &json!(false)));
        let after = call(&node.rest, "consume", caller()).await;
        assert_eq!((&after["verdict"], hourly(&after)), (&json!("allowed"), (300, 11)), "the used count stays");
        assert_eq!(after["quotas"].as_array().unwrap().len(), 1, "the daily limit is gone: {after}");

        // The tier is reset by hand; the same event again does not change it, a new one does.
        admin.tier(account, "basic").await;
        let again = admin.send_ok(Method::POST, &path, payment()).await;
        assert_eq!((&again["repeated"], again.get("promoted")), (&json!(true), None), "{again}");
        assert_eq!(again["account"]["tier"], "basic");
        let other = admin.send_ok(Method::POST, &path, Some(json!({"id": "pi_2", "type": "payment"}))).await;
        assert_eq!(other["account"]["tier"], "premium");
        // An event without effect is remembered too.
        let third = || Some(json!({"id": "pi_3", "type": "payment"}));
        assert_eq!(admin.send_ok(Method::POST, &path, third()).await["repeated"], false);
        assert_eq!(admin.send_ok(Method::POST, &path, third()).await["repeated"], true);
    }
    let (status, answer) =
        admin.send(Method::POST, "/accounts/known/events", Some(json!({"id": "x", "type": "refund"}))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"]["message"].as_str().unwrap().starts_with("type: "), "{answer}");
}

#[tokio::test]
async fn accounts_of_the_policy_file_cannot_be_changed_by_the_api() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    let used = call(&node.rest, "consume", json!({"api_key": "secret of shop"})).await;
    assert_eq!(used["account"], "fixed");
    let premium = || Some(json!({"tier": "premium"}));
    for (method, path, body) in [
        (Method::POST, "/accounts", Some(json!({"id": "fixed"}))),
        (Method::PATCH, "/accounts/fixed", premium()),
        (Method::DELETE, "/accounts/fixed", None),
        (Method::POST, "/accounts/fixed/keys", Some(json!({"kind": "inference"}))),
        (Method::POST, "/accounts/fixed/events", Some(json!({"id": "1", "type": "payment"}))),
        (Method::POST, "/keys/fixed-1/revoke", None),
        (Method::PATCH, "/keys/fixed-1", Some(json!({"description": "x"}))),
        (Method::DELETE, "/keys/fixed-1/overrides/x", None),
    ] {
        let (status, answer) = admin.send(method.clone(), path, body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{method} {path}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("policy file"), "{answer}");
    }

    // It can be read like any other account.
    let account = admin.send_ok(Method::GET, "/accounts/fixed", None).await;
    let limit = json!({"unit": "requests", "per": "hour", "limit": 77, "resource": "model"});
    let expected = json!({"id": "fixed", "domain": "shop", "read_only": true, "version": 0, "tier": "premium", "balances": {"USD": 2.5},
        "overrides": {"1": limit}, "active_keys": 1});
    assert_eq!(account, expected);
    let key = admin.send_ok(Method::GET, "/keys/fixed-1", None).await;
    let expected = json!({"id": "fixed-1", "account": "fixed", "domain": "shop", "read_only": true, "kind": "admin", "prefix": "",
        "description": "", "state": "active", "overrides": {}});
    assert_eq!(key, expected);
    let keys = admin.send_ok(Method::GET, "/accounts/fixed/keys", None).await;
    assert_eq!(keys["keys"][0], expected);
    assert_eq!((&keys["keys"][1]["id"], &keys["keys"][1]["state"]), (&json!("fixed-2"), &json!("revoked")));
    assert_eq!(keys["keys"][1].get("revoked_at"), None);
    let listed = admin.send_ok(Method::GET, "/accounts", None).await;
    assert_eq!(listed["accounts"], json!([]), "the list is that of the store");
    let (status, _) = admin.in_domain("other").send(Method::GET, "/keys/fixed-2", None).await;
    assert_eq!(status, StatusCode::OK, "of its own domain's file");
    admin.create("acme", "basic").await;
    assert_eq!(admin.send_ok(Method::GET, "/accounts/acme", None).await["read_only"], false);
}

#[tokio::test]
async fn an_invalid_request_names_its_field_and_changes_nothing() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let (key, _) = admin.key("acme").await;
    let before = admin.send_ok(Method::GET, "/accounts/acme", None).await;
    let long = "x".repeat(129);
    let over = |change: Value| {
        let mut over = json!({"unit": "requests", "per": "hour", "limit": 5});
        over.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        over
    };
    let rotate = format!("/keys/{key}/rotate");
    let patch = format!("/keys/{key}");
    let (accounts, keys, set) = ("/accounts", "/accounts/acme/keys", "/accounts/acme/overrides/o");
    let cases = [
        (Method::POST, accounts, json!({"id": ""}), "id: "),
        (Method::POST, accounts, json!({"id": long}), "id: "),
        (Method::POST, accounts, json!({"id": "a\nb"}), "id: "),
        (Method::POST, accounts, json!({}), "id: "),
        (Method::POST, accounts, json!({"id": "x", "unknown": 1}), "unknown: "),
        (Method::POST, accounts, json!({"id": "x", "tier": "gold"}), "tier: "),
        (Method::POST, accounts, json!({"id": "x", "balances": {"": 1.0}}), "balances: "),
        (Method::POST, "/accounts?limit=3", json!({"id": "x"}), "query: "),
        (Method::PATCH, "/accounts/acme", json!({"tier": "gold"}), "tier: "),
        (Method::POST, keys, json!({"kind": "root"}), "kind: "),
        (Method::POST, keys, json!({"kind": "admin", "description": "x".repeat(65)}), "description: "),
        (Method::POST, keys, json!({"kind": "admin", "expires_at": "tomorrow"}), "expires_at: "),
        (Method::POST, keys, json!({"kind": "admin", "expires_at": "2001-01-01T00:00:00Z"}), "expires_at: "),
        (Method::PATCH, &patch, json!({"expires_at": "2001-01-01T00:00:00Z"}), "expires_at: "),
        (Method::POST, &rotate, json!({"overlap_s": 2_592_001}), "overlap_s: "),
        (Method::PUT, "/accounts/acme/overrides/a%20b", over(json!({})), "override: "),
        (Method::PUT, set, over(json!({"unit": "bananas"})), "unit: "),
        (Method::PUT, set, over(json!({"unit": 1})), "unit: "),
        (Method::PUT, set, over(json!({"per": "fortnight"})), "per: "),
        (Method::PUT, set, json!({"unit": "requests", "limit": 5}), "per: "),
        (Method::PUT, set, over(json!({"limit": -1})), "limit: "),
        (Method::PUT, set, over(json!({"limit": 1.5})), "limit: "),
        (Method::PUT, set, over(json!({"resource": "no-such"})), "resource: "),
        (Method::PUT, set, over(json!({"scope": ["api_key"]})), "scope: "),
        (Method::PUT, set, over(json!({"expires_at": "2001-01-01T00:00:00Z"})), "expires_at: "),
        (Method::POST, "/accounts/acme/events", json!({"id": "", "type": "payment"}), "id: "),
    ];
    for (method, path, body, field) in cases {
        let (status, answer) = admin.send(method.clone(), path, Some(body.clone())).await;
        let output = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {path} {body}: {answer}");
        assert!(output.starts_with(field), "{method} {path} {body}: {output}");
    }
    for (path, field) in
        [("/accounts?limit=0", "limit: "), ("/accounts?limit=101", "limit: "), ("/accounts?x=1", "query: ")]
    {
        let (status, answer) = admin.send(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer["error"]["message"].as_str().unwrap().starts_with(field), "{path}: {answer}");
    }
    for tag in ["5", "\"x\"", "W/\"1\"", "\"1\", \"2\""] {
        let (status, _, answer) = admin.send_if_match(Method::DELETE, "/accounts/acme", None, Some(tag)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{tag}: {answer}");
    }
    assert_eq!(admin.send_ok(Method::GET, "/accounts/acme", None).await, before);
}

/// Every admin route refuses a caller without an admin token, and one of another domain.
#[tokio::test]
async fn administrators_have_access_to_their_own_domains_only() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let (key, secret) = admin.key("acme").await;
    let (_, description) = node.rest.json("/openapi.json").await;
    let routes = description["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/admin/"));
    let mut seen = 0;
    for (path, methods) in routes {
        let path = path.replace("{account}", "acme").replace("{key}", &key).replace("{name}", "x");
        for method in methods.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let ask = |token: Option<&str>, domain: &str| {
                let request = node.rest.request(method.clone(), &format!("{path}?domain={domain}"));
                let request = request.json(&json!({"id": "new", "type": "payment", "kind": "admin", "unit": "requests", "per": "hour", "limit": 1}));
                token.map_or(request.try_clone().unwrap(), |token| request.bearer_auth(token)).send()
            };
            for token in [None, Some("tgt_wrong"), Some(secret.as_str()), Some("")] {
                assert_eq!(ask(token, "shop").await.unwrap().status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            }
            for domain in ["shop", "no-such"] {
                let answer = ask(Some(OTHER_ADMIN), domain).await.unwrap().status();
                let wrong_body = answer == StatusCode::BAD_REQUEST;
                assert!(answer == StatusCode::FORBIDDEN || wrong_body, "{method} {path}: {answer}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 15, "{seen} routes");
    // Without a domain the token's only one applies; with several the caller must name one.
    let others = Client { token: OTHER_ADMIN, ..admin.in_domain("") };
    assert_eq!(others.create("mine", "basic").await["domain"], "other");
    let (status, answer) = admin.in_domain("").send(Method::GET, "/accounts", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
    assert_eq!(admin.send_ok(Method::GET, "/accounts/acme", None).await["tier"], "basic");
    // Without admin tokens every admin request is refused.
    let closed = crate::harness::ProcessBuilder::new(&deployment.policy_file("shop")).start();
    let answer = closed.rest.request(Method::GET, "/admin/v1/accounts").bearer_auth(ADMIN).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}
