//! Bodies of requests, for all protocols: the memory that one holds while it arrives, and its allowed encodings.

use axum::http::{HeaderMap, header};

/// The cost of an unread body besides its bytes: the connection's stream, the task, and the headers.
pub(crate) const UNREAD_BASE_BYTES: usize = 16 << 10;

/// Whether the body is as it is sent. Nothing here unpacks one.
pub(crate) fn is_plain(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    encodings.all(|encoding| encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}
