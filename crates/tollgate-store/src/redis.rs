//! Counters in Redis, shared by any number of nodes.

mod admit;
mod batch;
mod client;
mod doctor;
mod fast_path;
pub(crate) mod layout;
mod records;
pub(crate) mod scripts;
mod split;
mod templates;
mod verdict;
mod wire;

use std::sync::Arc;

use redis::Value;
use tokio::time::Instant;
use tollgate_core::{
    admission::claims_fingerprint,
    claim::{ApplyResult, Charge, Claim, LedgerKey, Mode, Partition, ReservationId},
    reservation::{Admission, AdmitOptions, CloseRequest, CloseResult, Extension, Reservation, ReservationState},
    store::{AnswerFuture, HealthFuture, Store, StoreError, StoreFuture},
    window::WindowInstance,
};

pub(crate) use self::client::{Durability, Script};
use self::{
    admit::{Admit, AdmitReply, AdmitRequest},
    batch::{BatchedCall, Batches},
    fast_path::FastPathRequest,
    records::{Close, OtherPartitions, RefundedAmounts},
    scripts::Scripts,
    wire::{Request, Validity},
};
pub use self::{
    client::{Fault, RedisClient, RedisClientStatus, RedisConfig, RedisTls, prefer_connection},
    doctor::{Finding, Severity, examine},
};

/// The most ledgers that one run of a script removes.
const MAX_RESET: usize = 250;

/// A store in Redis. One decision is one `EVALSHA` in one round trip over a [`RedisClient`], and so is every other
/// operation; an operation over several slots of a Redis Cluster takes one for each slot. Clones share everything.
#[derive(Clone)]
pub struct RedisStore {
    link: RedisClient,
    scripts: Arc<Scripts>,
    batches: Arc<Batches>,
    clock: Option<InjectedClock>,
    /// Whether calls may take the fast path; only tests decide all by the general script.
    fast_path: bool,
}

type InjectedClock = Arc<dyn Fn() -> tollgate_core::time::Timestamp + Send + Sync>;

impl RedisStore {
    /// A store at `config.url`. Does not wait for the server: it need not be there yet.
    ///
    /// Must be called within a Tokio runtime.
    pub fn connect(config: RedisConfig) -> Result<Self, StoreError> {
        Ok(Self::on(RedisClient::open(config)?))
    }

    /// A store at the other end of `link`, which others may use too.
    ///
    /// Must be called within a Tokio runtime that keeps running: calls from threads without a runtime of their own are
    /// sent by a task on this one.
    pub fn on(link: RedisClient) -> Self {
        Self::behind(templates::part("clock.lua"), link, None)
    }

    fn behind(clock: &str, link: RedisClient, injected: Option<InjectedClock>) -> Self {
        let batches = Arc::new(Batches::new(&link));
        Self { link, scripts: Arc::new(Scripts::behind(clock)), batches, clock: injected, fast_path: true }
    }

    /// A store whose scripts take the time from `clock` instead of Redis, for tests.
    #[cfg(feature = "testing")]
    pub fn with_injected_clock(config: RedisConfig, clock: impl crate::clock::Clock) -> Result<Self, StoreError> {
        Ok(Self::behind(
            templates::part("clock_injected.lua"),
            RedisClient::open(config)?,
            Some(Arc::new(move || clock.now())),
        ))
    }

    /// A store whose scripts have another text, and so another SHA, as those of another version have; for tests.
    #[cfg(feature = "testing")]
    pub fn with_other_text(config: RedisConfig) -> Result<Self, StoreError> {
        Ok(Self::behind(
            &["-- Another version.\n", templates::part("clock.lua")].concat(),
            RedisClient::open(config)?,
            None,
        ))
    }

