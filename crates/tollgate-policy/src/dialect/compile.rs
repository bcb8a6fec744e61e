//! Compiles tables to dialects, and reports every mistake in a table.

mod answer;

use tollgate_core::amount::UnitId;

use self::answer::AnswerTables;
use super::{
    Dialect, ResponseKind,
    header::{Header, HeaderContent, ResponseKinds},
    select::Selector,
    tables,
};
use crate::{
    format::{
        Length,
        dialect::{self as format, Format, HeaderRow, KindFilter, KindName, QuotaSelector, Table, ValueWord, Values},
    },
    policy::{Mistake, Place, Policy},
    reason::{InvalidKey, Reason},
};

/// Headers of the body's encoding and of the connection. The HTTP server writes them itself.
const SERVER_HEADERS: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Compiles the table of the dialect `name` at `place`, based on the built-in table that it extends. A built-in table
/// has no policy, so its units are not checked.
pub(super) fn compile(
    name: &str,
    table: &Table,
    place: &Place,
    policy: Option<&Policy>,
) -> Result<Dialect, Vec<Mistake>> {
    let mut compiler = TableCompiler { selectors: Vec::new(), mistakes: Vec::new() };
    let base = table.extends.as_ref().and_then(|name| match tables::table(&name.0) {
        Ok(base) => Some(base),
        Err(unknown) => {
            let message =
                unknown.to_string().replacen("dialect: there is no dialect", "there is no built-in dialect", 1);
            compiler.mistake(place.at("extends"), message);
            None
        }
    });
    let own = table.headers.iter().enumerate().map(|(at, row)| (place.at("headers").at(at), row));
    let rows = compiler.merged(base.map_or(&[], |base| &base.headers), own.collect());
    if let Some(policy) = policy {
        compiler.check_units(table, policy, place);
    }
    let inherited = base.and_then(|base| base.on.as_ref());
    let on = table.on.as_ref().or(inherited).map_or_else(|| kinds(KindName::Always), kinds_of);
    let headers = rows.iter().filter_map(|(place, row)| compiler.header(row, on, place)).collect();
    let answers = AnswerTables { table, base, place: place.at("answers") };
    let responses = ResponseKind::ALL.map(|kind| answers.response(kind, &mut compiler));
    let named = answers.named(&mut compiler);
    let retry_within = table.retry_within.as_ref().or(base.and_then(|base| base.retry_within.as_ref()));
    let TableCompiler { selectors, mistakes, .. } = compiler;
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let built_in_listing = || tables::table(name).ok().and_then(|table| table.listing);
    Ok(Dialect {
        selectors,
        headers,
        responses,
        named,
        retry_within_ms: retry_within.map(Length::ms),
        listing: table.listing.or_else(built_in_listing).unwrap_or_default(),
    })
}

struct TableCompiler {
    selectors: Vec<Selector>,
    mistakes: Vec<Mistake>,
}

impl TableCompiler {
    fn mistake(&mut self, place: Place, message: impl Into<String>) {
        self.mistakes.push(Mistake::new(place, message));
    }

    /// Reports a mistake, unless it is known.
    fn mistake_once(&mut self, mistake: Mistake) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// Checks the units in a table of a policy. (Built-in tables may name units that the policy does not have.)
    fn check_units(&mut self, table: &Table, policy: &Policy, place: &Place) {
        let of = |selector: &Option<format::Selector>| match selector {
            Some(format::Selector::Quota(quota)) => quota.unit.clone(),
            _ => None,
        };
        let mut named = Vec::new();
        for (at, row) in table.headers.iter().enumerate() {
            let place = place.at("headers").at(at);
            named.push((of(&row.quota), place.at("quota").at("unit")));
            for (at, pair) in row.first_refusing.iter().flatten().enumerate() {
                named.push((pair.quota.unit.clone(), place.at("first_refusing").at(at).at("quota").at("unit")));
            }
        }
        for (name, answer) in &table.answers {
            named.push((of(&answer.quota), place.at("answers").at(name.as_str()).at("quota").at("unit")));
        }
        let known: Vec<&str> = policy.units().iter().map(|unit| &*unit.name).collect();
        for (unit, place) in named {
            if let Some(unit) = unit.filter(|unit| !known.contains(&&*unit.0)) {
                self.mistake(place, format!("there is no unit {:?}; there is: {}", unit.0, known.join(", ")));
            }
        }
    }

