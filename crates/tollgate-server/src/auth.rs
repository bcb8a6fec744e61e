//! Authentication: of services and administrators, with the domains that each may use. It knows no protocol except the
//! headers that REST and gRPC share.

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
    fn named(grant: Grant) -> Self {
        let holder = Holder::Service(Arc::clone(&grant.name));
        Self(grant, holder)
    }

    /// The holder of its part of shared capacity.
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

    /// The holder of its part of shared capacity.
    pub(crate) fn holder(&self) -> Holder {
        Holder::Admin(Arc::clone(&self.0.name))
    }
}

/// Why a caller does not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// It shows nothing.
    #[error("authorization: is missing; it must be `Bearer` and a {0} token")]
    Missing(&'static str),
    /// The token is unknown.
    #[error("authorization: is not a {0} token that this node knows")]
    Unknown(&'static str),
    /// The certificate belongs to no service.
    #[error("the client certificate is valid, but belongs to no service that this node knows")]
    UnknownCertificate,
    /// Nobody could get in.
    #[error("authorization: this node has no admin tokens; start it with --admin-tokens")]
    NoAdmins,
    /// Too many attempts from its address failed.
    #[error("too many attempts from this address failed; try again in {retry_after_s} s")]
    TooManyFailures { retry_after_s: u64 },
    /// It means another host.
    #[error("host: is not a name of this node; set allowed-hosts if it should be")]
    WrongHost,
}

/// How callers authenticate themselves.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// The tokens of services; none for a node on loopback that is open to them.
    pub service_tokens: Option<PathBuf>,
    /// The tokens of administrators; none for a node without admin routes.
    pub admin_tokens: Option<PathBuf>,
    /// Certificates; none for plain text.
    pub tls: Option<TlsSettings>,
    /// By which names REST is called.
    pub hosts: Hosts,
    /// The proxies that may name the callers behind them.
    pub proxies: TrustedProxies,
    /// How many attempts of each kind of caller to log in may fail in 30 seconds from one address; 0 for any number.
    pub max_login_failures: u32,
}

/// Failed logins. Services, administrators and end users are counted separately, so that none is blocked because of
/// another's mistakes.
struct Throttles {
    services: Throttle,
    admins: Throttle,
    keys: Throttle,
}

