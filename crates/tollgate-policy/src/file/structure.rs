//! Checks the structure of a file against the schema, and reports every mistake in the words of the schema.

use std::collections::{BTreeSet, HashMap};

use jsonschema::{
    JsonType, ValidationError,
    error::{TypeKind, ValidationErrorKind},
    paths::LocationSegment,
};
use serde_json::Value;

use crate::policy::{Mistake, Place, Step};

/// The result of the check.
pub(crate) struct StructureCheck {
    pub(crate) mistakes: Vec<Mistake>,
    /// The file without unknown keys and without wrong items of lists, so that the rest can be compiled.
    pub(crate) rest: Value,
    /// Wrong values, and the names of unknown keys.
    pub(crate) wrong: Vec<Value>,
    /// The items that were removed.
    removed: BTreeSet<Place>,
}

impl StructureCheck {
    /// The place in the file for a place in `rest`, where the items after a removed item have smaller indexes.
    pub(crate) fn original(&self, place: &Place) -> Place {
        place.steps().iter().fold(Place::root(), |around, step| match step {
            Step::Key(key) => around.at(&**key),
            Step::Index(index) => {
                let here = (0..).map(|index| around.at(index)).filter(|item| !self.removed.contains(item));
                here.into_iter().nth(*index).unwrap_or_else(|| around.at(*index))
            }
        })
    }
}

/// Checks the structure of a file, or of a part of one.
pub(crate) fn check(mut value: Value, schema: &Value) -> StructureCheck {
    let marked = &with_whole_numbers(schema);
    let options = jsonschema::options().with_keyword(WHOLE, |_, _, _| Ok(Box::new(WholeNumber)));
    let validator = match options.build(marked) {
        Ok(validator) => validator,
        Err(error) => {
            let mistakes = vec![Mistake::new(Place::root(), format!("the schema itself is broken: {error}"))];
            return StructureCheck { mistakes, rest: value, wrong: Vec::new(), removed: BTreeSet::new() };
        }
    };
    let mut removed = BTreeSet::new();
    let mut mistakes = Vec::new();
    let (mut unknown, mut wrong) = (Vec::new(), Vec::new());
    let errors: Vec<ValidationError<'_>> = validator.iter_errors(&value).collect();
    describe_all(&errors, schema, &mut mistakes);
    for error in &errors {
        if let ValidationErrorKind::PropertyNames { error } = error.kind() {
            wrong.push(error.instance().clone().into_owned());
        }
        if let ValidationErrorKind::AdditionalProperties { unexpected } = error.kind() {
            wrong.extend(unexpected.iter().map(|key| Value::from(key.as_str())));
            unknown.push((error.instance_path().as_str().to_owned(), unexpected.clone()));
        } else {
            wrong.push(error.instance().clone().into_owned());
            removed.extend(item_around(place_of(error)));
        }
    }
    for (pointer, keys) in unknown {
        if let Some(Value::Object(map)) = value.pointer_mut(&pointer) {
            map.retain(|key, _| !keys.contains(key));
        }
    }
    // From the last to the first, so that the indexes of the others do not change.
    for item in removed.iter().rev() {
        if let (Some(list), Some(Step::Index(index))) = (item.parent(), item.steps().last())
            && let Some(Value::Array(items)) = find_mut(&mut value, &list)
            && *index < items.len()
        {
            items.remove(*index);
        }
    }
    StructureCheck { mistakes, rest: value, wrong, removed }
}

/// The keyword beside `"type": "integer"`. Without it JSON Schema accepts `1000.0`, and so `1e3`, as an integer.
const WHOLE: &str = "x-whole-number";

/// The schema with [`WHOLE`] beside every integer type.
fn with_whole_numbers(schema: &Value) -> Value {
    match schema {
        Value::Object(part) => {
            let integer = |kind: &Value| kind == "integer";
            let has_integer = part
                .get("type")
                .is_some_and(|kind| integer(kind) || kind.as_array().is_some_and(|kinds| kinds.iter().any(integer)));
            let marked = part.iter().map(|(name, inner)| (name.clone(), with_whole_numbers(inner)));
            Value::Object(marked.chain(has_integer.then(|| (WHOLE.to_owned(), Value::Bool(true)))).collect())
        }
        Value::Array(parts) => Value::Array(parts.iter().map(with_whole_numbers).collect()),
        other => other.clone(),
    }
}

/// Refuses whole numbers that are written as fractions. (Other fractions are not integers and are refused by the type.)
struct WholeNumber;

impl<'i> jsonschema::Keyword<'i> for WholeNumber {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) { Ok(()) } else { Err(ValidationError::custom("is written as a fraction")) }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        !instance.as_f64().is_some_and(|number| instance.is_f64() && number.fract() == 0.0)
    }
}

/// The innermost list item that contains `place`.
fn item_around(place: Place) -> Option<Place> {
    let mut around = std::iter::successors(Some(place), Place::parent);
    around.find(|place| matches!(place.steps().last(), Some(Step::Index(_))))
}

fn find_mut<'a>(value: &'a mut Value, place: &Place) -> Option<&'a mut Value> {
    place.steps().iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    })
}

