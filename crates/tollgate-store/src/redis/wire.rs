//! Requests of `lua/apply.lua` and `lua/admit.lua`, and their replies. Their layouts are described there.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use redis::{Cmd, Value};
use smallvec::SmallVec;
use tollgate_core::{
    amount::Amount,
    claim::{ApplyResult, Claim, ClaimStatus, ClaimsDecision, Fit, LedgerKey, Mode, Partition},
    store::StoreError,
    time::Timestamp,
    window::WindowInstance,
};

use super::layout::{CALENDAR, NEVER, REQUEST, ROW, SLIDING, size_of};

/// The key of the names of a partition's caller-named ledgers.
const PLACES_KEY: &str = "o";
/// The error for a reply that the script cannot have sent.
pub(super) const UNREADABLE: &str = "the script's reply cannot be read";

/// The keys and the packed claims of one decision.
pub(super) struct Request {
    pub(super) keys: SmallVec<[String; 4]>,
    pub(super) packed: Vec<u8>,
    pub(super) ledgers: SmallVec<[LedgerKey; 4]>,
    pub(super) rows: SmallVec<[Row; 4]>,
    /// The claims on slots, by their index. They have no rows here.
    pub(super) on_slots: SmallVec<[usize; 2]>,
}

/// The index of a claim's row, and of an earlier row with the same counter.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) claim: usize,
    pub(super) ledger: u8,
    charge: u64,
    pub(super) same_as: Option<usize>,
}

impl Request {
    /// A request that does nothing outside `validity`.
    pub(super) fn within(prefix: &str, claims: &[Claim], mode: Mode, validity: Validity) -> Self {
        let mut ledgers: SmallVec<[LedgerKey; 4]> = SmallVec::new();
        let mut rows: SmallVec<[Row; 4]> = SmallVec::with_capacity(claims.len());
        let mut on_slots = SmallVec::new();
        for (at, claim) in claims.iter().enumerate() {
            if claim.span == WindowInstance::Slots {
                on_slots.push(at);
                continue;
            }
            let number = ledgers.iter().position(|known| *known == claim.ledger).unwrap_or_else(|| {
                ledgers.push(claim.ledger);
                ledgers.len() - 1
            });
            rows.push(Row {
                claim: at,
                ledger: u8::try_from(number + 1).unwrap_or(u8::MAX),
                charge: claim.charge().get(),
                same_as: None,
            });
        }
        // The script wants the rows of one window side by side, and columns are in the order of their units.
        let order = |row: &Row| (row.ledger, window_of(claims[row.claim].span), claims[row.claim].unit.get());
        if !rows.is_sorted_by_key(order) {
            rows.sort_by_key(order);
        }
        for at in 1..rows.len() {
            let (earlier, this) = rows.split_at_mut(at);
            let Some(this) = this.first_mut() else { continue };
            let claim = &claims[this.claim];
            let same = |row: &Row| {
                let other = &claims[row.claim];
                other.unit == claim.unit && other.ledger == claim.ledger && other.span == claim.span
            };
            if let Some(first) = earlier.iter().position(same) {
                earlier[first].charge = earlier[first].charge.max(this.charge);
                this.charge = 0;
                this.same_as = Some(first);
            }
        }
        let keys = ledgers.iter().map(|ledger| ledger_key(prefix, ledger)).collect();
        Self { keys, packed: pack(claims, &rows, mode, validity), ledgers, rows, on_slots }
    }

    /// The same, in partitions that may have so many caller-named ledgers.
    pub(super) fn with_places(mut self, prefix: &str, most: u32) -> Self {
        let Some(open) = self.ledgers.iter().find(|ledger| ledger.is_caller_named()) else { return self };
        self.keys.push(names_key(prefix, open.partition));
        let marks = self.ledgers.iter().enumerate().filter(|(_, ledger)| ledger.is_caller_named());
        let marks = marks.fold(0_u64, |marks, (at, _)| marks | 1 << at);
        self.packed.extend(most.to_le_bytes());
        self.packed.push(u8::try_from(self.keys.len()).unwrap_or(u8::MAX));
        self.packed.extend(marks.to_le_bytes());
        self
    }

    /// Reads the script's reply off the front.
    pub(super) fn read_reply(&self, rest: &mut &[u8]) -> Result<ApplyResult, StoreError> {
        let status = take(rest, 1).ok_or_else(unreadable)?;
        let decided_at = Timestamp::from_ms(take(rest, 6).ok_or_else(unreadable)?);
        if status == 2 {
            return Ok(ApplyResult::OutsidePeriod(decided_at));
        }
        let blank = ClaimStatus { used: Amount::ZERO, resets_at: decided_at, fit: Fit::Now };
        let claims = self.rows.len() + self.on_slots.len();
        let mut statuses: SmallVec<[ClaimStatus; 4]> = SmallVec::from_elem(blank, claims);
        for row in &self.rows {
            let mut status = read_status(rest).ok_or_else(unreadable)?;
            if let Some(first) = row.same_as {
                // Only the first row of a counter has the charged amount.
                let ClaimStatus { used, resets_at, .. } = statuses[self.rows[first].claim];
                status = ClaimStatus { used, resets_at, ..status };
            }
            statuses[row.claim] = status;
        }
        for claim in &self.on_slots {
            statuses[*claim] = read_status(rest).ok_or_else(unreadable)?;
        }
        Ok(ApplyResult::Applied(ClaimsDecision { decided_at, allowed: status == 1, statuses }))
    }
}

