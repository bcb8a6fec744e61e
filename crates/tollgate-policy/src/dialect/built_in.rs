//! The dialects that every policy can choose.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use super::{Dialect, UnknownDialect, compile};
use crate::{file::read_yaml, format::dialect::Table, policy::Place};

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

struct BuiltIn {
    table: Table,
    dialect: Arc<Dialect>,
}

/// A table that does not hold is left out, and a test says why.
static BUILT_IN: LazyLock<BTreeMap<&'static str, BuiltIn>> =
    LazyLock::new(|| TABLES.iter().filter_map(|(name, text)| Some((*name, read(name, text).ok()?))).collect());

fn read(name: &str, text: &str) -> Result<BuiltIn, String> {
    let table: Table = read_yaml(text)?;
    match compile::compile(&table, &Place::root().at(name), None) {
        Ok(dialect) => Ok(BuiltIn { table, dialect: Arc::new(dialect) }),
        Err(mistakes) => {
            let said = mistakes.iter().map(|(place, message)| format!("{place}: {message}"));
            Err(said.collect::<Vec<_>>().join("\n"))
        }
    }
}

/// The built-in dialect called `name`.
pub(super) fn named(name: &str) -> Result<&'static Arc<Dialect>, UnknownDialect> {
    find(name).map(|found| &found.dialect)
}

/// Its table.
pub(super) fn table(name: &str) -> Result<&'static Table, UnknownDialect> {
    find(name).map(|found| &found.table)
}

fn find(name: &str) -> Result<&'static BuiltIn, UnknownDialect> {
    BUILT_IN
        .get(name)
        .ok_or_else(|| UnknownDialect { named: name.to_owned(), known: TABLES.map(|(name, _)| name).join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_holds() {
        for (name, text) in TABLES {
            if let Err(wrong) = read(name, text) {
                panic!("{name}: {wrong}");
            }
        }
    }
}
