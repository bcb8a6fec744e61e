//! One Redis server: a few connections that all calls share, which reconnect by themselves, with a breaker.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionInfo, RedisError, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Durability, RedisConfig,
    dial::Dialer,
    facts::{Probe, ServerFacts, meet},
    fault::{Failure, Fault, Remedy},
};
use crate::breaker::{Backoff, Breaker};

/// How long one attempt to connect may take, name lookup, TLS and login included, unless calls wait longer than that.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// The pauses between attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A connection that lived for less time than this is not replaced at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);

thread_local! {
    static PREFERRED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Makes calls on this thread use the connections that live on that runtime, counted from 0, of
/// [`RedisConfig::runtimes`]: this thread's. Without this, and where there are fewer connections than runtimes, all are
/// used in turn.
pub fn prefer_connection(runtime: usize) {
    PREFERRED.set(Some(runtime));
}

/// The preference of this thread, set by [`prefer_connection`].
pub(crate) fn preferred_runtime() -> Option<usize> {
    PREFERRED.get()
}

/// A server. Dropped, its connections end.
pub(crate) struct Node {
    pub(super) info: ConnectionInfo,
    lines: Box<[Line]>,
    /// How many runtimes the lines live on, in turn.
    runtimes: usize,
    next: AtomicUsize,
    breaker: Arc<Breaker>,
    wait: Option<ReplicaWait>,
    /// Not for the way of a call.
    facts: Arc<Mutex<ServerFacts>>,
}

/// The number of replicas that must have the writes, and how long that may take.
#[derive(Clone, Copy)]
struct ReplicaWait {
    replicas: usize,
    within: Duration,
}

/// Commands that are sent in one message with a command, because other calls share the connection.
#[derive(Clone, Copy, Default)]
struct CommandFraming {
    /// `ASKING` in front, which is for the next command only.
    asking: bool,
    /// A `WAIT` after it, for the writes before it on this connection.
    wait: Option<ReplicaWait>,
}

/// One connection, and the task that replaces it when it is lost.
struct Line {
    state: watch::Receiver<State>,
    /// The number of the latest connection that is lost.
    lost: watch::Sender<u64>,
    task: AbortHandle,
}

/// The bounds of a connection.
#[derive(Clone, Copy)]
struct Bounds {
    /// How long one attempt to connect may take.
    within: Duration,
    /// How many requests wait to be sent.
    buffer: usize,
    /// Whether the server is a node of a cluster.
    in_cluster: bool,
}

#[derive(Clone)]
enum State {
    /// The first attempt, or the one after a loss, is under way: worth waiting for.
    Connecting,
    /// The connection, and its number.
    Up(MultiplexedConnection, u64),
    /// The last attempt failed, and the next will come.
    Down(Failure),
}

impl Node {
    /// A server, and connections to it that are made from now on. Must be called within a Tokio runtime.
    pub(super) fn new(info: ConnectionInfo, config: &RedisConfig, dialer: &Dialer, in_cluster: bool) -> Arc<Self> {
        let (breaker, facts) = (Arc::new(Breaker::default()), Arc::new(Mutex::default()));
        let within = CONNECT_WITHIN.max(config.deadline);
        let bounds = Bounds { within, buffer: config.max_in_flight.clamp(64, 1024), in_cluster };
        let runtimes = config.runtimes.len().max(1);
        let start = |number: usize| {
            let home = config.runtimes.get(number % runtimes);
            let to = (info.clone(), dialer.clone());
            Line::start(to, bounds, Arc::clone(&breaker), Arc::clone(&facts), home)
        };
        let lines = (0..config.connections.max(1)).map(start).collect();
        let wait =
            (config.wait_replicas > 0).then_some(ReplicaWait { replicas: config.wait_replicas, within: config.wait });
        Arc::new(Self { info, lines, runtimes, next: AtomicUsize::new(0), breaker, wait, facts })
    }

    /// Sends one command once, after `ASKING` if the server is only importing the slot.
    pub(super) async fn send(
        &self,
        command: &Cmd,
        writes: Durability,
        asking: bool,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let pass = self.breaker.try_acquire(Instant::now()).map_err(|rest| {
            let text = format!("{} does not answer; next try in {} ms", self.info.addr(), rest.as_millis());
            Failure::new(Fault::Resting, text)
        })?;
        let line = &self.lines[self.next_line()];
        let around = CommandFraming { asking, wait: self.wait.filter(|_| writes == Durability::Charge) };
        let result = line.send(command, around, deadline).await;
        match &result {
            Err(failure) if failure.fault.is_silence() => {
                let opened = pass.failed(Instant::now());
                // The network path may have failed without an error, while new connections work. And a fault that broke
                // one connection has usually broken all of them; some are not used for a long time, so their failure
                // would not be noticed.
                if opened && failure.fault == Fault::NoAnswer || failure.fault == Fault::Broken {
                    self.reconnect();
                }
            }
            _ => pass.succeeded(),
        }
        result
    }

    /// The next connection of those that live on this thread, if any do, or else of all: connection `n` lives on runtime
    /// `n % runtimes`.
    fn next_line(&self) -> usize {
        let here = preferred_runtime().filter(|runtime| *runtime < self.runtimes.min(self.lines.len()));
        let (first, apart) = here.map_or((0, 1), |runtime| (runtime, self.runtimes));
        let lines = (self.lines.len() - first).div_ceil(apart);
        // One line needs no turn, and threads no memory that they share.
        let turn = if lines == 1 { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) % lines };
        first + turn * apart
    }

    /// Sends a command that calls do not wait for, regardless of the breaker.
    pub(super) async fn ask(&self, command: &Cmd, deadline: Instant) -> Result<Value, Failure> {
        self.lines[0].send(command, CommandFraming::default(), deadline).await
    }

    /// Writes the value of `probe`, in the same way as a charge, over the first connection that works.
    pub(super) async fn write(&self, probe: &Probe, key: &str, deadline: Instant) -> Result<Value, Failure> {
        let around = CommandFraming { asking: false, wait: self.wait };
        let mut first = None;
        for line in &self.lines {
            let mut sent = line.send(&probe.command("EVALSHA", key), around, deadline).await;
            if sent.as_ref().is_err_and(|failure| failure.fault == Fault::NoScript) {
                sent = line.send(&probe.command("EVAL", key), around, deadline).await;
            }
            if sent.as_ref().map_or_else(|failure| !failure.fault.is_silence(), |_| true) {
                self.breaker.close();
            }
            match sent {
                Ok(value) => return Ok(value),
                Err(failure) => first = first.or(Some(failure)),
            }
        }
        Err(first.unwrap_or_else(|| Failure::new(Fault::Unconnected, "no connection")))
    }

    /// The known state of the server.
    pub(super) fn facts(&self) -> ServerFacts {
        self.facts.lock().clone()
    }

    pub(super) fn change_facts<T>(&self, change: impl FnOnce(&mut ServerFacts) -> T) -> T {
        change(&mut self.facts.lock())
    }

    /// Whether it cannot be used as it was a replica whenever it was connected to.
    pub(super) fn is_read_only(&self) -> bool {
        let replica =
            |line: &Line| matches!(&*line.state.borrow(), State::Down(failure) if failure.fault == Fault::ReadOnly);
        self.lines.iter().all(replica)
    }

    /// Gives up the connections and makes new ones.
    pub(super) fn reconnect(&self) {
        for line in &self.lines {
            let number = match &*line.state.borrow() {
                State::Up(_, number) => *number,
                State::Connecting | State::Down(_) => continue,
            };
            line.give_up(number);
        }
    }

    /// How many connections are up.
    pub(super) fn connections(&self) -> usize {
        self.lines.iter().filter(|line| matches!(&*line.state.borrow(), State::Up(..))).count()
    }

    /// Whether calls are refused because the server did not answer.
    pub(super) fn is_resting(&self) -> bool {
        self.breaker.is_open()
    }
}

