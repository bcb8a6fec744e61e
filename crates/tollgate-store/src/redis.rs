//! Counters in Redis, shared by any number of nodes.

mod examine;
mod link;
mod records;
mod split;
mod usual;
mod wire;

use redis::Value;
use tokio::time::Instant;
use tollgate_core::{
    claim::{Answer, Claim, LedgerKey, Mode, Partition},
    reservation::{Admission, Closing, Closure, Extension, Looked, ReservationId, Terms},
    store::{AnswerFuture, Store, StoreError, StoreFuture},
    window::Span,
};

pub use self::examine::{Finding, Verdict, examine};
pub(crate) use self::link::Script;
pub use self::link::{Fault, Link, LinkStatus, RedisConfig, RedisTls};
use self::{
    records::{Admit, Close},
    split::Bounds,
    usual::{Usual, UsualScripts},
    wire::{Request, Validity},
};

/// The scripts, put together from `lua/`, behind the clock that goes in front.
struct Scripts {
    usual: UsualScripts,
    apply: Script,
    admit: Script,
    look: Script,
    close: Script,
    extend: Script,
}

macro_rules! lua {
    ($($name:literal)+) => { concat!($(include_str!(concat!("../../../lua/", $name, ".lua"))),+) };
}

const BLOCK: &str = lua!("block");
const APPLY: &str = lua!("ledger" "apply" "answer");
const ADMIT: &str = lua!("block" "ledger" "record" "slots" "admit" "apply" "admitted");
const LOOK: &str = lua!("record" "look");
const CLOSE: &str = lua!("block" "ledger" "record" "close" "apply" "closed");
const EXTEND: &str = lua!("record" "slots" "extend");

impl Scripts {
    fn behind(clock: &'static str) -> Self {
        let script = |code: &str| Script::new([clock, code].concat());
        Self {
            usual: UsualScripts::between([clock, BLOCK].concat(), APPLY),
            apply: script(&[BLOCK, APPLY].concat()),
            admit: script(ADMIT),
            look: script(LOOK),
            close: script(CLOSE),
            extend: script(EXTEND),
        }
    }
}

/// A store in Redis. One decision is one `EVALSHA` in one round trip over a [`Link`], and so is every other
/// operation.
pub struct RedisStore {
    link: Link,
    scripts: Scripts,
    clock: Option<InjectedClock>,
}

type InjectedClock = Box<dyn Fn() -> tollgate_core::time::Timestamp + Send + Sync>;

impl RedisStore {
    /// A store at `config.url`. Does not wait for the server: it need not be there yet.
    ///
    /// Must be called within a Tokio runtime.
    pub fn connect(config: RedisConfig) -> Result<Self, StoreError> {
        Ok(Self::on(Link::open(config)?))
    }

    /// A store at the other end of `link`, which others may use too.
    pub fn on(link: Link) -> Self {
        Self { link, scripts: Scripts::behind(lua!("clock")), clock: None }
    }

    /// A store whose scripts take the time from `clock` instead of Redis, for tests.
    #[cfg(feature = "testing")]
    pub fn with_injected_clock(config: RedisConfig, clock: impl crate::clock::Clock) -> Result<Self, StoreError> {
        let scripts = Scripts::behind(lua!("clock_injected"));
        Ok(Self { link: Link::open(config)?, scripts, clock: Some(Box::new(move || clock.now())) })
    }

    /// The way to Redis.
    pub fn link(&self) -> &Link {
        &self.link
    }

    async fn apply_in_time(&self, claims: &[Claim], mode: Mode) -> Result<Answer, StoreError> {
        let deadline = self.link.deadline();
        if self.link.is_cluster() && split::is_needed(claims) {
            split::apply(self, claims, mode, deadline).await
        } else {
            self.run(claims, mode, Bounds { validity: Validity::of(claims), deadline }).await
        }
    }

    /// Claims that one script reaches.
    async fn run(&self, claims: &[Claim], mode: Mode, bounds: Bounds) -> Result<Answer, StoreError> {
        let prefix = self.link.key_prefix();
        if claims.iter().any(|claim| claim.span == Span::Slots) {
            let admit = Admit::new(prefix, claims, mode, bounds.validity, None);
            let reply = self.script(&self.scripts.admit, &admit.keys(), &admit.args(), bounds.deadline).await?;
            return admit.request.read_reply(wire::bytes_of(&reply)?);
        }
        let request = Request::within(prefix, claims, mode, bounds.validity);
        let usual = Usual::of(claims, &request, mode, bounds.validity);
        let reply = match usual.as_ref().and_then(|usual| Some((self.scripts.usual.get(usual)?, &usual.brief))) {
            Some((script, brief)) => {
                self.script(&script, &[&request.keys], &[&request.packed, brief], bounds.deadline).await?
            }
            None => self.script(&self.scripts.apply, &[&request.keys], &[&request.packed], bounds.deadline).await?,
        };
        request.read_reply(wire::bytes_of(&reply)?)
    }

