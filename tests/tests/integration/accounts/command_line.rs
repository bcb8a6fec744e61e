//! The commands `tollgate account`, `key` and `tier`, run against a node.

use std::{io::Read, net::TcpListener, thread};

use serde_json::{Value, json};

use super::{ADMIN, Deployment, OTHER_ADMIN, call, hourly, quota};
use crate::harness::{Process, ProcessBuilder};

/// The command line, set up for the domain `shop` of a node.
fn tollgate(node: &Process) -> ProcessBuilder {
    let url = format!("http://{}", node.http_address);
    ProcessBuilder::bare().env("TOLLGATE_URL", url).env("TOLLGATE_DOMAIN", "shop").env("TOLLGATE_ADMIN_TOKEN", ADMIN)
}

/// The output of a successful command.
fn run_ok(node: &Process, args: &[&str]) -> String {
    let (status, stdout, stderr) = tollgate(node).args(args.iter().copied()).output();
    assert_eq!((status.code(), &*stderr), (Some(0), ""), "{args:?} {stdout}");
    stdout
}

fn run_json(node: &Process, args: &[&str]) -> Value {
    let stdout = run_ok(node, &[args, &["--json"]].concat());
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {stdout}"))
}

/// The error of a failing command. It prints nothing to standard output, and never the token.
fn run_error(command: ProcessBuilder, args: &[&str]) -> String {
    let (status, stdout, stderr) = command.args(args.iter().copied()).output();
    assert_eq!((status.code(), &*stdout), (Some(1), ""), "{args:?} {stderr}");
    assert!(!stderr.contains(ADMIN), "{stderr}");
    stderr.trim_end().to_owned()
}

/// The lines of `text`, split into words.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test]
async fn the_command_line_creates_changes_and_deletes_an_account() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let made = run_ok(&node, &["account", "create", "acme ü/?#", "--balance=USD=12.5", "--balance", "DIEM=3"]);
    for line in [&["account", "acme", "ü/?#"][..], &["tier", "basic"], &["balances", "USD", "12.5,", "DIEM", "3"]] {
        assert!(words(&made).contains(&line.to_vec()), "{line:?}: {made}");
    }
    assert_eq!(run_ok(&node, &["account", "show", "acme ü/?#"]), made);
    let version = run_json(&node, &["account", "show", "acme ü/?#"])["version"].to_string();

    let changed = run_json(&node, &["account", "set", "acme ü/?#", "--tier=premium", "--if-version", &version]);
    assert_eq!((&changed["tier"], &changed["balances"]), (&json!("premium"), &json!({"USD": 12.5, "DIEM": 3.0})));
    let changed = run_json(&node, &["account", "set", "acme ü/?#", "--balance=USD=-1"]);
    assert_eq!((&changed["tier"], &changed["balances"]), (&json!("premium"), &json!({"USD": -1.0})));
    let late = run_error(tollgate(&node), &["account", "delete", "acme ü/?#", "--if-version", &version]);
    assert!(late.starts_with("if-match: ") && late.ends_with("(412 precondition_failed)"), "{late}");

    assert_eq!(run_ok(&node, &["account", "delete", "acme ü/?#"]), "deleted\n");
    let gone = run_error(tollgate(&node), &["account", "show", "acme ü/?#"]);
    assert_eq!(gone, "account: there is no account \"acme ü/?#\" (404 not_found)");
}

