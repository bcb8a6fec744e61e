//! Bodies: JSON trees with placeholders in their strings.

use serde_json::{Map, Value};
use tollgate_core::time::Timestamp;

use super::value::{self, QuotaChoice, RenderContext};
use crate::format::dialect::{Format, ValueWord};

/// A body's template.
#[derive(Debug)]
pub(super) struct Template {
    choice: QuotaChoice,
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    Constant(Value),
    /// A string that is nothing but a placeholder: the value takes its place, numbers as numbers.
    Whole(Placeholder),
    Text(Vec<TemplatePart>),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

#[derive(Debug)]
enum TemplatePart {
    Plain(String),
    Placeholder(Placeholder),
}

/// A value to fill in, such as `{limit}` or `{retry_after:go_duration}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placeholder {
    pub(super) word: ValueWord,
    pub(super) format: Option<Format>,
}

impl Template {
    /// Compiles a body. `check` returns the problem of a placeholder; every mistake is found.
    pub(super) fn parse(
        body: &Value,
        choice: QuotaChoice,
        check: &dyn Fn(Placeholder) -> Result<(), String>,
    ) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let tree = Parser { check, mistakes: &mut mistakes }.tree(body);
        if mistakes.is_empty() { Ok(Self { choice, tree }) } else { Err(mistakes) }
    }

    /// The body as JSON text. Values are inserted into strings of the tree, so no value can end a string.
    pub(super) fn fill(&self, context: &RenderContext<'_>) -> String {
        self.tree.fill(context, self.choice).to_string()
    }
}

impl Tree {
    fn fill(&self, context: &RenderContext<'_>, choice: QuotaChoice) -> Value {
        let now: Timestamp = context.facts.now;
        let value = |placeholder: &Placeholder| -> Option<value::Value<'_>> {
            context.value(placeholder.word, context.quota(choice))
        };
        match self {
            Self::Constant(value) => value.clone(),
            Self::Whole(placeholder) => {
                value(placeholder).map_or(Value::Null, |value| value.json(placeholder.word, placeholder.format, now))
            }
            Self::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        TemplatePart::Plain(plain) => text.push_str(plain),
                        TemplatePart::Placeholder(placeholder) => {
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

struct Parser<'a> {
    check: &'a dyn Fn(Placeholder) -> Result<(), String>,
    mistakes: &'a mut Vec<String>,
}

impl Parser<'_> {
    fn tree(&mut self, body: &Value) -> Tree {
        match body {
            Value::String(text) => self.text(text),
            Value::Array(items) => Tree::List(items.iter().map(|item| self.tree(item)).collect()),
            Value::Object(map) => Tree::Map(map.iter().map(|(key, value)| (key.clone(), self.tree(value))).collect()),
            constant => Tree::Constant(constant.clone()),
        }
    }

    fn text(&mut self, text: &str) -> Tree {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let (brace, behind) = rest[at..].split_at(1);
            if let Some(doubled) = behind.strip_prefix(brace) {
                plain.push_str(brace);
                rest = doubled;
            } else if brace == "{"
                && let Some((inside, behind)) = behind.split_once('}')
            {
                if !plain.is_empty() {
                    pieces.push(TemplatePart::Plain(std::mem::take(&mut plain)));
                }
                pieces.extend(self.placeholder(inside).map(TemplatePart::Placeholder));
                rest = behind;
            } else {
                self.mistakes.push(format!("{text:?} has a `{brace}` of its own; write `{brace}{brace}` for one"));
                return Tree::Constant(Value::Null);
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(TemplatePart::Plain(plain));
        }
        match pieces.as_slice() {
            [TemplatePart::Placeholder(placeholder)] => Tree::Whole(*placeholder),
            [] => Tree::Constant("".into()),
            [TemplatePart::Plain(plain)] => Tree::Constant(plain.as_str().into()),
            _ => Tree::Text(pieces),
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

/// The word of an enum of the format.
fn known<T: serde::de::DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(Value::String(word.to_owned())).ok()
}
