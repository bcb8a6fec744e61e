//! Counters in Redis, shared by any number of nodes.

mod link;
mod split;
mod wire;

use std::pin::Pin;

use tollgate_core::{
    claim::{Answer, Claim, Mode},
    store::{AnswerFuture, Store, StoreError},
};

pub(crate) use self::link::Script;
pub use self::link::{Fault, Link, LinkStatus, RedisConfig, RedisTls};
use self::{split::Bounds, wire::Validity};

/// The decision script, put together from `lua/`: a clock, the ledger, the decision.
const APPLY: &str = concat!(
    include_str!("../../../lua/clock.lua"),
    include_str!("../../../lua/ledger.lua"),
    include_str!("../../../lua/apply.lua")
);

/// A store in Redis. One decision is one `EVALSHA` in one round trip over a [`Link`].
pub struct RedisStore {
    link: Link,
    script: Script,
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
        Self { link, script: Script::new(APPLY.to_owned()), clock: None }
    }

    /// A store whose scripts take the time from `clock` instead of Redis, for tests.
    #[cfg(feature = "testing")]
    pub fn with_injected_clock(config: RedisConfig, clock: impl crate::clock::Clock) -> Result<Self, StoreError> {
        let code = concat!(
            include_str!("../../../lua/clock_injected.lua"),
            include_str!("../../../lua/ledger.lua"),
            include_str!("../../../lua/apply.lua")
        );
        let script = Script::new(code.to_owned());
        Ok(Self { link: Link::open(config)?, script, clock: Some(Box::new(move || clock.now())) })
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
        let request = wire::Request::within(self.link.key_prefix(), claims, mode, bounds.validity);
        let clock = self.clock.as_ref().map(|clock| clock().as_ms());
        let reply = self
            .link
            .script_until(bounds.deadline, &self.script, |verb, script| request.command(verb, script, clock))
            .await?;
        request.read_reply(&reply)
    }
}

impl Store for RedisStore {
    fn apply<'a>(&'a self, claims: &'a [Claim], mode: Mode) -> AnswerFuture<'a> {
        Box::pin(self.apply_in_time(claims, mode))
    }

    fn ready<'a>(&'a self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        Box::pin(self.link.ping())
    }
}

/// The script and its arguments as they are, for benches that run them without a store.
#[cfg(feature = "testing")]
pub mod raw {
    use tollgate_core::claim::{Claim, Mode};

    /// The decision script behind a clock of the bench's own.
    pub fn script(clock: &str) -> String {
        [clock, include_str!("../../../lua/ledger.lua"), include_str!("../../../lua/apply.lua")].concat()
    }

    /// The keys and the packed argument of one decision.
    pub fn encode(prefix: &str, claims: &[Claim], mode: Mode) -> (Vec<String>, Vec<u8>) {
        let request = super::wire::Request::within(prefix, claims, mode, super::Validity::of(claims));
        (request.keys.into_vec(), request.packed)
    }
}
