//! Compiles the answers of a table: a status and a body for each kind of refusal.

use std::collections::BTreeMap;

use super::{TableCompiler, format_problem};
use crate::{
    dialect::{
        ResponseKind, ResponseTemplate,
        body::{BodyTemplate, Placeholder},
        value::QuotaChoice,
    },
    format::dialect::{Answer, Refusal, Selector, Table, ValueWord},
    policy::{Mistake, Place},
    reason::{InvalidKey, Reason},
};

/// Maximum size of the template of a body, in bytes.
const MAX_BODY_BYTES: usize = 16 << 10;

/// The answers of a table, and of the built-in table that it extends.
pub(super) struct AnswerTables<'t> {
    pub(super) table: &'t Table,
    pub(super) base: Option<&'t Table>,
    /// The place of the table's own answers.
    pub(super) place: Place,
}

/// One answer that a response can be made of.
struct Source<'t> {
    refusal: Refusal,
    answer: &'t Answer,
    /// Its place. `None` for an answer of the built-in table, which is checked with that table.
    place: Option<Place>,
}

impl<'t> AnswerTables<'t> {
    /// The response for a kind of decision.
    pub(super) fn response(&self, kind: ResponseKind, compiler: &mut TableCompiler) -> ResponseTemplate {
        let ResponseKind::Refused(reason) = kind else { return ResponseTemplate::allowed() };
        self.of(refusals_for(reason), compiler)
    }

    /// The responses to refusals by quotas that have an answer of their own.
    pub(super) fn named(&self, compiler: &mut TableCompiler) -> BTreeMap<&'static str, ResponseTemplate> {
        let mut named = BTreeMap::new();
        if self.has(Refusal::ConcurrencyExceeded) {
            let refusals = [Refusal::ConcurrencyExceeded, Refusal::QuotaExceeded];
            named.insert(Refusal::ConcurrencyExceeded.name(), self.of(&refusals, compiler));
        }
        named.insert(Refusal::Overloaded.name(), self.of(&[Refusal::Overloaded], compiler));
        named
    }

    fn has(&self, refusal: Refusal) -> bool {
        [Some(self.table), self.base].into_iter().flatten().any(|table| table.answers.contains_key(&refusal))
    }

    /// The response of the answers to `refusals`, the first of which has precedence. Each part is that of the first answer
    /// that has it; answers of the table go before those of the base.
    fn of(&self, refusals: &[Refusal], compiler: &mut TableCompiler) -> ResponseTemplate {
        let sources = self.sources(refusals);
        let body_at = sources.iter().position(|source| source.answer.body.is_some());
        // The quota of an answer with less precedence is that of another body.
        let before_body = &sources[..body_at.map_or(sources.len(), |at| at + 1)];
        let choice = match before_body.iter().find_map(|source| source.answer.quota.as_ref()) {
            None | Some(Selector::Binding(_)) => QuotaChoice::Binding,
            Some(Selector::Quota(quota)) => QuotaChoice::Selected(compiler.selector(quota)),
        };
        let body = body_at.and_then(|at| body(&sources[at], choice, compiler));
        let status = sources.iter().find_map(|source| source.answer.status);
        let content_type = sources.iter().find_map(|source| source.answer.content_type.as_ref());
        ResponseTemplate {
            status: status.unwrap_or_else(|| refusals.first().map_or(429, |refusal| default_status(*refusal))),
            content_type: content_type.map_or("application/json", |media| media.0.as_str()).into(),
            has_retry_time: body.as_ref().is_some_and(|body| body.contains(is_retry_time)),
            body,
        }
    }

    fn sources(&self, refusals: &[Refusal]) -> Vec<Source<'t>> {
        let of = |table: &'t Table, place: Option<&Place>| -> Vec<Source<'t>> {
            let found = refusals.iter().filter_map(|refusal| {
                let answer = table.answers.get(refusal)?;
                Some(Source { refusal: *refusal, answer, place: place.map(|place| place.at(refusal.name())) })
            });
            found.collect()
        };
        let mut sources = of(self.table, Some(&self.place));
        sources.extend(self.base.into_iter().flat_map(|base| of(base, None)));
        sources
    }
}

impl ResponseTemplate {
    fn allowed() -> Self {
        Self { status: 200, content_type: Box::default(), body: None, has_retry_time: false }
    }
}

fn body(source: &Source<'_>, choice: QuotaChoice, compiler: &mut TableCompiler) -> Option<BodyTemplate> {
    let body = source.answer.body.as_ref()?;
    let place = source.place.as_ref().map_or_else(Place::root, |place| place.at("body"));
    if source.place.is_some() && body.to_string().len() > MAX_BODY_BYTES {
        let message = format!("is too large; a body can have at most {MAX_BODY_BYTES} bytes");
        compiler.mistake_once(Mistake::new(place.clone(), message));
    }
    let check = |placeholder| check_placeholder(placeholder, source.refusal, choice);
    // Several kinds of refusals share a body, whose mistakes are reported once.
    let report = |message| compiler.mistake_once(Mistake::new(place.clone(), message));
    BodyTemplate::parse(body, choice, &check).map_err(|mistakes| mistakes.into_iter().for_each(report)).ok()
}

