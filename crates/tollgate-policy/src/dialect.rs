//! Dialects: how a decision becomes a status, headers and a body. A dialect is a table, in the same form for the
//! built-in ones (`dialect/tables/`) and for those of a policy file. It is compiled once, with the policy. Rendering
//! parses nothing, and is done only if a call requests it.
//!
//! Names from outside cannot break a response: in header values everything that is not printable ASCII is
//! percent-encoded (`header::encoded`), and bodies are JSON trees in which values are only inside strings, which are
//! escaped when they are written.

mod body;
mod built_in;
mod compile;
mod facts;
mod header;
mod ietf;
mod named_answers;
mod select;
mod tables;
#[cfg(test)]
mod tests;
mod value;

use std::{collections::BTreeMap, sync::Arc};

use indexmap::IndexMap;

pub use self::facts::{Facts, ResponseKind};
use self::{body::BodyTemplate, header::Header, select::Selector};
use crate::{
    decision::QuotaStatus,
    format::{ListingFormat, dialect::Table},
    policy::{Mistake, Place, Policy, QUOTA_EXCEEDED},
};

/// The dialect of a policy that names none.
const DEFAULT: &str = "ietf";

/// A compiled dialect.
#[derive(Debug)]
pub struct Dialect {
    selectors: Vec<Selector>,
    headers: Vec<Header>,
    responses: [ResponseTemplate; ResponseKind::COUNT],
    /// The responses to refusals by quotas that have an answer of their own, by its name.
    named: BTreeMap<Box<str>, ResponseTemplate>,
    /// The longest wait that clients honour by themselves, in milliseconds.
    retry_within_ms: Option<u64>,
    /// The format in which callers read their limits.
    listing: ListingFormat,
}

/// The response for one kind of decision.
#[derive(Debug)]
struct ResponseTemplate {
    status: u16,
    content_type: Box<str>,
    body: Option<BodyTemplate>,
    needs: BodyNeeds,
}

/// The values in a body that do not exist for every refusal by a quota.
#[derive(Clone, Copy, Debug, Default)]
struct BodyNeeds {
    /// The time to retry, which does not exist if the call can never be admitted.
    retry_time: bool,
    /// Values of the quota that refuses, which customers may not see.
    quota: bool,
    /// The window of the quota that refuses; slots have none.
    window: bool,
}

/// A response, as the platform's callers get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The HTTP status; 200 for an allowed call.
    pub status: u16,
    /// Names and values in the order of the table. They are valid in HTTP.
    pub headers: Vec<(String, String)>,
    /// JSON, if there is a body.
    pub body: Option<String>,
}

/// The dialects of one policy: its own, then the built-in ones.
#[derive(Debug)]
pub struct Dialects {
    own: BTreeMap<Arc<str>, Arc<Dialect>>,
    default: Arc<Dialect>,
}

/// There is no such dialect.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("dialect: there is no dialect {named:?}; there is: {known}")]
pub struct UnknownDialect {
    named: String,
    known: String,
}

impl Dialect {
    /// The HTTP status of the response for these facts.
    pub fn status(&self, facts: &Facts<'_>) -> u16 {
        self.response(facts).status
    }

    /// The response for these facts: that of the quota that refuses, if it has one, and otherwise that of the reason.
    fn response(&self, facts: &Facts<'_>) -> &ResponseTemplate {
        let of_reason = &self.responses[facts.kind.index()];
        let Some(QuotaStatus { quota, .. }) = facts.refusing_quota() else { return of_reason };
        let is_for_a_while = facts.retry_at.is_some();
        let named = |name: &str| match name {
            QUOTA_EXCEEDED => is_for_a_while.then_some(of_reason),
            name => self.named.get(name),
        };
        let fits = |response: &&ResponseTemplate| {
            let BodyNeeds { retry_time, quota: of_quota, window } = response.needs;
            (is_for_a_while || !retry_time) && (quota.visible || !of_quota) && !(quota.is_of_slots() && window)
        };
        // Every dialect has an answer for hidden quotas, so the one for the reason is for visible quotas.
        quota.answer_names().filter_map(named).find(fits).unwrap_or(of_reason)
    }

    /// The response that the platform's callers get.
    pub fn render(&self, facts: &Facts<'_>) -> Rendered {
        let chosen = self.selectors.iter().map(|selector| selector.choose(facts.quotas)).collect();
        let (binding, retry_within_ms) = (facts.shown_binding(), self.retry_within_ms);
        let facts = &value::RenderContext { facts, binding, chosen, retry_within_ms };
        let response = self.response(facts.facts);
        let mut headers = Vec::with_capacity(self.headers.len() + 1);
        let body = response.body.as_ref().map(|template| template.fill(facts));
        if body.is_some() {
            headers.push(("Content-Type".to_owned(), response.content_type.to_string()));
        }
        headers.extend(self.headers.iter().filter_map(|header| header.render(facts)));
        Rendered { status: response.status, headers, body }
    }
}

impl Dialects {
    /// The dialects of a policy file.
    pub(crate) fn of(
        tables: &IndexMap<String, Table>,
        default: Option<&str>,
        policy: &Policy,
    ) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut own = BTreeMap::new();
        for (name, table) in tables {
            match compile::compile(name, table, &Place::root().at("dialects").at(&**name), Some(policy)) {
                Ok(dialect) => drop(own.insert(Arc::from(&**name), Arc::new(dialect))),
                Err(found) => mistakes.extend(found),
            }
        }
        let name = default.unwrap_or(DEFAULT);
        mistakes.extend(named_answers::unused(tables, policy));
        match choose(&own, name) {
            Ok(default) => {
                mistakes.extend(named_answers::missing(name, default, policy));
                if mistakes.is_empty() {
                    return Ok(Self { default: Arc::clone(default), own });
                }
            }
            // If the dialect exists, its mistakes have been reported above.
            Err(unknown) if !tables.contains_key(&*unknown.named) => {
                let message = format!("there is no dialect {:?}; there is: {}", unknown.named, unknown.known);
                mistakes.push(Mistake::new(Place::root().at("dialect"), message));
            }
            _ => {}
        }
        Err(mistakes)
    }

    /// The format in which callers read their limits: that of the policy's dialect.
    pub(crate) fn listing(&self) -> ListingFormat {
        self.default.listing
    }

    /// The dialect of this name. If the name is empty, the policy's default.
    pub fn choose(&self, name: &str) -> Result<&Arc<Dialect>, UnknownDialect> {
        if name.is_empty() { Ok(&self.default) } else { choose(&self.own, name) }
    }
}

/// The dialect of a call whose domain is not known: the built-in dialect of this name, or `none` if the name is empty.
pub fn built_in_dialect(name: &str) -> Result<&'static Arc<Dialect>, UnknownDialect> {
    built_in::named(if name.is_empty() { "none" } else { name })
}

fn choose<'a>(own: &'a BTreeMap<Arc<str>, Arc<Dialect>>, name: &str) -> Result<&'a Arc<Dialect>, UnknownDialect> {
    let built_in = || {
        built_in::named(name).map_err(|UnknownDialect { named, known }| {
            let all: Vec<&str> = own.keys().map(|name| &**name).chain([known.as_str()]).collect();
            UnknownDialect { named, known: all.join(", ") }
        })
    };
    own.get(name).map_or_else(built_in, Ok)
}
