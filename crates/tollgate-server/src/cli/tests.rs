use std::{path::Path, process};

use clap::{Arg, ArgAction, Args, CommandFactory, builder::Str};

use super::*;

#[test]
fn the_command_line_is_valid() {
    Cli::command().debug_assert();
}

/// The variables for [`options_of_this_process`]: the path of its output, and the flags that it parses, one per line.
const OUTPUT_PATH: &str = "OPTIONS_TO";
const FLAGS: &str = "OPTIONS_FLAGS";

/// A value of an option. It differs between sets and between options of the same kind.
fn value(index: usize, arg: &Arg, set: usize) -> String {
    let number = 1_000 * (1 + set) + index;
    let few = arg.get_possible_values();
    match arg.get_value_names().and_then(|names| names.first()).map(Str::as_str) {
        // The two booleans are at an even and an odd index, so they have different values.
        _ if !few.is_empty() => few[(index + set) % few.len()].get_name().to_owned(),
        Some("N" | "MS") => number.to_string(),
        Some("ADDR") => format!("127.0.0.1:{number}"),
        _ if is_list(arg) => format!("{number}-a,{number}-b"),
        _ => format!("{number}-text"),
    }
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// Every option, with its value of a set.
fn table(set: usize) -> Vec<(Arg, String)> {
    let all = Options::augment_args(clap::Command::new("all"));
    all.get_arguments().enumerate().map(|(index, arg)| (arg.clone(), value(index, arg, set))).collect()
}

fn long(arg: &Arg) -> &str {
    arg.get_long().unwrap()
}

fn flags(set: usize) -> Vec<String> {
    table(set).iter().map(|(arg, value)| format!("--{}={value}", long(arg))).collect()
}

fn file(set: usize) -> String {
    let line = |(arg, value): &(Arg, String)| {
        let value = if is_list(arg) { format!("[{value}]") } else { value.clone() };
        format!("{}: {value}\n", long(arg))
    };
    table(set).iter().map(line).collect()
}

/// The options of a process with these flags, variables and file.
fn options_of_process(by_flag: Option<usize>, by_variable: Option<usize>, by_file: Option<usize>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (output_path, config) = (folder.path().join("options"), folder.path().join("config.yaml"));
    let mut command = process::Command::new(std::env::current_exe().unwrap());
    // In another process, because environment variables are global.
    command.args(["--exact", "cli::tests::options_of_this_process", "--ignored"]).env(OUTPUT_PATH, &output_path);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TOLLGATE_")) {
        command.env_remove(name);
    }
    command.env(FLAGS, by_flag.map(flags).unwrap_or_default().join("\n"));
    for (arg, value) in by_variable.map(table).unwrap_or_default() {
        command.env(arg.get_env().unwrap(), value);
    }
    if let Some(set) = by_file {
        std::fs::write(&config, file(set)).unwrap();
        command.env("TOLLGATE_CONFIG", &config);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    std::fs::read_to_string(output_path).unwrap()
}

#[test]
#[ignore = "is for processes that other tests start"]
fn options_of_this_process() {
    let Some(output) = std::env::var_os(OUTPUT_PATH) else { return };
    let flags = std::env::var(FLAGS).unwrap();
    let cli = Cli::try_parse_from(std::iter::once("tollgate").chain(flags.lines())).unwrap();
    let options = cli.options.with_file(cli.config.as_deref()).unwrap();
    std::fs::write(Path::new(&output), format!("{options:#?}")).unwrap();
}

/// Checks every option by flag, variable and file, and their precedence.
///
/// Fails if two fields of either side are swapped in `Options::or`, and if the precedence is reversed.
#[test]
fn every_option_by_flag_variable_and_file() {
    let parsed = |set: usize| {
        let flags = flags(set);
        let line = std::iter::once("tollgate").chain(flags.iter().map(String::as_str));
        format!("{:#?}", Cli::try_parse_from(line).unwrap().options)
    };
    for (arg, _) in table(0) {
        let variable = arg.get_env().unwrap_or_else(|| panic!("--{} has no variable", long(&arg)));
        assert!(variable.to_string_lossy().starts_with("TOLLGATE_"), "{}", variable.display());
        // So the comparison below contains every option.
        assert!(parsed(0).contains(&format!("{}: ", arg.get_id())), "{}", arg.get_id());
    }
    let default = format!("{:#?}", Options::default());
    for (by_flag, by_variable, by_file, expected) in [
        (None, None, None, default),
        (Some(0), None, None, parsed(0)),
        (None, Some(0), None, parsed(0)),
        (None, None, Some(0), parsed(0)),
        (None, Some(1), Some(2), parsed(1)),
        (Some(0), None, Some(1), parsed(0)),
        (Some(0), Some(1), Some(2), parsed(0)),
    ] {
        let options = options_of_process(by_flag, by_variable, by_file);
        let differ: Vec<_> = options.lines().zip(expected.lines()).filter(|(is, should)| is != should).collect();
        assert!(
            options == expected,
            "by flag {by_flag:?}, by variable {by_variable:?}, by file {by_file:?}: {differ:?}"
        );
    }
}
