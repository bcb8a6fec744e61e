//! Client addresses as they are counted, and the node's cache of their blocks.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tollgate_core::{claim::LedgerKey, time::Timestamp};

/// The maximum number of cached blocks; the store has all of them.
const MAX_BLOCKS: usize = 16_384;
/// The minimum interval between removals of ended blocks from a full cache.
const PRUNE_INTERVAL_MS: u64 = 1_000;

/// The network that a client is counted by: an IPv4 address, or the /64 of an IPv6 address, because a customer has at
/// least a /64.
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// The name of the network that a client is counted by.
pub fn client_network_name(address: IpAddr) -> String {
    match client_network(address) {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(network) => format!("{network}/64"),
    }
}

/// A cache of active blocks of addresses, so that a flood from a blocked address does not reach the store. It may lack
/// some blocks.
#[derive(Default)]
pub struct BlockCache {
    count: AtomicUsize,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// The start and the end of each block by the node's clock.
    active: HashMap<LedgerKey, (Timestamp, Timestamp)>,
    pruned_at: Timestamp,
}

impl BlockCache {
    /// Adds a block that ends `ms` after `now`.
    pub fn insert(&self, ledger: LedgerKey, now: Timestamp, ms: u64) {
        let mut blocks = self.blocks.lock();
        if blocks.active.len() >= MAX_BLOCKS && now.ms_since(blocks.pruned_at) >= PRUNE_INTERVAL_MS {
            blocks.active.retain(|_, (start, end)| (*start..*end).contains(&now));
            blocks.pruned_at = now;
        }
        if blocks.active.len() < MAX_BLOCKS || blocks.active.contains_key(&ledger) {
            blocks.active.insert(ledger, (now, now.plus_ms(ms)));
        }
        self.count.store(blocks.active.len(), Ordering::Relaxed);
    }

    /// When the block of `ledger` ends. A block that starts after `now` is removed, because the clock went back.
    pub fn block_end(&self, ledger: impl FnOnce() -> Option<LedgerKey>, now: Timestamp) -> Option<Timestamp> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let ledger = ledger()?;
        let mut blocks = self.blocks.lock();
        let (start, end) = *blocks.active.get(&ledger)?;
        if (start..end).contains(&now) {
            return Some(end);
        }
        blocks.active.remove(&ledger);
        self.count.store(blocks.active.len(), Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use tollgate_core::claim::Partition;

    use super::*;

    fn time(ms: u64) -> Timestamp {
        Timestamp::from_ms(1_000_000 + ms)
    }

    fn ledger(number: usize) -> LedgerKey {
        LedgerKey::of(Partition::of(["test"]), [number.to_string().as_str()])
    }

    #[test]
    fn addresses_of_one_network_are_counted_together() {
        let network = |text: &str| client_network_name(text.parse().unwrap());
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7", "an IPv4-mapped address");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(network("2001:db8:1:2::"), network("2001:db8:1:2:ffff::1"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
    }

    #[test]
    fn a_block_is_cached_until_it_ends() {
        let blocks = BlockCache::default();
        let end = |now| blocks.block_end(|| Some(ledger(1)), now);
        assert_eq!(end(time(0)), None);
        blocks.insert(ledger(1), time(0), 500);
        assert_eq!(end(time(499)), Some(time(500)));
        assert_eq!(blocks.block_end(|| Some(ledger(2)), time(1)), None);
        assert_eq!(end(time(500)), None);
        blocks.insert(ledger(1), time(0), 500);
        assert_eq!(end(Timestamp::from_ms(5)), None, "the clock went back");
    }

    #[test]
    fn a_full_cache_removes_ended_blocks() {
        let blocks = BlockCache::default();
        (0..2 * MAX_BLOCKS).for_each(|number| blocks.insert(ledger(number), time(0), 2_000));
        assert_eq!(blocks.blocks.lock().active.len(), MAX_BLOCKS);
        assert_eq!(blocks.block_end(|| Some(ledger(2 * MAX_BLOCKS - 1)), time(1)), None);
        blocks.insert(ledger(2 * MAX_BLOCKS), time(2_000), 2_000);
        assert_eq!(blocks.block_end(|| Some(ledger(2 * MAX_BLOCKS)), time(2_001)), Some(time(4_000)));
        assert_eq!(blocks.blocks.lock().active.len(), 1);
    }
}