impl CommandFraming {
    async fn send(self, connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, Failure> {
        let failed = |error: RedisError| Failure::of(&error);
        if !self.asking && self.wait.is_none() {
            return connection.req_packed_command(command).await.and_then(Value::extract_error).map_err(failed);
        }
        let mut message = redis::pipe();
        if self.asking {
            message.cmd("ASKING");
        }
        message.add_command(command.clone());
        if let Some(ReplicaWait { replicas, within }) = self.wait {
            message.cmd("WAIT").arg(replicas).arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1));
        }
        let replies = connection.req_packed_commands(&message, 0, message.len()).await.map_err(failed)?;
        let mut replies = replies.into_iter().skip(usize::from(self.asking));
        let value = replies.next().unwrap_or(Value::Nil).extract_error().map_err(failed)?;
        let Some(ReplicaWait { replicas, within }) = self.wait else { return Ok(value) };
        // Whatever is wrong with the waiting, the command was run.
        let unreplicated = |what| Failure::new(Fault::Unreplicated, what);
        match replies.next().unwrap_or(Value::Nil).extract_error() {
            Ok(Value::Int(have)) if usize::try_from(have).is_ok_and(|have| have >= replicas) => Ok(value),
            Ok(Value::Int(have)) => {
                Err(unreplicated(format!("{have} of {replicas} replicas had the charge within {within:?}")))
            }
            Ok(_) => Err(unreplicated("WAIT has an answer that cannot be read".to_owned())),
            Err(error) => Err(unreplicated(format!("WAIT: {error}"))),
        }
    }
}