    /// The same store, which decides every call by the general script, for tests.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn without_fast_path(mut self) -> Self {
        self.fast_path = false;
        self
    }

    /// The way to Redis.
    pub fn link(&self) -> &RedisClient {
        &self.link
    }

    /// Applies claims that one script reaches.
    async fn apply_at_once(&self, claims: &[Claim], mode: Mode, bounds: Bounds) -> Result<ApplyResult, StoreError> {
        if claims.iter().any(|claim| claim.span == WindowInstance::Slots) {
            let elsewhere = &OtherPartitions::default();
            let validity = bounds.validity;
            let ask = AdmitRequest { claims, mode, validity, terms: None, shape: 0, tells: false, elsewhere };
            return Box::pin(self.ask(ask, bounds.deadline)).await?.into_answer().ok_or_else(wire::unreadable);
        }
        let mut request = self.request(claims, mode, bounds.validity);
        let fast = if self.fast_path { FastPathRequest::of(claims, &request, mode, bounds.validity) } else { None };
        if let Some((script, payload)) = fast.and_then(|fast| Some((self.scripts.fast_path.get(&fast)?, fast.payload)))
        {
            let slot = self.link.is_cluster().then(|| claims.first().map(|claim| claim.ledger.partition)).flatten();
            let keys = std::mem::take(&mut request.keys);
            let injected_ms = self.injected_ms();
            let call = BatchedCall { script, keys, slot, payload, deadline: bounds.deadline, injected_ms };
            let reply = self.batches.decide(&self.link, call).await?;
            let answer = request.read_reply(&mut &*reply);
            return answer.inspect_err(|error| {
                let prefix = self.link.key_prefix();
                let keys: Vec<String> = request.ledgers.iter().map(|ledger| wire::ledger_key(prefix, ledger)).collect();
                self.link.log_unreadable(&[&keys], &error.to_string());
            });
        }
        let (keys, args) = (&[&*request.keys], &[&*request.packed]);
        let reply = self.script(&self.scripts.apply, writes_by(mode), keys, args, bounds.deadline).await?;
        self.read(keys, wire::bytes_of(&reply).and_then(|mut reply| request.read_reply(&mut reply)))
    }

    /// The request to a deciding script.
    fn request(&self, claims: &[Claim], mode: Mode, validity: Validity) -> Request {
        let prefix = self.link.key_prefix();
        Request::within(prefix, claims, mode, validity).with_places(prefix, self.link.max_caller_named())
    }

    /// Runs the admission script.
    async fn ask(&self, ask: AdmitRequest<'_>, deadline: Instant) -> Result<AdmitReply, StoreError> {
        let writes = writes_by(ask.mode);
        let request = self.request(ask.claims, ask.mode, ask.validity);
        let admit = Admit::new(self.link.key_prefix(), ask, request);
        let reply = self.script(&self.scripts.admit, writes, &admit.keys(), &admit.args(), deadline).await?;
        self.read(&admit.keys(), wire::bytes_of(&reply).and_then(|reply| admit.read_reply(reply)))
    }

    /// Closes the record of a reservation in one partition, and its charges and slots there.
    async fn close_at_once(
        &self,
        home: Partition,
        id: ReservationId,
        closing: &CloseRequest<'_>,
        elsewhere: &RefundedAmounts,
        deadline: Instant,
    ) -> Result<CloseResult, StoreError> {
        let close = Close::new(self.link.key_prefix(), home, id, closing, elsewhere);
        let reply =
            self.script(&self.scripts.close, Durability::Charge, &close.keys(), &close.args(), deadline).await?;
        self.read(&close.keys(), wire::bytes_of(&reply).and_then(records::read_closure))
    }

    /// Gives back charges that are part of no reservation. Not to be done twice.
    async fn refund(&self, charges: &[Charge], deadline: Instant) -> Result<(), StoreError> {
        let (keys, packed) = records::refund(self.link.key_prefix(), charges);
        self.script(&self.scripts.refund, Durability::Charge, &[&keys], &[b"", &packed], deadline).await.map(drop)
    }

    /// Extends the record of a reservation in one partition, and the slots that it holds there.
    async fn extend_at_once(
        &self,
        home: Partition,
        id: ReservationId,
        ttl_ms: u32,
        reservation: &Reservation,
        deadline: Instant,
    ) -> Result<Extension, StoreError> {
        let prefix = self.link.key_prefix();
        let record = [records::reservation_key(prefix, home, id)];
        let slots: Vec<String> = reservation.slots.iter().map(|scope| records::slots_key(prefix, scope)).collect();
        let terms = [id.0.as_slice(), &ttl_ms.to_le_bytes()].concat();
        let reply =
            self.script(&self.scripts.extend, Durability::Charge, &[&record, &slots], &[&terms], deadline).await?;
        self.read(&[&record], wire::bytes_of(&reply).and_then(records::read_extension))
    }

    /// Returns the decoded reply; if it cannot be decoded, the keys are logged.
    fn read<T>(&self, keys: &[&[String]], read: Result<T, StoreError>) -> Result<T, StoreError> {
        read.inspect_err(|error| self.link.log_unreadable(keys, &error.to_string()))
    }

    async fn script(
        &self,
        script: &Script,
        writes: Durability,
        keys: &[&[String]],
        args: &[&[u8]],
        deadline: Instant,
    ) -> Result<Value, StoreError> {
        let injected_ms = self.injected_ms();
        self.link
            .script_until(deadline, script, writes, |verb, script| wire::command(verb, script, keys, args, injected_ms))
            .await
    }

    /// The time that a script uses instead of the clock, in tests. It is read when the call is made, like the clock of
    /// the specification, and not when the script is sent: a test may have moved the clock in between.
    fn injected_ms(&self) -> Option<u64> {
        self.clock.as_ref().map(|clock| clock().as_ms())
    }
}

