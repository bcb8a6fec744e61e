//! By which names a node is called.

use std::net::IpAddr;

use axum::http::uri::Authority;

/// The names that a request's `Host` may have.
///
/// A web page can let its own name resolve to a visitor's loopback address (DNS rebinding), and then talk to every
/// service that listens there, with its own name as the host.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Whether the names of loopback are good, and others are not.
    pub loopback: bool,
    /// Further accepted names, without a port. If there are any, no others are accepted beyond loopback either.
    pub allowed: Vec<String>,
}

impl Hosts {
    /// Whether a request for `host`, with a port or without, means this node.
    pub(crate) fn permit(&self, host: Option<&str>) -> bool {
        if !self.loopback && self.allowed.is_empty() {
            return true;
        }
        let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host().trim_end_matches('.');
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let is_loopback = || {
            bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(bare)) || (self.loopback && is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_called_by_its_own_names() {
        let hosts = Hosts { loopback: true, allowed: vec!["limits.example".to_owned()] };
        for good in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "127.0.0.2",
            "[::1]:1",
            "limits.example",
            "Limits.Example.:443",
        ] {
            assert!(hosts.permit(Some(good)), "{good}");
        }
        for bad in
            ["", "evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "a localhost", "[::2]", "10.0.0.1"]
        {
            assert!(!hosts.permit(Some(bad)), "{bad}");
        }
        assert!(!hosts.permit(None));
        assert!(Hosts { loopback: false, allowed: Vec::new() }.permit(Some("any.example")));
        assert!(!Hosts { loopback: false, allowed: vec!["a.example".to_owned()] }.permit(Some("localhost")));
    }
}
