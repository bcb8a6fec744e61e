//! Whole numbers, which may be written in short.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use tollgate_core::amount::Amount;

/// Groups of three digits, or a number of thousands, millions or billions without a rest.
const SHORT: &str =
    r"[0-9]{1,3}(_[0-9]{3}){1,5}|[0-9]{1,12}(\.[0-9]{1,3})?k|[0-9]{1,9}(\.[0-9]{1,6})?M|[0-9]{1,6}(\.[0-9]{1,9})?G";

/// An amount of a unit as it is written. One that is too large for the schema's text form is `u64::MAX`, which no amount is.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(from = "NumberOrText")]
pub(crate) struct Count(pub(crate) u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl From<NumberOrText> for Count {
    fn from(count: NumberOrText) -> Self {
        match count {
            NumberOrText::Number(count) => Self(count),
            NumberOrText::Text(text) => Self(parse_short(&text).unwrap_or(u64::MAX)),
        }
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema(
            &format!("^({SHORT})$"),
            "A whole number from 0 to 9007199254740991, such as 20000000, 20_000_000 or 20M (k, M, G).",
        )
    }
}

/// The limit of a quota.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Limit {
    Unlimited(Unlimited),
    Finite(Count),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unlimited {
    Unlimited,
}

impl Limit {
    /// The number; `None` if unlimited.
    pub(crate) fn finite(self) -> Option<u64> {
        match self {
            Self::Finite(limit) => Some(limit.0),
            Self::Unlimited(_) => None,
        }
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema(
            &format!("^(unlimited|{SHORT})$"),
            "A whole number from 0 (never) to 9007199254740991, such as 20000000, 20_000_000 or 20M (k, M, G), or `unlimited`.",
        )
    }
}

fn schema(pattern: &str, description: &str) -> Schema {
    json_schema!({
        "type": ["integer", "string"],
        "format": "uint64",
        "minimum": 0,
        "maximum": Amount::MAX.get(),
        "pattern": pattern,
        "description": description,
    })
}

/// The number that `text` stands for, if it is written as the schema says and fits.
fn parse_short(text: &str) -> Option<u64> {
    let (digits, zeros) = match text.as_bytes().last()? {
        b'k' => (text.get(..text.len() - 1)?, 3),
        b'M' => (text.get(..text.len() - 1)?, 6),
        b'G' => (text.get(..text.len() - 1)?, 9),
        _ => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let zeros = "0".repeat(usize::checked_sub(zeros, fraction.len())?);
    [&whole.replace('_', ""), fraction, &zeros].concat().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_numbers_are_exact() {
        let expected = [
            ("20M", 20_000_000),
            ("20_000_000", 20_000_000),
            ("1.5M", 1_500_000),
            ("0.001k", 1),
            ("9007199.254740G", 9_007_199_254_740_000),
            ("1.000000001G", 1_000_000_001),
        ];
        for (text, number) in expected {
            assert_eq!(parse_short(text), Some(number), "{text}");
        }
        assert!(Amount::try_from(parse_short("9_007_199_254_740_992").unwrap()).is_err());
    }
}
