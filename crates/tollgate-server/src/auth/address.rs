//! The address of a caller.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;
use serde::Deserialize;
use tollgate_service::blocks::client_network_name;

/// The address of a caller behind any trusted proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientAddr(IpAddr);

/// The network that the caller is counted by.
impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&client_network_name(self.0))
    }
}

impl ClientAddr {
    pub(crate) fn ip(self) -> IpAddr {
        self.0
    }
}

/// The header in which trusted proxies report the address of their client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The proxies that are trusted to report the address of their client.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    /// Their networks.
    pub networks: Vec<IpNet>,
    /// The header that they use.
    pub header: ForwardedHeader,
}

impl TrustedProxies {
    /// The caller's address: that of the peer or, if the peer is trusted, the last address in the header that is not a
    /// trusted proxy. Addresses before that one may be forged, and are not used.
    pub(crate) fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> ClientAddr {
        let mut client = peer.ip().to_canonical();
        if !self.trusts(client) {
            return ClientAddr(client);
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ForwardedHeader::Forwarded => header::FORWARDED,
        };
        let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
        for hop in values.iter().rev().flat_map(|value| value.rsplit(',')) {
            let address = match self.header {
                ForwardedHeader::XForwardedFor => parse(hop),
                ForwardedHeader::Forwarded => forwarded_for(hop),
            };
            // If an address is hidden or invalid, the proxy that reports it is taken for the caller.
            let Some(address) = address else { break };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        ClientAddr(client)
    }

    /// Whether this is the address of a trusted proxy.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// An address, with a port or without, in brackets or without.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// The address in the `for` of one element of `Forwarded`. Quoted commas and semicolons need no support, because no
/// address contains them.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let plain = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        name.trim().eq_ignore_ascii_case("for").then(|| parse(plain)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(header: ForwardedHeader, peer: &str, values: &[&str]) -> String {
        let networks = ["10.0.0.0/8", "::1/128", "fd00::/8"].map(|network| network.parse().unwrap()).to_vec();
        let mut headers = HeaderMap::new();
        for value in values {
            let name = if header == ForwardedHeader::Forwarded { "forwarded" } else { "x-forwarded-for" };
            headers.append(name, value.parse().unwrap());
        }
        // The other header, which is not used.
        headers.append(
            if header == ForwardedHeader::Forwarded { "x-forwarded-for" } else { "forwarded" },
            "6.6.6.6".parse().unwrap(),
        );
        TrustedProxies { networks, header }.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_last_untrusted_address_is_the_caller() {
        let x = |peer, values: &[&str]| client(ForwardedHeader::XForwardedFor, peer, values);
        assert_eq!(x("203.0.113.9:1", &["1.2.3.4"]), "203.0.113.9", "the header of an untrusted peer is ignored");
        assert_eq!(x("10.0.0.1:1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(x("10.0.0.1:1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"]), "1.2.3.4", "the first address may be forged");
        assert_eq!(x("10.0.0.1:1", &["6.6.6.6", "1.2.3.4", "10.0.0.2"]), "1.2.3.4", "several headers form one list");
        assert_eq!(x("10.0.0.1:1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3", "a proxy that is itself the caller");
        assert_eq!(x("10.0.0.1:1", &[]), "10.0.0.1");
        assert_eq!(
            x("10.0.0.1:1", &["1.2.3.4, nonsense, 10.0.0.2"]),
            "10.0.0.2",
            "addresses before an invalid one are ignored"
        );
        assert_eq!(x("10.0.0.1:1", &["1.2.3.4:4711"]), "1.2.3.4");
        assert_eq!(x("[::ffff:10.0.0.1]:1", &["::ffff:1.2.3.4"]), "1.2.3.4", "an IPv4-mapped address");
        assert_eq!(x("[::1]:1", &["2001:db8:1:2:3:4:5:6"]), "2001:db8:1:2::/64");
        assert_eq!(x("[::1]:1", &["[2001:db8:1:2::7]:80"]), "2001:db8:1:2::/64");
    }

    #[test]
    fn the_forwarded_header_is_parsed_as_in_rfc_7239() {
        let f = |values: &[&str]| client(ForwardedHeader::Forwarded, "10.0.0.1:1", values);
        assert_eq!(
            f(&[r#"for=6.6.6.6, For="[2001:db8:cafe::17]:4711";proto=https, for=10.1.1.1;by=x"#]),
            "2001:db8:cafe::/64"
        );
        assert_eq!(f(&["proto=https;for=1.2.3.4"]), "1.2.3.4");
        assert_eq!(f(&["for=1.2.3.4", "for=unknown"]), "10.0.0.1");
        assert_eq!(f(&[r#"for="a,for=6.6.6.6""#]), "10.0.0.1", "a quoted comma makes the element invalid");
    }
}
