//! Memory and descriptors of nodes, which must not grow with their run time.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::harness::Process;

/// Interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// A reload or a probe may be in progress at a sample.
const MAX_MORE_DESCRIPTORS: i64 = 2;
/// Growth that the allocator may cause. A leak of 50 bytes per call exceeds it within ten minutes.
const MAX_MORE_MEMORY_KB: i64 = 2 * 1024;

/// Memory and descriptors in use, the maximum over all nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ResourceUsage {
    memory_kb: u64,
    descriptors: usize,
}

/// The difference between two samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResourceGrowth {
    memory_kb: i64,
    descriptors: i64,
}

impl ResourceUsage {
    /// The maximum over the nodes that are alive.
    pub(super) fn largest_of(nodes: &[Process]) -> Self {
        let usage_of = |node: &Process| Self {
            memory_kb: node.resident_bytes().unwrap_or(0) / 1024,
            descriptors: node.descriptors().unwrap_or(0),
        };
        nodes.iter().map(usage_of).fold(Self::default(), Self::max)
    }

    fn max(self, other: Self) -> Self {
        Self { memory_kb: self.memory_kb.max(other.memory_kb), descriptors: self.descriptors.max(other.descriptors) }
    }

    pub(super) fn growth_since(self, before: Self) -> ResourceGrowth {
        let more = |now: u64, before: u64| i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(0);
        ResourceGrowth {
            memory_kb: more(self.memory_kb, before.memory_kb),
            descriptors: more(self.descriptors as u64, before.descriptors as u64),
        }
    }
}

impl ResourceGrowth {
    /// Bounds for a case in which all connections may be replaced, also by connections to other servers.
    pub(super) fn check(self, what: impl fmt::Display) {
        assert!(self.memory_kb < 16 * 1024, "memory grows: {what}");
        assert!(self.descriptors <= 8, "descriptors grow: {what}");
    }
}

impl fmt::Display for ResourceGrowth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+} KB, {:+}", self.memory_kb, self.descriptors)
    }
}

/// Samples the nodes for this long, and asserts that no node uses more memory or descriptors in the last third than in
/// the first.
pub(super) async fn check_steady_resources(nodes: &[Process], during: Duration) {
    let started = Instant::now();
    let mut most = vec![[ResourceUsage::default(); 3]; nodes.len()];
    while started.elapsed() < during {
        let third = (3 * started.elapsed().as_millis() / during.as_millis()).min(2) as usize;
        for (node, most) in nodes.iter().zip(&mut most) {
            most[third] = most[third].max(ResourceUsage::largest_of(std::slice::from_ref(node)));
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
    for [first, _, last] in &most {
        let growth = last.growth_since(*first);
        assert!(
            first.descriptors > 10 && growth.descriptors <= MAX_MORE_DESCRIPTORS,
            "descriptors in each third: {most:?}"
        );
        assert!(first.memory_kb > 1024 && growth.memory_kb <= MAX_MORE_MEMORY_KB, "memory in each third: {most:?}");
    }
    println!("what the nodes held in each third: {most:?}");
}
