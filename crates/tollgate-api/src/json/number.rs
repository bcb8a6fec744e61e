//! Numbers of JSON bodies, with error messages in plain words.

use std::{fmt, marker::PhantomData};

use indexmap::IndexMap;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

/// A whole number. Forms such as `1e3` and `1000.0` are rejected, because other parsers may truncate or round them.
#[derive(Clone, Copy, Debug)]
pub struct WholeNumber<T = u64>(pub T);

/// Reads a field that is a whole number.
pub fn whole_number<'de, T: TryFrom<u64>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    WholeNumber::deserialize(from).map(|WholeNumber(number)| number)
}

/// Reads a field that is a whole number or `null`.
pub fn whole_number_or_null<'de, T: TryFrom<u64>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<WholeNumber<T>>::deserialize(from)?.map(|WholeNumber(number)| number))
}

/// Reads a field that is a map of numbers.
pub fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<IndexMap<String, f64>, D::Error> {
    let numbers = IndexMap::<String, Number>::deserialize(from)?;
    Ok(numbers.into_iter().map(|(name, Number(number))| (name, number)).collect())
}

/// Reads a field that is a map of numbers or `null`.
pub fn numbers_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IndexMap<String, f64>>, D::Error> {
    let numbers = Option::<IndexMap<String, Number>>::deserialize(from)?;
    Ok(numbers.map(|numbers| numbers.into_iter().map(|(name, Number(number))| (name, number)).collect()))
}

impl<'de, T: TryFrom<u64>> Deserialize<'de> for WholeNumber<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_u64(WholeNumberVisitor(PhantomData)).map(Self)
    }
}

struct WholeNumberVisitor<T>(PhantomData<T>);

impl<T: TryFrom<u64>> Visitor<'_> for WholeNumberVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The largest number of 32 bits, or the largest amount.
        let max = if T::try_from(1 << 32).is_ok() { (1 << 53) - 1 } else { u64::from(u32::MAX) };
        write!(f, "a whole number from 0 to {max}, such as 1000, without quotes, a point or an exponent")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}

/// A number, such as that of a balance.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_f64(NumberVisitor).map(Self)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, such as 12.5, without quotes")
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<f64, E> {
        Ok(number)
    }

    #[expect(clippy::cast_precision_loss, reason = "JSON numbers are f64")]
    fn visit_u64<E: Error>(self, number: u64) -> Result<f64, E> {
        Ok(number as f64)
    }

    #[expect(clippy::cast_precision_loss, reason = "JSON numbers are f64")]
    fn visit_i64<E: Error>(self, number: i64) -> Result<f64, E> {
        Ok(number as f64)
    }
}
