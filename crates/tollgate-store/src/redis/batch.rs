//! Batches: calls on the fast path that arrive together are decided by one run of their script. No call waits for
//! others: a batch contains the calls that arrived while the thread was busy with earlier ones.

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
    Script,
    client::{Durability, Failure, Fault, RedisClient, preferred_runtime},
    layout::ERROR,
    wire,
};

/// Maximum number of calls in one script run. More would save little per call (`tests/bench-batches`); one run of this many
/// keeps Redis busy for about a quarter of a millisecond.
const MOST_CALLS: usize = 32;
/// Calls whose deadlines differ by more than this are not batched together.
const NEAR: Duration = Duration::from_millis(20);
/// Maximum number of waiting calls that are sorted into batches at once.
const MOST_AT_ONCE: usize = 512;

/// The queues of the batches: one for each runtime with connections, and one for calls from other threads.
pub(super) struct Batches(Box<[mpsc::Sender<QueuedCall>]>);

/// A call to be sent, and the channel to the caller that waits for the reply.
struct QueuedCall {
    call: BatchedCall,
    caller: Caller,
}

type Caller = oneshot::Sender<Result<Vec<u8>, StoreError>>;

/// One call for a run of a script.
pub(super) struct BatchedCall {
    pub(super) script: Arc<Script>,
    pub(super) keys: SmallVec<[String; 4]>,
    /// The partition whose slot the keys are in; only in a cluster.
    pub(super) slot: Option<Partition>,
    /// The bytes of the call, as `lua/fast_path.lua.jinja` states them.
    pub(super) payload: Vec<u8>,
    pub(super) deadline: Instant,
    /// The time of the tests' clock when the call was made, where tests have put one in the place of Redis's.
    pub(super) injected_ms: Option<u64>,
}

impl Batches {
    /// Must be called within a Tokio runtime.
    pub(super) fn new(link: &RedisClient) -> Self {
        let start = |home: Option<&tokio::runtime::Handle>| {
            // Calls that have a place on the link wait here, so there is room for all of them.
            let (to, calls) = mpsc::channel(link.max_in_flight());
            let sending = BatchSender { link: link.clone() }.send_all(calls);
            match home {
                Some(home) => drop(home.spawn(sending)),
                None => drop(tokio::spawn(sending)),
            }
            to
        };
        Self(link.runtimes().iter().map(Some).chain([None]).map(start).collect())
    }

    /// Decides one call, and returns the script's reply.
    pub(super) async fn decide(&self, link: &RedisClient, call: BatchedCall) -> Result<Vec<u8>, StoreError> {
        let _place = link.acquire_permit()?;
        let (caller, answer) = oneshot::channel();
        let elsewhere = self.0.len() - 1;
        let here = preferred_runtime().filter(|runtime| *runtime < elsewhere).unwrap_or(elsewhere);
        self.0[here].try_send(QueuedCall { call, caller }).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded("too many calls wait to be sent".into()),
            TrySendError::Closed(_) => StoreError::Unreachable("the node ends".into()),
        })?;
        // The task that sends the call keeps to its deadline.
        answer.await.unwrap_or_else(|_| Err(StoreError::Indeterminate("the node ends".into())))
    }
}

/// The state of the task that sends batches.
#[derive(Clone)]
struct BatchSender {
    link: RedisClient,
}

