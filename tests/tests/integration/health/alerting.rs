//! Alerts that fire, as evaluated by Prometheus: two scrapes of a node become the input series of a rule test.

use std::{collections::HashMap, fmt::Write, path::Path, process::Command};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/alerts/tollgate.yaml");

/// The installed promtool, or the one from `tests/run`.
fn promtool() -> Command {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/prometheus/usr/bin/promtool");
    Command::new(if own.exists() { own } else { "promtool".into() })
}

/// The series of a scrape, without histograms, whose values depend on the machine.
fn series(metrics: &str) -> HashMap<&str, (&str, f64)> {
    let types: HashMap<&str, &str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let lines = metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let with_type = lines.filter_map(|(series, value)| {
        let kind = *types.get(series.split('{').next()?)?;
        (kind != "histogram").then_some((series, (kind, value.parse().ok()?)))
    });
    with_type.collect()
}

/// Asserts that exactly these alerts fire after some minutes, on a node whose gauges keep the values of the second
/// scrape and whose counters keep the rate between both.
pub(crate) fn firing(what: &str, before: &str, after: &str, expected: &[&str]) {
    let (before, after) = (series(before), series(after));
    let mut text =
        format!("rule_files: [{RULES:?}]\nevaluation_interval: 15s\ntests:\n  - interval: 15s\n    input_series:\n");
    for (series, (kind, now)) in &after {
        let first = before.get(series).map(|(_, value)| *value);
        let values = match (*kind, first) {
            ("counter", Some(first)) => format!("{first}{:+}x80", now - first),
            // The series appears with its first count, so it shows no increase.
            ("counter", None) => format!("_ {now}x80"),
            _ => format!("{} {now}x80", first.unwrap_or(*now)),
        };
        let (name, labels) =
            series.split_once('{').map_or((*series, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
        let comma = if labels.is_empty() { "" } else { "," };
        writeln!(text, "      - {{ series: '{name}{{instance=\"node\"{comma}{labels}}}', values: '{values}' }}")
            .unwrap();
    }
    text += "    promql_expr_test:\n      - expr: group by (alertname) (ALERTS{alertstate=\"firing\"})\n        eval_time: 15m\n        exp_samples:\n";
    for alert in expected {
        writeln!(text, "          - {{ labels: '{{alertname=\"{alert}\"}}', value: 1 }}").unwrap();
    }
    if expected.is_empty() {
        text = text.trim_end().to_owned() + " []\n";
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("test.yaml");
    std::fs::write(&file, &text).unwrap();
    let output = promtool().args(["test", "rules"]).arg(&file).output();
    let output = output.unwrap_or_else(|error| panic!("promtool: {error}; tests/run installs it"));
    assert!(
        output.status.success(),
        "{what}: {expected:?}\n{}",
        String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr)
    );
}
