//! Mistakes of one kind, at every place of a file.

use insta::assert_snapshot;

use super::{GOOD, format::schema, report};

/// Every whole number of the format, at its place, with values that are no whole numbers. Tried by breaking it: without
/// the keyword that detects fractions in the schema, `1e3` is "cannot be understood" at line 1.
#[test]
fn invalid_numbers_are_reported_with_their_place_and_a_correction() {
    let quota = "quotas: [{unit: requests, per: minute, limit: 5}]";
    let classes = |class: &str| format!("{GOOD}classes: {{c: {{{class}}}}}\n");
    let account = |over: &str| format!("{GOOD}bootstrap: {{accounts: [{{id: a, tier: t, {over}}}]}}\n");
    let over = "overrides: [{unit: requests, per: minute, limit: 7}]";
    let key = format!("keys: [{{id: k, hash: 'sha256:{}', kind: inference, {over}}}]", "0".repeat(64));
    let fields = [
        (GOOD.to_owned(), "version: 1", "version"),
        (GOOD.replace("false, ", "false, priority: 3, "), "priority: 3", "tiers.t.priority"),
        (GOOD.replace("quotas: []", quota), "limit: 5", "tiers.t.quotas[0].limit"),
        (classes(quota), "limit: 5", "classes.c.quotas[0].limit"),
        (format!("{GOOD}resources: {{r: {{{quota}}}}}\n"), "limit: 5", "resources.r.quotas[0].limit"),
        (
            classes(
                "quotas: [{unit: requests, per: minute, limit: 5, scope: [region], pool: {shares: [10, 20, 30, 40]}}]",
            ),
            "20",
            "classes.c.quotas[0].pool.shares[1]",
        ),
        (account(over), "limit: 7", "bootstrap.accounts[0].overrides[0].limit"),
        (account(&key), "limit: 7", "bootstrap.accounts[0].keys[0].overrides[0].limit"),
        (
            classes("estimates: {requests: [{input: n, default: 4}]}"),
            "default: 4",
            "classes.c.estimates.requests[0].default",
        ),
        (
            classes("estimates: {requests: [{input: n, at_most: 4}]}"),
            "at_most: 4",
            "classes.c.estimates.requests[0].at_most",
        ),
        (
            format!("{GOOD}abuse: {{rules: {{r: {{limit: 6, per: 30s, block: 30s}}}}}}\n"),
            "limit: 6",
            "abuse.rules.r.limit",
        ),
        (
            format!("{GOOD}abuse: {{authentication: {{limit: 6, per: 30s, block: 30s}}}}\n"),
            "limit: 6",
            "abuse.authentication.limit",
        ),
        (
            format!("{GOOD}abuse: {{rules: {{r: {{limit: 6, per: 30s, block: 30s, statuses: [429]}}}}}}\n"),
            "429",
            "abuse.rules.r.statuses[0]",
        ),
        (format!("{GOOD}keys: {{max_active: 8}}\n"), "max_active: 8", "keys.max_active"),
        (format!("{GOOD}uploads: {{kilobyte: 1000}}\n"), "kilobyte: 1000", "uploads.kilobyte"),
        (
            format!("{GOOD}dialects: {{mine: {{extends: ietf, answers: {{quota_exceeded: {{status: 430}}}}}}}}\n"),
            "status: 430",
            "dialects.mine.answers.quota_exceeded.status",
        ),
    ];
    // All of them: a limit is at five places, another count at four, and every other number at one.
    let others = schema().to_string().matches(r#""type":"integer""#).count();
    assert_eq!(fields.len(), others + 5 + 4, "a new number of the format needs a line above");
    for (text, written, place) in fields {
        let good = report(&text);
        assert!(!good.contains(place), "{place}: {good}");
        let field = written.split_once(' ').map_or(String::new(), |(field, _)| format!("{field} "));
        for value in [
            "1e3",
            "1.0e+3",
            "1000.0",
            "1.5",
            "'7'",
            "\"1e3\"",
            "1_00",
            "-1",
            "true",
            "~",
            "[1]",
            "{a: 1}",
            "9007199254740992",
            "9223372036854775808",
            "18446744073709551616",
            "1e400",
            ".inf",
            ".nan",
            "99999999999999999999999999999999999999",
        ] {
            let wrong = text.replacen(written, &format!("{field}{value}"), 1);
            let line = 1 + wrong.lines().position(|line| line.contains(value)).unwrap();
            let said = report(&wrong);
            let start = format!("policy.yaml:{line}: {place}: ");
            let about: Vec<&str> = said.lines().filter(|line| line.starts_with(&start)).collect();
            assert_eq!(about.len(), 1, "{place} {value}: {said}");
            let right = ["must be", "it should be", "is not one of"].iter().any(|words| about[0].contains(words));
            assert!(right && !about[0].contains("untagged"), "{place} {value}: {said}");
        }
    }
    assert_snapshot!(report(&GOOD.replace("quotas: []", &quota.replace('5', "1e3"))), @"policy.yaml:3: tiers.t.quotas[0].limit: 1000.0 must be a whole number, such as 1000, written without a point or an exponent");
}

/// Tried by breaking it: with the pattern for control characters only.
#[test]
fn names_with_invisible_characters_are_refused() {
    let names = [
        (GOOD.replace("{t: {", "{\"tX\": {").replace("default_tier: t", "default_tier: \"tX\""), "tiers."),
        (format!("{GOOD}classes: {{\"cX\": {{}}}}\n"), "classes."),
        (format!("{GOOD}resources: {{\"rX\": {{quotas: []}}}}\n"), "resources."),
        (format!("{GOOD}resources: {{\"rX/*\": {{quotas: []}}}}\n"), "resources."),
        (format!("{GOOD}bootstrap: {{accounts: [{{id: \"aX\", tier: t}}]}}\n"), "bootstrap.accounts[0].id: "),
        (
            format!("{GOOD}abuse: {{authentication: {{limit: 6, per: 30s, block: 30s, message: \"noX\"}}}}\n"),
            "abuse.authentication.message: ",
        ),
    ];
    for (text, place) in names {
        let good = report(&text.replace('X', "ü"));
        assert!(!good.contains(place), "{good}");
        for hidden in
            ['\u{202e}', '\u{200b}', '\u{feff}', '\u{2066}', '\u{ad}', '\u{2028}', '\u{fe0f}', '\u{e0041}', '\u{1}']
        {
            let said = report(&text.replace('X', &format!("\\U{:08x}", u32::from(hidden))));
            assert!(said.contains(&format!(": {place}")) && said.contains("invisible"), "{hidden:?} {place}: {said}");
        }
    }
}
