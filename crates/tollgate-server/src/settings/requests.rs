//! The bounds of requests, in total and for one caller.

use std::time::Duration;

use super::{Options, numbers::Numbers};

/// The memory of unread bodies, in bytes: enough for some to be on their way whatever is set.
const MIN_UNREAD_BYTES: usize = 1 << 20;
const MAX_UNREAD_BYTES: usize = 1 << 36;
/// The largest request: over gRPC its length has 32 bits.
const MAX_REQUEST_BYTES: usize = 1 << 30;
/// The most places: HTTP/2 counts the streams of a connection in 31 bits.
const MAX_PLACES: usize = 1 << 20;

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
        let places =
            |numbers: &mut Numbers<'_>, name, value, default| numbers.within(name, value, default, 1..=MAX_PLACES);
        let max_concurrent_calls = places(numbers, "max-concurrent-calls", options.max_concurrent_calls, 1_024);
        let max_streams = places(numbers, "max-streams", options.max_streams, 256);
        Self {
            max_bytes: numbers.within("max-request-bytes", options.max_request_bytes, 65_536, 1..=MAX_REQUEST_BYTES),
            body_timeout: numbers.time("body-timeout-ms", options.body_timeout_ms, 3_000),
            max_unread_bytes: numbers.within(
                "max-unread-bytes",
                options.max_unread_bytes,
                64 << 20,
                MIN_UNREAD_BYTES..=MAX_UNREAD_BYTES,
            ),
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
