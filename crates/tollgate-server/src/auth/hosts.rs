//! The accepted host names of a node.

use std::net::IpAddr;

use axum::http::uri::Authority;

/// The accepted values of `Host`.
///
/// This prevents DNS rebinding: a web page whose name resolves to the visitor's loopback address could otherwise call a
/// node there.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Whether loopback names are accepted, and others are not.
    pub loopback: bool,
    /// Other accepted names, without a port. If there are any, only they and loopback names, if enabled, are accepted.
    pub allowed: Vec<String>,
}

impl Hosts {
    /// Whether `host`, with or without a port, is accepted.
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
    fn loopback_and_allowed_names_are_accepted() {
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
