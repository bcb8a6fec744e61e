//! Pools: what the node knows of them from its last answers, and the call to the store that draws from them.

use indexmap::IndexMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tollgate_core::{
    claim::{Applied, Claim, LedgerKey, Mode, Partition},
    time::Timestamp,
};
use tollgate_policy::pool::{Draw, Drawn, PRIORITIES, PoolUse, Rooms, settle};

use crate::service::{CallError, DecisionService, reserve::By};

/// So many pools are known at once. One that is forgotten is known again with its next answer.
const MOST_KNOWN: usize = 4_096;
/// A call that was refused by numbers that are no longer true is asked once more.
const ATTEMPTS: usize = 2;
/// Of calls that are refused what is their due, a node makes so many known for as long as one is remembered.
const WANTS: u64 = 4;

/// The pools as they were last seen.
#[derive(Default)]
pub(super) struct Pools(Mutex<IndexMap<LedgerKey, Seen>>);

#[derive(Clone, Copy, Default)]
struct Seen {
    pool: PoolUse,
    /// When what each priority wanted was last made known.
    wanted_at: [Option<Timestamp>; PRIORITIES],
}

impl Pools {
    fn known(&self, draws: &[Draw<'_>]) -> SmallVec<[Option<PoolUse>; 1]> {
        if draws.is_empty() {
            return SmallVec::new();
        }
        let seen = self.0.lock();
        draws.iter().map(|draw| seen.get(&draw.key()).map(|seen| seen.pool)).collect()
    }

    /// Keeps what an answer said, and returns what has to be made known.
    fn learn(&self, draws: &[Draw<'_>], found: &Drawn, at: Timestamp) -> SmallVec<[Claim; 1]> {
        let mut wants = SmallVec::new();
        if draws.is_empty() {
            return wants;
        }
        let mut known = self.0.lock();
        for (number, (draw, pool)) in draws.iter().zip(&found.pools).enumerate() {
            if known.len() >= MOST_KNOWN && !known.contains_key(&draw.key()) {
                known.swap_remove_index(0);
            }
            let seen = known.entry(draw.key()).or_default();
            seen.pool = *pool;
            if let (true, Some(window)) = (found.wanting.contains(&number), draw.want_window()) {
                let last = &mut seen.wanted_at[draw.priority()];
                let recently =
                    last.is_some_and(|last| at.ms_since(last) < u64::from(window.ms()) / WANTS && last <= at);
                if !recently {
                    *last = Some(at);
                    wants.extend(draw.want());
                }
            }
        }
        wants
    }
}

impl DecisionService {
    /// Asks the store for the claims and for what the call draws from pools. `None` if there is nothing to ask.
    pub(super) async fn apply_drawing(
        &self,
        home: Partition,
        draws: &[Draw<'_>],
        claims_at: impl Fn(Timestamp) -> Result<SmallVec<[Claim; 4]>, CallError>,
        mut by: By<'_>,
        now: Timestamp,
    ) -> Result<Option<(Applied, Rooms)>, CallError> {
        let mut attempts = 1..=ATTEMPTS;
        loop {
            let can_ask_again = attempts.next().is_some_and(|attempt| attempt < ATTEMPTS);
            let known = self.pools.known(draws);
            let with_draws = |now| {
                let mut claims = claims_at(now)?;
                for (draw, known) in draws.iter().zip(&known) {
                    claims.extend(draw.claims(known.as_ref(), now));
                }
                Ok(claims)
            };
            let applied = match &mut by {
                By::Mode(mode) => self.apply(home, with_draws, *mode, now).await?,
                By::Admission(admission) => Some(Box::pin(self.admit(with_draws, admission, now)).await?),
            };
            let Some(mut applied) = applied else { return Ok(None) };
            let (found, rooms) = settle(draws, by.mode(), can_ask_again, &mut applied);
            let wants = self.pools.learn(draws, &found, applied.decided_at);
            if found.again {
                continue;
            }
            if !wants.is_empty() {
                // Whether it is known or not, the call is decided.
                let _ = self.store.apply(&wants, Mode::Force).await;
            }
            return Ok(Some((applied, rooms)));
        }
    }
}
