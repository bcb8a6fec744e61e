//! Bodies: JSON trees with placeholders in their strings.

use serde_json::{Map, Value};
use tollgate_core::time::Timestamp;

use super::value::{QuotaChoice, RenderContext, TypedValue};
use crate::format::dialect::{Format, ValueWord};

/// A body's template.
#[derive(Debug)]
pub(super) struct BodyTemplate {
    choice: QuotaChoice,
    tree: BodyNode,
}

#[derive(Debug)]
enum BodyNode {
    Constant(Value),
    /// A string that consists of one placeholder. The value replaces the string; numbers stay numbers.
    Placeholder(Placeholder),
    Text(Vec<TextPart>),
    List(Vec<BodyNode>),
    Map(Vec<(String, BodyNode)>),
}

#[derive(Debug)]
enum TextPart {
    Plain(String),
    Placeholder(Placeholder),
}

/// A value to fill in, such as `{limit}` or `{retry_after:go_duration}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placeholder {
    pub(super) word: ValueWord,
    pub(super) format: Option<Format>,
}

impl BodyTemplate {
    /// Compiles a body, or returns every mistake in it. `check` returns the problem of a placeholder.
    pub(super) fn parse(
        body: &Value,
        choice: QuotaChoice,
        check: &dyn Fn(Placeholder) -> Result<(), String>,
    ) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let tree = BodyParser { check, mistakes: &mut mistakes }.tree(body);
        if mistakes.is_empty() { Ok(Self { choice, tree }) } else { Err(mistakes) }
    }

    /// Whether it contains a placeholder of such a word.
    pub(super) fn contains(&self, matches: impl Fn(ValueWord) -> bool + Copy) -> bool {
        self.tree.contains(matches)
    }

    /// The body as JSON text. Values are inserted into strings of the tree, so no value can end a string.
    pub(super) fn fill(&self, context: &RenderContext<'_>) -> String {
        self.tree.fill(context, self.choice).to_string()
    }
}

impl BodyNode {
    fn contains(&self, matches: impl Fn(ValueWord) -> bool + Copy) -> bool {
        let is_part = |part: &TextPart| matches!(part, TextPart::Placeholder(placeholder) if matches(placeholder.word));
        match self {
            Self::Constant(_) => false,
            Self::Placeholder(placeholder) => matches(placeholder.word),
            Self::Text(parts) => parts.iter().any(is_part),
            Self::List(items) => items.iter().any(|item| item.contains(matches)),
            Self::Map(entries) => entries.iter().any(|(_, item)| item.contains(matches)),
        }
    }

    fn fill(&self, context: &RenderContext<'_>, choice: QuotaChoice) -> Value {
        let now: Timestamp = context.facts.now;
        let value = |placeholder: &Placeholder| -> Option<TypedValue<'_>> {
            context.value(placeholder.word, context.quota(choice))
        };
        match self {
            Self::Constant(value) => value.clone(),
            Self::Placeholder(placeholder) => {
                value(placeholder).map_or(Value::Null, |value| value.json(placeholder.word, placeholder.format, now))
            }
            Self::Text(parts) => {
                let mut text = String::new();
                for part in parts {
                    match part {
                        TextPart::Plain(plain) => text.push_str(plain),
                        TextPart::Placeholder(placeholder) => {
                            if let Some(value) = value(placeholder) {
                                text.push_str(&value.text(placeholder.word, placeholder.format, now));
                            }
                        }
                    }
                }
                text.into()
            }
            Self::List(items) => items.iter().map(|item| item.fill(context, choice)).collect(),
            Self::Map(entries) => {
                let filled = entries.iter().map(|(key, value)| (key.clone(), value.fill(context, choice)));
                Value::Object(filled.collect::<Map<_, _>>())
            }
        }
    }
}

struct BodyParser<'a> {
    check: &'a dyn Fn(Placeholder) -> Result<(), String>,
    mistakes: &'a mut Vec<String>,
}

impl BodyParser<'_> {
    fn tree(&mut self, body: &Value) -> BodyNode {
        match body {
            Value::String(text) => self.text(text),
            Value::Array(items) => BodyNode::List(items.iter().map(|item| self.tree(item)).collect()),
            Value::Object(map) => {
                BodyNode::Map(map.iter().map(|(key, value)| (key.clone(), self.tree(value))).collect())
            }
            constant => BodyNode::Constant(constant.clone()),
        }
    }

    fn text(&mut self, text: &str) -> BodyNode {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if let Some(doubled) = after.strip_prefix(brace) {
                plain.push_str(brace);
                rest = doubled;
            } else if brace == "{"
                && let Some((inside, after)) = after.split_once('}')
            {
                if !plain.is_empty() {
                    parts.push(TextPart::Plain(std::mem::take(&mut plain)));
                }
                parts.extend(self.placeholder(inside).map(TextPart::Placeholder));
                rest = after;
            } else {
                self.mistakes.push(format!(
                    "{text:?} has a `{brace}` without its pair; write `{brace}{brace}` for the character itself"
                ));
                return BodyNode::Constant(Value::Null);
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(TextPart::Plain(plain));
        }
        match parts.as_slice() {
            [TextPart::Placeholder(placeholder)] => BodyNode::Placeholder(*placeholder),
            [] => BodyNode::Constant("".into()),
            [TextPart::Plain(plain)] => BodyNode::Constant(plain.as_str().into()),
            _ => BodyNode::Text(parts),
        }
    }

    fn placeholder(&mut self, inside: &str) -> Option<Placeholder> {
        let (word, format) = inside.split_once(':').map_or((inside, None), |(word, format)| (word, Some(format)));
        let parsed = known::<ValueWord>(word).and_then(|word| match format {
            None => Some(Placeholder { word, format: None }),
            Some(format) => Some(Placeholder { word, format: Some(known(format)?) }),
        });
        let Some(placeholder) = parsed else {
            self.mistakes.push(format!(
                "there is no placeholder {{{inside}}}; write a value, such as {{retry_after}}, or with a format, such \
                 as {{retry_at:rfc3339}}"
            ));
            return None;
        };
        match (self.check)(placeholder) {
            Ok(()) => Some(placeholder),
            Err(wrong) => {
                self.mistakes.push(format!("{{{inside}}} {wrong}"));
                None
            }
        }
    }
}

/// The value of an enum of the format.
fn known<T: serde::de::DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(Value::String(word.to_owned())).ok()
}
