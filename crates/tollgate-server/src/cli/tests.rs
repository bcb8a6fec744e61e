use std::{path::Path, process};

use clap::{Arg, ArgAction, Args, CommandFactory, builder::Str};

use super::*;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

/// Where [`options_of_this_process`] writes them, and the flags it parses, a line each.
const TO: &str = "OPTIONS_TO";
const FLAGS: &str = "OPTIONS_FLAGS";

/// A value of one option, another one for each `set`, which no other option of its kind has.
fn value(at: usize, arg: &Arg, set: usize) -> String {
    let number = 1_000 * (1 + set) + at;
    let few = arg.get_possible_values();
    match arg.get_value_names().and_then(|names| names.first()).map(Str::as_str) {
        // Settings with few values take turns; the two booleans are at an even and an odd index.
        _ if !few.is_empty() => few[(at + set) % few.len()].get_name().to_owned(),
        Some("N" | "MS") => number.to_string(),
        Some("ADDR") => format!("127.0.0.1:{number}"),
        _ if is_list(arg) => format!("{number}-a,{number}-b"),
        _ => format!("{number}-text"),
    }
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// Every option with its value of a set.
fn table(set: usize) -> Vec<(Arg, String)> {
    let all = Options::augment_args(clap::Command::new("all"));
    all.get_arguments().enumerate().map(|(at, arg)| (arg.clone(), value(at, arg, set))).collect()
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
fn options_of(by_flag: Option<usize>, by_variable: Option<usize>, by_file: Option<usize>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (to, config) = (folder.path().join("options"), folder.path().join("config.yaml"));
    let mut command = process::Command::new(std::env::current_exe().unwrap());
    // A process of its own, as variables are those of the whole process.
    command.args(["--exact", "cli::tests::options_of_this_process", "--ignored"]).env(TO, &to);
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
    std::fs::read_to_string(to).unwrap()
}

#[test]
#[ignore = "is for processes that other tests start"]
fn options_of_this_process() {
    let Some(to) = std::env::var_os(TO) else { return };
    let flags = std::env::var(FLAGS).unwrap();
    let cli = Cli::try_parse_from(std::iter::once("tollgate").chain(flags.lines())).unwrap();
    let options = cli.options.completed_by(cli.config.as_deref()).unwrap();
    std::fs::write(Path::new(&to), format!("{options:#?}")).unwrap();
}

/// Every option by flag, variable and file, and which of them wins.
///
/// Tried by exchanging two fields in `Options::or`, of these options or of the others or of both, and by asking the others first.
#[test]
fn every_option_by_flag_variable_and_file() {
    let said = |set: usize| {
        let flags = flags(set);
        let line = std::iter::once("tollgate").chain(flags.iter().map(String::as_str));
        format!("{:#?}", Cli::try_parse_from(line).unwrap().options)
    };
    for (arg, _) in table(0) {
        let variable = arg.get_env().unwrap_or_else(|| panic!("--{} has no variable", long(&arg)));
        assert!(variable.to_string_lossy().starts_with("TOLLGATE_"), "{}", variable.display());
        // All of it is in the values compared below.
        assert!(said(0).contains(&format!("{}: ", arg.get_id())), "{}", arg.get_id());
    }
    let default = format!("{:#?}", Options::default());
    for (by_flag, by_variable, by_file, expected) in [
        (None, None, None, default),
        (Some(0), None, None, said(0)),
        (None, Some(0), None, said(0)),
        (None, None, Some(0), said(0)),
        (None, Some(1), Some(2), said(1)),
        (Some(0), None, Some(1), said(0)),
        (Some(0), Some(1), Some(2), said(0)),
    ] {
        let options = options_of(by_flag, by_variable, by_file);
        let differ: Vec<_> = options.lines().zip(expected.lines()).filter(|(is, should)| is != should).collect();
        assert!(
            options == expected,
            "by flag {by_flag:?}, by variable {by_variable:?}, by file {by_file:?}: {differ:?}"
        );
    }
}
