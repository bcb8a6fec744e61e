//! A raw HTTP/2 client (RFC 9113), for misuse that no library allows: windows of zero bytes, requests that never end.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Connects from this loopback address.
pub(crate) async fn connect_from(from: Ipv4Addr, to: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let connected = timeout(Duration::from_secs(10), socket.connect(to.parse().expect("an address"))).await;
    connected.map_err(std::io::Error::other)?
}

/// A connection that sends the given frames, and reads nothing by itself.
pub(crate) struct RawHttp2 {
    stream: TcpStream,
    authority: String,
    next_stream: u32,
    unsent: Vec<u8>,
}

impl RawHttp2 {
    /// Connects with an initial stream window of `window` bytes.
    pub(crate) async fn connect(from: Ipv4Addr, to: &str, window: u32) -> std::io::Result<Self> {
        let stream = connect_from(from, to).await?;
        let mut raw = Self { stream, authority: to.to_owned(), next_stream: 1, unsent: PREFACE.to_vec() };
        let setting = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window.to_be_bytes()].concat();
        raw.frame(SETTINGS, 0, 0, &setting);
        Ok(raw)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
        self.unsent.extend_from_slice(&length[1..]);
        self.unsent.extend([kind, flags]);
        self.unsent.extend(stream.to_be_bytes());
        self.unsent.extend_from_slice(payload);
    }

    /// Queues the headers of a request, and its end if it has no body. Returns the stream's number.
    pub(crate) fn request(&mut self, method: &str, path: &str, more: &[(&str, &str)], end: bool) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let authority = self.authority.clone();
        let first = [(":method", method), (":scheme", "http"), (":path", path), (":authority", &authority)];
        let mut block = Vec::new();
        for (name, value) in first.iter().chain(more) {
            // A literal without indexing (RFC 7541, section 6.2.2).
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short header"));
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS | if end { END_STREAM } else { 0 }, stream, &block);
        stream
    }

    /// Queues the headers of a gRPC call, whose messages follow.
    pub(crate) fn grpc(&mut self, path: &str) -> u32 {
        self.request("POST", path, &[("content-type", "application/grpc"), ("te", "trailers")], false)
    }

    /// Queues a part of a request's body.
    pub(crate) fn data(&mut self, stream: u32, bytes: &[u8], end: bool) {
        self.frame(DATA, u8::from(end) * END_STREAM, stream, bytes);
    }

    /// Queues a reset of the stream.
    pub(crate) fn reset(&mut self, stream: u32) {
        const CANCEL: u32 = 8;
        self.frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    }

    /// Queues the answer to a ping that was never sent.
    pub(crate) fn pong(&mut self) {
        self.frame(PING, ACK, 0, &[7; 8]);
    }

    /// Sends the queued frames. Returns whether the node accepted them.
    pub(crate) async fn flush(&mut self) -> bool {
        let sent = timeout(Duration::from_secs(5), self.stream.write_all(&self.unsent)).await;
        self.unsent.clear();
        matches!(sent, Ok(Ok(())))
    }

    /// Whether the node closes the connection within `bound`.
    pub(crate) async fn is_closed_within(&mut self, bound: Duration) -> bool {
        let mut bytes = [0; 4096];
        timeout(bound, async { while let Ok(1..) = self.stream.read(&mut bytes).await {} }).await.is_ok()
    }
}