impl Line {
    fn start(
        to_server: (ConnectionInfo, Dialer),
        bounds: Bounds,
        breaker: Arc<Breaker>,
        facts: Arc<Mutex<ServerFacts>>,
        home: Option<&Handle>,
    ) -> Self {
        let (to, state) = watch::channel(State::Connecting);
        let (lost, seen) = watch::channel(0);
        let kept = keep(to_server, bounds, breaker, facts, to, seen);
        let task = match home {
            Some(home) => home.spawn(kept),
            None => tokio::spawn(kept),
        };
        let task = task.abort_handle();
        Self { state, lost, task }
    }

    async fn send(&self, command: &Cmd, around: CommandFraming, deadline: Instant) -> Result<Value, Failure> {
        let (mut connection, number) = self.connection(deadline).await?;
        let failure = match timeout_at(deadline, around.send(&mut connection, command)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(Fault::NoAnswer, "no answer within the deadline"),
        };
        if failure.fault.remedy() == Remedy::Reconnect {
            self.give_up(number);
        }
        Err(failure)
    }

    /// The connection, waited for only while an attempt may soon succeed.
    async fn connection(&self, deadline: Instant) -> Result<(MultiplexedConnection, u64), Failure> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                State::Up(connection, number) => return Ok((connection.clone(), *number)),
                State::Down(failure) => return Err(failure.clone()),
                State::Connecting => {}
            }
            match timeout_at(deadline, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Failure::new(Fault::Unconnected, "the connection is closed")),
                Err(_) => {
                    return Err(Failure::new(Fault::Unconnected, "no connection within the deadline").of_silence());
                }
            }
        }
    }

    fn give_up(&self, number: u64) {
        self.lost.send_if_modified(|lost| {
            let news = *lost < number;
            *lost = number.max(*lost);
            news
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects, and again whenever the connection is lost, with growing pauses.
async fn keep(
    (info, dialer): (ConnectionInfo, Dialer),
    Bounds { within, buffer, in_cluster }: Bounds,
    breaker: Arc<Breaker>,
    facts: Arc<Mutex<ServerFacts>>,
    state: watch::Sender<State>,
    mut lost: watch::Receiver<u64>,
) {
    // The deadlines are our own.
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(buffer);
    let mut pauses = Backoff::between(PAUSES.0, PAUSES.1);
    for number in 1.. {
        let connected = timeout(within, async {
            let mut connection = dialer.connect(&info, &settings).await?;
            let (met, usable) = meet(&mut connection, in_cluster).await?;
            Ok((connection, met, usable))
        });
        match connected.await {
            Ok(Ok((_, _, false))) => {
                breaker.close();
                let text = format!("{} is a replica", info.addr());
                state.send_replace(State::Down(Failure::new(Fault::ReadOnly, text)));
            }
            Ok(Ok((connection, met, true))) => {
                *facts.lock() = met;
                let since = Instant::now();
                breaker.close();
                state.send_replace(State::Up(connection, number));
                if lost.wait_for(|lost| *lost >= number).await.is_err() {
                    return;
                }
                state.send_replace(State::Connecting);
                if since.elapsed() >= SHORT_LIFE {
                    pauses.reset();
                    continue;
                }
            }
            Ok(Err(error)) => {
                state.send_replace(State::Down(Failure::to_connect(&error)));
            }
            Err(_) => {
                let text = format!("{}: no connection within {within:?}", info.addr());
                state.send_replace(State::Down(Failure::new(Fault::Unconnected, text).of_silence()));
            }
        }
        tokio::time::sleep(pauses.pause()).await;
    }
}
