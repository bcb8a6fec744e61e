//! The scripts of a store, composed of the parts in `lua/`.

use super::{Script, fast_path::FastPathScripts, templates::part};

// The scripts of a store, each composed of consecutive parts.
const APPLY: &[&str] = &["ledger.lua", "rebuild.lua", "apply.lua", "answer.lua"];
const ADMIT: &[&str] =
    &["block.lua", "ledger.lua", "rebuild.lua", "record.lua", "slots.lua", "admit.lua", "apply.lua", "admitted.lua"];
const LOOK: &[&str] = &["record.lua", "look.lua"];
const CLOSE: &[&str] =
    &["block.lua", "ledger.lua", "rebuild.lua", "record.lua", "close.lua", "refund.lua", "apply.lua", "closed.lua"];
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

/// The scripts of a store of counters; the clock is their first part.
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
    use super::{super::templates::PARTS, *};

    /// Tried by putting `block.lua` after `apply.lua`, and a part without the two lines.
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
