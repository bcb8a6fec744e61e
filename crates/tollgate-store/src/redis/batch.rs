//! Usual calls that come at the same moment, decided by one run of their script. Nothing waits for company: a batch is
//! what came while the thread was busy with what came before.

use std::{sync::Arc, time::Duration};

use redis::Value;
use smallvec::SmallVec;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::Instant,
};
use tollgate_core::{claim::Partition, store::StoreError};

use super::{
    InjectedClock, Script,
    link::{Failure, Fault, Link, Writes, preferred_runtime},
    wire,
};

/// So many calls at most are decided by one run. By then a call has saved what there is to save (`tests/bench-batches`),
/// and Redis serves nobody else for about a quarter of a millisecond at most.
const MOST_CALLS: usize = 32;
/// Whose deadlines are further apart do not share one.
const NEAR: Duration = Duration::from_millis(20);
/// So many are looked through at once.
const MOST_AT_ONCE: usize = 512;
/// What a reply begins with that is an error.
const ERROR: u8 = 255;

/// The ways into the batches: one for each runtime that connections live on, and one for calls from elsewhere.
pub(super) struct Batches(Box<[mpsc::Sender<Waiting>]>);

/// A call that is to be sent, and who waits for the script's reply.
struct Waiting {
    call: UsualCall,
    caller: Caller,
}

type Caller = oneshot::Sender<Result<Vec<u8>, StoreError>>;

/// What a script is asked for one call.
pub(super) struct UsualCall {
    pub(super) script: Arc<Script>,
    pub(super) keys: SmallVec<[String; 4]>,
    /// Whose slot the keys are in, where keys live in slots.
    pub(super) slot: Option<Partition>,
    /// What `lua/usual.lua.jinja` says of a call.
    pub(super) told: Vec<u8>,
    pub(super) deadline: Instant,
}

impl Batches {
    /// Must be called within a Tokio runtime.
    pub(super) fn new(link: &Link, clock: Option<&InjectedClock>) -> Self {
        let start = |home: Option<&tokio::runtime::Handle>| {
            // Calls that have a place on the link wait here, so there is room for all of them.
            let (to, calls) = mpsc::channel(link.max_in_flight());
            let sending = Sending { link: link.clone(), clock: clock.cloned() }.send_all(calls);
            match home {
                Some(home) => drop(home.spawn(sending)),
                None => drop(tokio::spawn(sending)),
            }
            to
        };
        Self(link.runtimes().iter().map(Some).chain([None]).map(start).collect())
    }

    /// Decides one call, and returns the script's reply.
    pub(super) async fn decide(&self, link: &Link, call: UsualCall) -> Result<Vec<u8>, StoreError> {
        let _place = link.enter()?;
        let (caller, answer) = oneshot::channel();
        let elsewhere = self.0.len() - 1;
        let here = preferred_runtime().filter(|runtime| *runtime < elsewhere).unwrap_or(elsewhere);
        self.0[here].try_send(Waiting { call, caller }).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded("too many calls wait to be sent".into()),
            TrySendError::Closed(_) => StoreError::Unreachable("the node ends".into()),
        })?;
        // Whoever has the call keeps to its deadline.
        answer.await.unwrap_or_else(|_| Err(StoreError::Indeterminate("the node ends".into())))
    }
}

/// What is needed to send batches.
#[derive(Clone)]
struct Sending {
    link: Link,
    clock: Option<InjectedClock>,
}

impl Sending {
    async fn send_all(self, mut calls: mpsc::Receiver<Waiting>) {
        let mut waiting = Vec::new();
        while calls.recv_many(&mut waiting, MOST_AT_ONCE).await > 0 {
            let mut batches: SmallVec<[Batch; 2]> = SmallVec::new();
            let now = Instant::now();
            // Who has gone is not charged.
            for Waiting { call, caller } in waiting.drain(..).filter(|waiting| !waiting.caller.is_closed()) {
                if call.deadline <= now {
                    let _ = caller.send(Err(StoreError::Unreachable("no time is left to ask".into())));
                    continue;
                }
                match batches.iter_mut().find(|batch| batch.takes(&call)) {
                    Some(batch) => batch.add(call, caller),
                    None => batches.push(Batch::begin(call, caller)),
                }
            }
            for batch in batches {
                tokio::spawn(self.clone().send(batch));
            }
        }
    }