/// Knows the services and administrators that may call.
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
    /// Everything that is wrong with the files, a line each.
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
                let wrong = [services.err(), admins.err(), tls.err()];
                Err(Failure::join(wrong.into_iter().flatten()).text)
            }
        }
    }

    /// The parts that can change while the node runs.
    pub(crate) fn parts(&self) -> Vec<Arc<dyn Reload>> {
        let tokens = [&self.services, &self.admins].into_iter().flatten().map(|file| Arc::clone(file) as _);
        tokens.chain(self.tls.iter().map(|tls| Arc::clone(tls) as _)).collect()
    }

    /// The address of the caller.
    pub(crate) fn client(&self, peer: &Peer, headers: &HeaderMap) -> ClientAddr {
        self.proxies.client(peer.address, headers)
    }

    /// Checks that the request is addressed to this node, and not by a web page under its own name.
    pub(crate) fn check_host(&self, host: Option<&str>) -> Result<(), AuthError> {
        if self.hosts.permit(host) { Ok(()) } else { Err(self.auth_failure("any", AuthError::WrongHost)) }
    }

    /// The grant of a service. Without service tokens every caller has a grant for everything; the settings ensure that
    /// such a node listens only on loopback, and has the embedded policy unless `--open-loopback` is set.
    pub(crate) async fn service(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        from: ClientAddr,
    ) -> Result<ServiceGrant, AuthError> {
        let Some(services) = &self.services else {
            peer.connection.mark_authenticated();
            return Ok(ServiceGrant(Grant { name: "loopback".into(), scope: DomainScope::All }, Holder::Anyone));
        };
        let found = match token(headers) {
            // A caller with a token is authenticated by the token only, whatever certificate it has.
            Some(token) => login(services, token, "service", &self.throttles.services, from).await,
            None if peer.certificate.is_empty() => Err(AuthError::Missing("service")),
            None => services.find_certificate(&peer.certificate).ok_or(AuthError::UnknownCertificate),
        };
        let grant = found.map(ServiceGrant::named).map_err(|refusal| self.auth_failure("service", refusal))?;
        peer.connection.mark_authenticated();
        Ok(grant)
    }

    /// The grant of an administrator.
    pub(crate) async fn admin(&self, headers: &HeaderMap, from: ClientAddr) -> Result<AdminGrant, AuthError> {
        let found = match (&self.admins, token(headers)) {
            (None, _) => Err(AuthError::NoAdmins),
            (Some(_), None) => Err(AuthError::Missing("admin")),
            (Some(admins), Some(token)) => login(admins, token, "admin", &self.throttles.admins, from).await,
        };
        found.map(AdminGrant).map_err(|refusal| self.auth_failure("admin", refusal))
    }

    /// Whether an end user's API key may be looked up. `recall` returns what the node knows of the key without a
    /// look-up, and is called only if too many keys from this address were invalid: a key known as valid passes, one
    /// known as invalid does not, and of the others some are looked up.
    pub(crate) async fn key(&self, from: ClientAddr, recall: impl FnOnce() -> CachedKey) -> Result<(), AuthError> {
        let standing = self.throttles.keys.standing(from).await;
        if standing == AddressState::Free {
            return Ok(());
        }
        let permitted = match (recall(), standing) {
            (CachedKey::Unknown, _) => self.throttles.keys.permit_look_up(from).await,
            (CachedKey::Invalid, AddressState::Blocked(refusal)) => Err(refusal),
            (CachedKey::Valid | CachedKey::Invalid, _) => Ok(()),
        };
        permitted.map_err(|refusal| self.auth_failure("end_user", refusal))
    }

    /// Counts an invalid API key. Fails if too many from this address were.
    pub(crate) async fn bad_key(&self, from: ClientAddr) -> Result<(), AuthError> {
        let counted = self.throttles.keys.count_failure(from).await;
        self.auth_failure("end_user", counted.err().unwrap_or(AuthError::Unknown("key")));
        counted
    }

    /// Returns the tokens that name domains which are not among these: such a token has fewer rights than its file
    /// says.
    pub(crate) fn warn_of_unknown_domains(&self, domains: &[&str]) {
        [&self.services, &self.admins].into_iter().flatten().for_each(|file| file.warn_of_unknown_domains(domains));
    }

    /// Forgets the addresses that no longer fail.
    pub(crate) fn sweep(&self) {
        let Throttles { services, admins, keys } = &self.throttles;
        [services, admins, keys].into_iter().for_each(Throttle::sweep);
    }

    fn auth_failure(&self, endpoint: &'static str, refusal: AuthError) -> AuthError {
        let reason = match refusal {
            AuthError::Missing(_) | AuthError::NoAdmins => "missing",
            AuthError::Unknown(_) | AuthError::UnknownCertificate => "unknown",
            AuthError::TooManyFailures { .. } => "too_many_failures",
            AuthError::WrongHost => "wrong_host",
        };
        self.metrics.count_auth_failure(endpoint, reason);
        refusal
    }
}

/// The grant of the caller with this token. The token is compared first: a valid token is never refused, whatever else
/// came from its address.
async fn login(
    tokens: &TokenFile,
    token: &str,
    kind: &'static str,
    throttle: &Throttle,
    from: ClientAddr,
) -> Result<Grant, AuthError> {
    if let Some(grant) = tokens.find(token) {
        return Ok(grant);
    }
    throttle.count_failure(from).await?;
    Err(AuthError::Unknown(kind))
}

/// The value of the only `Authorization` header: the token of `Bearer …` (RFC 6750), or empty, and so invalid, for any
/// other value. Several headers are invalid too: a proxy may have checked the other one.
pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let first = all.next()?;
    let one = if all.next().is_none() { first.to_str().ok() } else { None };
    Some(one.and_then(bearer).unwrap_or(""))
}

/// The token of `Bearer …`; the scheme in any case.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}
