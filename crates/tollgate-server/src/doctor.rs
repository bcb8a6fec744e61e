//! `tollgate doctor`: reports the problems of a Redis, and their remedies.

use futures_util::future::join_all;
use tollgate_store::redis::{Finding, RedisConfig, Severity, examine};

/// Examines every Redis of a node and prints the findings, one per line, the worst last. Returns whether a node can
/// work with it.
pub(crate) async fn run(configs: &[RedisConfig]) -> (String, bool) {
    let mut findings: Vec<Finding> = join_all(configs.iter().map(examine)).await.into_iter().flatten().collect();
    findings.sort_by_key(|finding| finding.verdict);
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (warnings, errors) = (count(Severity::Warning), count(Severity::Error));
    let lines: Vec<String> = findings.iter().map(line).collect();
    let summary = match (errors, warnings) {
        (0, 0) => "No problems found.".to_owned(),
        (0, warnings) => format!("A node can use it. Warnings: {warnings}."),
        (errors, _) => format!("A node cannot rely on it. Problems to fix: {errors}."),
    };
    (format!("{}\n{summary}", lines.join("\n")), errors == 0)
}

fn line(finding: &Finding) -> String {
    let label = match finding.verdict {
        Severity::Ok => "ok  ",
        Severity::Warning => "warn",
        Severity::Error => "BAD ",
    };
    format!("{label} {} {}", finding.server, finding.text)
}
