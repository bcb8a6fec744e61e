//! The routes of accounts.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tollgate_api::json::admin::{
    AccountBody, AccountPage, AccountPatchBody, EventAnswer, EventBody, NewAccountBody, OverrideBody, Promoted,
    UsageResetAnswer, UsageResetBody,
};
use tollgate_core::time::Timestamp;
use tollgate_service::{
    admin::{AccountPatch, NewAccount, OverrideTarget},
    page_token::List,
};
use tollgate_store::accounts::AccountRecord;

use super::{
    AccountPath, AdminErrorResponse, AdminRequest, DomainQuery, ErrorResponses, PageQuery,
    bodies::{account_body, override_record},
    versioned_response,
};
use crate::rest::Body;

/// Create an account.
#[utoipa::path(post, operation_id = "create_account", path = "/admin/v1/accounts", params(DomainQuery), request_body = NewAccountBody, responses(
    (status = 201, description = "The account is created", body = AccountBody), ErrorResponses))]
pub(super) async fn create(
    request: AdminRequest,
    Body(new): Body<NewAccountBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let record = session.create_account(NewAccount { id: new.id, tier: new.tier, balances: new.balances }).await?;
    Ok(account_response(StatusCode::CREATED, &record, session.now()))
}

/// List accounts.
#[utoipa::path(get, operation_id = "list_accounts", path = "/admin/v1/accounts", params(PageQuery), responses(
    (status = 200, description = "A page", body = AccountPage), ErrorResponses))]
pub(super) async fn list(request: AdminRequest<PageQuery>) -> Result<Response, AdminErrorResponse> {
    let session = request.session_in(&request.query.domain)?;
    let list = List::Accounts { domain: session.domain().policy.domain() };
    let page = session.accounts(&request.query.position(list)?, request.query.take()?).await?;
    let now = session.now();
    let accounts = page.accounts.iter().map(|record| account_body(record, now)).collect();
    Ok(Json(AccountPage {
        accounts,
        unreadable: page.unreadable,
        next_cursor: page.next.map(|last| list.token(&last)),
    })
    .into_response())
}

/// Read an account.
#[utoipa::path(get, operation_id = "get_account", path = "/admin/v1/accounts/{account}", params(("account" = String, Path), DomainQuery), responses(
    (status = 200, description = "The account", body = AccountBody), ErrorResponses))]
pub(super) async fn get(
    AccountPath(account): AccountPath<String>,
    request: AdminRequest,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let record = session.account(&account).await?;
    Ok(account_response(StatusCode::OK, &record, session.now()))
}

/// Change an account's tier or balances.
#[utoipa::path(patch, operation_id = "update_account", path = "/admin/v1/accounts/{account}", params(("account" = String, Path), DomainQuery),
    request_body = AccountPatchBody, responses(
    (status = 200, description = "The account is changed", body = AccountBody), ErrorResponses))]
pub(super) async fn patch(
    AccountPath(account): AccountPath<String>,
    request: AdminRequest,
    Body(patch): Body<AccountPatchBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let patch = AccountPatch { tier: patch.tier, balances: patch.balances };
    let record = session.patch_account(&account, patch, request.if_match()?).await?;
    Ok(account_response(StatusCode::OK, &record, session.now()))
}

/// Delete an account and its keys. Its usage stays counted until its windows end.
#[utoipa::path(delete, operation_id = "delete_account", path = "/admin/v1/accounts/{account}", params(("account" = String, Path), DomainQuery), responses(
    (status = 204, description = "The account is deleted"), ErrorResponses))]
pub(super) async fn delete(
    AccountPath(account): AccountPath<String>,
    request: AdminRequest,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    session.delete_account(&account, request.if_match()?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Set an override: a limit for this account alone.
#[utoipa::path(put, operation_id = "set_account_override", path = "/admin/v1/accounts/{account}/overrides/{name}",
    params(("account" = String, Path), ("name" = String, Path), DomainQuery), request_body = OverrideBody, responses(
    (status = 200, description = "The override is set", body = AccountBody), ErrorResponses))]
pub(super) async fn put_override(
    AccountPath((account, name)): AccountPath<(String, String)>,
    request: AdminRequest,
    Body(over): Body<OverrideBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let record = session
        .put_override(OverrideTarget::Account(&account), &name, override_record(over)?, request.if_match()?)
        .await?;
    Ok(account_response(StatusCode::OK, &record, session.now()))
}

/// Clear an override of the account.
#[utoipa::path(delete, operation_id = "clear_account_override", path = "/admin/v1/accounts/{account}/overrides/{name}",
    params(("account" = String, Path), ("name" = String, Path), DomainQuery), responses(
    (status = 200, description = "The override is cleared", body = AccountBody), ErrorResponses))]
pub(super) async fn clear_override(
    AccountPath((account, name)): AccountPath<(String, String)>,
    request: AdminRequest,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let record = session.clear_override(OverrideTarget::Account(&account), &name, request.if_match()?).await?;
    Ok(account_response(StatusCode::OK, &record, session.now()))
}

/// Report an event of an account, such as a payment, which may move it to another tier.
#[utoipa::path(post, operation_id = "record_account_event", path = "/admin/v1/accounts/{account}/events", params(("account" = String, Path), DomainQuery),
    request_body = EventBody, responses(
    (status = 200, description = "The event is recorded, now or before", body = EventAnswer), ErrorResponses))]
pub(super) async fn record_event(
    AccountPath(account): AccountPath<String>,
    request: AdminRequest,
    Body(event): Body<EventBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let outcome = session.record_event(&account, &event.id, &event.r#type).await?;
    let body = EventAnswer {
        account: outcome.account.as_ref().map(|record| account_body(record, session.now())),
        promoted: outcome.promoted.map(|(from, to)| Promoted { from, to }),
        repeated: outcome.repeated,
    };
    Ok(Json(body).into_response())
}

/// Remove the counters of an account, whatever they contain: those of its quotas and abuse rules, its slots, and those of
/// its keys. Counters that accounts share, and reservations, stay.
#[utoipa::path(post, path = "/admin/v1/accounts/{account}/reset_usage", params(("account" = String, Path), DomainQuery),
    request_body = UsageResetBody, responses(
    (status = 200, description = "The counters are removed", body = UsageResetAnswer), ErrorResponses))]
pub(super) async fn reset_usage(
    AccountPath(account): AccountPath<String>,
    request: AdminRequest,
    Body(body): Body<UsageResetBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let reset = session.reset_usage(&account, body.quota.as_deref()).await?;
    Ok(Json(UsageResetAnswer { counters: reset.counters, quotas: reset.quotas }).into_response())
}

fn account_response(status: StatusCode, record: &AccountRecord, now: Timestamp) -> Response {
    versioned_response(status, record.version, account_body(record, now))
}
