//! Every numeric setting at the edges of its range: the node starts, or the error names the setting and the range.
//!
//! Seen to fail when the number of request slots had no maximum.

use clap::{Args, Command};
use tollgate_server::settings::Options;

use crate::harness::{ProcessBuilder, folder_with, shop};

const EDGES: [&str; 6] = ["0", "1", "4294967295", "4294967296", "9223372036854775808", "18446744073709551615"];

/// The flags of all numeric settings, by their descriptions in `--help`.
fn numbers() -> Vec<String> {
    let command = Options::augment_args(Command::new("node"));
    let is_number = |argument: &clap::Arg| {
        argument.get_value_names().is_some_and(|names| names.iter().any(|name| matches!(name.as_str(), "N" | "MS")))
    };
    let numbers = command.get_arguments().filter(|argument| is_number(argument));
    numbers.filter_map(|argument| argument.get_long()).map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_numeric_setting_is_bounded_and_named_in_its_error() {
    let (_folder, policy) = folder_with(&shop(100));
    let names = numbers();
    assert!(names.len() >= 28, "{names:?}");
    for name in &names {
        let mut refused = 0;
        for edge in EDGES {
            let flag = format!("--{name}={edge}");
            // Redis settings apply only with Redis; an unreachable Redis does not prevent a start.
            match ProcessBuilder::new(&policy).redis("redis://127.0.0.1:1").arg(&flag).try_start() {
                Ok(_runs) => {}
                Err(output) => {
                    refused += 1;
                    assert!(!output.contains("panicked"), "{flag}: {output}");
                    assert!(output.contains(name.as_str()), "{flag}: it does not name the setting: {output}");
                    let range = output.contains("must be from ") || output.contains("invalid value");
                    assert!(range, "{flag}: it does not say what would do: {output}");
                }
            }
        }
        assert!(refused >= 2, "{name}: the largest numbers are refused");
    }
}
