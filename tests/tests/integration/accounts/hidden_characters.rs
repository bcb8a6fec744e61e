//! Hidden characters are refused in new names, and never printed, even from records that are older than that rule.
//!
//! Seen to fail: with a check for control characters only, with a command line that prints raw answers, and with a log
//! written directly to standard error.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tollgate_core::text::is_hidden;
use tollgate_store::{
    accounts::{AccountStore, Change, SaveResult, redis::RedisAccounts},
    redis::{RedisClient, RedisConfig},
    testing::RedisServer,
};

use super::{ADMIN, Client, Deployment};
use crate::harness::{Process, ProcessBuilder};

const ID: &str = "a\u{202e}b\u{200b}c'd";
const DESCRIPTION: &str = "pay\u{2066}pal\u{feff}\u{e0041}";

fn shown_raw(text: &str) -> Option<char> {
    text.chars().find(|c| is_hidden(*c) && *c != '\n')
}

fn tollgate(node: &Process, args: &[&str]) -> (Option<i32>, String, String) {
    let url = format!("http://{}", node.http_address);
    let builder = ProcessBuilder::bare().env("TOLLGATE_URL", url).env("TOLLGATE_DOMAIN", "shop");
    let (status, stdout, stderr) = builder.env("TOLLGATE_ADMIN_TOKEN", ADMIN).args(args.iter().copied()).output();
    assert_eq!((shown_raw(&stdout), shown_raw(&stderr)), (None, None), "{args:?}: {stdout:?} {stderr:?}");
    (status.code(), stdout, stderr)
}

#[tokio::test]
async fn names_with_hidden_characters_are_refused() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let admin = Client::new(&node);
    admin.create("acme", "basic").await;
    let (key, _) = admin.key("acme").await;
    for hidden in [
        '\u{202e}',
        '\u{200b}',
        '\u{200d}',
        '\u{feff}',
        '\u{2066}',
        '\u{ad}',
        '\u{2028}',
        '\u{3164}',
        '\u{fe0f}',
        '\u{e0041}',
        '\u{9b}',
    ] {
        let name = format!("a{hidden}b");
        for (method, path, body, field) in [
            (Method::POST, "/accounts".to_owned(), json!({"id": name}), "id: "),
            (
                Method::POST,
                "/accounts/acme/keys".to_owned(),
                json!({"kind": "admin", "description": name}),
                "description: ",
            ),
            (Method::PATCH, format!("/keys/{key}"), json!({"description": name}), "description: "),
            (Method::POST, "/accounts/acme/events".to_owned(), json!({"id": name, "type": "payment"}), "id: "),
            (Method::POST, format!("/accounts/{name}/events"), json!({"id": "e", "type": "payment"}), "account: "),
        ] {
            let (status, answer) = admin.send(method.clone(), &path, Some(body)).await;
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {path}: {answer}");
            assert!(message.starts_with(field) && shown_raw(message).is_none(), "{method} {path}: {message:?}");
        }
    }
}

/// Stores an account in the way of nodes before that rule.
async fn older_record(server: &RedisServer, node: &Process) -> String {
    let admin = Client::new(node);
    admin.create("plain", "basic").await;
    let (key, _) = admin.key("plain").await;
    let store = RedisAccounts::on(RedisClient::open(RedisConfig::new(server.url())).unwrap());
    let plain = store.load("shop", "plain").await.unwrap().unwrap();
    let gone = Change { domain: "shop", id: "plain", before: Some(&plain), after: None, event: None };
    assert_eq!(store.save(gone).await.unwrap(), SaveResult::Done);
    let mut older = plain.clone();
    ID.clone_into(&mut older.id);
    DESCRIPTION.clone_into(&mut older.keys[0].description);
    let made = Change { domain: "shop", id: ID, before: None, after: Some(&older), event: None };
    assert_eq!(store.save(made).await.unwrap(), SaveResult::Done);
    key
}

#[tokio::test]
async fn hidden_characters_of_older_records_are_printed_escaped() {
    let server = RedisServer::start();
    let deployment = Deployment::new();
    for format in ["json", "pretty"] {
        let node = deployment.process().redis(&server.url()).arg(format!("--log-format={format}")).start();
        let key = older_record(&server, &node).await;
        Client::new(&node).create("b", "basic").await;
        for args in [&["account", "list"][..], &["account", "show", ID], &["key", "list", ID], &["key", "show", &key]] {
            let (status, text, stderr) = tollgate(&node, args);
            assert_eq!(status, Some(0), "{stderr}");
            assert!(text.contains("\\u202e") || text.contains("\\u2066"), "{args:?}: {text}");
            let (_, text, _) = tollgate(&node, &[args, &["--json"]].concat());
            let answer: Value = serde_json::from_str(&text).unwrap();
            let strings = format!("{answer:?}");
            assert!(strings.contains(&format!("{ID:?}")) || strings.contains(&format!("{DESCRIPTION:?}")), "{strings}");
        }
        // The first page ends at this account, and the printed cursor leads to the next page.
        let (_, text, _) = tollgate(&node, &["account", "list", "--limit=1"]);
        let next = text.split_once("--cursor=").unwrap().1.trim();
        let (status, text, stderr) = tollgate(&node, &["account", "list", "--json", &format!("--cursor={next}")]);
        assert_eq!(status, Some(0), "{stderr}");
        let page: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&page["accounts"][0]["id"], page["accounts"].as_array().map(Vec::len)), (&"b".into(), Some(1)));
        let (status, _, stderr) = tollgate(&node, &["account", "set", ID, "--tier=no\u{202e}ne"]);
        assert_eq!(status, Some(1), "{stderr}");
        let (status, _, stderr) = tollgate(&node, &["account", "create", ID, "--json"]);
        assert_eq!(status, Some(1), "{stderr}");
        for id in [ID, "b"] {
            assert_eq!(tollgate(&node, &["account", "delete", id]).0, Some(0));
        }
        let log = crate::harness::until("the deletion is logged", std::time::Duration::from_secs(10), async || {
            Some(node.stderr()).filter(|log| log.matches("account deleted").count() == 2)
        });
        let log: String = log.await.lines().filter(|line| line.contains("account deleted")).collect();
        let raw = log.chars().find(|c| is_hidden(*c) && *c != '\u{1b}');
        assert!(raw.is_none() && log.contains("202e"), "{log:?}");
    }
}
