//! The settings of listeners and authentication, which depend on each other.

use std::net::SocketAddr;

use axum::http::uri::Authority;
use ipnet::IpNet;
use tollgate_policy::redaction::shown;

use super::{Options, defaults, numbers::Numbers};
use crate::{
    auth::{AuthSettings, Hosts, TrustedProxies},
    listener::ConnectionBounds,
    tls::TlsSettings,
};

/// The resolved settings.
pub(super) struct ServerSettings {
    pub(super) http_listen: SocketAddr,
    pub(super) grpc_listen: SocketAddr,
    pub(super) ops_listen: Option<SocketAddr>,
    pub(super) auth: AuthSettings,
    pub(super) connections: ConnectionBounds,
}

/// Resolves the options, and adds errors to `errors`, one per line.
pub(super) fn resolve(options: &Options, errors: &mut Vec<String>) -> ServerSettings {
    let http_listen = options.http_listen.unwrap_or(defaults::HTTP_LISTEN);
    let grpc_listen = options.grpc_listen.unwrap_or(defaults::GRPC_LISTEN);
    let tls = tls(options, errors);
    let listen = [("http-listen", http_listen), ("grpc-listen", grpc_listen)];
    check_open_loopback(options, &listen, errors);
    for (name, address) in listen {
        if address.ip().is_loopback() {
            continue;
        }
        if options.service_tokens.is_none() {
            errors.push(format!(
                "{name}: {address} is not a loopback address, so services must be authenticated: \
                 set service-tokens, or listen on 127.0.0.1 or [::1]"
            ));
        }
        if tls.is_none() && options.plaintext_beyond_loopback != Some(true) {
            errors.push(format!(
                "{name}: {address} is not a loopback address, so tokens would be sent in plain text: \
                 set tls-cert and tls-key, or plaintext-beyond-loopback if something else encrypts"
            ));
        }
    }
    let allowed: Vec<String> = options.allowed_hosts.iter().filter_map(|host| host_name(host, errors)).collect();
    let proxies = options.trusted_proxies.iter().filter_map(|network| proxy(network, errors)).collect();
    let connections = connections(options, &mut Numbers(errors));
    if connections.proxy_protocol && options.trusted_proxies.is_empty() {
        errors.push("proxy-protocol: needs trusted-proxies, whose connections begin with its header".to_owned());
    }
    ServerSettings {
        http_listen,
        grpc_listen,
        ops_listen: options.ops_listen,
        auth: AuthSettings {
            service_tokens: options.service_tokens.clone(),
            admin_tokens: options.admin_tokens.clone(),
            tls,
            hosts: Hosts { loopback: http_listen.ip().is_loopback(), allowed },
            proxies: TrustedProxies {
                networks: proxies,
                header: options.forwarded_header.unwrap_or(defaults::FORWARDED_HEADER),
            },
            max_login_failures: Numbers(errors).read(defaults::MAX_LOGIN_FAILURES, options.max_login_failures),
        },
        connections,
    }
}

fn connections(options: &Options, numbers: &mut Numbers<'_>) -> ConnectionBounds {
    let max_total = numbers.read(defaults::LISTENER_CONNECTIONS, options.max_connections);
    let default_per_address = (max_total / 4).max(1);
    ConnectionBounds {
        max_total,
        max_per_address: numbers.in_range(
            "max-connections-per-address",
            options.max_connections_per_address,
            default_per_address,
            1..=defaults::MAX_CONNECTIONS,
        ),
        header_timeout: numbers.time(defaults::HEADER_TIMEOUT_MS, options.header_timeout_ms),
        idle_timeout: numbers.time(defaults::IDLE_TIMEOUT_MS, options.idle_timeout_ms),
        response_timeout: numbers.time(defaults::ANSWER_TIMEOUT_MS, options.answer_timeout_ms),
        pending_bytes: numbers.read(defaults::MAX_PENDING_BYTES, options.max_pending_bytes),
        handshakes_per_second: numbers.read(defaults::MAX_HANDSHAKES_PER_SECOND, options.max_handshakes_per_second),
        proxy_protocol: options.proxy_protocol.unwrap_or(false),
    }
}

