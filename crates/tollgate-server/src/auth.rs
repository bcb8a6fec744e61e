//! Who gets in: service and admin callers, and the domains they may act in. It knows no protocol beyond the
//! `Authorization` header, which REST and gRPC share.

mod tokens;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use axum::http::{HeaderMap, header};

use crate::telemetry::Telemetry;
pub(crate) use tokens::{TokenFile, generate};

/// Which domains a caller may act in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Every domain.
    All,
    /// These.
    Only(Arc<BTreeSet<Box<str>>>),
}

impl Reach {
    pub(crate) fn permits(&self, domain: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(domains) => domains.contains(domain),
        }
    }
}

/// A calling service that showed who it is.
#[derive(Clone, Debug)]
pub(crate) struct ServiceGrant(Grant);

/// An administrator that showed who it is.
#[derive(Clone, Debug)]
pub(crate) struct AdminGrant(Grant);

#[derive(Clone, Debug)]
struct Grant {
    name: Arc<str>,
    reach: Reach,
}

impl ServiceGrant {
    /// The domains it may act in.
    pub(crate) fn reach(&self) -> &Reach {
        &self.0.reach
    }
}

#[expect(dead_code, reason = "the admin routes read it")]
impl AdminGrant {
    /// The name of its token, for the log.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The domains it may act in.
    pub(crate) fn reach(&self) -> &Reach {
        &self.0.reach
    }

    /// Whether it may act in `domain`.
    pub(crate) fn permits(&self, domain: &str) -> bool {
        self.0.reach.permits(domain)
    }
}

/// Why a caller does not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It shows nothing.
    #[error("authorization: is missing; it must be `Bearer` and a {0} token")]
    Missing(&'static str),
    /// What it shows is not known.
    #[error("authorization: is not a {0} token that this node knows")]
    Unknown(&'static str),
    /// Nobody could get in.
    #[error("authorization: this node has no admin tokens; start it with --admin-tokens")]
    NoAdmins,
}

/// Where the tokens are.
#[derive(Clone, Debug, Default)]
pub struct AuthSettings {
    /// The tokens of services; none for a node on loopback that is open to them.
    pub service_tokens: Option<PathBuf>,
    /// The tokens of administrators; none for a node without admin routes.
    pub admin_tokens: Option<PathBuf>,
}

/// The doors of a node, and who has a key.
pub(crate) struct Doors {
    services: Option<Arc<TokenFile>>,
    admins: Option<Arc<TokenFile>>,
}

impl Doors {
    /// # Errors
    /// Everything that is wrong with the files, a line each.
    pub(crate) fn new(settings: &AuthSettings, telemetry: &Arc<Telemetry>) -> Result<Self, String> {
        let load = |what, path: &Option<PathBuf>| {
            path.as_ref().map(|path| TokenFile::load(what, path, Arc::clone(telemetry)).map(Arc::new)).transpose()
        };
        let services = load("service_tokens", &settings.service_tokens);
        let admins = load("admin_tokens", &settings.admin_tokens);
        match (services, admins) {
            (Ok(services), Ok(admins)) => Ok(Self { services, admins }),
            (services, admins) => {
                Err([services.err(), admins.err()].into_iter().flatten().collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// The files that may change.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Arc<TokenFile>> {
        [&self.services, &self.admins].into_iter().flatten()
    }

    /// The grant of a service. Without service tokens every caller has one for everything; the settings see
    /// to it that such a node listens on loopback only.
    pub(crate) fn service(&self, headers: &HeaderMap) -> Result<ServiceGrant, Refusal> {
        let Some(services) = &self.services else {
            return Ok(ServiceGrant(Grant { name: "loopback".into(), reach: Reach::All }));
        };
        let token = token(headers).ok_or(Refusal::Missing("service"))?;
        services.find(token).map(ServiceGrant).ok_or(Refusal::Unknown("service"))
    }

    /// The grant of an administrator.
    pub(crate) fn admin(&self, headers: &HeaderMap) -> Result<AdminGrant, Refusal> {
        let admins = self.admins.as_ref().ok_or(Refusal::NoAdmins)?;
        let token = token(headers).ok_or(Refusal::Missing("admin"))?;
        admins.find(token).map(AdminGrant).ok_or(Refusal::Unknown("admin"))
    }
}

/// What stands in the one `Authorization` header: the token of `Bearer …` (RFC 6750), the scheme in any case;
/// empty, and so good for nothing, if it is anything else. Several headers are as good as a wrong one: a
/// proxy may have judged the other.
fn token(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let first = all.next()?;
    let one = if all.next().is_none() { first.to_str().ok() } else { None };
    Some(one.and_then(bearer).unwrap_or(""))
}

/// The token of `Bearer …` (RFC 6750); the scheme in any case.
pub(crate) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}
