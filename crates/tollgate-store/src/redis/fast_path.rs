//! The fast path: `lua/fast_path.lua.jinja`, rendered for each form that calls have.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use minijinja::value::Serde;
use serde::Serialize;
use smallvec::SmallVec;
use tollgate_core::{
    amount::Amount,
    claim::{Claim, Effect, Mode},
    window::WindowInstance,
};

use super::{
    Script,
    layout::{
        AMOUNT, COLUMN, ENTRY, GROUP, HEAD, LIFE, LOG_FIELDS, LOG_SHAPE, LOGS, NO_ENTRIES, PREVIOUS, REPLY, SLIDING,
        STATICS_FRONT, STATICS_RING, STATUS, UNIT, entry_format_bytes, size_of,
    },
    templates,
    wire::{Request, Row, Validity, put, window_of},
};

/// The entries of a log that are in its fields: the pending group without the latest entry, and the group of the
/// oldest.
const ENTRIES_IN_FIELDS: usize = 2 * GROUP - 1;
/// Maximum number of entries that leave a log on the fast path; the general script is faster when more do.
const MOST_LEAVING: usize = 8;
/// Maximum number of forms whose scripts are kept; policies have a few each.
const MOST_FORMS: usize = 128;
/// Lua has room for 200 variables, of which a window takes up to 18 and a row 9.
const MOST_WINDOWS: usize = 4;
const MOST_ROWS: usize = 8;
const MOST_GUARDS: usize = 4;

/// The values that determine the text of the script.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Form {
    /// Per window that is charged its ledger, its kind, and its number of units.
    windows: SmallVec<[(u8, u8, u8); MOST_WINDOWS]>,
    /// Per ledger that the call is only judged by its number of claims.
    guards: SmallVec<[u8; MOST_GUARDS]>,
    /// Whether there are calendar periods in the call.
    calendars: bool,
}

/// A call that may take the fast path: its form, and the bytes that the script gets for it.
pub(super) struct FastPathRequest {
    form: Form,
    pub(super) payload: Vec<u8>,
}

impl FastPathRequest {
    /// The request of this call; `None` if the call cannot take the fast path. It can if it charges every counter that it
    /// names, each once, and any other claims only judge it, by counters that rarely exist.
    pub(super) fn of(claims: &[Claim], request: &Request, mode: Mode, validity: Validity) -> Option<Self> {
        let claim = |row: &Row| &claims[row.claim];
        let first_guard = request.rows.iter().position(|row| claim(row).effect == Effect::CheckOnly);
        let (charged, guards) = request.rows.split_at(first_guard.unwrap_or(request.rows.len()));
        let may_pass = |row: &Row| {
            let Claim { effect, span, cost, limit, .. } = claim(row);
            *effect == Effect::CheckOnly && matches!(span, WindowInstance::Sliding(_)) && *cost <= limit.ceiling()
        };
        if mode != Mode::Try
            || !request.on_slots.is_empty()
            || charged.len() > MOST_ROWS
            || guards.len() > MOST_GUARDS
            || !guards.iter().all(may_pass)
            || charged.iter().any(|row| row.same_as.is_some())
            || charged.last()?.ledger == guards.first().map_or(0, |row| row.ledger)
        {
            return None;
        }
        let window = |row: &Row| (row.ledger, window_of(claim(row).span));
        let windows = || charged.chunk_by(|a, b| window(a) == window(b));
        let mut form = Form { windows: SmallVec::new(), guards: SmallVec::new(), calendars: !validity.is_always() };
        let mut payload = Vec::with_capacity(24 + 40 * charged.len() + request.packed.len());
        for rows in windows() {
            let (ledger, (kind, id)) = window(&rows[0]);
            if form.windows.last().is_none_or(|(before, ..)| *before != ledger) {
                let logs = windows().filter(|rows| rows[0].ledger == ledger).count();
                payload.push(u8::try_from(logs).ok()?);
            }
            if form.windows.len() == MOST_WINDOWS || rows.iter().all(|row| claim(row).cost == Amount::ZERO) {
                return None;
            }
            let columns = u8::try_from(rows.len()).ok()?;
            form.windows.push((ledger, kind, columns));
            payload.extend([kind, columns]);
            payload.extend(id.to_le_bytes());
            payload.extend(rows.iter().flat_map(|row| claim(row).unit.get().to_le_bytes()));
        }
        form.guards
            .extend(guards.chunk_by(|a, b| a.ledger == b.ledger).filter_map(|rows| u8::try_from(rows.len()).ok()));
        if form.calendars {
            validity.put(&mut payload);
        }
        for rows in windows() {
            match claim(&rows[0]).span {
                WindowInstance::Sliding(window) => payload.extend(window.ms().to_le_bytes()),
                WindowInstance::Calendar { period, .. } => {
                    put::<6>(&mut payload, period.start.as_ms());
                    put::<6>(&mut payload, period.end.as_ms());
                }
                WindowInstance::Slots => return None,
            }
        }
        for claim in charged.iter().map(claim) {
            put::<7>(&mut payload, claim.cost.get());
            put::<7>(&mut payload, claim.limit.ceiling().get());
        }
        payload.extend_from_slice(&request.packed);
        Some(Self { form, payload })
    }
}

