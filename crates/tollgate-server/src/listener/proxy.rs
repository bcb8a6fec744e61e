//! The header of the PROXY protocol, in which a load balancer names the client
//! (<https://www.haproxy.org/download/3.1/doc/proxy-protocol.txt>).

use std::net::SocketAddr;

use proxy_protocol_rs::parse;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The maximum length of a header, in bytes: version 1 has at most 107 bytes, version 2 depends on its extensions.
const MAX_BYTES: usize = 4_096;
/// The length of the part of a header that contains its version, and in version 2 its length.
const PREFIX_BYTES: usize = 16;
const V2_SIGNATURE: &[u8] = parse::V2_SIGNATURE;

/// Reads only the header, and returns the client's address; `None` for a connection of the load balancer itself, such
/// as a health check.
///
/// # Errors
/// There is no header, it is malformed or too long, or the connection broke.
pub(super) async fn read_client(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ()> {
    let mut header = Vec::with_capacity(PREFIX_BYTES);
    // This is the shortest header of both versions.
    read_exactly(stream, &mut header, "PROXY UNKNOWN\r\n".len()).await?;
    if header.starts_with(V2_SIGNATURE) {
        read_exactly(stream, &mut header, PREFIX_BYTES).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        read_exactly(stream, &mut header, PREFIX_BYTES + length).await?;
    } else {
        // Version 1 is a line of unknown length.
        while header.last() != Some(&b'\n') {
            let length = header.len();
            if !header.starts_with(b"PROXY ") || length >= 107 {
                return Err(());
            }
            read_exactly(stream, &mut header, length + 1).await?;
        }
    }
    let (parsed, length) = parse::parse(&header).map_err(drop)?;
    if length == header.len() { Ok(parsed.source_inet()) } else { Err(()) }
}

/// Reads until the header has `length` bytes.
async fn read_exactly(stream: &mut (impl AsyncRead + Unpin), header: &mut Vec<u8>, length: usize) -> Result<(), ()> {
    if length > MAX_BYTES {
        return Err(());
    }
    let start = header.len();
    header.resize(length.max(start), 0);
    stream.read_exact(&mut header[start..]).await.map(drop).map_err(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, ()>, &[u8]) {
        let client = read_client(&mut bytes).await;
        (client, bytes)
    }

    /// A header of version 2 with an IPv4 client and an extension of this many bytes.
    fn v2(extension: u16) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([0x21, 0x11]);
        header.extend((12 + 3 + extension).to_be_bytes());
        header.extend([203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 0x01, 0xbb]);
        header.push(0x04);
        header.extend(extension.to_be_bytes());
        header.resize(header.len() + usize::from(extension), 0);
        header
    }

    /// Fails if bytes after the header are read, and if the destination is returned.
    #[tokio::test]
    async fn only_the_header_is_read_and_its_client_returned() {
        for (header, client) in [
            (&b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n"[..], Some("203.0.113.7:4711")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", Some("[2001:db8::7]:4711")),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
            (&v2(0), Some("203.0.113.7:4711")),
            (&v2(700), Some("203.0.113.7:4711")),
            // LOCAL: a health check of the load balancer.
            (b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00", None),
        ] {
            let bytes = [header, b"GET / HTTP/1.1\r\n"].concat();
            let client = client.map(|client| client.parse().unwrap());
            assert_eq!(read(&bytes).await, (Ok(client), &b"GET / HTTP/1.1\r\n"[..]), "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn other_bytes_are_rejected() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let truncated = &v2(10)[..30];
        for bad in [
            &b""[..],
            b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443 and more than that\r\n",
            b"PROXY TCP4 203.0.113.700 10.0.0.1 4711 443\r\n",
            &long,
            truncated,
            &v2(5_000),
        ] {
            assert_eq!(read(bad).await.0, Err(()), "{}", bad.escape_ascii());
        }
    }
}