/// Describes each wrong value once, by its most basic mistake: a value that is not a whole number is not reported as
/// too large as well.
fn describe_all(errors: &[ValidationError<'_>], schema: &Value, mistakes: &mut Vec<Mistake>) {
    let rank = |error: &ValidationError<'_>| match error.kind() {
        ValidationErrorKind::Maximum { .. } | ValidationErrorKind::Minimum { .. } => 2,
        ValidationErrorKind::Enum { .. } => 1,
        _ => 0,
    };
    let mut first: HashMap<&str, u8> = HashMap::with_capacity(errors.len());
    for error in errors {
        let known = first.entry(error.instance_path().as_str()).or_insert(u8::MAX);
        *known = rank(error).min(*known);
    }
    for error in errors {
        if first.get(error.instance_path().as_str()) == Some(&rank(error)) {
            describe(error, schema, mistakes);
        }
    }
}

fn describe(error: &ValidationError<'_>, schema: &Value, mistakes: &mut Vec<Mistake>) {
    let place = place_of(error);
    let found = shown(error.instance());
    let expectation = expected(error, schema);
    let message = match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known = known_keys(error, schema);
            let message = format!("is not known here; the keys are: {known}");
            let mistake = |key: &String| Mistake::new(place.at(&**key), &*message);
            mistakes.extend(unexpected.iter().map(mistake));
            return;
        }
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            // If the value has the type of exactly one branch, its mistakes in that branch are reported.
            let has_type = |branch: &&Vec<ValidationError<'static>>| {
                !branch.iter().any(|inner| {
                    inner.instance_path() == error.instance_path()
                        && matches!(inner.kind(), ValidationErrorKind::Type { .. } | ValidationErrorKind::Enum { .. })
                })
            };
            let mut branches = context.iter().filter(has_type);
            if let (Some(branch), None) = (branches.next(), branches.next()) {
                describe_all(branch, schema, mistakes);
                return;
            }
            format!("{found} is not right here; it should be: {expectation}")
        }
        ValidationErrorKind::Required { property } => {
            format!("needs the key {}", property.as_str().unwrap_or_default())
        }
        ValidationErrorKind::Enum { options } => {
            let options: Vec<String> = options.as_array().into_iter().flatten().map(shown).collect();
            format!("{found} is not one of: {}", options.join(", "))
        }
        ValidationErrorKind::Custom { keyword, .. } if keyword == WHOLE => {
            format!("{found} must be a whole number, such as 1000, written without a point or an exponent")
        }
        ValidationErrorKind::Constant { expected_value } => format!("{found} must be {}", shown(expected_value)),
        ValidationErrorKind::Pattern { .. } if error.instance().as_str() == Some("month") => {
            format!(
                "{found} is not right here, as months differ in length; for calendar months write {{calendar: month}}"
            )
        }
        ValidationErrorKind::Type { kind: TypeKind::Multiple(_) }
        | ValidationErrorKind::Pattern { .. }
        | ValidationErrorKind::MinLength { .. }
        | ValidationErrorKind::MaxLength { .. } => format!("{found} is not right here; it should be: {expectation}"),
        ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => format!("{found} must be {}", type_name(*kind)),
        ValidationErrorKind::Maximum { limit } => format!("{found} must be at most {limit}"),
        ValidationErrorKind::Minimum { .. } if expectation != error.to_string() => {
            format!("{found} is not right here; it should be: {expectation}")
        }
        ValidationErrorKind::Minimum { limit } => format!("{found} must be at least {limit}"),
        ValidationErrorKind::MaxItems { limit } => format!("has too many items; there can be at most {limit}"),
        ValidationErrorKind::MinItems { limit } => format!("has too few items; there must be at least {limit}"),
        ValidationErrorKind::MaxProperties { limit } => format!("has too many keys; there can be at most {limit}"),
        ValidationErrorKind::MinProperties { limit } => format!("has too few keys; there must be at least {limit}"),
        ValidationErrorKind::UniqueItems => "names something twice; once is enough".to_owned(),
        ValidationErrorKind::PropertyNames { error: inner } => {
            let key = inner.instance().as_str().unwrap_or_default();
            let message = format!("cannot be a name here; it should be: {}", expected(inner, schema));
            mistakes.push(Mistake::new(place.at(key), message));
            return;
        }
        _ => error.to_string(),
    };
    mistakes.push(Mistake::new(place, message));
}

fn place_of(error: &ValidationError<'_>) -> Place {
    let steps = error.instance_path().iter().map(|segment| match segment {
        LocationSegment::Property(key) => Step::Key(key.to_string()),
        LocationSegment::Index(index) => Step::Index(index),
    });
    steps.collect()
}

/// The part of the schema with the keyword that failed.
fn around<'a>(error: &ValidationError<'_>, schema: &'a Value) -> Option<&'a Value> {
    let (parent, _) = error.schema_path().as_str().rsplit_once('/')?;
    schema.pointer(parent)
}

fn expected(error: &ValidationError<'_>, schema: &Value) -> String {
    let description = around(error, schema).and_then(|part| part.get("description")).and_then(Value::as_str);
    let Some(text) = description else { return error.to_string() };
    let mut text = text.trim_end_matches('.').replace('\n', " ");
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}

fn known_keys(error: &ValidationError<'_>, schema: &Value) -> String {
    let properties = around(error, schema).and_then(|part| part.get("properties")).and_then(Value::as_object);
    let keys: Vec<&str> = properties.into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
    keys.join(", ")
}

/// A value in one short line.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Null => "nothing".to_owned(),
        Value::String(text) if text.chars().count() > 64 => {
            format!("{:?}…", text.chars().take(64).collect::<String>())
        }
        other => other.to_string(),
    }
}

fn type_name(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Integer => "a whole number",
        JsonType::Number => "a number",
        JsonType::Boolean => "true or false",
        JsonType::String => "a string",
        JsonType::Array => "a list",
        JsonType::Object => "a map",
        JsonType::Null => "nothing",
    }
}
