//! An account, a pool and an address on three masters, and nodes that are seen before each script they send.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tollgate_core::{
    amount::{Amount, Limit, UnitId},
    claim::{ApplyResult, Charge, Claim, ClaimsDecision, Effect, LedgerKey, Mode, Partition, ReservationId},
    reservation::{Admission, AdmitOptions, CloseRequest, CloseResult, NewReservation, Reservation, ReservationState},
    store::{Store, StoreError},
    time::Timestamp,
    window::{SlidingWindow, WindowInstance},
};
use tollgate_store::{
    clock::{Clock, ManualClock},
    redis::{RedisConfig, RedisStore},
    testing::{PATIENCE, conformance::START, patient, topologies::RedisCluster},
};

pub(crate) const WINDOW_MS: u64 = 60_000;
pub(crate) const TTL_MS: u32 = 5_000;

/// Called when a node is about to send a script.
type BeforeSend = Box<dyn Fn() + Send>;

/// A clock that a node looks at before each script it sends, and so knows which one is next.
pub(crate) struct Steps {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) sent: AtomicUsize,
    before: Mutex<Option<(usize, BeforeSend)>>,
}

impl Clock for Steps {
    fn now(&self) -> Timestamp {
        let next = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        let due = self.before.lock().take_if(|(at, _)| *at == next);
        if let Some((_, before)) = due {
            before();
        }
        self.clock.now()
    }
}

/// A separate node: when it is dropped, all its work in progress ends with it.
pub(crate) struct Node {
    pub(crate) store: RedisStore,
    pub(crate) steps: Arc<Steps>,
    pub(crate) runtime: Runtime,
}

impl Node {
    pub(crate) fn run<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// Has `before` done before the script `at`, counted from 1 and from now.
    pub(crate) fn at(&self, at: usize, before: impl Fn() + Send + 'static) {
        self.steps.sent.store(0, Ordering::SeqCst);
        *self.steps.before.lock() = Some((at, Box::new(before)));
    }
}

/// Tests that run at the same time share a cluster, which ends with the last of them.
static SHARED: Mutex<Weak<RedisCluster>> = Mutex::new(Weak::new());
static WORLDS: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct World {
    pub(crate) cluster: Arc<RedisCluster>,
    prefix: String,
    pub(crate) clock: Arc<ManualClock>,
    /// In the order of the masters where they live: the account is the first.
    pub(crate) homes: [Partition; 3],
}

impl World {
    pub(crate) fn start() -> Self {
        let mut shared = SHARED.lock();
        let cluster = shared.upgrade().unwrap_or_else(|| Arc::new(RedisCluster::start()));
        *shared = Arc::downgrade(&cluster);
        Self::on(cluster)
    }

    /// With a cluster of its own.
    pub(crate) fn alone() -> Self {
        Self::on(Arc::new(RedisCluster::start()))
    }

    fn on(cluster: Arc<RedisCluster>) -> Self {
        let homes = [0, 1, 2].map(|master| {
            let names = (0..).map(|number: u32| Partition::of([number.to_string().as_str()]));
            names.into_iter().find(|name| master_of(&cluster, *name) == master).unwrap()
        });
        let prefix = format!("world{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        Self { cluster, prefix, clock: Arc::new(ManualClock::at(START)), homes }
    }

    pub(crate) fn node(&self) -> Node {
        let runtime = Runtime::new().unwrap();
        let steps =
            Arc::new(Steps { clock: Arc::clone(&self.clock), sent: AtomicUsize::new(0), before: Mutex::new(None) });
        let config = RedisConfig { key_prefix: self.prefix.clone(), ..patient(self.cluster.url()) };
        let store = runtime.block_on(async { RedisStore::with_injected_clock(config, Arc::clone(&steps)).unwrap() });
        Node { store, steps, runtime }
    }

    /// Requests and a slot of the account, tokens and a slot of the pool, requests of the address.
    pub(crate) fn claims(&self, tokens: u64) -> Vec<Claim> {
        self.limited(tokens, [10, 1_000, 1_000])
    }

    pub(crate) fn limited(&self, tokens: u64, [account, pool, address]: [u64; 3]) -> Vec<Claim> {
        let window = WindowInstance::Sliding(SlidingWindow::from_ms(WINDOW_MS).unwrap());
        let claim = |home: usize, span, unit, cost, limit| Claim {
            ledger: LedgerKey::of(self.homes[home], ["scope"]),
            span,
            unit: UnitId::of(unit),
            cost: Amount::try_from(cost).unwrap(),
            limit: Limit::Finite(Amount::try_from(limit).unwrap()),
            effect: Effect::Charge,
        };
        // The pool is named first and has the most claims, and is not the last to be charged for that.
        vec![
            claim(1, window, "tokens", tokens, pool),
            claim(1, window, "share", tokens, pool),
            claim(1, WindowInstance::Slots, "slots", 1, 1_000),
            claim(0, window, "requests", 1, account),
            claim(0, WindowInstance::Slots, "slots", 1, 1_000),
            claim(2, window, "requests", 1, address),
        ]
    }

    /// The usage of [`World::claims`]: the pool, its share, its slots; the account, its slots; the address.
    pub(crate) fn used(&self, node: &Node) -> Vec<u64> {
        used(&applied(node.run(node.store.apply_at(self.homes[0], &self.claims(0), Mode::Peek)).unwrap()))
    }

    pub(crate) fn terms(&self, id: u8) -> AdmitOptions<'static> {
        let hold = NewReservation { id: ReservationId([id; 16]), ttl_ms: TTL_MS, metadata: b"note" };
        AdmitOptions { home: self.homes[0], hold: Some(hold), request: None }
    }

