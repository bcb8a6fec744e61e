//! One decision over several slots of a Redis Cluster, where one script reaches only one of them.
//!
//! All parts are looked at first, and if one has no room the call is refused and nothing was charged. Then all
//! parts but one are charged, and that one last: it is the commit point. Only calls that race for the last room
//! can be refused after another part was charged; what was charged there then stays for its window, on the safe
//! side of the limit.

use futures_util::future::try_join_all;
use smallvec::SmallVec;
use tokio::time::Instant;
use tollgate_core::{
    claim::{Answer, Applied, Claim, ClaimStatus, Mode, Partition},
    store::StoreError,
    time::Timestamp,
};

use super::{RedisStore, wire::Validity};

/// The claims of one partition, and where each stands in the call.
struct Part {
    partition: Partition,
    claims: Vec<Claim>,
    places: SmallVec<[usize; 8]>,
}

/// What all scripts of one call share.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) validity: Validity,
    pub(super) deadline: Instant,
}

/// Whether the claims are in more than one partition.
pub(super) fn is_needed(claims: &[Claim]) -> bool {
    claims.windows(2).any(|pair| pair[0].ledger.partition != pair[1].ledger.partition)
}

/// Applies the claims part by part, within `deadline`.
pub(super) async fn apply(
    store: &RedisStore,
    claims: &[Claim],
    mode: Mode,
    deadline: Instant,
) -> Result<Answer, StoreError> {
    let mut parts = parts(claims);
    let bounds = Bounds { validity: Validity::of(claims), deadline };
    if mode != Mode::Try {
        return Ok(merged(claims.len(), &parts, all(store, &parts, mode, bounds).await?));
    }
    let looked = merged(claims.len(), &parts, all(store, &parts, Mode::Peek, bounds).await?);
    match looked {
        Answer::Applied(Applied { allowed: true, .. }) => {}
        _ => return Ok(looked),
    }
    let Some(last) = parts.pop() else { return Ok(looked) };
    let mut answers = all(store, &parts, Mode::Try, bounds).await.map_err(half_done)?;
    if answers.iter().all(is_charged) {
        answers.push(store.run(&last.claims, Mode::Try, bounds).await.map_err(half_done)?);
    } else {
        answers.push(store.run(&last.claims, Mode::Peek, bounds).await.map_err(half_done)?);
    }
    parts.push(last);
    match merged(claims.len(), &parts, answers) {
        // To ask again would charge the other parts twice.
        Answer::OutsidePeriod(_) => {
            Err(StoreError::Indeterminate("a calendar period ended while the call was decided".into()))
        }
        applied @ Answer::Applied(_) => Ok(applied),
    }
}

fn is_charged(answer: &Answer) -> bool {
    matches!(answer, Answer::Applied(Applied { allowed: true, .. }))
}

/// Some part may have been charged, whatever happened to this one.
fn half_done(error: StoreError) -> StoreError {
    match error {
        StoreError::Indeterminate(_) => error,
        other => StoreError::Indeterminate(format!("only a part of the counters was charged: {other}")),
    }
}

/// The parts, with the one that most claims belong to, the account's as a rule, at the end.
fn parts(claims: &[Claim]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (place, claim) in claims.iter().enumerate() {
        let partition = claim.ledger.partition;
        let at = parts.iter().position(|part| part.partition == partition).unwrap_or_else(|| {
            parts.push(Part { partition, claims: Vec::new(), places: SmallVec::new() });
            parts.len() - 1
        });
        parts[at].claims.push(*claim);
        parts[at].places.push(place);
    }
    parts.sort_by_key(|part| part.claims.len());
    parts
}

async fn all(store: &RedisStore, parts: &[Part], mode: Mode, bounds: Bounds) -> Result<Vec<Answer>, StoreError> {
    try_join_all(parts.iter().map(|part| store.run(&part.claims, mode, bounds))).await
}

fn merged(claims: usize, parts: &[Part], answers: Vec<Answer>) -> Answer {
    let mut whole = Applied { decided_at: Timestamp::default(), allowed: true, statuses: SmallVec::new() };
    let mut statuses: SmallVec<[Option<ClaimStatus>; 8]> = SmallVec::from_elem(None, claims);
    for (part, answer) in parts.iter().zip(answers) {
        match answer {
            Answer::OutsidePeriod(at) => return Answer::OutsidePeriod(at),
            Answer::Applied(applied) => {
                // Each server has its own clock; the latest is the time by which all was decided.
                whole.decided_at = whole.decided_at.max(applied.decided_at);
                whole.allowed &= applied.allowed;
                for (place, status) in part.places.iter().zip(applied.statuses) {
                    statuses[*place] = Some(status);
                }
            }
        }
    }
    whole.statuses = statuses.into_iter().flatten().collect();
    Answer::Applied(whole)
}
