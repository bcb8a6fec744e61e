//! What nodes hold of their machine, which must not grow however long they run.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::harness::Process;

/// How often a node is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// A reload or a probe may just be under way.
const MAX_MORE_DESCRIPTORS: i64 = 2;
/// What an allocator may take more of. In ten minutes a call that leaves 50 bytes behind leaves more than that.
const MAX_MORE_MEMORY_KB: i64 = 2 * 1024;

/// What the nodes hold, by the largest of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ResourceUsage {
    memory_kb: u64,
    descriptors: usize,
}

/// How much more that is than it was before.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResourceGrowth {
    memory_kb: i64,
    descriptors: i64,
}

impl ResourceUsage {
    /// By the nodes that live.
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
    /// In a case that may make all connections anew, and make some to servers that were not in use before.
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

/// Lets time pass, in which no node may hold more, of descriptors or of memory, in the last third than in the first.
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
