//! Compiles the answers of a table: a status and a body for each kind of refusal.

use std::collections::BTreeMap;

use super::{TableCompiler, format_problem};
use crate::{
    dialect::{
        BodyNeeds, ResponseKind, ResponseTemplate,
        body::{BodyTemplate, Placeholder},
        facts::UNAVAILABLE,
        value::QuotaChoice,
    },
    format::dialect::{Answer, Selector, Table, ValueWord},
    policy::{CONCURRENCY_EXCEEDED, Mistake, OVERLOADED, Place, QUOTA_EXCEEDED},
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

/// A kind of refusal that has an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal<'t> {
    QuotaExceeded,
    ConcurrencyExceeded,
    Overloaded,
    CostAboveLimit,
    Blocked,
    UploadTooLarge,
    UnknownResource,
    Unavailable,
    BadKey,
    UnknownKey,
    RevokedKey,
    ExpiredKey,
    /// By a quota that is `refused_as` this name.
    Named(&'t str),
}

/// One answer that a response can be made of.
struct Source<'t> {
    refusal: Refusal<'t>,
    answer: &'t Answer,
    /// Its place. `None` for an answer of the built-in table, which is checked with that table.
    place: Option<Place>,
}

impl<'t> AnswerTables<'t> {
    /// The response for a kind of decision.
    pub(super) fn response(&self, kind: ResponseKind, compiler: &mut TableCompiler) -> ResponseTemplate {
        match kind {
            ResponseKind::Allowed => ResponseTemplate::allowed(),
            ResponseKind::Refused(reason) => self.of(refusals_for(reason), compiler),
            ResponseKind::Unavailable => self.of(&[Refusal::Unavailable], compiler),
        }
    }

    /// The responses to refusals by quotas that have an answer of their own.
    pub(super) fn named(&self, compiler: &mut TableCompiler) -> BTreeMap<Box<str>, ResponseTemplate> {
        let answers = || [Some(self.table), self.base].into_iter().flatten().flat_map(|table| table.answers.keys());
        // Every dialect has an answer for hidden quotas.
        let mut named = BTreeMap::from([(OVERLOADED.into(), self.of(&[Refusal::Overloaded], compiler))]);
        for name in answers() {
            let refusals = match Refusal::of(name) {
                refusal @ Refusal::ConcurrencyExceeded => &[refusal, Refusal::QuotaExceeded][..],
                refusal @ Refusal::Named(_) => &[refusal],
                _ => continue,
            };
            if !named.contains_key(&**name) {
                named.insert(name.as_str().into(), self.of(refusals, compiler));
            }
        }
        named
    }

    /// The response of the answers to `refusals`, the first of which has precedence. Each part is that of the first answer
    /// that has it; answers of the table go before those of the base.
    fn of(&self, refusals: &[Refusal<'t>], compiler: &mut TableCompiler) -> ResponseTemplate {
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
            needs: body.as_ref().map(|body| needs(body, choice)).unwrap_or_default(),
            body,
        }
    }