    async fn script(
        &self,
        script: &Script,
        keys: &[&[String]],
        args: &[&[u8]],
        deadline: Instant,
    ) -> Result<Value, StoreError> {
        let clock = self.clock.as_ref().map(|clock| clock().as_ms());
        self.link.script_until(deadline, script, |verb, script| wire::command(verb, script, keys, args, clock)).await
    }
}

impl Store for RedisStore {
    fn apply<'a>(&'a self, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
        Box::pin(self.apply_in_time(claims, mode))
    }

    fn admit<'a>(&'a self, claims: &'a [Claim], terms: &'a Terms<'a>) -> StoreFuture<'a, Admission> {
        Box::pin(async {
            if self.link.is_cluster() && claims.iter().any(|claim| claim.ledger.partition != terms.home) {
                let what = "a reservation or a request id with quotas outside the account, in a Redis Cluster";
                return Err(StoreError::Refused(format!("not supported: {what}")));
            }
            let validity = Validity::of(claims);
            let admit = Admit::new(self.link.key_prefix(), claims, Mode::Try, validity, Some(terms));
            let reply = self.script(&self.scripts.admit, &admit.keys(), &admit.args(), self.link.deadline()).await?;
            admit.read_reply(wire::bytes_of(&reply)?)
        })
    }

    fn look(&self, home: Partition, id: ReservationId) -> StoreFuture<'_, Looked> {
        Box::pin(async move {
            let keys = [records::reservation_key(self.link.key_prefix(), home, id)];
            let reply = self.script(&self.scripts.look, &[&keys], &[], self.link.deadline()).await?;
            records::read_looked(home, wire::bytes_of(&reply)?)
        })
    }

    fn close<'a>(&'a self, home: Partition, id: ReservationId, closing: &'a Closing<'a>) -> StoreFuture<'a, Closure> {
        Box::pin(async move {
            let close = Close::new(self.link.key_prefix(), home, id, closing);
            let args: [&[u8]; 3] = [&close.debts.packed, &close.refunds, &close.body];
            let keys: [&[String]; 2] = [&close.debts.keys, &close.keys];
            let reply = self.script(&self.scripts.close, &keys, &args, self.link.deadline()).await?;
            records::read_closure(wire::bytes_of(&reply)?)
        })
    }

    fn extend<'a>(
        &'a self,
        home: Partition,
        id: ReservationId,
        ttl_ms: u32,
        slots: &'a [LedgerKey],
    ) -> StoreFuture<'a, Extension> {
        Box::pin(async move {
            let prefix = self.link.key_prefix();
            let record = [records::reservation_key(prefix, home, id)];
            let scopes: Vec<String> = slots.iter().map(|scope| records::slots_key(prefix, scope)).collect();
            let terms = [id.0.as_slice(), &ttl_ms.to_le_bytes()].concat();
            let deadline = self.link.deadline();
            let reply = self.script(&self.scripts.extend, &[&record, &scopes], &[&terms], deadline).await?;
            records::read_extension(wire::bytes_of(&reply)?)
        })
    }

    fn ready(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.link.ping())
    }
}

/// The scripts and their arguments as they are, for benches that run them without a store.
#[cfg(feature = "testing")]
pub mod raw {
    use tollgate_core::claim::{Claim, Mode};

    use super::{APPLY, BLOCK, Request, Usual, UsualScripts, Validity};

    fn usual(prefix: &str, claims: &[Claim], mode: Mode) -> (Request, Option<Usual>) {
        let validity = Validity::of(claims);
        let request = Request::within(prefix, claims, mode, validity);
        let usual = Usual::of(claims, &request, mode, validity);
        (request, usual)
    }

    /// The script that decides calls like this one, behind a clock of the bench's own.
    pub fn script(clock: &str, claims: &[Claim], mode: Mode) -> String {
        let scripts = UsualScripts::between([clock, BLOCK].concat(), APPLY);
        let script = usual("", claims, mode).1.and_then(|usual| scripts.get(&usual));
        script.map_or_else(|| [clock, BLOCK, APPLY].concat(), |script| script.code().to_owned())
    }

    /// The keys and the arguments of one decision.
    pub fn encode(prefix: &str, claims: &[Claim], mode: Mode) -> (Vec<String>, Vec<Vec<u8>>) {
        let (request, usual) = usual(prefix, claims, mode);
        (request.keys.into_vec(), [request.packed].into_iter().chain(usual.map(|usual| usual.brief)).collect())
    }
}