fn writes_by(mode: Mode) -> Durability {
    match mode {
        Mode::Try | Mode::Force => Durability::Charge,
        Mode::Peek | Mode::Judge => Durability::Nothing,
    }
}

/// Shared by all scripts of one call.
#[derive(Clone, Copy)]
struct Bounds {
    validity: Validity,
    deadline: Instant,
}

impl Store for RedisStore {
    fn apply_at<'a>(&'a self, home: Partition, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
        Box::pin(async move {
            let bounds = Bounds { validity: Validity::of(claims), deadline: self.link.deadline() };
            if self.link.is_cluster() && split::is_needed(claims) {
                return Box::pin(split::apply(self, home, claims, mode, bounds)).await;
            }
            self.apply_at_once(claims, mode, bounds).await
        })
    }

    fn admit<'a>(&'a self, claims: &'a [Claim], terms: &'a AdmitOptions<'a>) -> StoreFuture<'a, Admission> {
        Box::pin(async {
            let bounds = Bounds { validity: Validity::of(claims), deadline: self.link.deadline() };
            if self.link.is_cluster() && claims.iter().any(|claim| claim.ledger.partition != terms.home) {
                return Box::pin(split::admit(self, claims, terms, bounds)).await;
            }
            let elsewhere = &OtherPartitions::default();
            let shape = if terms.request.is_some() { claims_fingerprint(claims) } else { 0 };
            let validity = bounds.validity;
            let ask =
                AdmitRequest { claims, mode: Mode::Try, validity, terms: Some(terms), shape, tells: false, elsewhere };
            Ok(self.ask(ask, bounds.deadline).await?.admission)
        })
    }

    fn look(&self, home: Partition, id: ReservationId) -> StoreFuture<'_, ReservationState> {
        Box::pin(async move {
            let keys = [records::reservation_key(self.link.key_prefix(), home, id)];
            let reply =
                self.script(&self.scripts.look, Durability::Nothing, &[&keys], &[], self.link.deadline()).await?;
            self.read(&[&keys], wire::bytes_of(&reply).and_then(|reply| records::read_looked(home, reply)))
        })
    }

    fn close<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        closing: &'a CloseRequest<'a>,
    ) -> StoreFuture<'a, CloseResult> {
        Box::pin(async move {
            let deadline = self.link.deadline();
            if self.link.is_cluster() {
                return Box::pin(split::close(self, home, id, closing, deadline)).await;
            }
            self.close_at_once(home, id, closing, &RefundedAmounts::new(), deadline).await
        })
    }

    fn extend<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        ttl_ms: u32,
        reservation: &'a Reservation,
    ) -> StoreFuture<'a, Extension> {
        Box::pin(async move {
            let deadline = self.link.deadline();
            if self.link.is_cluster() {
                return Box::pin(split::extend(self, home, id, ttl_ms, reservation, deadline)).await;
            }
            self.extend_at_once(home, id, ttl_ms, reservation, deadline).await
        })
    }

    fn reset<'a>(&'a self, home: Partition, ledgers: &'a [LedgerKey], caller_named: bool) -> StoreFuture<'a, usize> {
        Box::pin(async move {
            let prefix = self.link.key_prefix();
            let names = [wire::names_key(prefix, home)];
            let front = wire::key_in(prefix, home, "", &[]);
            let mut gone = 0;
            let last = ledgers.len().saturating_sub(1) / MAX_RESET;
            for part in 0..=last {
                let ledgers = ledgers.iter().skip(part * MAX_RESET).take(MAX_RESET).filter(|key| key.partition == home);
                let keys: Vec<String> = ledgers
                    .flat_map(|ledger| [wire::ledger_key(prefix, ledger), records::slots_key(prefix, ledger)])
                    .collect();
                let caller_named: &[u8] = if caller_named && part == last { b"1" } else { b"0" };
                let args = [front.as_bytes(), caller_named];
                let deadline = self.link.deadline();
                let reply =
                    self.script(&self.scripts.reset, Durability::Charge, &[&keys, &names], &args, deadline).await?;
                let Value::Int(here) = reply else { return Err(wire::unreadable()) };
                gone += usize::try_from(here).unwrap_or(0);
            }
            Ok(gone)
        })
    }

    fn health(&self) -> HealthFuture<'_> {
        Box::pin(self.link.health())
    }
}

