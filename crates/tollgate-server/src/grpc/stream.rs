//! `ConsumeStream`: calls are read as they arrive; responses are sent as calls are decided.

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

use super::{Api, call_result};
use crate::{
    lifecycle::Lifecycle,
    shares::{Exhausted, Holder, Permit, Shares},
};

type StreamItem = Result<v1::ConsumeStreamResponse, Status>;

/// The bounds of streams.
#[derive(Clone)]
pub(crate) struct Bounds {
    /// The open streams.
    pub(crate) streams: Arc<Shares>,
    /// The maximum number of calls of one stream whose responses the client has not read.
    pub(crate) calls: usize,
    /// After this time without a call or a response a stream is ended.
    pub(crate) idle_timeout: Duration,
    /// Streams end when the node stops.
    pub(crate) stage: watch::Receiver<Lifecycle>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The responses of one stream. The stream counts as open until this is dropped.
pub(crate) struct ResponseStream {
    responses: mpsc::Receiver<StreamItem>,
    _permit: Permit,
}

impl Stream for ResponseStream {
    type Item = StreamItem;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        self.responses.poll_recv(context)
    }
}

impl Bounds {
    /// Opens a stream of `holder`: both ends of the channel of its responses.
    pub(super) fn open(&self, holder: Holder) -> Result<(mpsc::Sender<StreamItem>, ResponseStream), Status> {
        let permit = self.streams.acquire(holder, 1).map_err(|exhausted| {
            self.metrics.count_refused_request("grpc", "streams");
            Status::resource_exhausted(match exhausted {
                Exhausted::All => "the node has its maximum number of open streams",
                Exhausted::Share => "the caller has its maximum number of open streams",
            })
        })?;
        // One item more, for the error that ends a stream.
        let (sender, responses) = mpsc::channel(self.calls + 1);
        Ok((sender, ResponseStream { responses, _permit: permit }))
    }
}

/// Decides the calls of one stream until it ends.
///
/// A call is read only after capacity in the channel of responses was reserved for it. So the memory for a client that
/// reads no responses is bounded, no call in progress waits for the client, and HTTP/2's flow control stops the client
/// from sending.
pub(super) async fn serve(
    api: Api,
    scope: DomainScope,
    mut calls: Streaming<v1::ConsumeStreamRequest>,
    responses: mpsc::Sender<StreamItem>,
) {
    let Ok(error_permit) = responses.clone().reserve_owned().await else { return };
    let (mut permit, mut work) = (None, FuturesUnordered::new());
    let (mut stopped, mut client_gone) =
        (pin!(Lifecycle::Stopping.reached(api.streams.stage.clone())), pin!(responses.closed()));
    let (idle_timeout, mut last_active) = (api.streams.idle_timeout, Instant::now());
    let mut idle_check = pin!(tokio::time::sleep_until(last_active + idle_timeout));
    let result = loop {
        tokio::select! {
            Some(()) = work.next() => last_active = Instant::now(),
            reserved = responses.clone().reserve_owned(), if permit.is_none() => permit = reserved.ok(),
            call = calls.message(), if permit.is_some() => match (call, permit.take()) {
                (Ok(Some(call)), Some(permit)) => {
                    last_active = Instant::now();
                    work.push(respond(&api, &scope, call, permit));
                }
                (Ok(_), _) => break Ok(()),
                (Err(status), _) => break Err(status),
            },
            () = &mut client_gone => return,
            () = &mut stopped => {
                break Err(Status::unavailable("the node stops; calls without an answer were not charged"));
            }
            () = &mut idle_check => {
                if last_active.elapsed() >= idle_timeout {
                    break Err(Status::deadline_exceeded(format!("stream: nothing happened for {idle_timeout:?}")));
                }
                idle_check.as_mut().reset(last_active + idle_timeout);
            }
        }
    };
    drop(permit);
    while work.next().await.is_some() {}
    if let Err(status) = result {
        error_permit.send(Err(status));
    }
}

async fn respond(
    api: &Api,
    scope: &DomainScope,
    message: v1::ConsumeStreamRequest,
    permit: mpsc::OwnedPermit<StreamItem>,
) {
    let v1::ConsumeStreamRequest { id, call, timeout_ms } = message;
    let timeout = match timeout_ms {
        0 => api.timeout,
        ms => Duration::from_millis(u64::from(ms)).min(api.timeout),
    };
    let decision = match api.decide_one(scope, call.as_ref(), Instant::now() + timeout, Mode::Try) {
        Ok(decision) => decision.await,
        Err(error) => Err(error),
    };
    permit.send(Ok(v1::ConsumeStreamResponse { id, result: Some(call_result(decision)) }));
}
