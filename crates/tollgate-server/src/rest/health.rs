//! `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::watch;
use tollgate_service::metrics::Metrics;
use utoipa::ToSchema;

use super::Shared;
use crate::{
    auth::Authenticator,
    files::Failure,
    lifecycle::Lifecycle,
    policies::PolicyFiles,
    probe::{Probe, StoreState},
    reload::Reload,
};

/// The parts of a node that its health depends on.
pub(crate) struct Health {
    pub(crate) counters: Probe,
    /// Present if accounts have their own store.
    pub(crate) accounts: Option<Probe>,
    pub(crate) policies: Arc<PolicyFiles>,
    /// Whether quotas may be decided during an outage of the store.
    pub(crate) has_fallback: bool,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stage: watch::Receiver<Lifecycle>,
}

/// Whether the node is ready for calls, and what is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// `running` or `draining`.
    lifecycle: &'static str,
    /// The store of the counters: not ok if a charge is impossible on some server, by the last probe. The node probes
    /// every second.
    store: Part,
    /// The store of accounts that are in no policy file: not ok while they cannot be read and changed, or while the
    /// node is not subscribed to their changes. The node stays ready nevertheless: calls of accounts in policies are
    /// decided.
    accounts: Part,
    /// Whether the policies in force are those of the files; otherwise `not reloaded` or `stuck`. Administrators can
    /// read at `/admin/v1/status` what is wrong.
    policies: Part,
    /// The same for tokens and certificates.
    credentials: Part,
    /// The domains that this node serves.
    domains: Vec<String>,
}

/// A part of the node.
#[derive(Debug, Serialize, ToSchema)]
struct Part {
    ok: bool,
    /// What is wrong and its consequences, one per line; if the part works, the risks.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Part {
    /// The state of files: whether their current contents are in force. The errors are not shown, because this response
    /// is public, and a file may contain a secret in the wrong place.
    fn files(failures: impl IntoIterator<Item = Option<Failure>>) -> Self {
        let worst = failures.into_iter().flatten().map(|failure| failure.state()).max();
        Self { ok: worst.is_none(), detail: worst.map(|state| state.name().to_owned()) }
    }
}

impl Health {
    /// Checks whether the stores can be written to.
    pub(crate) async fn probe(&self) {
        let accounts = async {
            if let Some(accounts) = &self.accounts {
                accounts.check().await;
            }
        };
        tokio::join!(self.counters.check(), accounts);
    }

    /// Whether the node is draining or stopping.
    pub(crate) fn is_draining(&self) -> bool {
        *self.stage.borrow() > Lifecycle::Running
    }

    /// Whether some call can be decided: a server of the store can charge, or a policy tolerates an outage. If an
    /// outage took all nodes out of service, the `on_failure` of their quotas would have no effect.
    pub(crate) fn can_decide(&self) -> bool {
        self.counters.state().some_usable || (self.has_fallback && self.policies.domains().load().tolerate_outage())
    }

    fn accounts(&self) -> Part {
        let subscribed = self.metrics.is_subscribed_to_accounts();
        let StoreState { all_usable, detail, .. } = match &self.accounts {
            Some(accounts) => accounts.state(),
            // Accounts are in the store of the counters, which `store` describes.
            None => StoreState { all_usable: true, ..StoreState::default() },
        };
        let unsubscribed = "not subscribed to account changes: every call reads its account from the store";
        let lines: Vec<String> = detail.into_iter().chain((!subscribed).then(|| unsubscribed.to_owned())).collect();
        Part { ok: all_usable && subscribed, detail: (!lines.is_empty()).then(|| lines.join("\n")) }
    }

    fn readiness(&self) -> Readiness {
        let draining = self.is_draining();
        let StoreState { all_usable, detail, .. } = self.counters.state();
        Readiness {
            ready: self.can_decide() && !draining,
            lifecycle: if draining { "draining" } else { "running" },
            store: Part { ok: all_usable, detail },
            accounts: self.accounts(),
            policies: Part::files([self.policies.last_failure()]),
            credentials: Part::files(self.auth.reloadable_files().iter().map(|part| part.last_failure())),
            domains: self.policies.domains().load().names().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "It is alive", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the node is ready for calls.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "It is ready", body = Readiness),
    (status = 503, description = "It is not ready; the parts say why", body = Readiness),
))]
pub(super) async fn readyz(State(shared): State<Shared>) -> Response {
    let readiness = shared.health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// The node's metrics, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, description = "Metrics in the Prometheus text format", body = String, content_type = "text/plain"),
    (status = 429, description = "Too many of these pages are being sent", body = super::ErrorBody),
))]
pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    let text = shared.health.metrics.page().await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
