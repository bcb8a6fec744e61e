//! Reads YAML as JSON, with the line of every value.

use std::collections::HashMap;

use saphyr::{MarkedYaml, Scalar, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser, ScanError, SpannedEventReceiver as _};
use serde_json::{Map, Value};

use super::PolicyError;
use crate::{policy::Place, redaction::shown_place};

/// Maximum number of values and keys in a file, with aliases expanded.
const MAX_NODES: usize = 100_000;

/// Maximum nesting. The format needs less than half of it.
const MAX_DEPTH: usize = 24;

/// A file as JSON, with its line numbers.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    pub(crate) lines: LineNumbers,
}

/// Where every value stands in the text.
#[derive(Debug, Default)]
pub(crate) struct LineNumbers(HashMap<Place, Position>);

#[derive(Clone, Copy, Debug)]
struct Position {
    /// For a value in a map, the line of its key.
    line: usize,
    /// Where the value itself begins, in characters. Values that an alias repeats begin at the same one.
    start: usize,
}

impl LineNumbers {
    fn add(&mut self, place: Place, line: usize, value: &MarkedYaml<'_>) {
        self.0.insert(place, Position { line, start: value.span.start.index() });
    }

    /// Where the value of `place` begins, if there is one.
    pub(crate) fn start_of(&self, place: &Place) -> Option<usize> {
        self.0.get(place).map(|position| position.start)
    }

    /// The line of `place`, or of the innermost existing place around it.
    pub(crate) fn line_of(&self, place: &Place) -> usize {
        let mut around = std::iter::successors(Some(place.clone()), Place::parent);
        around.find_map(|place| self.0.get(&place)).map_or(1, |position| position.line)
    }
}

/// Reads the only document in `text`. `what` describes the expected document.
pub(crate) fn read(text: &str, what: &str) -> Result<Document, PolicyError> {
    let mut documents = documents(text)?;
    let root = match (documents.pop(), documents.is_empty()) {
        (Some(root), true) => root,
        (None, _) => {
            return Err(error(1, Place::root(), &format!("is empty; {what}")));
        }
        (Some(second), false) => {
            let line = second.span.start.line();
            return Err(error(line, Place::root(), "contains several documents (`---`); it must contain one"));
        }
    };
    let mut lines = LineNumbers::default();
    lines.add(Place::root(), root.span.start.line(), &root);
    let value = value_of(&root, &Place::root(), &mut lines)?;
    Ok(Document { value, lines })
}

/// Parses event by event, as the parser's own loader recurses, and its input may nest as it likes.
fn documents(text: &str) -> Result<Vec<MarkedYaml<'_>>, PolicyError> {
    let mut loader = YamlLoader::<MarkedYaml<'_>>::default();
    loader.alias_limit(MAX_NODES);
    let (mut nodes, mut depth) = (0_usize, 0_usize);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|scan| syntax(&scan))?;
        match event {
            Event::MappingStart(..) | Event::SequenceStart(..) => depth += 1,
            Event::MappingEnd | Event::SequenceEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        nodes += 1;
        if depth > MAX_DEPTH || nodes > MAX_NODES {
            let message = format!("is too large: at most {MAX_NODES} values, nested at most {MAX_DEPTH} deep");
            return Err(error(span.start.line(), Place::root(), &message));
        }
        loader.on_event(event, span);
        if let Some(scan) = loader.error() {
            return Err(syntax(scan));
        }
    }
    Ok(loader.into_documents())
}

fn value_of(node: &MarkedYaml<'_>, place: &Place, lines: &mut LineNumbers) -> Result<Value, PolicyError> {
    let wrong = |message: &str| Err(error(node.span.start.line(), place.clone(), message));
    match &node.data {
        YamlData::Value(Scalar::Null) => Ok(Value::Null),
        YamlData::Value(Scalar::Boolean(value)) => Ok((*value).into()),
        YamlData::Value(Scalar::Integer(value)) => Ok((*value).into()),
        YamlData::Value(Scalar::FloatingPoint(value)) => match serde_json::Number::from_f64(value.into_inner()) {
            Some(number) => Ok(Value::Number(number)),
            None => wrong("must be a finite number"),
        },
        YamlData::Value(Scalar::String(value)) => Ok(value.as_ref().into()),
        YamlData::Sequence(items) => {
            let mut values = Vec::with_capacity(items.len());
            for (at, item) in items.iter().enumerate() {
                let place = place.at(at);
                lines.add(place.clone(), item.span.start.line(), item);
                values.push(value_of(item, &place, lines)?);
            }
            Ok(Value::Array(values))
        }
        YamlData::Mapping(entries) => {
            let mut map = Map::with_capacity(entries.len());
            for (key, value) in entries {
                let line = key.span.start.line();
                let YamlData::Value(Scalar::String(name)) = &key.data else {
                    return Err(error(line, place.clone(), "has a key that is not a string; put it in quotes"));
                };
                let place = place.at(&**name);
                lines.add(place.clone(), line, value);
                map.insert(name.to_string(), value_of(value, &place, lines)?);
            }
            Ok(Value::Object(map))
        }
        YamlData::Tagged(..) | YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
            wrong("is not plain YAML; write it without a tag")
        }
    }
}

fn syntax(scan: &ScanError) -> PolicyError {
    error(scan.marker().line(), Place::root(), &format!("is not YAML: {}", scan.info()))
}

fn error(line: usize, place: Place, message: &str) -> PolicyError {
    let redacted = super::placed(&shown_place(&place), message);
    PolicyError { line, place, message: message.to_owned(), redacted }
}
