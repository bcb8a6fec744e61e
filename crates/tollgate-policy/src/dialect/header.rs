//! Headers.

use std::fmt::Write as _;

use tollgate_core::amount::Limit;

use super::{
    ResponseKind,
    select::length_ms,
    value::{QuotaChoice, RenderContext},
};
use crate::{
    decision::QuotaStatus,
    format::dialect::{Format, ValueWord},
};

/// A header of a dialect.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Box<str>,
    pub(super) on: ResponseKinds,
    pub(super) content: HeaderContent,
    /// The text for the limit, the remaining amount and the reset of an unlimited quota.
    pub(super) unlimited: Option<Box<str>>,
    /// The text if there is no value.
    pub(super) missing: Option<Box<str>>,
}

/// The content of a header.
#[derive(Debug)]
pub(super) enum HeaderContent {
    /// A constant text.
    Text(Box<str>),
    /// The text of the first of these selectors whose quota refuses.
    FirstRefusing(Vec<(usize, Box<str>)>),
    /// The first of these values that exists.
    Values {
        /// The selector of the quota; `None` for the binding quota. If no quota matches the selector, there is no value.
        quota: Option<usize>,
        /// The window that the header is about, if its row names one: `per`.
        length_ms: Option<u64>,
        words: Vec<ValueWord>,
        format: Option<Format>,
    },
}

/// A set of kinds of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseKinds(u16);

impl ResponseKinds {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn matching(matches: impl Fn(ResponseKind) -> bool) -> Self {
        let matching = ResponseKind::ALL.into_iter().filter(|kind| matches(*kind));
        Self(matching.fold(0, |set, kind| set | 1 << kind.index()))
    }

    #[must_use]
    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn contains(self, kind: ResponseKind) -> bool {
        self.0 & 1 << kind.index() != 0
    }
}

impl Header {
    /// Name and value, if this response has the header.
    pub(super) fn render(&self, context: &RenderContext<'_>) -> Option<(String, String)> {
        if !self.on.contains(context.facts.kind) {
            return None;
        }
        let fixed = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        let value = match &self.content {
            HeaderContent::Text(text) => Some(text.to_string()),
            HeaderContent::FirstRefusing(pairs) => {
                let refuses =
                    |selector| context.quota(QuotaChoice::Selected(selector)).is_some_and(QuotaStatus::denies);
                let first = pairs.iter().find(|(selector, _)| refuses(*selector));
                // If another quota refuses, none of the texts is right.
                let missing = || fixed(&self.missing).filter(|_| context.facts.refusing_quota().is_none());
                let decides = !context.facts.is_refused_by_hidden();
                first.filter(|_| decides).map(|(_, text)| text.to_string()).or_else(missing)
            }
            HeaderContent::Values { quota, length_ms: about, words, format } => {
                let status = context.quota(quota.map_or(QuotaChoice::Binding, QuotaChoice::Selected));
                let unlimited = status.is_some_and(|status| status.limit == Limit::Unlimited);
                if quota.is_some() && status.is_none() {
                    fixed(&self.missing)
                } else if unlimited && words.iter().any(|word| needs_limit(*word)) {
                    fixed(&self.unlimited)
                } else {
                    // The wait for a month or a slot is not the reset of a minute.
                    let decided_by = context.facts.refusing_quota().map(|status| length_ms(&status.quota.window));
                    let is_of_other = about.is_some() && decided_by.is_some_and(|length| length != *about);
                    let mut words = words.iter().filter(|word| !(is_of_other && **word == ValueWord::RetryAt));
                    let found = words.find_map(|word| Some((*word, context.value(*word, status)?)));
                    let text = found.map(|(word, value)| encoded(&value.text(word, *format, context.facts.now)));
                    text.or_else(|| fixed(&self.missing))
                }
            }
        };
        Some((self.name.to_string(), value?))
    }
}

fn needs_limit(word: ValueWord) -> bool {
    matches!(word, ValueWord::Limit | ValueWord::Remaining | ValueWord::Reset | ValueWord::ResetsAt)
}

/// A text that is safe in a header: everything that is not printable ASCII, `%`, and spaces at the ends are
/// percent-encoded byte by byte. So no name can end a header or begin another, and decoding restores the name.
pub(super) fn encoded(text: &str) -> String {
    let last = text.len().saturating_sub(1);
    let plain = |at: usize, byte: u8| match byte {
        b'%' => false,
        b' ' => at != 0 && at != last,
        _ => byte.is_ascii_graphic(),
    };
    let mut value = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        if plain(at, byte) {
            value.push(char::from(byte));
        } else {
            let _ = write!(value, "%{byte:02X}");
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_break_a_header() {
        assert_eq!(encoded("llama-3.3-70b"), "llama-3.3-70b");
        assert_eq!(encoded("a\r\nSet-Cookie: x"), "a%0D%0ASet-Cookie: x");
        assert_eq!(encoded(" 100% née "), "%20100%25 n%C3%A9e%20");
        assert_eq!(encoded("\u{0}\u{7f}"), "%00%7F");
    }
}