/// Checks that services are unauthenticated only with the embedded policy, or if an operator allows it.
fn check_open_loopback(options: &Options, listen: &[(&str, SocketAddr)], errors: &mut Vec<String>) {
    let beyond = listen.iter().find(|(_, address)| !address.ip().is_loopback());
    match (options.open_loopback, beyond) {
        (Some(true), _) if options.service_tokens.is_some() => {
            errors.push(
                "open-loopback: cannot be combined with service-tokens, which accept only the callers in that file"
                    .to_owned(),
            );
        }
        (Some(true), Some((name, address))) => {
            errors.push(format!(
                "open-loopback: cannot be combined with {name}, because {address} is not a loopback address"
            ));
        }
        // Not reported for other addresses, because they have an error of their own.
        (open, None) if options.service_tokens.is_none() && !open.unwrap_or(options.policy.is_empty()) => {
            errors.push(
                "service-tokens: is missing; only a node with the embedded policy is open to services by default: \
                 set service-tokens (with tls-client-ca it may name client certificates), or open-loopback if \
                 everyone who can reach the loopback address may act as any service"
                    .to_owned(),
            );
        }
        _ => {}
    }
}

fn tls(options: &Options, errors: &mut Vec<String>) -> Option<TlsSettings> {
    if options.tls_client_ca.is_some() {
        if options.tls_cert.is_none() {
            errors.push("tls-client-ca: needs tls-cert and tls-key".to_owned());
        }
        if options.service_tokens.is_none() {
            errors.push("tls-client-ca: needs service-tokens, which map client certificates to services".to_owned());
        }
    }
    match (&options.tls_cert, &options.tls_key) {
        (Some(certificate), Some(key)) => Some(TlsSettings {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: options.tls_client_ca.clone(),
        }),
        (None, None) => None,
        (Some(_), None) => {
            errors.push("tls-key: is missing; tls-cert needs it".to_owned());
            None
        }
        (None, Some(_)) => {
            errors.push("tls-cert: is missing; tls-key needs it".to_owned());
            None
        }
    }
}

fn host_name(host: &str, errors: &mut Vec<String>) -> Option<String> {
    let parsed = host.parse::<Authority>().ok();
    // The host must be the whole authority.
    let name = parsed.filter(|authority| authority.host() == host);
    if name.is_none() {
        errors.push(format!("allowed-hosts: {:?} must be a host name without a port", shown(host)));
    }
    name.map(|name| name.host().trim_matches(['[', ']']).trim_end_matches('.').to_owned())
}

