//! The layout of everything that the scripts and this crate exchange through Redis, stated once. Rust uses these constants
//! directly; every script is rendered with them and with the places of [`add_to`]. `lua/README.md` shows them as tables.
//!
//! Formats are those of Lua's `struct`, little endian: `B` u8, `H` u16, `I4` u32, `I6` u48, `I7` u56, `c8` eight bytes.
//! Times are milliseconds.

use minijinja::{Environment, Value};

/// Declares constants, and lists them by name for the scripts.
macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $value:expr;)+) => {
        $($(#[$doc])* pub(crate) const $name: $kind = $value;)+

        fn constants() -> Vec<(&'static str, Value)> {
            vec![$((stringify!($name), Value::from($name))),+]
        }
    };
}

constants! {
    /// A window that trails the time.
    SLIDING: u8 = 1;
    /// A period of a calendar.
    CALENDAR: u8 = 2;
    /// Added to the kind of a log: what was set aside of it because the clock stepped back.
    ASIDE: u8 = 2;
    /// `fit` of a claim that no time will make fit; the largest u48.
    NEVER: u64 = (1 << 48) - 1;
    /// The largest amount.
    MAX_AMOUNT: u64 = tollgate_core::amount::MAX_AMOUNT;
    /// Entries of a sliding log up to which each event has its own.
    EXACT_ENTRIES: usize = tollgate_core::EXACT_ENTRIES;
    /// The most entries of a sliding log, and so the largest ring.
    MOST_ENTRIES: usize = tollgate_core::MOST_ENTRIES;

    // The value of a counter.

    /// Version of a counter's layout. No record begins with this byte.
    VERSION: u8 = 8;
    /// The largest number of entries that are known to be set aside.
    MOST_SET_ASIDE: u64 = tollgate_core::MOST_SET_ASIDE;
    /// Entries with the same `number / GROUP` are read and written together.
    GROUP: usize = 4;
    /// Entries with the same `number / BLOCK` share a line of the directory.
    BLOCK: usize = 64;
    /// Times in entries and lines are modulo this.
    TIME_RANGE: u64 = 1 << 32;
    /// Version, then the lengths of the header, the shape, the fields' format and the statics' format.
    HEAD: &str = "BHHHH";
    /// How many logs, in front of the shape and of the statics.
    LOGS: &str = "B";
    /// A log in the shape: kind, number of columns, id. Per column a [`UNIT`] follows.
    LOG_SHAPE: &str = "BBI4";
    /// The unit of a column.
    UNIT: &str = "I4";
    /// The statics of a log begin like its shape; then the index of its fields.
    STATICS_FRONT: &str = "BBI4B";
    /// They go on with its ring: capacity, offset, size of an entry. The format of an entry follows, as `c` and its length.
    STATICS_RING: &str = "HI4B";
    /// The statics of a column: unit, width of a cost.
    COLUMN: &str = "I4B";
    /// In front of the fields: until when the key lives.
    LIFE: &str = "I6";
    /// The fields of a log: number of the oldest entry, number of entries, time of the oldest, time of the latest
    /// (calendar: start of the period before, 0, start, end; set aside: number of the first entry, number of entries, start
    /// and end of the time in which it counts again). Per column an [`AMOUNT`] in the window follows.
    LOG_FIELDS: &str = "I6HI6I6";
    /// Behind them, of what was set aside: when the step was noticed.
    NOTICED: &str = "I6";
    /// Behind them, of a calendar, in one string: the end of the period before. Per column its [`AMOUNT`] follows.
    PREVIOUS: &str = "I6";
    /// An amount.
    AMOUNT: &str = "I7";
    /// An entry of a ring: its time. Per column a cost follows, of as many bytes as the column is wide.
    ENTRY: &str = "I4";
    /// A line of the directory: time of the block's last entry. Per column an [`AMOUNT`] follows.
    LINE: &str = "I4";
    /// How many bytes of a value are read at first: the header of two windows usually takes no more.
    HEADER_READ: usize = 400;
    /// No value is as large; larger ones are refused as corrupt.
    MAX_VALUE_BYTES: usize = 1 << 20;
    /// Rings of this capacity and more shrink ...
    SHRINK_FROM: usize = 64;
    /// ... when they hold less than one in so many.
    SHRINK_SHARE: usize = 8;
    /// A key lives longer than needed by the time that is needed, divided by this ...
    LIFE_SHARE: u64 = 8;
    /// ... and so many ms, so that most calls need not renew its life.
    LIFE_MORE: u64 = 1_000;

    // Requests and replies.

    /// A request: mode, start and end of the time in which it may be decided. Its [`ROW`]s follow.
    REQUEST: &str = "BI6I6";
    /// A claim: ledger, kind, id, start and end of the period, unit, cost, charge, limit.
    ROW: &str = "BBI4I6I6I4I7I7I7";
    /// Behind the rows, if there are caller-named ledgers: how many there may be, the set's key, a bit for each ledger.
    CALLER_NAMED: &str = "I4B";
    /// A reply: status, now. A [`STATUS`] for each row follows.
    REPLY: &str = "BI6";
    /// The status of a claim: used, when it is free again, when it fits.
    STATUS: &str = "I7I6I6";
    /// First byte of a reply that is an error, where calls share a run.
    ERROR: u8 = 255;

    // Records and slots.

    /// Version of a record's layout.
    RECORD_VERSION: u8 = 1;
    /// The largest record.
    MAX_RECORD_BYTES: usize = 65_536;
    /// The first bytes of a record: `4 * version + state`, since when and how long it is valid.
    RECORD: &str = "BI6I4";
    /// The records of a call: whether a reservation, its id and time to live; whether a request, its digest, its time
    /// to live, the claims' fingerprint; whether to return the charges; number of scopes of slots. [`SLOT_ROW`]s
    /// follow.
    ADMISSION: &str = "Bc16I4Bc16I4c8BB";
    /// A claim on slots: scope, cost, limit.
    SLOT_ROW: &str = "BI7I7";
    /// A member of a set of slots: the reservation's id, its time to live.
    SLOT: &str = "c16I4";
    /// Where a row was charged, and how much: number of the entry, amount.
    CHARGE: &str = "I6I7";
    /// In front of the [`REFUND`]s: the reservation's id, its number of scopes of slots.
    REFUNDS: &str = "c16B";
    /// A charge to give back: ledger, kind, id, unit, number of the entry, amount.
    REFUND: &str = "BBI4I4I6I7";
    /// Digits of an account's version, in front of its record.
    ACCOUNT_VERSION_DIGITS: usize = 16;
}

/// Bytes of a format.
pub(crate) const fn size_of(format: &str) -> usize {
    let (bytes, mut at, mut size) = (format.as_bytes(), 0, 0);
    while at < bytes.len() {
        let letter = bytes[at];
        let mut number = 0;
        at += 1;
        while at < bytes.len() && bytes[at].is_ascii_digit() {
            number = 10 * number + (bytes[at] - b'0') as usize;
            at += 1;
        }
        size += match letter {
            b'B' => 1,
            b'H' => 2,
            _ => number,
        };
    }
    size
}

/// Bytes of an entry's format: its time, and a letter and a digit for each column.
pub(crate) const fn entry_format_bytes(columns: usize) -> usize {
    1 + ENTRY.len() + 2 * columns
}

/// A calendar's log has this instead of an entry format.
pub(crate) const NO_ENTRIES: &str = "-";

/// In the array `h` of a counter that was read: the statics, the fields' format and offset, until when the key lives.
const COUNTER: [&str; 4] = ["STATICS", "FIELDS_FORMAT", "FIELDS_AT", "LIVES_UNTIL"];

/// In the array `g` of the statics: the index of the first log, after their number.
const FIRST_LOG: usize = 2;

/// The statics of a log, from `g[s]` on. Per column its unit and width follow.
const STATICS: [&str; 8] = ["kind", "columns", "id", "fields", "capacity", "ring", "size", "entry"];

/// The fields of a log, from `h[d]` on. The totals of its columns follow; then, for a sliding log, the costs of the latest
/// entry, the pending group without the latest, and the group of the oldest; for a calendar, the period before as a string;
/// for what was set aside, when the step was noticed.
const FIELDS: [&str; 4] = ["number", "count", "oldest", "latest"];

/// Adds the constants, `bytes(format)`, and the places of a counter's numbers in the arrays that the scripts read it into.
///
/// The places are Lua expressions over locals that every script names alike: `s`, where the statics of a log begin in `g`;
/// `d`, where its fields begin in `h`; `columns`, how many columns it has; and the column, which is given: `g[{{ capacity }}]`,
/// `h[{{ total('x') }}]`.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    for (name, value) in constants() {
        environment.add_global(name, value);
    }
    environment.add_global("NO_ENTRIES", NO_ENTRIES);
    environment.add_global("FIRST_LOG", FIRST_LOG);
    for (at, name) in (1..).zip(COUNTER) {
        environment.add_global(name, at);
    }
    for (base, names) in [("s", &STATICS[..]), ("d", &FIELDS)] {
        for (at, name) in names.iter().enumerate() {
            environment.add_global(*name, if at == 0 { base.to_owned() } else { format!("{base} + {at}") });
        }
    }
    environment.add_function("bytes", |format: &str| size_of(format));
    let (statics, fields) = (STATICS.len(), FIELDS.len());
    environment.add_function("unit", move |x: &str| format!("s + {} + 2 * {x}", statics - 2));
    environment.add_function("width", move |x: &str| format!("s + {} + 2 * {x}", statics - 1));
    environment.add_function("next_log", move |columns: &str| format!("s + {statics} + 2 * {columns}"));
    environment.add_function("total", move |x: &str| format!("d + {} + {x}", fields - 1));
    environment.add_function("held", move |x: &str| format!("d + {} + columns + {x}", fields - 1));
    environment.add_global("behind_totals", format!("d + {fields} + columns"));
    environment.add_global("before_latest", format!("d + {fields} + 2 * columns"));
    environment.add_global("oldest_group", format!("d + {} + 2 * columns", fields + 1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_formats() {
        assert_eq!(size_of(HEAD), 9);
        assert_eq!(size_of(ROW), 43);
        assert_eq!(size_of(ADMISSION), 52);
        assert_eq!(size_of("c012c016"), 28);
    }
}
