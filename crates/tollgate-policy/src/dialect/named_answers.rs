//! Checks that quotas and dialects agree about the answers that quotas are `refused_as`.

use indexmap::IndexMap;

use super::{Dialect, ResponseKind, facts::UNAVAILABLE};
use crate::{
    format::dialect::Table,
    policy::{CONCURRENCY_EXCEEDED, Mistake, NamedAnswer, OVERLOADED, Place, Policy, QUOTA_EXCEEDED, closest},
    reason::Reason,
};

/// The answers that a table may have although no quota names them, besides those to reasons.
const ALWAYS_KNOWN: [&str; 5] = ["bad_key", CONCURRENCY_EXCEEDED, OVERLOADED, "insufficient_quota", UNAVAILABLE];

/// The mistakes of quotas that name an answer which the policy's dialect, called `name`, does not have, or which does not
/// suit them. In other dialects, which a call may choose, such a quota is refused like others.
pub(super) fn missing(name: &str, dialect: &Dialect, policy: &Policy) -> Vec<Mistake> {
    let mistake = |named: &NamedAnswer| {
        let NamedAnswer { place, name: answer, hidden, of_slots } = named;
        let response = match &**answer {
            QUOTA_EXCEEDED => Some(&dialect.responses[ResponseKind::Refused(Reason::QuotaExceeded).index()]),
            answer => dialect.named.get(answer),
        };
        let message = match response.map(|response| response.needs) {
            None => {
                let known: Vec<&str> =
                    [QUOTA_EXCEEDED].into_iter().chain(dialect.named.keys().map(|name| &**name)).collect();
                let hint = hint(answer, &known);
                let known = known.join(", ");
                format!("the dialect {name:?} has no answer {answer:?} to refusals by quotas; {hint}there is: {known}")
            }
            Some(needs) if *hidden && needs.quota => format!(
                "the answer {answer:?} of the dialect {name:?} has values of the quota, which customers do not see; choose \
                 another answer, such as {OVERLOADED}, or write `visible: true`"
            ),
            Some(needs) if *of_slots && needs.window => format!(
                "the answer {answer:?} of the dialect {name:?} has a value of the window, and concurrent_requests have none; \
                 write {{measure}} there"
            ),
            Some(_) => return None,
        };
        Some(Mistake::new(place.clone(), message))
    };
    policy.named_answers().iter().filter_map(mistake).collect()
}

/// The mistakes of answers in tables that no quota names.
pub(super) fn unused(tables: &IndexMap<String, Table>, policy: &Policy) -> Vec<Mistake> {
    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).chain(ALWAYS_KNOWN).collect();
    let is_named = |name: &str| policy.named_answers().iter().any(|named| *named.name == *name);
    let answers = tables.iter().flat_map(|(table, content)| content.answers.keys().map(move |answer| (table, answer)));
    let unused = answers.filter(|(_, answer)| !known.contains(&answer.as_str()) && !is_named(answer));
    let mistake = |(table, answer): (&String, &String)| {
        let place = Place::root().at("dialects").at(&**table).at("answers").at(&**answer);
        let (hint, others) = (hint(answer, &known), known.join(", "));
        Mistake::new(place, format!("no quota is `refused_as: {answer}`; {hint}the other answers are: {others}"))
    };
    unused.map(mistake).collect()
}

fn hint(name: &str, known: &[&str]) -> String {
    closest(name, known).map(|closest| format!("did you mean {closest:?}? ")).unwrap_or_default()
}