    /// The rows of the base, changed by the table's own rows, followed by its new rows.
    fn merged(&mut self, base: &[HeaderRow], own: Vec<(Place, &HeaderRow)>) -> Vec<(Place, HeaderRow)> {
        let mut rows: Vec<(Place, HeaderRow)> = base.iter().map(|row| (Place::root(), row.clone())).collect();
        let mut seen: Vec<&str> = Vec::new();
        for (place, row) in own {
            let name = row.name.0.as_str();
            if seen.iter().any(|seen| seen.eq_ignore_ascii_case(name)) {
                self.mistake(place.at("name"), "is the name of a header above; write each header once");
                continue;
            }
            seen.push(name);
            match rows.iter_mut().find(|(_, old)| old.name.0.eq_ignore_ascii_case(name)) {
                Some((at, old)) => {
                    *old = overlay(old, row);
                    *at = place;
                }
                None => rows.push((place, row.clone())),
            }
        }
        rows
    }

    fn header(&mut self, row: &HeaderRow, on: ResponseKinds, place: &Place) -> Option<Header> {
        let name = row.name.0.as_str();
        if SERVER_HEADERS.iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
            let message = format!(
                "{name:?} is written by the HTTP server; set the type of a body with `content_type` of the answer"
            );
            self.mistake(place.at("name"), message);
        }
        let content = match (&row.value, &row.text, &row.first_refusing) {
            (Some(values), None, None) => self.values(values, row, place)?,
            (None, Some(text), None) => HeaderContent::Text(text.0.as_str().into()),
            (None, None, Some(refusing)) => {
                let pair = |pair: &format::RefusalText| (self.selector(&pair.quota), pair.text.0.as_str().into());
                HeaderContent::FirstRefusing(refusing.iter().map(pair).collect())
            }
            _ => {
                self.mistake(place.clone(), "needs one of `value`, `text` and `first_refusing`");
                return None;
            }
        };
        let text = |text: &Option<format::HeaderText>| text.as_ref().map(|text| text.0.as_str().into());
        Some(Header {
            name: name.into(),
            on: row.on.as_ref().map_or(on, kinds_of),
            content,
            unlimited: text(&row.unlimited),
            missing: text(&row.missing),
        })
    }

    fn values(&mut self, values: &Values, row: &HeaderRow, place: &Place) -> Option<HeaderContent> {
        let words = match values {
            Values::One(word) => vec![*word],
            Values::FirstOf(words) => words.clone(),
        };
        if let Some(wrong) = words.iter().find_map(|word| format_problem(*word, row.format)) {
            self.mistake(place.at("format"), wrong);
            return None;
        }
        let quota = match &row.quota {
            None | Some(format::Selector::Binding(_)) => None,
            Some(format::Selector::Quota(quota)) => Some(self.selector(quota)),
        };
        let length_ms = match &row.quota {
            Some(format::Selector::Quota(quota)) => quota.per.as_ref().map(Length::ms),
            None | Some(format::Selector::Binding(_)) => None,
        };
        Some(HeaderContent::Values { quota, length_ms, words, format: row.format })
    }

    /// The index of the selector. Several headers share one, so that each quota is chosen once for a response.
    fn selector(&mut self, quota: &QuotaSelector) -> usize {
        let selector = Selector {
            unit: quota.unit.as_ref().map(|unit| UnitId::of(&unit.0)),
            length_ms: quota.per.as_ref().map(Length::ms),
            name: quota.name.as_ref().map(|name| name.0.as_str().into()),
        };
        let known = self.selectors.iter().position(|known| *known == selector);
        known.unwrap_or_else(|| {
            self.selectors.push(selector);
            self.selectors.len() - 1
        })
    }
}