/// The answers for a reason, the most specific one first.
fn refusals_for(reason: Reason) -> &'static [Refusal] {
    match reason {
        Reason::QuotaExceeded => &[Refusal::QuotaExceeded],
        Reason::CostAboveLimit => &[Refusal::CostAboveLimit],
        Reason::Blocked => &[Refusal::Blocked],
        Reason::UploadTooLarge => &[Refusal::UploadTooLarge],
        Reason::InvalidKey(InvalidKey::Unknown) => &[Refusal::UnknownKey, Refusal::BadKey],
        Reason::InvalidKey(InvalidKey::Revoked) => &[Refusal::RevokedKey, Refusal::BadKey],
        Reason::InvalidKey(InvalidKey::Expired) => &[Refusal::ExpiredKey, Refusal::BadKey],
    }
}

impl Refusal {
    /// Its name in tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::QuotaExceeded => "quota_exceeded",
            Self::ConcurrencyExceeded => "concurrency_exceeded",
            Self::Overloaded => "overloaded",
            Self::CostAboveLimit => "cost_above_limit",
            Self::Blocked => "blocked",
            Self::UploadTooLarge => "upload_too_large",
            Self::BadKey => "bad_key",
            Self::UnknownKey => "unknown_key",
            Self::RevokedKey => "revoked_key",
            Self::ExpiredKey => "expired_key",
        }
    }

    /// Whether the key of the caller is invalid.
    const fn is_of_key(self) -> bool {
        matches!(self, Self::BadKey | Self::UnknownKey | Self::RevokedKey | Self::ExpiredKey)
    }

    /// Whether a quota refuses.
    const fn is_of_quota(self) -> bool {
        matches!(self, Self::QuotaExceeded | Self::ConcurrencyExceeded | Self::CostAboveLimit)
    }
}

const fn default_status(refusal: Refusal) -> u16 {
    match refusal {
        Refusal::QuotaExceeded | Refusal::ConcurrencyExceeded | Refusal::Blocked => 429,
        Refusal::Overloaded => 503,
        Refusal::CostAboveLimit | Refusal::UploadTooLarge => 413,
        Refusal::BadKey | Refusal::UnknownKey | Refusal::RevokedKey | Refusal::ExpiredKey => 401,
    }
}

const fn is_retry_time(word: ValueWord) -> bool {
    matches!(word, ValueWord::RetryAt | ValueWord::RetryAfter)
}

/// Checks that the value always exists in a body for this refusal, so that no sentence has a gap.
fn check_placeholder(placeholder: Placeholder, refusal: Refusal, choice: QuotaChoice) -> Result<(), String> {
    use ValueWord as W;
    let Placeholder { word, format } = placeholder;
    if let Some(wrong) = format_problem(word, format) {
        return Err(wrong);
    }
    let of_call = !refusal.is_of_key();
    let of_binding_slots = refusal == Refusal::ConcurrencyExceeded && choice == QuotaChoice::Binding;
    let (exists, where_it_exists) = match word {
        W::Reason | W::Domain => (true, ""),
        W::IetfPolicies | W::IetfLimits | W::ShouldRetry => (false, "in headers"),
        W::RetryAt | W::RetryAfter => (
            matches!(refusal, Refusal::QuotaExceeded | Refusal::ConcurrencyExceeded | Refusal::Blocked),
            "in quota_exceeded, concurrency_exceeded and blocked",
        ),
        W::Message => {
            (matches!(refusal, Refusal::Blocked | Refusal::UploadTooLarge), "in blocked and upload_too_large")
        }
        W::Resource | W::Tier | W::Priority | W::Account | W::ApiKeyId => (of_call, "if the key is valid"),
        W::Window | W::Reset | W::ResetsAt if of_binding_slots => {
            (false, "for quotas with a window; `{measure}` is \"concurrent requests\" here")
        }
        W::Limit
        | W::Remaining
        | W::Used
        | W::Cost
        | W::Reset
        | W::ResetsAt
        | W::Quota
        | W::Label
        | W::Unit
        | W::Window
        | W::Measure
        | W::Violated => (
            refusal.is_of_quota() || of_call && choice != QuotaChoice::Binding,
            "in quota_exceeded, concurrency_exceeded and cost_above_limit",
        ),
    };
    if exists { Ok(()) } else { Err(format!("only exists {where_it_exists}")) }
}