impl BatchSender {
    async fn send_all(self, mut calls: mpsc::Receiver<QueuedCall>) {
        let mut waiting = Vec::new();
        while calls.recv_many(&mut waiting, MOST_AT_ONCE).await > 0 {
            let mut batches: SmallVec<[Batch; 2]> = SmallVec::new();
            let now = Instant::now();
            // Callers that gave up are skipped, so nothing is charged for them.
            for QueuedCall { call, caller } in waiting.drain(..).filter(|waiting| !waiting.caller.is_closed()) {
                if call.deadline <= now {
                    let _ = caller.send(Err(StoreError::Unreachable("no time is left to ask".into())));
                    continue;
                }
                match batches.iter_mut().find(|batch| batch.accepts(&call)) {
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
        let payload = batch.groups.iter().flat_map(|group| &group.calls).map(|(payload, _)| &**payload);
        let args: Vec<&[u8]> = [&*counts].into_iter().chain(payload).collect();
        let command = |verb: &str, script: &str| wire::command(verb, script, &keys, &args, batch.injected_ms);
        let answer = self.link.run(batch.deadline, &batch.script, Durability::Charge, command).await;
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
                // A caller that gave up needs no reply.
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

/// The calls that one run of a script decides.
struct Batch {
    script: Arc<Script>,
    slot: Option<Partition>,
    /// How many keys each call has.
    keys: usize,
    /// The earliest deadline of the calls.
    deadline: Instant,
    /// The same for all, as one run of a script has one time.
    injected_ms: Option<u64>,
    groups: Vec<Group>,
    calls: usize,
}

/// Calls of a batch that have the same keys. The script reads and writes these once for all of them.
struct Group {
    keys: SmallVec<[String; 4]>,
    calls: SmallVec<[(Vec<u8>, Caller); 1]>,
}

impl Batch {
    fn begin(call: BatchedCall, caller: Caller) -> Self {
        let BatchedCall { script, keys, slot, payload, deadline, injected_ms } = call;
        let number = keys.len();
        let calls = SmallVec::from_iter([(payload, caller)]);
        Self { script, slot, keys: number, deadline, injected_ms, groups: vec![Group { keys, calls }], calls: 1 }
    }

    fn accepts(&self, call: &BatchedCall) -> bool {
        self.calls < MOST_CALLS
            && Arc::ptr_eq(&self.script, &call.script)
            && self.slot == call.slot
            && self.keys == call.keys.len()
            && self.injected_ms == call.injected_ms
            && call.deadline <= self.deadline + NEAR
            && self.deadline <= call.deadline + NEAR
    }

    fn add(&mut self, call: BatchedCall, caller: Caller) {
        self.calls += 1;
        self.deadline = self.deadline.min(call.deadline);
        match self.groups.iter_mut().find(|group| group.keys == call.keys) {
            Some(group) => group.calls.push((call.payload, caller)),
            None => self.groups.push(Group { keys: call.keys, calls: SmallVec::from_iter([(call.payload, caller)]) }),
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

    /// A call that differs from another only in its deadline and its time.
    fn call(script: &Arc<Script>, deadline: Instant, injected_ms: Option<u64>) -> BatchedCall {
        BatchedCall {
            script: Arc::clone(script),
            keys: SmallVec::from_iter(["key".to_owned()]),
            slot: None,
            payload: Vec::new(),
            deadline,
            injected_ms,
        }
    }

    /// Parts of a call over several slots may have spent most of theirs. Tried with the earliest deadline for all.
    #[tokio::test]
    async fn a_call_with_little_time_left_does_not_delay_a_batch() {
        let (script, now) = (Arc::new(Script::new(String::new())), Instant::now());
        let call = |ms| call(&script, now + Duration::from_millis(ms), None);
        let batch = Batch::begin(call(250), oneshot::channel().0);
        assert!(batch.accepts(&call(251)) && batch.accepts(&call(240)));
        assert!(!batch.accepts(&call(2)) && !batch.accepts(&call(500)));
        let link = RedisClient::open(RedisConfig::new("redis://127.0.0.1:1")).unwrap();
        let late = Batches::new(&link).decide(&link, call(0)).await;
        assert_eq!(late, Err(StoreError::Unreachable("no time is left to ask".into())));
    }

    /// One run of a script has one time.
    #[test]
    fn calls_made_at_different_injected_times_are_not_batched_together() {
        let (script, deadline) = (Arc::new(Script::new(String::new())), Instant::now());
        let batch = Batch::begin(call(&script, deadline, Some(7)), oneshot::channel().0);
        assert!(batch.accepts(&call(&script, deadline, Some(7))));
        assert!(!batch.accepts(&call(&script, deadline, Some(8))) && !batch.accepts(&call(&script, deadline, None)));
    }
}