    async fn send(self, batch: Batch) {
        let counts: SmallVec<[u8; MOST_CALLS]> = batch.groups.iter().map(Group::count).collect();
        let keys: Vec<&[String]> = batch.groups.iter().map(|group| &*group.keys).collect();
        let told = batch.groups.iter().flat_map(|group| &group.calls).map(|(told, _)| &**told);
        let args: Vec<&[u8]> = [&*counts].into_iter().chain(told).collect();
        let clock = self.clock.as_ref().map(|clock| clock().as_ms());
        let command = |verb: &str, script: &str| wire::command(verb, script, &keys, &args, clock);
        let answer = self.link.run(batch.deadline, &batch.script, Writes::Charge, command).await;
        let mut replies = match answer {
            Ok(Value::Array(replies)) => Ok(replies.into_iter()),
            Ok(_) => Err(Failure::new(Fault::Refused, wire::UNREADABLE)),
            Err(failure) => Err(failure),
        };
        for Group { keys, calls } in batch.groups {
            for (_, caller) in calls {
                let reply = match &mut replies {
                    Ok(replies) => self.read(&keys, replies.next()),
                    Err(failure) => Err(failure.clone()),
                };
                // Who has gone does not hear it.
                let _ = caller.send(reply.map_err(StoreError::from));
            }
        }
    }

    fn read(&self, keys: &[String], reply: Option<Value>) -> Result<Vec<u8>, Failure> {
        match reply {
            Some(Value::BulkString(reply)) => match reply.split_first() {
                Some((&ERROR, error)) => {
                    let failure = Failure::of_script(&String::from_utf8_lossy(error));
                    self.link.met(&failure);
                    if failure.fault() == Fault::Unreadable {
                        self.link.log_unreadable(&[keys], failure.text());
                    }
                    Err(failure)
                }
                _ => Ok(reply),
            },
            _ => Err(Failure::new(Fault::Refused, wire::UNREADABLE)),
        }
    }
}

/// Calls that one run of a script decides.
struct Batch {
    script: Arc<Script>,
    slot: Option<Partition>,
    /// How many keys each call has.
    keys: usize,
    /// The earliest of theirs.
    deadline: Instant,
    groups: Vec<Group>,
    calls: usize,
}

/// Those of a batch that have the same keys, which the script reads and writes once for all of them.
struct Group {
    keys: SmallVec<[String; 4]>,
    calls: SmallVec<[(Vec<u8>, Caller); 1]>,
}

impl Batch {
    fn begin(call: UsualCall, caller: Caller) -> Self {
        let UsualCall { script, keys, slot, told, deadline } = call;
        let number = keys.len();
        let calls = SmallVec::from_iter([(told, caller)]);
        Self { script, slot, keys: number, deadline, groups: vec![Group { keys, calls }], calls: 1 }
    }

    fn takes(&self, call: &UsualCall) -> bool {
        self.calls < MOST_CALLS
            && Arc::ptr_eq(&self.script, &call.script)
            && self.slot == call.slot
            && self.keys == call.keys.len()
            && call.deadline <= self.deadline + NEAR
            && self.deadline <= call.deadline + NEAR
    }

    fn add(&mut self, call: UsualCall, caller: Caller) {
        self.calls += 1;
        self.deadline = self.deadline.min(call.deadline);
        match self.groups.iter_mut().find(|group| group.keys == call.keys) {
            Some(group) => group.calls.push((call.told, caller)),
            None => self.groups.push(Group { keys: call.keys, calls: SmallVec::from_iter([(call.told, caller)]) }),
        }
    }
}

impl Group {
    fn count(&self) -> u8 {
        u8::try_from(self.calls.len()).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::RedisConfig, *};

    /// Parts of a call over several slots may have spent most of theirs. Tried with the earliest deadline for all.
    #[tokio::test]
    async fn whoever_is_late_is_late_alone() {
        let (script, now) = (Arc::new(Script::new(String::new())), Instant::now());
        let call = |ms| UsualCall {
            script: Arc::clone(&script),
            keys: SmallVec::from_iter(["key".to_owned()]),
            slot: None,
            told: Vec::new(),
            deadline: now + Duration::from_millis(ms),
        };
        let batch = Batch::begin(call(250), oneshot::channel().0);
        assert!(batch.takes(&call(251)) && batch.takes(&call(240)));
        assert!(!batch.takes(&call(2)) && !batch.takes(&call(500)));
        let link = Link::open(RedisConfig::new("redis://127.0.0.1:1")).unwrap();
        let late = Batches::new(&link, None).decide(&link, call(0)).await;
        assert_eq!(late, Err(StoreError::Unreachable("no time is left to ask".into())));
    }
}