fn proxy(network: &str, errors: &mut Vec<String>) -> Option<IpNet> {
    let parsed = network.parse().or_else(|_| network.parse().map(|address: std::net::IpAddr| IpNet::from(address)));
    if parsed.is_err() {
        let network = shown(network);
        errors.push(format!("trusted-proxies: {network:?} must be a network such as 10.0.0.0/8, or an address"));
    }
    parsed.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(yaml: &str) -> Vec<String> {
        let options: Options = crate::settings::parse(yaml).unwrap();
        let mut errors = Vec::new();
        resolve(&options, &mut errors);
        errors
    }

    #[test]
    fn other_addresses_than_loopback_need_service_tokens_and_tls() {
        let redis_configs = errors("http-listen: 0.0.0.0:80");
        assert_eq!(redis_configs.len(), 2, "{redis_configs:?}");
        assert!(
            redis_configs[0].contains("set service-tokens") && redis_configs[1].contains("set tls-cert"),
            "{redis_configs:?}"
        );
        let clear = errors("{ http-listen: '0.0.0.0:80', grpc-listen: '[::]:81', service-tokens: t }");
        assert_eq!(clear.len(), 2, "{clear:?}");
        let open = errors("{ open-loopback: true, grpc-listen: '[::]:81', plaintext-beyond-loopback: true }");
        assert!(
            open.len() == 2 && open[0].starts_with("open-loopback: cannot be combined with grpc-listen"),
            "{open:?}"
        );
        assert!(clear[1].starts_with("grpc-listen: [::]:81 ") && clear[1].contains("plaintext-beyond-loopback"));
        for good in [
            "{}",
            "{ http-listen: '0.0.0.0:80', service-tokens: t, plaintext-beyond-loopback: true }",
            "{ grpc-listen: '0.0.0.0:80', service-tokens: t, tls-cert: c, tls-key: k }",
            "{ ops-listen: '0.0.0.0:80' }",
        ] {
            assert_eq!(errors(good), [""; 0], "{good}");
        }
    }

    #[test]
    fn loopback_is_open_with_the_embedded_policy_or_with_open_loopback() {
        for closed in ["policy: [p]", "{ policy: [p], redis: 'redis://h' }", "open-loopback: false"] {
            let message = errors(closed);
            assert!(
                message.len() == 1 && message[0].starts_with("service-tokens: is missing"),
                "{closed}: {message:?}"
            );
            assert!(
                message[0].contains("tls-client-ca") && message[0].contains("open-loopback"),
                "{closed}: {message:?}"
            );
        }
        for good in [
            "redis: 'redis://h'",
            "open-loopback: true",
            "{ policy: [p], open-loopback: true }",
            "{ policy: [p], service-tokens: t }",
            "{ policy: [p], service-tokens: t, open-loopback: false }",
            "{ policy: [p], service-tokens: t, tls-client-ca: a, tls-cert: c, tls-key: k }",
        ] {
            assert_eq!(errors(good), [""; 0], "{good}");
        }
        // Another address than loopback has its own error.
        let beyond = errors("{ policy: [p], http-listen: '0.0.0.0:80', plaintext-beyond-loopback: true }");
        assert!(beyond.len() == 1 && beyond[0].starts_with("http-listen: "), "{beyond:?}");
    }

    #[test]
    fn invalid_combinations_are_reported_with_the_names_of_settings() {
        for (yaml, message) in [
            ("tls-cert: c", "tls-key: is missing"),
            ("tls-key: k", "tls-cert: is missing"),
            ("{ tls-client-ca: c, service-tokens: t }", "tls-client-ca: needs tls-cert"),
            ("{ tls-client-ca: c, tls-cert: c, tls-key: k }", "tls-client-ca: needs service-tokens"),
            ("{ open-loopback: true, service-tokens: t }", "open-loopback: cannot be combined with service-tokens"),
            (
                "{ open-loopback: true, service-tokens: t, grpc-listen: '0.0.0.0:80', plaintext-beyond-loopback: true }",
                "open-loopback: cannot be combined with service-tokens",
            ),
            ("allowed-hosts: ['a.example:80']", "allowed-hosts: \"a.example:80\""),
            ("allowed-hosts: ['https://a.example']", "allowed-hosts: "),
            ("trusted-proxies: ['10.0.0.0/40']", "trusted-proxies: \"10.0.0.0/40\""),
            ("trusted-proxies: [proxy.example]", "trusted-proxies: "),
            ("max-connections: 0", "max-connections: must"),
            ("idle-timeout-ms: 0", "idle-timeout-ms: must"),
        ] {
            let errors = errors(yaml);
            assert!(errors.len() == 1 && errors[0].starts_with(message), "{yaml}: {errors:?}");
        }
        assert_eq!(
            errors("{ allowed-hosts: [a.example, '[::1]', 10.0.0.1], trusted-proxies: [10.0.0.1, 'fd00::/8'] }"),
            [""; 0]
        );
    }
}