#[tokio::test]
async fn the_command_line_sets_overrides_and_records_payments() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    run_ok(&node, &["account", "create", "acme", "--tier=basic"]);
    let limit = ["--unit=requests", "--per=hour", "--limit=50", "--resource=model", "--scope=account,resource"];
    let set = ["account", "set-override", "acme", "sale", "--expires-at=2099-01-01T00:00:00Z"];
    let error_text = run_ok(&node, &[&set[..], &limit].concat());
    let expected = "override          sale: 50 requests per hour of model in scope account, resource, until 2099-01-01T00:00:00.000Z";
    assert!(error_text.lines().any(|line| line == expected), "{error_text}");
    assert_eq!(hourly(&call(&node.rest, "check", json!({"account": "acme"})).await).0, 50);
    // A window in the format of policy files, and an unlimited quota.
    let day = ["--unit=requests", "--per={calendar: day}", "--limit=unlimited"];
    let set = run_json(&node, &[&["account", "set-override", "acme", "daily"], &day[..]].concat());
    assert_eq!(set["overrides"]["daily"]["per"], json!({"calendar": "day"}));
    assert_eq!(set["overrides"]["daily"]["limit"], "unlimited");
    run_ok(&node, &["account", "clear-override", "acme", "sale"]);
    assert_eq!(hourly(&call(&node.rest, "check", json!({"account": "acme"})).await).0, 10);

    let payment = ["account", "event", "acme", "--type=payment", "--id"];
    let report = run_ok(&node, &[&payment[..], &["pi_1"]].concat());
    assert!(report.starts_with("The account moved from basic to premium.\naccount           acme\n"), "{report}");
    let again = run_ok(&node, &[&payment[..], &["pi_1"]].concat());
    assert!(again.starts_with("The event was recorded before. Nothing changed.\n"), "{again}");
    let report = run_json(&node, &[&payment[..], &["pi_2"]].concat());
    assert_eq!((&report["repeated"], report.get("promoted")), (&json!(false), None));
    let tiers = run_ok(&node, &["tier", "list"]);
    let expected = [
        vec!["TIER", "DEFAULT", "CHARGED", "PRIORITY", "PROMOTIONS"],
        vec!["basic", "yes", "no", "-", "payment", "to", "premium"],
        vec!["premium", "no", "yes", "-", "-"],
    ];
    assert_eq!(words(&tiers), expected, "{tiers}");
    assert_eq!(
        run_json(&node, &["tier", "list"])["tiers"][0]["promotions"],
        json!([{"on": "payment", "to": "premium"}])
    );
}

#[tokio::test]
async fn the_command_line_issues_rotates_and_revokes_a_key() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    run_ok(&node, &["account", "create", "acme"]);
    let made = run_ok(&node, &["key", "create", "acme", "--kind=admin", "--description=for the build"]);
    let of = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{text}"));
        line[name.len()..].trim().to_owned()
    };
    let (secret, key) = (of(&made, "secret"), of(&made, "key"));
    assert_eq!(made.matches(&secret).count(), 1, "{made}");
    assert_eq!((of(&made, "kind"), of(&made, "description")), ("admin".to_owned(), "for the build".to_owned()));
    assert_eq!(call(&node.rest, "consume", json!({"api_key": secret})).await["api_key_id"], key);
    let shown = run_ok(&node, &["key", "show", &key]);
    assert!(!shown.contains(&secret[9..]) && of(&shown, "prefix") == secret[..8], "{shown}");

    assert_eq!(of(&run_ok(&node, &["key", "describe", &key, "for the tests"]), "description"), "for the tests");
    let ends = run_ok(&node, &["key", "expire", &key, "--at=2099-01-01T00:00:00Z"]);
    assert_eq!(
        (of(&ends, "expires"), of(&ends, "description")),
        ("2099-01-01T00:00:00.000Z".into(), "for the tests".into())
    );
    assert_eq!(run_json(&node, &["key", "expire", &key, "--at=never"]).get("expires_at"), None);
    let limit = ["--unit=concurrent_requests", "--limit=2"];
    let set = run_json(&node, &[&["key", "set-override", &key, "slots"], &limit[..]].concat());
    assert_eq!(set["overrides"]["slots"], json!({"unit": "concurrent_requests", "limit": 2}));
    let decision = call(&node.rest, "check", json!({"api_key": secret})).await;
    assert_eq!(quota(&decision, "concurrent_requests").map(|slots| &slots["limit"]), Some(&json!(2)), "{decision}");
    assert_eq!(run_json(&node, &["key", "clear-override", &key, "slots"])["overrides"], json!({}));

    let rotated = run_json(&node, &["key", "rotate", &key, "--overlap-s=3600"]);
    let second = rotated["secret"].as_str().unwrap();
    for secret in [&secret, second] {
        assert_eq!(call(&node.rest, "check", json!({"api_key": secret})).await["api_key_id"], key);
    }
    let rotated = run_ok(&node, &["key", "rotate", &key]);
    let third = of(&rotated, "secret");
    for (secret, verdict) in [(&*secret, "denied"), (second, "denied"), (&third, "allowed")] {
        assert_eq!(call(&node.rest, "check", json!({"api_key": secret})).await["verdict"], verdict);
    }
    assert_eq!(of(&run_ok(&node, &["key", "revoke", &key]), "state"), "revoked");
    assert_eq!(call(&node.rest, "check", json!({"api_key": third})).await["reason"], "revoked_key");
    for secret in [&*secret, second, &third] {
        assert!(!node.stderr().contains(&secret[8..]), "a secret is in the log");
    }
    assert!(!node.stderr().contains(ADMIN), "the token is in the log");
}

