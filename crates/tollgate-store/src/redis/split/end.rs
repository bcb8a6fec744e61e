//! How a reservation over several slots ends, or lives on: part by part, the home last.

use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;
use tollgate_core::{
    amount::Amount,
    claim::{Charge, Claim, Partition, ReservationId},
    reservation::{CloseRequest, CloseResult, Extension, Reservation},
    store::StoreError,
};

use super::half_done;
use crate::redis::{RedisStore, records::RefundedAmounts};

/// Ends a reservation. The first of the other parts, in a fixed order, decides between ends at the same time. A part
/// whose record has expired keeps its charges.
pub(in crate::redis) async fn close(
    store: &RedisStore,
    home: Partition,
    id: ReservationId,
    closing: &CloseRequest<'_>,
    deadline: Instant,
) -> Result<CloseResult, StoreError> {
    let mut returned = RefundedAmounts::new();
    let others = others(closing.reservation, home);
    let (first, rest) = others.split_at(others.len().min(1));
    for (turn, together) in [first, rest].into_iter().enumerate() {
        let ends = together.iter().map(async |partition| {
            let part = Part::of(*partition, closing);
            let closure =
                store.close_at_once(*partition, id, &part.closing(closing), &RefundedAmounts::new(), deadline).await;
            (part.places, closure)
        });
        for (places, closure) in join_all(ends).await {
            let of_part = match closure.map_err(|error| if turn == 0 { error } else { half_done(error) })? {
                CloseResult::Done(closed) | CloseResult::Before(closed) if closed.digest == closing.digest => {
                    closed.refunded
                }
                CloseResult::Unknown => vec![Amount::ZERO; places.len()],
                instead => return Ok(instead),
            };
            returned.extend(places.into_iter().zip(of_part));
        }
    }
    returned.sort_unstable_by_key(|(place, _)| *place);
    let part = Part::of(home, closing);
    let closed = store.close_at_once(home, id, &part.closing(closing), &returned, deadline).await;
    closed.map_err(|error| if others.is_empty() { error } else { half_done(error) })
}

/// Lets a reservation live on.
pub(in crate::redis) async fn extend(
    store: &RedisStore,
    home: Partition,
    id: ReservationId,
    ttl_ms: u32,
    reservation: &Reservation,
    deadline: Instant,
) -> Result<Extension, StoreError> {
    let extend = async |partition: Partition| {
        store.extend_at_once(partition, id, ttl_ms, &slots_in(partition, reservation), deadline).await
    };
    let others = others(reservation, home);
    try_join_all(others.iter().map(|partition| extend(*partition))).await.map_err(half_done)?;
    extend(home).await.map_err(|error| if others.is_empty() { error } else { half_done(error) })
}

/// The parts of a reservation besides its home.
fn others(reservation: &Reservation, home: Partition) -> Vec<Partition> {
    let charged = reservation.charges.iter().map(|charge| charge.ledger);
    let all = charged.chain(reservation.slots.iter().copied()).map(|ledger| ledger.partition);
    let mut others: Vec<Partition> = all.filter(|partition| *partition != home).collect();
    others.sort_unstable();
    others.dedup();
    others
}

/// The work in one partition at the end.
struct Part {
    /// For each refund its place among all of them.
    places: Vec<usize>,
    refunds: Vec<Charge>,
    debts: Vec<Claim>,
    reservation: Reservation,
}

impl Part {
    fn of(partition: Partition, whole: &CloseRequest<'_>) -> Self {
        let refunds = whole.refunds.iter().enumerate().filter(|(_, charge)| charge.ledger.partition == partition);
        let (places, refunds) = refunds.map(|(place, charge)| (place, *charge)).unzip();
        let debts = whole.debts.iter().filter(|claim| claim.ledger.partition == partition).copied().collect();
        Self { places, refunds, debts, reservation: slots_in(partition, whole.reservation) }
    }

    fn closing<'a>(&'a self, whole: &CloseRequest<'a>) -> CloseRequest<'a> {
        CloseRequest { refunds: &self.refunds, debts: &self.debts, reservation: &self.reservation, ..*whole }
    }
}

/// A reservation's slots in one partition.
fn slots_in(partition: Partition, whole: &Reservation) -> Reservation {
    let slots = whole.slots.iter().filter(|scope| scope.partition == partition).copied().collect();
    Reservation { slots, ..Reservation::default() }
}
