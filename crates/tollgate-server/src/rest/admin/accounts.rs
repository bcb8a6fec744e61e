//! Accounts: made, listed, changed, deleted, promoted.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use tollgate_api::json::admin::{
    AccountBody, AccountPage, AccountPatchBody, EventAnswer, EventBody, NewAccountBody, OverrideBody, Promoted,
    UsageResetAnswer, UsageResetBody,
};
use tollgate_service::{
    admin::{AccountPatch, NewAccount, OverrideTarget},
    page_token::List,
};

use super::{
    AccountPath, AdminFailure, Checked, DomainQuery, Failures, PageQuery,
    bodies::{account_body, override_record},
    if_match, versioned,
};
use crate::{
    auth::AdminGrant,
    rest::{Body, Shared},
};

/// Create an account.
#[utoipa::path(post, operation_id = "create_account", path = "/admin/v1/accounts", params(DomainQuery), request_body = NewAccountBody, responses(
    (status = 201, description = "The account is created", body = AccountBody), Failures))]
pub(super) async fn create(
    State(shared): State<Shared>,
    grant: AdminGrant,
    Checked(at): Checked<DomainQuery>,
    Body(new): Body<NewAccountBody>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    let record = session.create_account(NewAccount { id: new.id, tier: new.tier, balances: new.balances }).await?;
    Ok(versioned(StatusCode::CREATED, record.version, account_body(&record, session.now())))
}

/// List accounts.
#[utoipa::path(get, operation_id = "list_accounts", path = "/admin/v1/accounts", params(PageQuery), responses(
    (status = 200, description = "A page", body = AccountPage), Failures))]
pub(super) async fn list(
    State(shared): State<Shared>,
    grant: AdminGrant,
    Checked(part): Checked<PageQuery>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &part.domain)?;
    let list = List::Accounts { domain: session.domain().policy.domain() };
    let page = session.accounts(&part.position(list)?, part.take()?).await?;
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
    (status = 200, description = "The account", body = AccountBody), Failures))]
pub(super) async fn get(
    State(shared): State<Shared>,
    grant: AdminGrant,
    AccountPath(account): AccountPath<String>,
    Checked(at): Checked<DomainQuery>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    let record = session.account(&account).await?;
    Ok(versioned(StatusCode::OK, record.version, account_body(&record, session.now())))
}

/// Change an account's tier or balances.
#[utoipa::path(patch, operation_id = "update_account", path = "/admin/v1/accounts/{account}", params(("account" = String, Path), DomainQuery),
    request_body = AccountPatchBody, responses(
    (status = 200, description = "The account is changed", body = AccountBody), Failures))]
pub(super) async fn patch(
    State(shared): State<Shared>,
    grant: AdminGrant,
    AccountPath(account): AccountPath<String>,
    Checked(at): Checked<DomainQuery>,
    headers: HeaderMap,
    Body(patch): Body<AccountPatchBody>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    let patch = AccountPatch { tier: patch.tier, balances: patch.balances };
    let record = session.patch_account(&account, patch, if_match(&headers)?).await?;
    Ok(versioned(StatusCode::OK, record.version, account_body(&record, session.now())))
}

/// Delete an account and its keys. Its usage stays counted until its windows end.
#[utoipa::path(delete, operation_id = "delete_account", path = "/admin/v1/accounts/{account}", params(("account" = String, Path), DomainQuery), responses(
    (status = 204, description = "The account is deleted"), Failures))]
pub(super) async fn delete(
    State(shared): State<Shared>,
    grant: AdminGrant,
    AccountPath(account): AccountPath<String>,
    Checked(at): Checked<DomainQuery>,
    headers: HeaderMap,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    session.delete_account(&account, if_match(&headers)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Set an override: a limit for this account alone.
#[utoipa::path(put, operation_id = "set_account_override", path = "/admin/v1/accounts/{account}/overrides/{name}",
    params(("account" = String, Path), ("name" = String, Path), DomainQuery), request_body = OverrideBody, responses(
    (status = 200, description = "The override is set", body = AccountBody), Failures))]
pub(super) async fn put_override(
    State(shared): State<Shared>,
    grant: AdminGrant,
    AccountPath((account, name)): AccountPath<(String, String)>,
    Checked(at): Checked<DomainQuery>,
    headers: HeaderMap,
    Body(over): Body<OverrideBody>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    let record = session
        .put_override(OverrideTarget::Account(&account), &name, override_record(over)?, if_match(&headers)?)
        .await?;
    Ok(versioned(StatusCode::OK, record.version, account_body(&record, session.now())))
}

/// Clear an override of the account.
#[utoipa::path(delete, operation_id = "clear_account_override", path = "/admin/v1/accounts/{account}/overrides/{name}",
    params(("account" = String, Path), ("name" = String, Path), DomainQuery), responses(
    (status = 200, description = "The override is cleared", body = AccountBody), Failures))]
pub(super) async fn clear_override(
    State(shared): State<Shared>,
    grant: AdminGrant,
    AccountPath((account, name)): AccountPath<(String, String)>,
    Checked(at): Checked<DomainQuery>,
    headers: HeaderMap,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    let record = session.clear_override(OverrideTarget::Account(&account), &name, if_match(&headers)?).await?;
    Ok(versioned(StatusCode::OK, record.version, account_body(&record, session.now())))
}

/// Report an event of an account, such as a payment, which may move it to another tier.
#[utoipa::path(post, operation_id = "record_account_event", path = "/admin/v1/accounts/{account}/events", params(("account" = String, Path), DomainQuery),
    request_body = EventBody, responses(
    (status = 200, description = "The event is recorded, now or before", body = EventAnswer), Failures))]
pub(super) async fn tell(
    State(shared): State<Shared>,
    grant: AdminGrant,
    AccountPath(account): AccountPath<String>,
    Checked(at): Checked<DomainQuery>,
    Body(event): Body<EventBody>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    let told = session.record_event(&account, &event.id, &event.r#type).await?;
    let answer = EventAnswer {
        account: told.account.as_ref().map(|record| account_body(record, session.now())),
        promoted: told.promoted.map(|(from, to)| Promoted { from, to }),
        repeated: told.repeated,
    };
    Ok(Json(answer).into_response())
}

/// Remove the counters of an account, whatever they contain: those of its quotas and abuse rules, its slots, and those of
/// its keys. Counters that accounts share, and reservations, stay.
#[utoipa::path(post, path = "/admin/v1/accounts/{account}/reset_usage", params(("account" = String, Path), DomainQuery),
    request_body = UsageResetBody, responses(
    (status = 200, description = "The counters are removed", body = UsageResetAnswer), Failures))]
pub(super) async fn reset_usage(
    State(shared): State<Shared>,
    grant: AdminGrant,
    AccountPath(account): AccountPath<String>,
    Checked(at): Checked<DomainQuery>,
    Body(which): Body<UsageResetBody>,
) -> Result<Response, AdminFailure> {
    let session = shared.admin.session(grant.name(), grant.scope(), &at.domain)?;
    let reset = session.reset_usage(&account, which.quota.as_deref()).await?;
    Ok(Json(UsageResetAnswer { counters: reset.counters, quotas: reset.quotas }).into_response())
}
