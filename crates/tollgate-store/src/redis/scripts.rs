//! The scripts, composed of the parts in `lua/` and rendered with one [`layout`].

use std::{collections::HashMap, sync::LazyLock};

use minijinja::{Environment, Error, UndefinedBehavior, Value, context, syntax::SyntaxConfig};

use super::{Script, fast_path::FastPathScripts, layout};

macro_rules! files {
    ($($name:literal)+) => { [$(($name, include_str!(concat!("../../../../lua/", $name)))),+] };
}

/// Parts that need nothing but the layout.
const PARTS: [(&str, &str); 23] = files!(
    "account.lua" "accounts.lua" "admit.lua" "admitted.lua" "answer.lua" "apply.lua" "block.lua" "clock.lua"
    "clock_injected.lua" "close.lua" "closed.lua" "extend.lua" "guard.lua" "ledger.lua" "look.lua" "plain.lua" "probe.lua"
    "record.lua" "refund.lua" "refused.lua" "refusals.lua" "reset.lua" "slots.lua"
);

/// Parts that are rendered for each form of call, and their macros.
const TEMPLATES: [(&str, &str); 3] = files!("fast_path.lua.jinja" "fast_path_steps.lua.jinja" "together.lua.jinja");

/// What all parts are rendered in.
#[expect(clippy::expect_used, reason = "the files are part of the program, and a test renders each")]
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the default syntax"));
    layout::add_to(&mut environment);
    for (name, text) in PARTS.into_iter().chain(TEMPLATES) {
        environment.add_template(name, text).expect(name);
    }
    environment
});

/// The parts, rendered.
#[expect(clippy::expect_used, reason = "the files are part of the program, and a test renders each")]
static RENDERED: LazyLock<HashMap<&str, String>> = LazyLock::new(|| {
    let rendered = |name| (name, render(name, context! {}).expect(name));
    PARTS.into_iter().map(|(name, _)| rendered(name)).collect()
});

/// The text of a part.
pub(crate) fn part(name: &str) -> &'static str {
    &RENDERED[name]
}

/// Renders a template, which sees `context` beside the layout.
pub(super) fn render(name: &str, context: impl Into<Value>) -> Result<String, Error> {
    ENVIRONMENT.get_template(name)?.render(context)
}

// The scripts of a store, each of parts that are put one behind the other.
const APPLY: &[&str] = &["ledger.lua", "apply.lua", "answer.lua"];
const ADMIT: &[&str] =
    &["block.lua", "ledger.lua", "record.lua", "slots.lua", "admit.lua", "apply.lua", "admitted.lua"];
const LOOK: &[&str] = &["record.lua", "look.lua"];
const CLOSE: &[&str] = &["block.lua", "ledger.lua", "record.lua", "close.lua", "refund.lua", "apply.lua", "closed.lua"];
const REFUND: &[&str] = &["block.lua", "ledger.lua", "refund.lua"];
const EXTEND: &[&str] = &["record.lua", "slots.lua", "extend.lua"];
const RESET: &[&str] = &["reset.lua"];

fn composed(parts: &[&str]) -> String {
    parts.iter().copied().map(part).collect()
}

/// A script of one part, which needs no clock.
pub(crate) fn script(name: &str) -> Script {
    Script::new(part(name).to_owned())
}

/// The scripts of a store of counters, behind the clock that goes in front.
pub(super) struct Scripts {
    pub(super) fast_path: FastPathScripts,
    pub(super) apply: Script,
    pub(super) admit: Script,
    pub(super) look: Script,
    pub(super) close: Script,
    pub(super) refund: Script,
    pub(super) extend: Script,
    pub(super) reset: Script,
}

impl Scripts {
    pub(super) fn behind(clock: &str) -> Self {
        let apply = composed(APPLY);
        let script = |parts: &[&str]| Script::new(guarded(clock, &composed(parts)));
        Self {
            apply: script(&[&["block.lua"], APPLY].concat()),
            admit: script(ADMIT),
            look: script(LOOK),
            close: script(CLOSE),
            refund: script(REFUND),
            extend: script(EXTEND),
            reset: script(RESET),
            fast_path: FastPathScripts::new([clock, part("block.lua")].concat(), apply),
        }
    }
}

/// A script whose errors are plain text, whatever it reads.
fn guarded(clock: &str, code: &str) -> String {
    [clock, part("plain.lua"), part("guard.lua"), "return guarded(function()\n", code, "\nend)\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Strict rendering fails on any name that the layout does not have.
    #[test]
    fn every_part_is_rendered() {
        for (name, _) in PARTS {
            let text = part(name);
            assert!(!text.contains("{{") && !text.is_empty(), "{name}");
        }
    }

    /// Tried by putting `block.lua` behind `apply.lua`, and a part without the two lines.
    #[test]
    fn a_part_stands_behind_the_parts_that_it_uses() {
        let decide = [&["block.lua"], APPLY].concat();
        for script in [&decide, ADMIT, LOOK, CLOSE, REFUND, EXTEND, RESET] {
            let mut known = vec!["clock.lua", "plain.lua"];
            for name in script {
                let stated = part(name).split_once("-- Uses ").and_then(|(_, rest)| rest.split_once("-- Defines "));
                let (uses, _) = stated.unwrap_or_else(|| panic!("{name} says not what it uses and defines"));
                let words = uses.split(|letter: char| letter != '.' && letter != '_' && !letter.is_alphanumeric());
                for used in words.filter(|word| PARTS.iter().any(|(name, _)| name == word)) {
                    assert!(known.contains(&used), "{name} uses {used}, which is not in front of it: {script:?}");
                }
                known.push(name);
            }
        }
    }
}
