//! `ConsumeStream`: calls as they come, answers as they are decided.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tollgate_api::v1;
use tollgate_core::claim::Mode;
use tollgate_service::{metrics::Metrics, scope::DomainScope};
use tonic::{Status, Streaming};

use super::{Api, result};
use crate::{
    lifecycle::Lifecycle,
    shares::{Exhausted, Holder, Permit, Shares},
};

type Answer = Result<v1::ConsumeStreamResponse, Status>;

/// The resources of streams.
#[derive(Clone)]
pub(crate) struct Bounds {
    /// A place for each open stream.
    pub(crate) places: Arc<Shares>,
    /// How many calls of one stream may be without an answer that the client took.
    pub(crate) calls: usize,
    /// A stream on which nothing happens for so long is ended.
    pub(crate) idle: Duration,
    /// Streams end when the node stops.
    pub(crate) stage: watch::Receiver<Lifecycle>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The answers of one stream. Its slot is free when the client has read them all, or is gone.
pub(crate) struct Answers {
    answers: mpsc::Receiver<Answer>,
    _place: Permit,
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.answers.poll_recv(context)
    }
}

impl Bounds {
    /// Opens a stream of `holder`: where its answers go, and where they come out.
    pub(super) fn open(&self, holder: Holder) -> Result<(mpsc::Sender<Answer>, Answers), Status> {
        let place = self.places.acquire(holder, 1).map_err(|exhausted| {
            self.metrics.request_refused("grpc", "streams");
            Status::resource_exhausted(match exhausted {
                Exhausted::All => "the node has its maximum number of open streams",
                Exhausted::Share => "the caller has its maximum number of open streams",
            })
        })?;
        // One more, for the error that ends a stream.
        let (to, answers) = mpsc::channel(self.calls + 1);
        Ok((to, Answers { answers, _place: place }))
    }
}

/// Decides the calls of one stream until it ends.
///
/// Every call reserves a place in the channel of answers before it is read. So the memory for a client that reads no
/// answers is bounded, no call in progress waits for the client, and HTTP/2's flow control stops the client from
/// sending.
pub(super) async fn serve(
    api: Api,
    within: DomainScope,
    mut calls: Streaming<v1::ConsumeStreamRequest>,
    answers: mpsc::Sender<Answer>,
) {
    let Ok(last_word) = answers.clone().reserve_owned().await else { return };
    let (mut place, mut work) = (None, FuturesUnordered::new());
    let (mut stopped, mut gone) =
        (pin!(Lifecycle::Stopping.reached(api.streams.stage.clone())), pin!(answers.closed()));
    let (idle, mut active) = (api.streams.idle, Instant::now());
    let mut idle_check = pin!(tokio::time::sleep_until(active + idle));
    let ended = loop {
        tokio::select! {
            Some(()) = work.next() => active = Instant::now(),
            free = answers.clone().reserve_owned(), if place.is_none() => place = free.ok(),
            call = calls.message(), if place.is_some() => match (call, place.take()) {
                (Ok(Some(call)), Some(place)) => {
                    active = Instant::now();
                    work.push(answer(&api, &within, call, place));
                }
                (Ok(_), _) => break Ok(()),
                (Err(status), _) => break Err(status),
            },
            () = &mut gone => return,
            () = &mut stopped => {
                break Err(Status::unavailable("the node stops; calls without an answer were not charged"));
            }
            () = &mut idle_check => {
                if active.elapsed() >= idle {
                    break Err(Status::deadline_exceeded(format!("stream: nothing happened for {idle:?}")));
                }
                idle_check.as_mut().reset(active + idle);
            }
        }
    };
    drop(place);
    while work.next().await.is_some() {}
    if let Err(status) = ended {
        last_word.send(Err(status));
    }
}

async fn answer(api: &Api, within: &DomainScope, message: v1::ConsumeStreamRequest, place: mpsc::OwnedPermit<Answer>) {
    let v1::ConsumeStreamRequest { id, call, timeout_ms } = message;
    let timeout = match timeout_ms {
        0 => api.timeout,
        ms => Duration::from_millis(u64::from(ms)).min(api.timeout),
    };
    let decided = match api.decide_one(within, call.as_ref(), Instant::now() + timeout, Mode::Try) {
        Ok(decided) => decided.await,
        Err(error) => Err(error),
    };
    place.send(Ok(v1::ConsumeStreamResponse { id, result: Some(result(decided)) }));
}
