//! Authentication of services and administrators. It depends on no protocol except the headers that REST and gRPC
//! share.

mod address;
mod hosts;
mod throttle;
mod tokens;

use std::{path::PathBuf, sync::Arc};

use axum::http::{HeaderMap, header};
use tollgate_service::{directory::CachedKey, metrics::Metrics, scope::DomainScope};
use tollgate_store::clock::Clock;

pub(crate) use self::{address::ClientAddr, tokens::generate};
pub use self::{
    address::{ForwardedHeader, TrustedProxies},
    hosts::Hosts,
};
use self::{
    throttle::{AddressState, Throttle},
    tokens::TokenFile,
};
use crate::{
    files::Failure,
    listener::Peer,
    reload::Reload,
    shares::Holder,
    tls::{Tls, TlsSettings},
};

/// An authenticated service.
#[derive(Clone, Debug)]
pub(crate) struct ServiceGrant(Grant, Holder);

/// An authenticated administrator.
#[derive(Clone, Debug)]
pub(crate) struct AdminGrant(Grant);

#[derive(Clone, Debug)]
struct Grant {
    name: Arc<str>,
    scope: DomainScope,
}

impl ServiceGrant {
    fn new(grant: Grant) -> Self {
        let holder = Holder::Service(Arc::clone(&grant.name));
        Self(grant, holder)
    }

    /// The holder of its share of capacity.
    pub(crate) fn holder(&self) -> Holder {
        self.1.clone()
    }

    /// The domains it may act in.
    pub(crate) fn scope(&self) -> &DomainScope {
        &self.0.scope
    }
}

impl AdminGrant {
    /// The name of its token, for the log.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The domains it may act in.
    pub(crate) fn scope(&self) -> &DomainScope {
        &self.0.scope
    }

    /// The holder of its share of capacity.
    pub(crate) fn holder(&self) -> Holder {
        Holder::Admin(Arc::clone(&self.0.name))
    }
}

/// Why authentication failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// The request has no token.
    #[error("authorization: is missing; it must be `Bearer` and a {0} token")]
    Missing(&'static str),
    /// The token is unknown.
    #[error("authorization: is not a {0} token that this node knows")]
    Unknown(&'static str),
    /// The certificate belongs to no service.
    #[error("the client certificate is valid, but belongs to no service that this node knows")]
    UnknownCertificate,
    /// The node accepts no administrators.
    #[error("authorization: this node has no admin tokens; start it with --admin-tokens")]
    NoAdmins,
    /// Too many logins from the address failed.
    #[error("too many attempts from this address failed; try again in {retry_after_s} s")]
    TooManyFailures { retry_after_s: u64 },
    /// The request names another host.
    #[error("host: is not a name of this node; set allowed-hosts if it should be")]
    WrongHost,
}

/// The settings of authentication.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// The file of service tokens; `None` for a node on loopback that does not authenticate services.
    pub service_tokens: Option<PathBuf>,
    /// The file of admin tokens; `None` for a node that accepts no administrators.
    pub admin_tokens: Option<PathBuf>,
    /// Certificates; `None` for plain text.
    pub tls: Option<TlsSettings>,
    /// The accepted host names of REST.
    pub hosts: Hosts,
    /// The proxies that may report the addresses of their clients.
    pub proxies: TrustedProxies,
    /// The maximum number of failed logins in 30 seconds from one address, for each kind of caller; 0 for no maximum.
    pub max_login_failures: u32,
}

/// The failed logins. Services, administrators and end users are counted separately, so that they do not block each
/// other.
struct Throttles {
    services: Throttle,
    admins: Throttle,
    keys: Throttle,
}

/// Authenticates services and administrators.
pub(crate) struct Authenticator {
    services: Option<Arc<TokenFile>>,
    admins: Option<Arc<TokenFile>>,
    pub(crate) tls: Option<Arc<Tls>>,
    hosts: Hosts,
    proxies: TrustedProxies,
    throttles: Throttles,
    metrics: Arc<Metrics>,
}

impl Authenticator {
    /// # Errors
    /// All errors in the files, one per line.
    pub(crate) fn new(settings: AuthSettings, clock: Arc<dyn Clock>, metrics: &Arc<Metrics>) -> Result<Self, String> {
        let load = |what, path: Option<PathBuf>| {
            path.map(|path| TokenFile::load(what, &path, Arc::clone(metrics)).map(Arc::new)).transpose()
        };
        let services = load("service_tokens", settings.service_tokens);
        let admins = load(tokens::ADMINS, settings.admin_tokens);
        let tls = settings.tls.map(|tls| Tls::load(tls, Arc::clone(metrics)).map(Arc::new)).transpose();
        match (services, admins, tls) {
            (Ok(services), Ok(admins), Ok(tls)) => Ok(Self {
                services,
                admins,
                tls,
                hosts: settings.hosts,
                proxies: settings.proxies,
                throttles: Throttles {
                    services: Throttle::new(Arc::clone(&clock), settings.max_login_failures),
                    admins: Throttle::new(Arc::clone(&clock), settings.max_login_failures),
                    keys: Throttle::new(clock, settings.max_login_failures),
                },
                metrics: Arc::clone(metrics),
            }),
            (services, admins, tls) => {
                let failures = [services.err(), admins.err(), tls.err()];
                Err(Failure::join(failures.into_iter().flatten()).text)
            }
        }
    }

