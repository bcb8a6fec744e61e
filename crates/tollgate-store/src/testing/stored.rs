//! What two Redis servers store, compared byte by byte: the fast path must leave what the general script leaves.

use redis::Connection;

use super::RedisServer;

/// Reads every value under keys that match a pattern: the bytes of strings, and the dump of anything else.
const READ_ALL: &str = "
local keys, found = redis.call('KEYS', ARGV[1]), {}
table.sort(keys)
for _, key in ipairs(keys) do
  local is_string = redis.call('TYPE', key).ok == 'string'
  found[#found + 1] = { key, redis.call(is_string and 'GET' or 'DUMP', key) }
end
return found";

/// The layout's version, with which the value of a counter begins. Records begin with other bytes.
const COUNTER_VERSION: u8 = 3;

/// What the servers of the fast path and of the general script store.
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
        if value.first() == Some(&COUNTER_VERSION) {
            clear_unused_group(value);
        }
    }
    all
}

/// Overwrites with zeros the one part of a counter's value that may differ: in each sliding log, the header's copy of the
/// group of the oldest entry, while that group is the pending one or the log is empty. Nobody reads the copy then, and
/// each path leaves in it what it read last: the fast path the last group that it passed, the general script an older one.
fn clear_unused_group(value: &mut [u8]) {
    let number = |at: usize, size: usize| {
        value[at..at + size].iter().rev().fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte))
    };
    let (shape, fields_format, statics_format) = (number(3, 2), number(5, 2), number(7, 2));
    let mut at = 9 + shape + fields_format;
    let mut logs = Vec::new();
    at += 1;
    for _ in 0..number(at - 1, 1) {
        let (is_sliding, columns, size) = (number(at, 1) == 1, number(at + 1, 1), number(at + 13, 1));
        logs.push((is_sliding, columns, size));
        at += 14 + if is_sliding { 3 + 2 * columns } else { 1 } + 5 * columns;
    }
    at += 6;
    let mut unused = Vec::new();
    for (is_sliding, columns, size) in logs {
        let (oldest, entries) = (number(at, 6), number(at + 6, 2));
        at += 20 + 7 * columns;
        if is_sliding {
            at += 7 * columns + 3 * size;
            let next = oldest + entries;
            if entries == 0 || oldest >= (next - 1) / 4 * 4 {
                unused.push(at..at + 4 * size);
            }
            at += 4 * size;
        }
    }
    assert_eq!(at + statics_format, number(1, 2), "the header of a counter");
    for range in unused {
        value[range].fill(0);
    }
}