    fn sources(&self, refusals: &[Refusal<'t>]) -> Vec<Source<'t>> {
        let of = |table: &'t Table, place: Option<&Place>| -> Vec<Source<'t>> {
            let found = refusals.iter().filter_map(|refusal| {
                let answer = table.answers.get(refusal.name())?;
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
        Self { status: 200, content_type: Box::default(), body: None, needs: BodyNeeds::default() }
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
fn refusals_for(reason: Reason) -> &'static [Refusal<'static>] {
    match reason {
        Reason::QuotaExceeded => &[Refusal::QuotaExceeded],
        Reason::CostAboveLimit => &[Refusal::CostAboveLimit],
        Reason::Blocked => &[Refusal::Blocked],
        Reason::UploadTooLarge => &[Refusal::UploadTooLarge],
        Reason::UnknownResource => &[Refusal::UnknownResource],
        Reason::InvalidKey(InvalidKey::Unknown) => &[Refusal::UnknownKey, Refusal::BadKey],
        Reason::InvalidKey(InvalidKey::Revoked) => &[Refusal::RevokedKey, Refusal::BadKey],
        Reason::InvalidKey(InvalidKey::Expired) => &[Refusal::ExpiredKey, Refusal::BadKey],
    }
}

impl<'t> Refusal<'t> {
    /// Those with a name of their own.
    const KNOWN: [Self; 12] = [
        Self::QuotaExceeded,
        Self::ConcurrencyExceeded,
        Self::Overloaded,
        Self::CostAboveLimit,
        Self::Blocked,
        Self::UploadTooLarge,
        Self::UnknownResource,
        Self::Unavailable,
        Self::BadKey,
        Self::UnknownKey,
        Self::RevokedKey,
        Self::ExpiredKey,
    ];

    /// The refusal that tables call `name`.
    fn of(name: &'t str) -> Self {
        Self::KNOWN.into_iter().find(|known| known.name() == name).unwrap_or(Self::Named(name))
    }

    /// Its name in tables.
    const fn name(self) -> &'t str {
        match self {
            Self::QuotaExceeded => QUOTA_EXCEEDED,
            Self::ConcurrencyExceeded => CONCURRENCY_EXCEEDED,
            Self::Overloaded => OVERLOADED,
            Self::CostAboveLimit => "cost_above_limit",
            Self::Blocked => "blocked",
            Self::UploadTooLarge => "upload_too_large",
            Self::UnknownResource => "unknown_resource",
            Self::Unavailable => UNAVAILABLE,
            Self::BadKey => "bad_key",
            Self::UnknownKey => "unknown_key",
            Self::RevokedKey => "revoked_key",
            Self::ExpiredKey => "expired_key",
            Self::Named(name) => name,
        }
    }

    /// Whether a valid caller is refused for what it calls.
    const fn is_of_call(self) -> bool {
        !matches!(
            self,
            Self::UnknownResource
                | Self::Unavailable
                | Self::BadKey
                | Self::UnknownKey
                | Self::RevokedKey
                | Self::ExpiredKey
        )
    }

    /// Whether a quota refuses.
    const fn is_of_quota(self) -> bool {
        matches!(self, Self::QuotaExceeded | Self::ConcurrencyExceeded | Self::CostAboveLimit | Self::Named(_))
    }
}

const fn default_status(refusal: Refusal<'_>) -> u16 {
    match refusal {
        Refusal::QuotaExceeded | Refusal::ConcurrencyExceeded | Refusal::Named(_) | Refusal::Blocked => 429,
        Refusal::Overloaded | Refusal::Unavailable => 503,
        Refusal::UnknownResource => 404,
        Refusal::CostAboveLimit | Refusal::UploadTooLarge => 413,
        Refusal::BadKey | Refusal::UnknownKey | Refusal::RevokedKey | Refusal::ExpiredKey => 401,
    }
}

/// The values of a body that do not exist for every refusal by a quota.
fn needs(body: &BodyTemplate, choice: QuotaChoice) -> BodyNeeds {
    use ValueWord as W;
    let of_binding = choice == QuotaChoice::Binding;
    BodyNeeds {
        retry_time: body.contains(|word| matches!(word, W::RetryAt | W::RetryAfter)),
        quota: body.contains(|word| of_binding && is_of_quota(word) || word == W::Violated),
        window: body.contains(|word| of_binding && matches!(word, W::Window | W::Reset | W::ResetsAt)),
    }
}

/// Whether the value is of a quota.
const fn is_of_quota(word: ValueWord) -> bool {
    use ValueWord as W;
    matches!(
        word,
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
    )
}

/// Checks that the value always exists in a body for this refusal, so that no sentence has a gap.
fn check_placeholder(placeholder: Placeholder, refusal: Refusal<'_>, choice: QuotaChoice) -> Result<(), String> {
    use ValueWord as W;
    let Placeholder { word, format } = placeholder;
    if let Some(wrong) = format_problem(word, format) {
        return Err(wrong);
    }
    let of_call = refusal.is_of_call();
    let of_binding_slots = refusal == Refusal::ConcurrencyExceeded && choice == QuotaChoice::Binding;
    let (exists, where_it_exists) = match word {
        W::Reason => (true, ""),
        W::Domain => (refusal != Refusal::Unavailable, "if the call is decided"),
        W::Resource if refusal == Refusal::UnknownResource => (true, ""),
        W::IetfPolicies | W::IetfLimits | W::ShouldRetry => (false, "in headers"),
        W::RetryAt | W::RetryAfter => (
            refusal.is_of_quota() && refusal != Refusal::CostAboveLimit || refusal == Refusal::Blocked,
            "in blocked, and where a quota refuses for a while",
        ),
        W::Message => {
            (matches!(refusal, Refusal::Blocked | Refusal::UploadTooLarge), "in blocked and upload_too_large")
        }
        W::Resource | W::Tier | W::Priority | W::Account | W::ApiKeyId => {
            (of_call, "if the key and the resource are valid")
        }
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
            "where a quota refuses that customers see",
        ),
    };
    if exists { Ok(()) } else { Err(format!("only exists {where_it_exists}")) }
}
