//! Maps of JSON bodies.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

use super::number::WholeNumber;

/// The maximum number of entries that are compared to find a repeated key. Maps with more than 16 entries are refused.
const MAX_COMPARED: usize = 16;

/// A map without repeated keys. A JSON parser would keep only the last value of a key, and the others would not be
/// charged.
#[derive(Debug)]
pub struct Entries<T>(pub Vec<(String, T)>);

impl Entries<WholeNumber> {
    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, WholeNumber(number))| (name.as_str(), *number))
    }
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
    type Value = Entries<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
        let mut entries: Vec<(String, T)> = Vec::new();
        while let Some(entry) = map.next_entry::<String, T>()? {
            if entries.len() <= MAX_COMPARED && entries.iter().any(|(name, _)| *name == entry.0) {
                return Err(A::Error::custom(format_args!("{} is named twice", entry.0)));
            }
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}
