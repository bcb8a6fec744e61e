//! What the command line says of a policy before it runs: warnings, the table of limits, explanations.

use std::path::Path;

use crate::harness::{ProcessBuilder, folder_with};

/// A monthly budget as a tier's quotas, and limits of a class: the budget applies to no call, as the class wins.
const SHADOWED: &str = "
version: 1
domain: shop
classes: { text: { quotas: [{ unit: requests, per: minute, limit: 60 }] } }
resources: { chat: { class: text } }
tiers:
  free:
    is_charged: false
    quotas: [{ unit: requests, per: { calendar: month }, limit: 1000, scope: [account] }]
default_tier: free
";

#[test]
fn check_policy_warns_of_quotas_that_no_call_reaches_and_fails_if_strict() {
    let (_folder, policy) = folder_with(SHADOWED);
    let run = |flags: &[&str]| {
        let command = flags.iter().fold(ProcessBuilder::bare().arg("check-policy").arg(&policy), ProcessBuilder::arg);
        command.output()
    };
    let warning =
        "warning: shop: line 9: tiers.free.quotas: no call ever reaches these quotas: classes.text.quotas applies";
    let (status, stdout, stderr) = run(&[]);
    assert_eq!((status.code(), &*stdout), (Some(0), "shop: 1 tiers, 1 resources, 0 accounts\n"), "{stderr}");
    assert!(stderr.starts_with(warning), "{stderr}");
    let (status, _, stderr) = run(&["--strict"]);
    assert_eq!(status.code(), Some(1));
    assert!(stderr.starts_with(warning), "{stderr}");
    let (_, matrix, _) = run(&["--matrix"]);
    assert_eq!(matrix, "shop\nresource  free\nchat      60 RPM\n");
}

#[test]
fn the_shipped_policies_have_no_warnings() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies");
    let (status, _, stderr) = ProcessBuilder::bare().arg("check-policy").arg("--strict").arg(policies).output();
    assert_eq!((status.code(), &*stderr), (Some(0), ""));
}

#[test]
fn explain_says_which_rule_wins_and_what_an_override_changes() {
    let (_folder, policy) = folder_with(SHADOWED);
    let run = |arguments: &[&str]| {
        let command = ProcessBuilder::bare().arg("explain").arg("--policy").arg(&policy);
        arguments.iter().fold(command, ProcessBuilder::arg).output()
    };
    let (status, stdout, stderr) = run(&["--resource", "chat"]);
    assert_eq!(status.code(), Some(0), "{stderr}");
    for line in ["  wins      classes.text.quotas", "  loses     tiers.free.quotas"] {
        assert!(stdout.lines().any(|found| found == line), "no {line:?} in {stdout}");
    }
    let over = "{ unit: requests, per: minute, limit: 90 }";
    let (_, stdout, _) = run(&["--resource", "chat", "--tier", "free", "--account-override", over, "--json"]);
    let explanation: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let quota = &explanation["quotas"][0];
    assert_eq!((&quota["limit"], &quota["replaced_limit"]), (&90.into(), &"60".into()), "{stdout}");
    for (arguments, message) in [
        (&["--resource", "chat", "--tier", "gold"][..], "tier: there is no tier \"gold\"; there is: free\n"),
        (&["--resource", "nothing"], "resource: there is no such resource\n"),
        (
            &["--resource", "chat", "--account-override", "{ unit: requests, per: minute, limit: -1 }"],
            "account-override[0].limit: -1 is not right here; it should be: a whole number from 0 (never) to \
             9007199254740991, such as 20000000, 20_000_000 or 20M (k, M, G), or `unlimited`\n",
        ),
    ] {
        let (status, _, stderr) = run(arguments);
        assert_eq!((status.code(), &*stderr), (Some(1), message));
    }
}