    /// The files that are reloaded while the node runs.
    pub(crate) fn reloadable_files(&self) -> Vec<Arc<dyn Reload>> {
        let tokens = [&self.services, &self.admins].into_iter().flatten().map(|file| Arc::clone(file) as _);
        tokens.chain(self.tls.iter().map(|tls| Arc::clone(tls) as _)).collect()
    }

    /// The address of the caller.
    pub(crate) fn client(&self, peer: &Peer, headers: &HeaderMap) -> ClientAddr {
        self.proxies.client(peer.address, headers)
    }

    /// Checks that the request is addressed to this node, and not by a web page under its own name.
    pub(crate) fn check_host(&self, host: Option<&str>) -> Result<(), AuthError> {
        if self.hosts.permit(host) { Ok(()) } else { Err(self.count_failure("any", AuthError::WrongHost)) }
    }

    /// Authenticates a service. Without a file of service tokens, every caller gets a grant for all domains; the
    /// settings ensure that such a node listens only on loopback, and has the embedded policy or `--open-loopback`.
    pub(crate) async fn service(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        client: ClientAddr,
    ) -> Result<ServiceGrant, AuthError> {
        let Some(services) = &self.services else {
            peer.connection.mark_authenticated();
            return Ok(ServiceGrant(Grant { name: "loopback".into(), scope: DomainScope::All }, Holder::Anyone));
        };
        let grant = match token(headers) {
            // If there is a token, the certificate is ignored.
            Some(token) => login(services, token, "service", &self.throttles.services, client).await,
            None if peer.certificate.is_empty() => Err(AuthError::Missing("service")),
            None => services.find_certificate(&peer.certificate).ok_or(AuthError::UnknownCertificate),
        };
        let grant = grant.map(ServiceGrant::new).map_err(|error| self.count_failure("service", error))?;
        peer.connection.mark_authenticated();
        Ok(grant)
    }

    /// Authenticates an administrator.
    pub(crate) async fn admin(&self, headers: &HeaderMap, client: ClientAddr) -> Result<AdminGrant, AuthError> {
        let grant = match (&self.admins, token(headers)) {
            (None, _) => Err(AuthError::NoAdmins),
            (Some(_), None) => Err(AuthError::Missing("admin")),
            (Some(admins), Some(token)) => login(admins, token, "admin", &self.throttles.admins, client).await,
        };
        grant.map(AdminGrant).map_err(|error| self.count_failure("admin", error))
    }

    /// Checks that an end user's API key may be looked up. `cached_key` returns the cached state of the key. It is
    /// called only if too many keys from this address were invalid: then valid keys are permitted, invalid ones are
    /// not, and unknown ones are permitted at a limited rate.
    pub(crate) async fn check_key(
        &self,
        client: ClientAddr,
        cached_key: impl FnOnce() -> CachedKey,
    ) -> Result<(), AuthError> {
        let address_state = self.throttles.keys.address_state(client).await;
        if address_state == AddressState::Free {
            return Ok(());
        }
        let permitted = match (cached_key(), address_state) {
            (CachedKey::Unknown, _) => self.throttles.keys.permit_lookup(client).await,
            (CachedKey::Invalid, AddressState::Blocked(error)) => Err(error),
            (CachedKey::Valid | CachedKey::Invalid, _) => Ok(()),
        };
        permitted.map_err(|error| self.count_failure("end_user", error))
    }

    /// Counts an invalid API key as a failed login. Fails if the address is blocked.
    pub(crate) async fn count_bad_key(&self, client: ClientAddr) -> Result<(), AuthError> {
        let counted = self.throttles.keys.count_failure(client).await;
        self.count_failure("end_user", counted.err().unwrap_or(AuthError::Unknown("key")));
        counted
    }

    /// Logs the tokens with domains that do not exist.
    pub(crate) fn warn_of_unknown_domains(&self, domains: &[&str]) {
        [&self.services, &self.admins].into_iter().flatten().for_each(|file| file.warn_of_unknown_domains(domains));
    }

    /// Removes the expired counters of addresses.
    pub(crate) fn sweep(&self) {
        let Throttles { services, admins, keys } = &self.throttles;
        [services, admins, keys].into_iter().for_each(Throttle::sweep);
    }

    fn count_failure(&self, endpoint: &'static str, error: AuthError) -> AuthError {
        let reason = match error {
            AuthError::Missing(_) | AuthError::NoAdmins => "missing",
            AuthError::Unknown(_) | AuthError::UnknownCertificate => "unknown",
            AuthError::TooManyFailures { .. } => "too_many_failures",
            AuthError::WrongHost => "wrong_host",
        };
        self.metrics.count_auth_failure(endpoint, reason);
        error
    }
}

/// The grant of the caller with this token. A valid token is accepted even from a blocked address.
async fn login(
    tokens: &TokenFile,
    token: &str,
    kind: &'static str,
    throttle: &Throttle,
    client: ClientAddr,
) -> Result<Grant, AuthError> {
    if let Some(grant) = tokens.find(token) {
        return Ok(grant);
    }
    throttle.count_failure(client).await?;
    Err(AuthError::Unknown(kind))
}

/// The token in the `Authorization` header: that of `Bearer …` (RFC 6750), or an empty, invalid one for any other
/// value, and for several headers, because a proxy may have checked another one. `None` without the header.
pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let first = values.next()?;
    let only = if values.next().is_none() { first.to_str().ok() } else { None };
    Some(only.and_then(bearer).unwrap_or(""))
}

/// The token of `Bearer …`; the scheme is case-insensitive.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}
