//! The compiled built-in dialects, which every policy can choose.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use super::{
    Dialect, UnknownDialect, compile,
    tables::{TABLES, table, unknown},
};
use crate::policy::Place;

/// A table with a mistake is omitted, and a test reports why.
static COMPILED: LazyLock<BTreeMap<&'static str, Arc<Dialect>>> = LazyLock::new(|| {
    let names = TABLES.iter().map(|(name, _)| *name);
    names.filter_map(|name| Some((name, Arc::new(compiled(name).ok()?)))).collect()
});

fn compiled(name: &str) -> Result<Dialect, String> {
    let table = table(name).map_err(|unknown| unknown.to_string())?;
    compile::compile(name, table, &Place::root().at(name), None)
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// The built-in dialect called `name`.
pub(super) fn named(name: &str) -> Result<&'static Arc<Dialect>, UnknownDialect> {
    COMPILED.get(name).ok_or_else(|| unknown(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{file::read_yaml, format::dialect::Table};

    #[test]
    fn every_table_compiles() {
        for (name, text) in TABLES {
            if let Err(wrong) = read_yaml::<Table>(text).and_then(|_| compiled(name)) {
                panic!("{name}: {wrong}");
            }
        }
    }
}
