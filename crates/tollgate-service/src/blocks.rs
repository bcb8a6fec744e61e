//! The node's own knowledge of abuse: how addresses are counted, and which blocks are active.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tollgate_core::{claim::LedgerKey, time::Timestamp};

/// The maximum number of blocks that a node remembers; the store knows all of them.
const MAX_BLOCKS: usize = 16_384;
/// How long a full memory is not searched for blocks that are over.
const SEARCH_EVERY_MS: u64 = 1_000;

/// The address that a client is counted by: an IPv4 address by itself, an IPv6 address with all others of its /64, which
/// is the least that one customer has.
pub fn customer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// The name under which a client address is counted.
pub fn counted_address(address: IpAddr) -> String {
    match customer_of(address) {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(network) => format!("{network}/64"),
    }
}

/// Blocks that are known to be active, so that a flood from a blocked address does not reach the store. An address may
/// be blocked without being known here.
#[derive(Default)]
pub struct KnownBlocks {
    known: AtomicUsize,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// When a block was heard of, and until when it lasts, by the node's clock.
    on: HashMap<LedgerKey, (Timestamp, Timestamp)>,
    searched_at: Timestamp,
}

impl KnownBlocks {
    /// Remembers a block that lasts `ms` more from `now` on.
    pub fn remember(&self, ledger: LedgerKey, now: Timestamp, ms: u64) {
        let mut blocks = self.blocks.lock();
        if blocks.on.len() >= MAX_BLOCKS && now.ms_since(blocks.searched_at) >= SEARCH_EVERY_MS {
            blocks.on.retain(|_, (since, until)| (*since..*until).contains(&now));
            blocks.searched_at = now;
        }
        if blocks.on.len() < MAX_BLOCKS || blocks.on.contains_key(&ledger) {
            blocks.on.insert(ledger, (now, now.plus_ms(ms)));
        }
        self.known.store(blocks.on.len(), Ordering::Relaxed);
    }

    /// When the block of `ledger` ends. If the clock went back, the remembered blocks are dropped.
    pub fn until(&self, ledger: impl FnOnce() -> Option<LedgerKey>, now: Timestamp) -> Option<Timestamp> {
        if self.known.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let ledger = ledger()?;
        let mut blocks = self.blocks.lock();
        let (since, until) = *blocks.on.get(&ledger)?;
        if (since..until).contains(&now) {
            return Some(until);
        }
        blocks.on.remove(&ledger);
        self.known.store(blocks.on.len(), Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use tollgate_core::claim::Partition;

    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(1_000_000 + ms)
    }

    fn ledger(number: usize) -> LedgerKey {
        LedgerKey::of(Partition::of(["test"]), [number.to_string().as_str()])
    }

    #[test]
    fn addresses_of_one_customer_count_together() {
        let counted = |text: &str| counted_address(text.parse().unwrap());
        assert_eq!(counted("192.0.2.7"), "192.0.2.7");
        assert_eq!(counted("::ffff:192.0.2.7"), "192.0.2.7", "the same address in another dress");
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(counted("2001:db8:1:2::"), counted("2001:db8:1:2:ffff::1"));
        assert_ne!(counted("2001:db8:1:2::1"), counted("2001:db8:1:3::1"));
    }

    #[test]
    fn a_block_is_known_until_it_ends() {
        let blocks = KnownBlocks::default();
        let until = |now| blocks.until(|| Some(ledger(1)), now);
        assert_eq!(until(at(0)), None);
        blocks.remember(ledger(1), at(0), 500);
        assert_eq!(until(at(499)), Some(at(500)));
        assert_eq!(blocks.until(|| Some(ledger(2)), at(1)), None);
        assert_eq!(until(at(500)), None);
        blocks.remember(ledger(1), at(0), 500);
        assert_eq!(until(Timestamp::from_ms(5)), None, "the clock went back");
    }

    #[test]
    fn the_memory_is_bounded_and_makes_room_for_what_is_on() {
        let blocks = KnownBlocks::default();
        (0..2 * MAX_BLOCKS).for_each(|number| blocks.remember(ledger(number), at(0), 2_000));
        assert_eq!(blocks.blocks.lock().on.len(), MAX_BLOCKS);
        assert_eq!(blocks.until(|| Some(ledger(2 * MAX_BLOCKS - 1)), at(1)), None);
        blocks.remember(ledger(2 * MAX_BLOCKS), at(2_000), 2_000);
        assert_eq!(blocks.until(|| Some(ledger(2 * MAX_BLOCKS)), at(2_001)), Some(at(4_000)));
        assert_eq!(blocks.blocks.lock().on.len(), 1);
    }
}