    pub(crate) fn reserve(&self, node: &Node, id: u8, tokens: u64) -> Result<Admission, StoreError> {
        node.run(node.store.admit(&self.claims(tokens), &self.terms(id)))
    }

    pub(crate) fn look(&self, node: &Node, id: u8) -> Reservation {
        match node.run(node.store.look(self.homes[0], ReservationId([id; 16]))).unwrap() {
            ReservationState::Open { reservation, .. } => reservation,
            other => panic!("{other:?}"),
        }
    }

    /// Settles the pool's tokens from `reserved` to `actual`.
    pub(crate) fn settle(
        &self,
        node: &Node,
        id: u8,
        (reserved, actual): (u64, u64),
    ) -> Result<CloseResult, StoreError> {
        let reservation = self.look(node, id);
        let is_tokens = |unit: UnitId| [UnitId::of("tokens"), UnitId::of("share")].contains(&unit);
        let less = Amount::try_from(reserved.saturating_sub(actual)).unwrap();
        let refunds = reservation.charges.iter().filter(|charge| is_tokens(charge.unit) && less > Amount::ZERO);
        let refunds: Vec<Charge> = refunds.map(|charge| Charge { amount: less, ..*charge }).collect();
        let more = self.claims(actual.saturating_sub(reserved)).into_iter();
        let more = more.filter(|claim| is_tokens(claim.unit) && claim.cost > Amount::ZERO);
        let debts: Vec<Claim> = more.map(|claim| Claim { limit: Limit::Unlimited, ..claim }).collect();
        let digest = [u8::try_from(actual % 251).unwrap(); 16];
        let closing =
            CloseRequest { digest, refunds: &refunds, debts: &debts, reservation: &reservation, metadata: b"settled" };
        node.run(node.store.close(self.homes[0], ReservationId([id; 16]), &closing))
    }

    /// The master of an account, a pool or an address writes nothing any more, or does again.
    pub(crate) fn fill(&self, home: usize, full: bool) {
        let _: () = self.cluster.servers[home].run(&format!("CONFIG SET maxmemory {}", u8::from(full)));
    }
}

fn master_of(cluster: &RedisCluster, partition: Partition) -> usize {
    let tag = URL_SAFE_NO_PAD.encode(partition.bytes());
    let slot: usize = cluster.servers[0].run(&format!("CLUSTER KEYSLOT tg{{{tag}}}"));
    (0..3).find(|master| slot < (master + 1) * 16_384 / 3).unwrap()
}

pub(crate) fn applied(answer: ApplyResult) -> ClaimsDecision {
    match answer {
        ApplyResult::Applied(applied) => applied,
        ApplyResult::OutsidePeriod(_) => panic!("no calendar here"),
    }
}

pub(crate) fn decided(admission: Admission) -> ClaimsDecision {
    match admission {
        Admission::Decided(applied) => applied,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn used(applied: &ClaimsDecision) -> Vec<u64> {
    applied.statuses.iter().map(|status| status.used.get()).collect()
}

pub(crate) fn dies() {
    std::panic::resume_unwind(Box::new("the node dies"));
}

pub(crate) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
