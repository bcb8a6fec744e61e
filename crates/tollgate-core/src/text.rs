//! Characters of a text that are invisible, or that change how the text around them is shown.

use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup},
};

/// Control characters, those of formats (among them all that set a direction and all of no width), and the ends of lines
/// and paragraphs.
const HIDDEN: GeneralCategoryGroup = GeneralCategoryGroup::Control
    .union(GeneralCategoryGroup::Format)
    .union(GeneralCategoryGroup::LineSeparator)
    .union(GeneralCategoryGroup::ParagraphSeparator);

/// Whether a name must not contain this character, because it is invisible or changes how the text around it is shown:
/// the general categories `Cc`, `Cf`, `Zl` and `Zp`, and the property `Default_Ignorable_Code_Point` (UAX #44).
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    HIDDEN.contains(CodePointMapData::<GeneralCategory>::new().get(c))
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// Whether a text has such a character.
pub fn has_hidden(text: &str) -> bool {
    // Nearly all names are ASCII.
    if text.is_ascii() { text.bytes().any(|byte| byte.is_ascii_control()) } else { text.chars().any(is_hidden) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tried by breaking it: with the format characters left out, and with those that are shown as nothing left out.
    #[test]
    fn what_is_not_seen_is_hidden_and_nothing_else() {
        for hidden in [
            '\0',
            '\n',
            '\t',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9f}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e0100}',
        ] {
            assert!(is_hidden(hidden), "{hidden:?}");
            assert!(has_hidden(&format!("a{hidden}b")), "{hidden:?}");
        }
        for seen in ["", "acme", "acme ü/?#", "模型", "עברית", "العربية", "हिन्दी", "🦀", "a\u{a0}b", "e\u{301}"]
        {
            assert!(!has_hidden(seen), "{seen:?}");
        }
    }
}