/// The row, with the fields of `by` where it has them.
fn overlay(row: &HeaderRow, by: &HeaderRow) -> HeaderRow {
    let has_content = by.value.is_some() || by.text.is_some() || by.first_refusing.is_some();
    let (by, row) = (by.clone(), row.clone());
    HeaderRow {
        name: by.name,
        quota: by.quota.or(row.quota),
        value: if has_content { by.value } else { row.value },
        text: if has_content { by.text } else { row.text },
        first_refusing: if has_content { by.first_refusing } else { row.first_refusing },
        // A new value does not take the format of the old one.
        format: by.format.or(if has_content { None } else { row.format }),
        on: by.on.or(row.on),
        unlimited: by.unlimited.or(row.unlimited),
        missing: by.missing.or(row.missing),
    }
}

fn kinds_of(filter: &KindFilter) -> ResponseKinds {
    match filter {
        KindFilter::One(word) => kinds(*word),
        KindFilter::Any(words) => words.iter().fold(ResponseKinds::NONE, |set, word| set.union(kinds(*word))),
    }
}

fn kinds(word: KindName) -> ResponseKinds {
    let on = |reason| ResponseKinds::matching(|kind| kind == ResponseKind::Refused(reason));
    match word {
        KindName::Always => ResponseKinds::matching(|_| true),
        KindName::Never => ResponseKinds::NONE,
        KindName::Allowed => ResponseKinds::matching(|kind| kind == ResponseKind::Allowed),
        KindName::Refused => ResponseKinds::matching(|kind| kind != ResponseKind::Allowed),
        KindName::QuotaExceeded => on(Reason::QuotaExceeded),
        KindName::CostAboveLimit => on(Reason::CostAboveLimit),
        KindName::Blocked => on(Reason::Blocked),
        KindName::UploadTooLarge => on(Reason::UploadTooLarge),
        KindName::UnknownResource => on(Reason::UnknownResource),
        KindName::Unavailable => ResponseKinds::matching(|kind| kind == ResponseKind::Unavailable),
        KindName::BadKey => {
            ResponseKinds::matching(|kind| matches!(kind, ResponseKind::Refused(Reason::InvalidKey(_))))
        }
        KindName::UnknownKey => on(Reason::InvalidKey(InvalidKey::Unknown)),
        KindName::RevokedKey => on(Reason::InvalidKey(InvalidKey::Revoked)),
        KindName::ExpiredKey => on(Reason::InvalidKey(InvalidKey::Expired)),
    }
}

/// The problem if this format cannot be used for the value.
fn format_problem(word: ValueWord, format: Option<Format>) -> Option<String> {
    let fits = match (value_type(word), format) {
        (_, None) | (ValueType::Number, Some(Format::Integer)) => true,
        (ValueType::Moment, Some(format)) => format != Format::Integer,
        (ValueType::Number | ValueType::Name, Some(_)) => false,
    };
    let hint = "epoch_seconds, epoch_milliseconds, delta_seconds, delta_milliseconds, go_duration and rfc3339 are for \
                reset, resets_at, retry_at and retry_after, and integer for limit, remaining, used, cost and priority";
    (!fits).then(|| format!("cannot be used for this value: {hint}"))
}

enum ValueType {
    Number,
    Moment,
    Name,
}

fn value_type(word: ValueWord) -> ValueType {
    use ValueWord as W;
    match word {
        W::Limit | W::Remaining | W::Used | W::Cost | W::Priority => ValueType::Number,
        W::Reset | W::ResetsAt | W::RetryAt | W::RetryAfter => ValueType::Moment,
        W::Quota
        | W::Label
        | W::Unit
        | W::Window
        | W::Measure
        | W::ShouldRetry
        | W::Reason
        | W::Message
        | W::Violated
        | W::IetfPolicies
        | W::IetfLimits
        | W::Resource
        | W::Tier
        | W::Account
        | W::ApiKeyId
        | W::Domain => ValueType::Name,
    }
}