/// The scripts, one for each form that was met.
pub(super) struct FastPathScripts {
    /// The part before the fast path.
    front: String,
    /// The general script, which decides where the fast path cannot.
    apply: String,
    known: ArcSwap<HashMap<Form, Arc<Script>>>,
}

impl FastPathScripts {
    pub(super) fn new(front: String, apply: String) -> Self {
        Self { front, apply, known: ArcSwap::default() }
    }

    /// The script for a call; none if it has a form too many.
    pub(super) fn get(&self, request: &FastPathRequest) -> Option<Arc<Script>> {
        let known = self.known.load();
        if let Some(script) = known.get(&request.form) {
            return Some(Arc::clone(script));
        }
        if known.len() >= MOST_FORMS {
            return None;
        }
        let code = [&self.front, &*request.form.render(&self.apply).ok()?].concat();
        let script = Arc::new(Script::new(code));
        self.known.rcu(|known| {
            let mut more = HashMap::clone(known);
            more.insert(request.form.clone(), Arc::clone(&script));
            more
        });
        Some(script)
    }
}

/// The values that the template needs.
#[derive(Serialize)]
struct Context<'a> {
    ledgers: Vec<Ledger>,
    windows: Vec<Window>,
    /// The numbers of the rows that are charged.
    rows: Vec<usize>,
    /// The numbers of the keys of guards.
    guards: Vec<usize>,
    guard_rows: Vec<usize>,
    calendars: bool,
    /// The format of a call's payload, up to the request of the general script.
    payload_format: String,
    reply_format: String,
    /// Where the request of the general script begins, from 1.
    apply_at: usize,
    /// The general script.
    apply: &'a str,
    /// The part that makes plain text of errors.
    plain: &'a str,
    #[serde(rename = "MOST_LEAVING")]
    most_leaving: usize,
}

#[derive(Serialize)]
struct Ledger {
    n: u8,
    windows: Vec<Window>,
    /// Bytes of the shape.
    shape: usize,
    fields_at: usize,
    /// Where the fields end, as long as costs take two bytes each.
    usual_end: usize,
    /// The length of the parts after them.
    statics_format: usize,
    /// The format of the part before the fields.
    front: String,
}

#[derive(Clone, Serialize)]
struct Window {
    n: usize,
    ledger: u8,
    sliding: bool,
    rows: Vec<usize>,
}

impl Window {
    /// Bytes in the shape.
    fn shape(&self) -> usize {
        size_of(LOG_SHAPE) + size_of(UNIT) * self.rows.len()
    }

    /// Bytes of an entry's format.
    fn entry(&self) -> usize {
        if self.sliding { entry_format_bytes(self.rows.len()) } else { NO_ENTRIES.len() }
    }

    /// Bytes of the statics' format.
    fn statics_format(&self) -> usize {
        let front = STATICS_FRONT.len() + STATICS_RING.len() + "c".len();
        front + self.entry().to_string().len() + COLUMN.len() * self.rows.len()
    }

    /// Bytes of the statics.
    fn statics(&self) -> usize {
        let front = size_of(STATICS_FRONT) + size_of(STATICS_RING);
        front + self.entry() + size_of(COLUMN) * self.rows.len()
    }