/// `EVALSHA hash …` or `EVAL code …`; `clock` is the tests' time.
pub(super) fn command(verb: &str, script: &str, keys: &[&[String]], args: &[&[u8]], clock: Option<u64>) -> Cmd {
    let number: usize = keys.iter().map(|keys| keys.len()).sum();
    let bytes: usize = args.iter().map(|arg| arg.len()).sum();
    let mut command = Cmd::with_capacity(4 + number + args.len(), 128 + script.len() + bytes);
    command.arg(verb).arg(script).arg(number);
    for key in keys.iter().copied().flatten() {
        command.arg(key.as_str());
    }
    for arg in args {
        command.arg(*arg);
    }
    if let Some(clock) = clock {
        command.arg(clock);
    }
    command
}

/// The bytes of a script's reply.
pub(super) fn bytes_of(reply: &Value) -> Result<&[u8], StoreError> {
    if let Value::BulkString(bytes) = reply { Ok(bytes) } else { Err(unreadable()) }
}

/// Orders windows: kind, then id.
pub(super) fn window_of(span: WindowInstance) -> (u8, u32) {
    match span {
        WindowInstance::Sliding(window) => (SLIDING, window.ms()),
        WindowInstance::Calendar { id, .. } => (CALENDAR, id),
        WindowInstance::Slots => (3, 0),
    }
}

/// The time in which all calendar periods of a call are the current ones, in ms.
#[derive(Clone, Copy)]
pub(super) struct Validity {
    from: u64,
    till: u64,
}

impl Validity {
    pub(super) fn of(claims: &[Claim]) -> Self {
        let mut validity = Self { from: 0, till: NEVER };
        for claim in claims {
            if let WindowInstance::Calendar { period, .. } = claim.span {
                validity.from = period.start.as_ms().max(validity.from);
                validity.till = period.end.as_ms().min(validity.till);
            }
        }
        validity
    }

    /// Whether there are no periods.
    pub(super) fn is_always(self) -> bool {
        (self.from, self.till) == (0, NEVER)
    }

    /// Appends start and end.
    pub(super) fn put(self, to: &mut Vec<u8>) {
        put::<6>(to, self.from);
        put::<6>(to, self.till);
    }
}

fn pack(claims: &[Claim], rows: &[Row], mode: Mode, validity: Validity) -> Vec<u8> {
    let mut packed = Vec::with_capacity(size_of(REQUEST) + rows.len() * size_of(ROW));
    packed.push(match mode {
        Mode::Try => 0,
        Mode::Force => 1,
        Mode::Peek => 2,
        Mode::Judge => 3,
    });
    validity.put(&mut packed);
    for row in rows {
        let claim = &claims[row.claim];
        let (kind, id) = window_of(claim.span);
        let (start, end) = match claim.span {
            WindowInstance::Sliding(_) | WindowInstance::Slots => (0, 0),
            WindowInstance::Calendar { period, .. } => (period.start.as_ms(), period.end.as_ms()),
        };
        packed.extend([row.ledger, kind]);
        packed.extend(id.to_le_bytes());
        put::<6>(&mut packed, start);
        put::<6>(&mut packed, end);
        packed.extend(claim.unit.get().to_le_bytes());
        put::<7>(&mut packed, claim.cost.get());
        put::<7>(&mut packed, row.charge);
        put::<7>(&mut packed, claim.limit.ceiling().get());
    }
    packed
}

/// Appends the low `N` bytes of a number, little endian.
pub(super) fn put<const N: usize>(to: &mut Vec<u8>, number: u64) {
    to.extend(number.to_le_bytes().into_iter().take(N));
}

/// The key of the names of a partition's caller-named ledgers.
pub(super) fn names_key(prefix: &str, partition: Partition) -> String {
    key_in(prefix, partition, PLACES_KEY, &[])
}

/// `tg{<partition>}<scope>`: all ledgers of a partition share a hash tag, and so a cluster slot.
pub(super) fn ledger_key(prefix: &str, ledger: &LedgerKey) -> String {
    key_in(prefix, ledger.partition, "", &ledger.scope_bytes())
}

/// A key in a partition: `kind` distinguishes it from keys of ledgers, which have none.
pub(super) fn key_in(prefix: &str, partition: Partition, kind: &str, name: &[u8]) -> String {
    let mut key = String::with_capacity(prefix.len() + 41);
    key.push_str(prefix);
    key.push('{');
    URL_SAFE_NO_PAD.encode_string(partition.bytes(), &mut key);
    key.push('}');
    key.push_str(kind);
    URL_SAFE_NO_PAD.encode_string(name, &mut key);
    key
}

/// Appends a status as [`read_status`] finds it.
pub(super) fn put_status(to: &mut Vec<u8>, status: &ClaimStatus) {
    put::<7>(to, status.used.get());
    put::<6>(to, status.resets_at.as_ms());
    put::<6>(
        to,
        match status.fit {
            Fit::Now => 0,
            Fit::Never => NEVER,
            Fit::At(at) => at.as_ms(),
        },
    );
}

pub(super) fn read_status(rest: &mut &[u8]) -> Option<ClaimStatus> {
    let used = Amount::try_from(take(rest, 7)?).ok()?;
    let resets_at = Timestamp::from_ms(take(rest, 6)?);
    let fit = match take(rest, 6)? {
        0 => Fit::Now,
        NEVER => Fit::Never,
        at => Fit::At(Timestamp::from_ms(at)),
    };
    Some(ClaimStatus { used, resets_at, fit })
}

pub(super) fn unreadable() -> StoreError {
    StoreError::Refused(UNREADABLE.into())
}

/// Takes a little-endian number of `size` bytes off the front.
pub(super) fn take(bytes: &mut &[u8], size: usize) -> Option<u64> {
    let (number, rest) = bytes.split_at_checked(size)?;
    *bytes = rest;
    Some(number.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}
