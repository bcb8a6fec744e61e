//! The alert rules use only metrics that a node exports. `promtool test rules` checks when each alert fires
//! (`deploy/alerts/tollgate_test.yaml`, run by `tests/run`).

use tollgate_store::testing::RedisServer;

use crate::harness::{ProcessBuilder, folder_with, shop};

const RULES: &str = include_str!("../../../deploy/alerts/tollgate.yaml");
/// The operator's guide, which describes the alerts.
const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// A metric selector of a rule: the name, and for every label the values that must exist.
#[derive(Debug)]
struct Selector<'a> {
    name: &'a str,
    labels: Vec<(&'a str, Vec<&'a str>)>,
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The metrics of an expression, and the labels that it groups by.
fn read(expression: &str) -> (Vec<Selector<'_>>, Vec<&str>) {
    let mut selectors = Vec::new();
    for (at, _) in expression.match_indices("tollgate_") {
        let rest = &expression[at..];
        let (name, behind) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        let matchers = behind.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let labels = matchers.map_or_else(Vec::new, |(inside, _)| inside.split(',').map(matcher).collect());
        selectors.push(Selector { name, labels });
    }
    let groups = expression.split("by (").skip(1).filter_map(|rest| rest.split_once(')'));
    let groups = groups.flat_map(|(labels, _)| labels.split(',')).map(str::trim).collect();
    (selectors, groups)
}

/// `name="value"` or `name=~"one|other"`.
fn matcher(text: &str) -> (&str, Vec<&str>) {
    let (name, value) = text.split_once('=').unwrap_or_else(|| panic!("not understood: {text}"));
    let value = value.trim_start_matches('~').trim_matches('"');
    (name.trim(), value.split('|').collect())
}

/// Seen to fail when the counters of credential reloads did not exist from the start.
#[tokio::test]
async fn every_metric_and_label_in_the_alert_rules_exists_on_a_new_node() {
    let redis = RedisServer::start();
    let (folder, policy) = folder_with(&shop(100));
    // TLS metrics exist only with TLS.
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let certificate = format!("--tls-cert={}", file("node.pem", own.cert.pem()));
    let key = format!("--tls-key={}", file("node.key", own.signing_key.serialize_pem()));
    let node = ProcessBuilder::new(&policy).redis(&redis.url()).arg(certificate).arg(key);
    let node = node.arg("--ops-listen=127.0.0.1:0").start();
    // The counters exist before the first event, as an increase is computed from two values.
    let (_, metrics) = node.ops().text("/metrics").await;
    let series = |name: &str, label: &str, value: &str| {
        metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))).any(
            |line| {
                let has = |text: &str| line.contains(&format!("{{{text}")) || line.contains(&format!(",{text}"));
                label.is_empty() || has(&format!("{label}=\"{value}"))
            },
        )
    };
    let expressions: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    let alerts: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(expressions.len(), alerts.len(), "an expression stands on one line");
    for (expression, alert) in expressions.into_iter().zip(alerts) {
        let (selectors, groups) = read(expression);
        assert!(!selectors.is_empty(), "{alert} reads nothing of a node: {expression}");
        for Selector { name, labels } in &selectors {
            assert!(series(name, "", ""), "{alert}: no node has {name}");
            for (label, values) in labels {
                for value in values {
                    assert!(series(name, label, &format!("{value}\"")), "{alert}: no {name} with {label}={value}");
                }
            }
            for label in &groups {
                assert!(series(name, label, ""), "{alert}: {name} has no label {label}");
            }
        }
        assert!(OPERATIONS.contains(&format!("| `{alert}`")), "{alert} is not in docs/operations.md");
    }
}
