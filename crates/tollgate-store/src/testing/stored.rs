//! The stored bytes of two Redis servers, compared: the fast path must store the same as the general script.

use redis::Connection;

use super::RedisServer;
use crate::redis::layout::{
    AMOUNT, ASIDE, CALENDAR, COLUMN, GROUP, HEAD, LIFE, LOG_FIELDS, LOGS, NO_ENTRIES, NOTICED, PREVIOUS, SLIDING,
    STATICS_FRONT, STATICS_RING, VERSION, entry_format_bytes, size_of,
};

/// Reads every value under keys that match a pattern: the bytes of strings, and the dump of anything else.
const READ_ALL: &str = "
local keys, found = redis.call('KEYS', ARGV[1]), {}
table.sort(keys)
for _, key in ipairs(keys) do
  local is_string = redis.call('TYPE', key).ok == 'string'
  found[#found + 1] = { key, redis.call(is_string and 'GET' or 'DUMP', key) }
end
return found";

/// The stored values of the servers of the fast path and of the general script.
pub struct StoredValues {
    fast: Connection,
    general: Connection,
}

impl StoredValues {
    /// Connects to the servers.
    pub fn of(fast: &RedisServer, general: &RedisServer) -> Self {
        Self { fast: fast.connection(), general: general.connection() }
    }

    /// Compares all values under keys that begin with `prefix`, and returns how many there are.
    ///
    /// # Panics
    /// On the first value that is not the same on both.
    pub fn compare(&mut self, prefix: &str, place: &dyn Fn() -> String) -> usize {
        let (fast, general) = (read_all(&mut self.fast, prefix), read_all(&mut self.general, prefix));
        for ((fast_key, fast), (key, general)) in fast.iter().zip(&general) {
            assert_eq!(fast_key, key, "a key exists on one path only, after {}", place());
            let difference = fast.iter().zip(general).position(|(one, other)| one != other);
            assert!(
                fast == general,
                "{key} differs at byte {difference:?} after {}\n fast path: {fast:?}\n general:   {general:?}",
                place()
            );
        }
        assert_eq!(fast.len(), general.len(), "a path left more keys, after {}", place());
        fast.len()
    }
}

fn read_all(redis: &mut Connection, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> =
        redis::cmd("EVAL").arg(READ_ALL).arg(0).arg(format!("{prefix}*")).query(redis).expect("the values");
    for (_, value) in &mut all {
        // A record begins with another byte.
        if value.first() == Some(&VERSION) {
            clear_unused_group(value);
        }
    }
    all
}

/// Overwrites with zeros the one part of a counter's value that may differ: in each sliding log, the header's copy of
/// the oldest entry's group, while that group is the pending one or the log is empty. The copy is not read then, and
/// each path leaves the group there that it read last: the fast path the last group that it passed, the general script
/// an older one.
fn clear_unused_group(value: &mut [u8]) {
    let number = |at: usize, size: usize| {
        value[at..at + size].iter().rev().fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte))
    };
    let (shape, fields_format, statics_format) = (number(3, 2), number(5, 2), number(7, 2));
    let mut at = size_of(HEAD) + shape + fields_format;
    let logs = number(at, size_of(LOGS));
    at += size_of(LOGS);
    let mut statics = Vec::new();
    for _ in 0..logs {
        let (kind, columns) = (number(at, 1), number(at + 1, 1));
        at += size_of(STATICS_FRONT) + size_of(STATICS_RING);
        statics.push((kind, columns, number(at - 1, 1)));
        at += if kind == usize::from(SLIDING) { entry_format_bytes(columns) } else { NO_ENTRIES.len() }
            + size_of(COLUMN) * columns;
    }
    at += size_of(LIFE);
    let mut unused = Vec::new();
    for (kind, columns, size) in statics {
        let (oldest, entries) = (number(at, 6), number(at + 6, 2));
        at += size_of(LOG_FIELDS) + size_of(AMOUNT) * columns;
        if kind == usize::from(CALENDAR) {
            at += size_of(PREVIOUS) + size_of(AMOUNT) * columns;
        } else if kind > usize::from(ASIDE) {
            at += size_of(NOTICED);
        } else {
            at += size_of(AMOUNT) * columns + (GROUP - 1) * size;
            if entries == 0 || oldest >= (oldest + entries - 1) / GROUP * GROUP {
                unused.push(at..at + GROUP * size);
            }
            at += GROUP * size;
        }
    }
    assert_eq!(at + statics_format, number(1, 2), "the header of a counter");
    for range in unused {
        value[range].fill(0);
    }
}