    /// Bytes of the fields' format. The strings have three digits each.
    fn fields_format(&self) -> usize {
        let columns = AMOUNT.len() * self.rows.len();
        LOG_FIELDS.len() + columns + if self.sliding { columns + "c000c000".len() } else { "c000".len() }
    }

    /// Bytes of the fields, as long as costs take two bytes each.
    fn usual_fields(&self) -> usize {
        let (columns, entry) = (size_of(AMOUNT) * self.rows.len(), size_of(ENTRY) + 2 * self.rows.len());
        let rest = if self.sliding { columns + ENTRIES_IN_FIELDS * entry } else { size_of(PREVIOUS) + columns };
        size_of(LOG_FIELDS) + columns + rest
    }

    /// A format that reads the statics that the fast path needs: a sliding log's ring and its entry format.
    fn reads(&self) -> String {
        let columns = "x".repeat(size_of(COLUMN) * self.rows.len());
        if self.sliding {
            format!("{}{STATICS_RING}c{}{columns}", "x".repeat(size_of(STATICS_FRONT)), self.entry())
        } else {
            "x".repeat(self.statics())
        }
    }
}

impl Ledger {
    fn new(n: u8, windows: Vec<Window>) -> Self {
        let sum = |of: fn(&Window) -> usize| -> usize { windows.iter().map(of).sum() };
        let shape = size_of(LOGS) + sum(Window::shape);
        let fields_format = "<".len() + LIFE.len() + sum(Window::fields_format);
        let statics_format = "<".len() + LOGS.len() + sum(Window::statics_format);
        let fields_at = size_of(HEAD) + shape + fields_format + size_of(LOGS) + sum(Window::statics);
        let usual_end = fields_at + size_of(LIFE) + sum(Window::usual_fields);
        // Of the head it reads version and length of the header.
        let front =
            [format!("<BHxxxxxxc{shape}c{fields_format}x")].into_iter().chain(windows.iter().map(Window::reads));
        Self { n, shape, fields_at, usual_end, statics_format, front: front.collect(), windows }
    }
}

impl Form {
    fn render(&self, apply: &str) -> Result<String, minijinja::Error> {
        let mut ledgers: Vec<Ledger> = Vec::new();
        let (mut windows, mut rows) = (Vec::new(), 0);
        for (at, (ledger, kind, columns)) in self.windows.iter().enumerate() {
            let of_window = (rows + 1..=rows + usize::from(*columns)).collect();
            rows += usize::from(*columns);
            windows.push(Window { n: at + 1, ledger: *ledger, sliding: *kind == SLIDING, rows: of_window });
        }
        for of_ledger in windows.chunk_by(|a, b| a.ledger == b.ledger) {
            ledgers.push(Ledger::new(of_ledger[0].ledger, of_ledger.to_vec()));
        }
        let shapes: Vec<String> = ledgers.iter().map(|ledger| format!("c{}", ledger.shape)).collect();
        let spans: Vec<&str> = windows.iter().map(|window| if window.sliding { "I4" } else { "I6I6" }).collect();
        let period = if self.calendars { "I6I6" } else { "" };
        let payload_format = ["<", &shapes.concat(), period, &spans.concat(), &"I7I7".repeat(rows)].concat();
        let guard_rows: usize = self.guards.iter().map(|rows| usize::from(*rows)).sum();
        let guards: Vec<usize> = (ledgers.len() + 1..=ledgers.len() + self.guards.len()).collect();
        let reply_format = ["<", REPLY, &STATUS.repeat(rows + guard_rows)].concat();
        let plain = templates::part("plain.lua");
        let shapes: usize = ledgers.iter().map(|ledger| ledger.shape).sum();
        let spans: usize = windows.iter().map(|window| if window.sliding { 4 } else { 12 }).sum();
        let context = Context {
            apply_at: 1 + shapes + if self.calendars { 12 } else { 0 } + spans + 14 * rows,
            apply,
            plain,
            most_leaving: MOST_LEAVING,
            rows: (1..=rows).collect(),
            guard_rows: (0..guard_rows).collect(),
            calendars: self.calendars,
            ledgers,
            windows,
            guards,
            payload_format,
            reply_format,
        };
        let decide = templates::render("fast_path.lua.jinja", Serde(context))?;
        templates::render("together.lua.jinja", minijinja::context! { decide, plain })
    }
}