#[tokio::test]
async fn the_command_line_reads_lists_page_by_page() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    assert_eq!(words(&run_ok(&node, &["account", "list"])).len(), 1, "the heads alone");
    for account in ["a", "it's b", "c"] {
        run_ok(&node, &["account", "create", account]);
    }
    let page = run_ok(&node, &["account", "list", "--limit=2"]);
    let (first, more) = page.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(words(first).iter().map(|row| row[0]).collect::<Vec<_>>(), ["ACCOUNT", "a", "c"]);
    let cursor = more.strip_prefix("Next page: ").unwrap();
    let page = run_json(&node, &["account", "list", "--limit=2", cursor]);
    assert_eq!((&page["accounts"][0]["id"], page.get("next_cursor")), (&json!("it's b"), None));
    run_ok(&node, &["account", "create", "z"]);
    let keys: Vec<String> =
        (0..3).map(|_| run_json(&node, &["key", "create", "z"])["key"]["id"].as_str().unwrap().to_owned()).collect();
    let page = run_ok(&node, &["key", "list", "z", "--limit=2"]);
    assert_eq!(words(&page)[1][..3], [&*keys[0], "inference", "active"], "{page}");
    let cursor = page.trim_end().rsplit_once("Next page: ").unwrap().1;
    let page = run_ok(&node, &["key", "list", "z", cursor]);
    assert_eq!((words(&page).len(), words(&page)[1][0]), (2, &*keys[2]), "{page}");
}

/// Each error explains the cause, and the exit code is that of an error.
#[tokio::test]
async fn the_command_line_explains_errors() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    run_ok(&node, &["account", "create", "acme"]);
    let limit = ["account", "set-override", "acme", "x", "--unit=bananas", "--per=hour", "--limit=1"];
    for (args, starts, ends) in [
        (&["account", "create", "acme"][..], "id: the account \"acme\" already exists", "(409 already_exists)"),
        (
            &["account", "delete", "fixed"],
            "account: \"fixed\" is defined in the policy file",
            "(409 failed_precondition)",
        ),
        (&["account", "create", "x", "--tier=gold"], "tier: there is no tier \"gold\"", "(400 invalid_argument)"),
        (&["account", "list", "--limit=101"], "limit: must be from 1 to 100", "(400 invalid_argument)"),
        (&limit, "unit: ", "(400 invalid_argument)"),
        (&["key", "create", "acme", "--expires-at=soon"], "expires_at: is not a time", "(400 invalid_argument)"),
        (&["key", "show", "none"], "key: there is no key \"none\"", "(404 not_found)"),
        (&["tier", "list", "--domain=none"], "domain: ", "(404 not_found)"),
        (&["account", "show", ".."], "\"..\" cannot be part of a URL", ""),
        (&["account", "delete", ""], "\"\" cannot be part of a URL", ""),
    ] {
        let error_text = run_error(tollgate(&node), args);
        assert!(error_text.starts_with(starts) && error_text.ends_with(ends), "{args:?}: {error_text}");
    }
    // An account of the policy file cannot be changed, but can be shown.
    let shown = run_ok(&node, &["account", "show", "fixed"]);
    for line in ["override          1: 77 requests per hour of model", "read only         defined in the policy file"] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    assert!(run_ok(&node, &["key", "list", "fixed"]).contains("fixed-2"));
    // A token of another domain, and an unknown token.
    let error_text = run_error(tollgate(&node).env("TOLLGATE_ADMIN_TOKEN", OTHER_ADMIN), &["account", "list"]);
    assert!(error_text.ends_with("(403 permission_denied)"), "{error_text}");
    let error_text = run_error(tollgate(&node).env("TOLLGATE_ADMIN_TOKEN", "tgt_nobody"), &["account", "list"]);
    assert!(error_text.ends_with("(401 unauthenticated); the token is from TOLLGATE_ADMIN_TOKEN"), "{error_text}");
    // The same for scripts.
    let error_text = run_error(tollgate(&node), &["account", "show", "none", "--json"]);
    let error_text: Value = serde_json::from_str(&error_text).unwrap();
    assert_eq!(error_text["error"]["code"], "not_found", "{error_text}");
    assert_eq!(error_text["error"]["message"], "account: there is no account \"none\"");
}

