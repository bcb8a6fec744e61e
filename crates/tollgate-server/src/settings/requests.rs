//! The bounds of requests, in total and for one caller.

use std::time::Duration;

use super::{Options, defaults, numbers::Numbers};

/// The bounds of requests.
#[derive(Clone, Debug)]
pub struct RequestSettings {
    /// The largest request, in bytes.
    pub max_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// The memory of bodies that have not arrived yet, over REST and over gRPC each, in bytes.
    pub max_unread_bytes: usize,
    /// Calls in work at once, on a gRPC connection and over REST.
    pub max_concurrent_calls: usize,
    /// Of these over REST, those of one caller.
    pub max_calls_per_caller: usize,
    /// Open streams at once.
    pub max_streams: usize,
    /// Of these, those of one caller.
    pub max_streams_per_caller: usize,
}

impl RequestSettings {
    pub(super) fn settle(options: &Options, numbers: &mut Numbers<'_>) -> Self {
        let max_concurrent_calls = numbers.read(defaults::MAX_CONCURRENT_CALLS, options.max_concurrent_calls);
        let max_streams = numbers.read(defaults::MAX_STREAMS, options.max_streams);
        Self {
            max_bytes: numbers.read(defaults::REQUEST_BYTES, options.max_request_bytes),
            body_timeout: numbers.time(defaults::BODY_TIMEOUT_MS, options.body_timeout_ms),
            max_unread_bytes: numbers.read(defaults::MAX_UNREAD_BYTES, options.max_unread_bytes),
            max_concurrent_calls,
            max_calls_per_caller: numbers.share(
                "max-calls-per-caller",
                options.max_calls_per_caller,
                max_concurrent_calls,
            ),
            max_streams,
            max_streams_per_caller: numbers.share(
                "max-streams-per-caller",
                options.max_streams_per_caller,
                max_streams,
            ),
        }
    }
}
