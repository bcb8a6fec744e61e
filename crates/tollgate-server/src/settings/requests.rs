//! The bounds of requests, in total and for one caller.

use std::time::Duration;

use super::{Options, defaults, numbers::Numbers};

/// The bounds of requests.
#[derive(Clone, Debug)]
pub struct RequestSettings {
    /// The maximum size of a request, in bytes.
    pub max_bytes: usize,
    /// The maximum time until a body has arrived.
    pub body_timeout: Duration,
    /// The memory for bodies that have not arrived completely, for REST and gRPC each, in bytes.
    pub max_unread_bytes: usize,
    /// The maximum number of concurrent calls, per gRPC connection and for REST.
    pub max_concurrent_calls: usize,
    /// The maximum number of concurrent REST calls of one caller.
    pub max_calls_per_caller: usize,
    /// The maximum number of open streams.
    pub max_streams: usize,
    /// The maximum number of open streams of one caller.
    pub max_streams_per_caller: usize,
}

impl RequestSettings {
    pub(super) fn resolve(options: &Options, numbers: &mut Numbers<'_>) -> Self {
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
