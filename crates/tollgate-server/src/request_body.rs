//! Request bodies: their memory and their encoding.

use axum::http::{HeaderMap, header};

/// The memory of an unread body without its bytes: the stream of the connection, the task, and the headers.
pub(crate) const UNREAD_BASE_BYTES: usize = 16 << 10;

/// Whether the body is not compressed.
pub(crate) fn is_plain(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    encodings.all(|encoding| encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}