#[tokio::test]
async fn the_command_line_reports_a_server_that_is_not_a_node() {
    let bare = || ProcessBuilder::bare().env("TOLLGATE_ADMIN_TOKEN", ADMIN);
    let error_text = run_error(bare(), &["account", "list", "--url=http://127.0.0.1:1"]);
    assert!(error_text.starts_with("url: http://127.0.0.1:1/ cannot be reached: Connection refused"), "{error_text}");
    // The flag that allows plain text for a node does not allow sending the token in plain text.
    let in_clear = ["account", "delete", "a", "--url=http://limits.example", "--timeout-ms=0"];
    for command in [bare(), bare().env("TOLLGATE_PLAINTEXT_BEYOND_LOOPBACK", "true")] {
        let error_text = run_error(command, &in_clear);
        assert!(
            error_text.contains("url: limits.example is not a loopback address")
                && error_text.contains("\ntimeout-ms: "),
            "{error_text}"
        );
    }
    let error_text = run_error(bare().env("TOLLGATE_ADMIN_PLAINTEXT_BEYOND_LOOPBACK", "true"), &in_clear);
    assert!(error_text.starts_with("timeout-ms: ") && error_text.lines().count() == 1, "{error_text}");
    let error_text = run_error(ProcessBuilder::bare(), &["account", "list"]);
    assert!(error_text.starts_with("admin-token-file: is missing"), "{error_text}");
    assert!(
        run_error(bare(), &["account", "list", "--admin-token-file=/nowhere"])
            .starts_with("admin-token-file: /nowhere: ")
    );

    // A server that accepts the request and never answers: a read can be repeated, a change may have been made.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("--url=http://{}", silent.local_addr().unwrap());
    let doubt = "; the change may have been made: read before you repeat it";
    let error_text = run_error(bare(), &["account", "list", &url, "--timeout-ms=200"]);
    assert!(error_text.ends_with("did not answer within 200 ms (timeout-ms)"), "{error_text}");
    let error_text = run_error(bare(), &["account", "delete", "a", &url, "--timeout-ms=200"]);
    assert!(error_text.ends_with(&format!("did not answer within 200 ms (timeout-ms){doubt}")), "{error_text}");

    // Another kind of server, and one that redirects: the token is not sent on.
    let elsewhere = silent.local_addr().unwrap();
    for (answer, status) in [
        ("200 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned(), "200 OK"),
        (format!("307 Temporary Redirect\r\nlocation: http://{elsewhere}/\r\ncontent-length: 0\r\n\r\n"), "307 "),
        ("404 Not Found\r\ncontent-length: 2\r\n\r\n{}".to_owned(), "404 "),
    ] {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("--url=http://{}", other.local_addr().unwrap());
        let answers = thread::spawn(move || {
            let (mut stream, _) = other.accept().unwrap();
            let mut asked = [0; 4096];
            let read = stream.read(&mut asked).unwrap();
            std::io::Write::write_all(&mut stream, format!("HTTP/1.1 {answer}").as_bytes()).unwrap();
            String::from_utf8_lossy(&asked[..read]).into_owned()
        });
        let error_text = run_error(bare(), &["tier", "list", &url]);
        assert!(
            error_text.contains(&format!("answered {status}"))
                && error_text.contains("not with an answer of a node's admin API"),
            "{error_text}"
        );
        let asked = answers.join().unwrap();
        assert!(asked.starts_with("GET /admin/v1/tiers HTTP/1.1\r\n"), "{asked}");
    }
    silent.set_nonblocking(true).unwrap();
    let came = std::iter::from_fn(|| silent.accept().ok()).count();
    assert_eq!(came, 2, "the two that were not answered");
}

/// One configuration file serves a node and its administrators.
#[tokio::test]
async fn the_command_line_reads_its_settings_from_a_file() {
    let deployment = Deployment::new();
    let node = deployment.process().start();
    let (token, config) =
        (deployment.tokens.with_file_name("token"), deployment.tokens.with_file_name("tollgate.yaml"));
    std::fs::write(&token, format!("{OTHER_ADMIN}\n")).unwrap();
    let client = format!("client: {{ url: 'http://{}', admin-token-file: '{}' }}", node.http_address, token.display());
    std::fs::write(&config, format!("log-filter: warn\n{client}\n")).unwrap();
    let command = || ProcessBuilder::bare().arg("--config").arg(&config);
    // The default domain is the token's only one.
    let (status, stdout, stderr) = command().args(["account", "create", "mine", "--json"]).output();
    assert!(status.success(), "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["domain"], "other");
    let error_text = run_error(command().env("TOLLGATE_URL", "http://127.0.0.1:1"), &["account", "list"]);
    assert!(error_text.contains("cannot be reached"), "a variable goes before the file: {error_text}");
    std::fs::write(&config, "client: { token: x }").unwrap();
    let error_text = run_error(command(), &["account", "list"]);
    assert!(error_text.contains("tollgate.yaml: line 1: client: unknown field `token`"), "{error_text}");
    std::fs::write(&config, client).unwrap();
    let with_file = deployment.process().arg("--config").arg(&config).start();
    assert!(run_ok(&with_file, &["account", "list"]).starts_with("ACCOUNT"));
}
