//! `tollgate doctor`: reports the problems of a Redis, and their remedies.

use futures_util::future::join_all;
use tollgate_store::redis::{Finding, RedisConfig, Severity, examine};

/// Examines every Redis of a node and prints the findings, one per line, the worst last. Returns whether a node can
/// work with it.
pub(crate) async fn run(configs: &[RedisConfig]) -> (String, bool) {
    let mut findings: Vec<Finding> = join_all(configs.iter().map(examine)).await.into_iter().flatten().collect();
    findings.sort_by_key(|finding| finding.verdict);
    let of = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (doubtful, bad) = (of(Severity::Warning), of(Severity::Error));
    let lines: Vec<String> = findings.iter().map(line).collect();
    let summary = match (bad, doubtful) {
        (0, 0) => "No problems found.".to_owned(),
        (0, doubtful) => format!("A node can use it. Warnings: {doubtful}."),
        (bad, _) => format!("A node cannot rely on it. Problems to fix: {bad}."),
    };
    (format!("{}\n{summary}", lines.join("\n")), bad == 0)
}

fn line(finding: &Finding) -> String {
    let word = match finding.verdict {
        Severity::Ok => "ok  ",
        Severity::Warning => "warn",
        Severity::Error => "BAD ",
    };
    format!("{word} {} {}", finding.server, finding.text)
}
