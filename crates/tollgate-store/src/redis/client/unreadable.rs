//! The log of counters and records that cannot be read: their keys, at most one line per second.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// The shortest time between two lines, in milliseconds.
const APART_MS: u64 = 1_000;
/// The most keys in a line, and the most bytes of each.
const MAX_KEYS: usize = 4;
const MAX_KEY_BYTES: usize = 128;

/// Logs the keys of calls that failed because of their values. Calls that fail between two lines are only counted.
pub(super) struct UnreadableLog {
    started: Instant,
    /// When the next line may be written, in milliseconds from the start.
    next_ms: AtomicU64,
    left_out: AtomicU64,
}

impl UnreadableLog {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), next_ms: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Logs a call with these keys, one of which has an unreadable value; or counts it.
    pub(super) fn write<'a>(&self, keys: impl Iterator<Item = &'a [u8]>, error: &str) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = self.next_ms.load(Ordering::Relaxed);
        let is_due = now >= next;
        let later = now.saturating_add(APART_MS);
        if !is_due || self.next_ms.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let keys: Vec<String> = keys.take(MAX_KEYS).map(shown).collect();
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        tracing::warn!(keys = keys.join(" "), error, left_out, "a counter or a record cannot be read");
    }
}

/// A key as printable ASCII of bounded length.
fn shown(key: &[u8]) -> String {
    let cut = &key[..key.len().min(MAX_KEY_BYTES)];
    cut.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_as_bounded_ascii() {
        assert_eq!(shown(b"tg{a-_}b"), "tg{a-_}b");
        assert_eq!(shown(&[b'a', 0x80, b'\n', b' ']), "a???");
        assert_eq!(shown(&[b'k'; 1_000]).len(), MAX_KEY_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn one_line_a_second() {
        let log = UnreadableLog::new();
        let write = || log.write([&b"key"[..]].into_iter(), "bad");
        (0..100).for_each(|_| write());
        assert_eq!(log.left_out.load(Ordering::Relaxed), 99);
        tokio::time::advance(std::time::Duration::from_millis(APART_MS)).await;
        write();
        assert_eq!(log.left_out.load(Ordering::Relaxed), 0);
    }
}
