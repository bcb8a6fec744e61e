//! The state of the node's files: whether their current contents are in force, and the errors in them.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tollgate_service::scope::DomainScope;
use utoipa::{IntoParams, ToSchema};

use super::{AdminErrorResponse, AdminRequest, ErrorResponses};
use crate::{auth::AdminGrant, files::Failure, reload::Reload};

/// The domain of a status request.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StatusQuery {
    /// A domain; all domains of the token if absent.
    #[serde(default)]
    domain: String,
}

/// The state of a node's files.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusBody {
    /// The domains of the token that the node serves.
    domains: Vec<String>,
    /// The files of each kind: policies, tokens, certificates.
    files: Vec<FilesBody>,
}

/// The files of one kind.
#[derive(Debug, Serialize, ToSchema)]
struct FilesBody {
    /// `policies`, `service_tokens`, `admin_tokens` or `certificates`.
    what: &'static str,
    /// `current`; or `not reloaded` or `stuck` (a file system does not answer): then the contents read before are in
    /// force.
    state: &'static str,
    /// The mistakes, one per line, without values that may be a secret in the wrong place. Only for a token of all
    /// domains, because files concern all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl FilesBody {
    fn of(what: &'static str, failure: Option<Failure>, grant: &AdminGrant) -> Self {
        let state = failure.as_ref().map_or("current", |failure| failure.state().name());
        let detail = failure.map(|failure| failure.text).filter(|_| *grant.scope() == DomainScope::All);
        Self { what, state, detail }
    }
}

/// Read whether the current contents of the node's files are in force.
#[utoipa::path(get, path = "/admin/v1/status", params(StatusQuery), responses(
    (status = 200, description = "The state of the node's files", body = StatusBody), ErrorResponses))]
pub(super) async fn status(request: AdminRequest<StatusQuery>) -> Result<Response, AdminErrorResponse> {
    let AdminRequest { shared, grant, query: StatusQuery { domain }, .. } = &request;
    let policies = &shared.health.policies;
    let domains = if domain.is_empty() {
        let current = policies.domains().load();
        current.names().into_iter().filter(|name| grant.scope().permits(name)).map(str::to_owned).collect()
    } else {
        request.session_in(domain)?;
        vec![domain.clone()]
    };
    let parts = shared.auth.reloadable_files();
    let parts = parts.iter().map(|part| FilesBody::of(part.what(), part.last_failure(), grant));
    let files = std::iter::once(FilesBody::of(policies.what(), policies.last_failure(), grant)).chain(parts).collect();
    Ok(Json(StatusBody { domains, files }).into_response())
}
