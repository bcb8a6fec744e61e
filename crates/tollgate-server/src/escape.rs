//! Escapes characters that are invisible, or that change how the text around them is displayed, as `\u202e`. JSON stays
//! equivalent, because it contains them only in strings.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

use tollgate_core::text::is_hidden;

/// Escapes hidden characters except newlines.
pub(crate) fn hidden(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

/// Escapes hidden characters and newlines.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let escapes = |c: char| is_hidden(c) && !is_kept(c);
    if !text.chars().any(escapes) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if escapes(c) {
            // As in JSON, in units of 16 bits.
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Escapes the events of a log. The colours of the log are kept; values contain none, because the log escapes their
/// control characters.
pub(crate) struct Escaping<W>(pub(crate) W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.write_all(event)?;
        Ok(event.len())
    }

    fn write_all(&mut self, event: &[u8]) -> io::Result<()> {
        match std::str::from_utf8(event) {
            Ok(text) => self.0.write_all(escaped(text, |c| matches!(c, '\n' | '\t' | '\u{1b}')).as_bytes()),
            Err(_) => self.0.write_all(event),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped_as_in_json() {
        assert_eq!(hidden("a\u{202e}b\n\u{1b}[31m\u{e0041}"), "a\\u202eb\n\\u001b[31m\\udb40\\udc41");
        assert_eq!(line("a\nb"), "a\\u000ab");
        assert!(matches!(hidden("acme ü/?# 模型\n"), Cow::Borrowed(_)));
        let json = serde_json::json!({"id": "a\u{202e}\u{200b}\u{e0041}\u{feff}"});
        let text = json.to_string();
        assert_ne!(hidden(&text), text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&hidden(&text)).unwrap(), json);
    }

    #[test]
    fn only_the_colours_of_logs_are_kept() {
        let mut log = Vec::new();
        Escaping(&mut log).write_all("\u{1b}[2mid=\u{200f}x\u{9b}2J\u{1b}[0m\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(log).unwrap(), "\u{1b}[2mid=\\u200fx\\u009b2J\u{1b}[0m\n");
    }
}
