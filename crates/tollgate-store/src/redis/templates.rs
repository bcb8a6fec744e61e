//! The parts of scripts in `lua/`, rendered with one [`layout`].

use std::{collections::HashMap, sync::LazyLock};

use minijinja::{Environment, Error, UndefinedBehavior, Value, context, syntax::SyntaxConfig};

use super::layout;

macro_rules! files {
    ($($name:literal)+) => { [$(($name, include_str!(concat!("../../../../lua/", $name)))),+] };
}

/// Parts that need nothing but the layout.
pub(super) const PARTS: [(&str, &str); 24] = files!(
    "account.lua" "accounts.lua" "admit.lua" "admitted.lua" "answer.lua" "apply.lua" "block.lua" "clock.lua"
    "clock_injected.lua" "close.lua" "closed.lua" "extend.lua" "guard.lua" "ledger.lua" "look.lua" "plain.lua" "probe.lua"
    "rebuild.lua" "record.lua" "refund.lua" "refused.lua" "refusals.lua" "reset.lua" "slots.lua"
);

/// Parts that are rendered for each form of call, and their macros.
const TEMPLATES: [(&str, &str); 3] = files!("fast_path.lua.jinja" "fast_path_steps.lua.jinja" "together.lua.jinja");

/// The environment in which all parts are rendered.
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
}