/// The scripts and their arguments as they are, for benches that run them without a store.
#[cfg(feature = "testing")]
pub mod raw {
    use redis::Value;
    use tollgate_core::claim::{Claim, Mode};

    use super::{FastPathRequest, Request, Scripts, Validity};

    fn requests(prefix: &str, claims: &[Claim], mode: Mode) -> (Request, Option<FastPathRequest>) {
        let validity = Validity::of(claims);
        let request = Request::within(prefix, claims, mode, validity);
        let fast = FastPathRequest::of(claims, &request, mode, validity);
        (request, fast)
    }

    /// The script that decides calls like this one, with the clock of a bench.
    pub fn script(clock: &str, claims: &[Claim], mode: Mode) -> String {
        let scripts = Scripts::behind(clock);
        let fast = requests("", claims, mode).1.and_then(|fast| scripts.fast_path.get(&fast));
        fast.as_deref().unwrap_or(&scripts.apply).code().to_owned()
    }

    /// The keys and the arguments of one decision.
    pub fn encode(prefix: &str, claims: &[Claim], mode: Mode) -> (Vec<String>, Vec<Vec<u8>>) {
        let (request, fast) = requests(prefix, claims, mode);
        let args = fast.map_or_else(|| vec![request.packed], |fast| vec![vec![1], fast.payload]);
        (request.keys.into_vec(), args)
    }

    /// The keys and the arguments of calls on the fast path that arrive together: so many with the claims of each.
    pub fn encode_together<'a>(
        prefix: &str,
        calls: impl IntoIterator<Item = (&'a [Claim], u8)>,
    ) -> (Vec<String>, Vec<Vec<u8>>) {
        let (mut keys, mut args) = (Vec::new(), vec![Vec::new()]);
        for (claims, number) in calls {
            let (of_call, mut payload) = encode(prefix, claims, Mode::Try);
            keys.extend(of_call);
            args[0].push(number);
            let payload = payload.pop().unwrap_or_default();
            args.extend((0..number).map(|_| payload.clone()));
        }
        (keys, args)
    }

    /// The reply of each call.
    pub fn replies(reply: &Value) -> impl Iterator<Item = &[u8]> {
        let replies = if let Value::Array(replies) = reply { replies } else { std::slice::from_ref(reply) };
        replies.iter().filter_map(|reply| if let Value::BulkString(bytes) = reply { Some(&**bytes) } else { None })
    }
}
