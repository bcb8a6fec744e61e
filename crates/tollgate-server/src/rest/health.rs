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
    auth::Doors,
    files::Failure,
    lifecycle::Stage,
    policies::PolicyFiles,
    probe::{Probe, StoreState},
    reload::Reload,
};

/// What the node knows of itself.
pub(crate) struct Health {
    pub(crate) counters: Probe,
    /// Where accounts have a store of their own.
    pub(crate) accounts: Option<Probe>,
    pub(crate) policies: Arc<PolicyFiles>,
    /// Whether quotas may be decided without the store.
    pub(crate) decides_alone: bool,
    pub(crate) doors: Arc<Doors>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stage: watch::Receiver<Stage>,
}

/// Whether the node may be sent calls, and what is in the way.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// `running` or `draining`.
    lifecycle: &'static str,
    /// The counters: not well while a charge is not possible on every server. What the node found when it last looked,
    /// which it does every second.
    store: Part,
    /// Of accounts that policies do not have: not well while they cannot be read and changed, or their changes are not
    /// heard. That alone makes no node unready: accounts of policies are decided.
    accounts: Part,
    /// Whether the policies in force are those of the files; else `not reloaded` or `stuck`. Administrators read at
    /// `/admin/v1/status` what is wrong.
    policies: Part,
    /// The same of tokens and certificates.
    credentials: Part,
    /// The domains this node serves.
    domains: Vec<String>,
}

/// One thing that has to work.
#[derive(Debug, Serialize, ToSchema)]
struct Part {
    ok: bool,
    /// What is wrong and what that means, a line each; of something that works, what may hurt.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Part {
    /// Of what is read from files: whether it is what the files say. It is not said here what is wrong, as this is open to
    /// strangers, and a file may hold a secret in the wrong place.
    fn reloaded(failures: impl IntoIterator<Item = Option<Failure>>) -> Self {
        let worst = failures.into_iter().flatten().map(|failure| failure.state()).max();
        Self { ok: worst.is_none(), detail: worst.map(|state| state.name().to_owned()) }
    }
}

impl Health {
    /// Asks the stores whether they can be written to.
    pub(crate) async fn probe(&self) {
        let accounts = async {
            if let Some(accounts) = &self.accounts {
                accounts.ask().await;
            }
        };
        tokio::join!(self.counters.ask(), accounts);
    }

    /// Whether the node is on its way to its end.
    pub(crate) fn drains(&self) -> bool {
        *self.stage.borrow() > Stage::Running
    }

    /// Whether some call can be decided: some charge is possible, or a policy bears that none is. To take all nodes out
    /// of service would undo what their policies ask for.
    pub(crate) fn may_decide(&self) -> bool {
        self.counters.state().usable || (self.decides_alone && self.policies.domains().load().bear_failure())
    }

    fn accounts(&self) -> Part {
        let heard = self.metrics.hears_of_accounts();
        let StoreState { whole, detail, .. } = match &self.accounts {
            Some(accounts) => accounts.state(),
            // They are where the counters are, of which `store` tells.
            None => StoreState { whole: true, ..StoreState::default() },
        };
        let unheard = "not subscribed to account changes: every call reads its account from the store";
        let said: Vec<String> = detail.into_iter().chain((!heard).then(|| unheard.to_owned())).collect();
        Part { ok: whole && heard, detail: (!said.is_empty()).then(|| said.join("\n")) }
    }

    fn readiness(&self) -> Readiness {
        let draining = self.drains();
        let StoreState { whole, detail, .. } = self.counters.state();
        Readiness {
            ready: self.may_decide() && !draining,
            lifecycle: if draining { "draining" } else { "running" },
            store: Part { ok: whole, detail },
            accounts: self.accounts(),
            policies: Part::reloaded([self.policies.last_failure()]),
            credentials: Part::reloaded(self.doors.parts().iter().map(|part| part.last_failure())),
            domains: self.policies.domains().load().names().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "It does", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the node may be sent calls.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "It may", body = Readiness),
    (status = 503, description = "It may not; the parts say why", body = Readiness),
))]
pub(super) async fn readyz(State(shared): State<Shared>) -> Response {
    let readiness = shared.health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// The node's metrics, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, description = "Metrics in the Prometheus text format", body = String, content_type = "text/plain"),
    (status = 429, description = "As many of these pages as the node bears are on their way", body = super::ErrorBody),
))]
pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    let text = shared.health.metrics.page().await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
