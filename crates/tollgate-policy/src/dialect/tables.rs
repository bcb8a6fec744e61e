//! The tables of the built-in dialects.

use std::{collections::BTreeMap, sync::LazyLock};

use super::UnknownDialect;
use crate::{file::read_yaml, format::dialect::Table};

/// Names and tables, in the order of the documentation.
pub(super) const TABLES: [(&str, &str); 7] = [
    ("venice", include_str!("tables/venice.yaml")),
    ("tiered-chat", include_str!("tables/tiered-chat.yaml")),
    ("deapi", include_str!("tables/deapi.yaml")),
    ("openai", include_str!("tables/openai.yaml")),
    ("anthropic", include_str!("tables/anthropic.yaml")),
    ("ietf", include_str!("tables/ietf.yaml")),
    ("none", include_str!("tables/none.yaml")),
];

/// A table that cannot be read is omitted, and a test reports why.
static PARSED: LazyLock<BTreeMap<&'static str, Table>> =
    LazyLock::new(|| TABLES.iter().filter_map(|(name, text)| Some((*name, read_yaml(text).ok()?))).collect());

/// The table called `name`.
pub(super) fn table(name: &str) -> Result<&'static Table, UnknownDialect> {
    PARSED.get(name).ok_or_else(|| unknown(name))
}

/// There is no built-in dialect called `name`.
pub(super) fn unknown(name: &str) -> UnknownDialect {
    UnknownDialect { named: name.to_owned(), known: TABLES.map(|(name, _)| name).join(", ") }
}
