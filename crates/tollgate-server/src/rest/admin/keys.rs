//! The routes of keys.

use std::time::Duration;

use axum::{http::StatusCode, response::Response};
use tollgate_api::json::admin::{IssuedBody, KeyBody, KeyPage, KeyPatchBody, NewKeyBody, OverrideBody, RotationBody};
use tollgate_core::time::Timestamp;
use tollgate_service::{
    admin::{AccountKey, AdminError, IssuedKey, KeyPatch, NewKey, OverrideTarget},
    page_token::List,
};

use super::{
    AccountPath, AdminErrorResponse, AdminRequest, DomainQuery, ErrorResponses, PageQuery,
    bodies::{expiry, key_body, key_kind, override_record},
    versioned_response,
};
use crate::rest::Body;

/// Create a key. Its secret is in the answer, and never shown again.
#[utoipa::path(post, operation_id = "create_key", path = "/admin/v1/accounts/{account}/keys", params(("account" = String, Path), DomainQuery),
    request_body = NewKeyBody, responses(
    (status = 201, description = "The key is created", body = IssuedBody), ErrorResponses))]
pub(super) async fn create(
    AccountPath(account): AccountPath<String>,
    request: AdminRequest,
    Body(new): Body<NewKeyBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let expires_at = expiry(new.expires_at.as_deref())?;
    let new = NewKey { kind: key_kind(new.kind), description: new.description, expires_at };
    let issued = session.create_key(&account, new, request.if_match()?).await?;
    issued_key_response(StatusCode::CREATED, issued, session.now())
}

/// List an account's keys.
#[utoipa::path(get, operation_id = "list_keys", path = "/admin/v1/accounts/{account}/keys", params(("account" = String, Path), PageQuery), responses(
    (status = 200, description = "A page", body = KeyPage), ErrorResponses))]
pub(super) async fn list(
    AccountPath(account): AccountPath<String>,
    request: AdminRequest<PageQuery>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session_in(&request.query.domain)?;
    let (take, now) = (request.query.take()?, session.now());
    let record = session.account(&account).await?;
    // If the key of the cursor was deleted, the list starts at the beginning.
    let list = List::Keys { domain: &record.domain, account: &record.id };
    let skip = record.keys.get_index_of(&request.query.position(list)?).map_or(0, |index| index + 1);
    let page: Vec<_> = record.keys.iter().skip(skip).take(take).collect();
    let more = skip + page.len() < record.keys.len();
    let next_cursor = page.last().filter(|_| more).map(|(id, _)| list.token(id));
    let keys = page.into_iter().map(|(id, key)| key_body(&record, id, key, now)).collect();
    Ok(versioned_response(StatusCode::OK, record.version, KeyPage { keys, next_cursor }))
}

/// Read a key.
#[utoipa::path(get, operation_id = "get_key", path = "/admin/v1/keys/{key}", params(("key" = String, Path), DomainQuery), responses(
    (status = 200, description = "The key", body = KeyBody), ErrorResponses))]
pub(super) async fn get(
    AccountPath(key): AccountPath<String>,
    request: AdminRequest,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    key_response(&session.key(&key).await?, session.now())
}

/// Change a key's description or expiry.
#[utoipa::path(patch, operation_id = "update_key", path = "/admin/v1/keys/{key}", params(("key" = String, Path), DomainQuery),
    request_body = KeyPatchBody, responses(
    (status = 200, description = "The key is changed", body = KeyBody), ErrorResponses))]
pub(super) async fn patch(
    AccountPath(key): AccountPath<String>,
    request: AdminRequest,
    Body(patch): Body<KeyPatchBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let expires_at = patch.expires_at.map(|text| expiry(text.as_deref())).transpose()?;
    let patch = KeyPatch { description: patch.description, expires_at };
    key_response(&session.patch_key(&key, patch, request.if_match()?).await?, session.now())
}

/// Give a key a new secret. The key keeps its id, and so its counters. The answer has the secret.
#[utoipa::path(post, operation_id = "rotate_key", path = "/admin/v1/keys/{key}/rotate", params(("key" = String, Path), DomainQuery),
    request_body = RotationBody, responses(
    (status = 200, description = "The key has a new secret", body = IssuedBody), ErrorResponses))]
pub(super) async fn rotate(
    AccountPath(key): AccountPath<String>,
    request: AdminRequest,
    Body(rotation): Body<RotationBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let overlap = Duration::from_secs(rotation.overlap_s);
    let issued = session.rotate_key(&key, overlap, request.if_match()?).await?;
    issued_key_response(StatusCode::OK, issued, session.now())
}

/// Revoke a key permanently. A key that is already revoked stays revoked.
#[utoipa::path(post, operation_id = "revoke_key", path = "/admin/v1/keys/{key}/revoke", params(("key" = String, Path), DomainQuery), responses(
    (status = 200, description = "The key is revoked", body = KeyBody), ErrorResponses))]
pub(super) async fn revoke(
    AccountPath(key): AccountPath<String>,
    request: AdminRequest,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    key_response(&session.revoke_key(&key, request.if_match()?).await?, session.now())
}

/// Set an override: a limit for this key alone.
#[utoipa::path(put, operation_id = "set_key_override", path = "/admin/v1/keys/{key}/overrides/{name}",
    params(("key" = String, Path), ("name" = String, Path), DomainQuery), request_body = OverrideBody, responses(
    (status = 200, description = "The override is set", body = KeyBody), ErrorResponses))]
pub(super) async fn put_override(
    AccountPath((key, name)): AccountPath<(String, String)>,
    request: AdminRequest,
    Body(over): Body<OverrideBody>,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let account =
        session.put_override(OverrideTarget::Key(&key), &name, override_record(over)?, request.if_match()?).await?;
    key_response(&AccountKey { account, id: key }, session.now())
}

/// Clear an override of the key.
#[utoipa::path(delete, operation_id = "clear_key_override", path = "/admin/v1/keys/{key}/overrides/{name}",
    params(("key" = String, Path), ("name" = String, Path), DomainQuery), responses(
    (status = 200, description = "The override is cleared", body = KeyBody), ErrorResponses))]
pub(super) async fn clear_override(
    AccountPath((key, name)): AccountPath<(String, String)>,
    request: AdminRequest,
) -> Result<Response, AdminErrorResponse> {
    let session = request.session()?;
    let account = session.clear_override(OverrideTarget::Key(&key), &name, request.if_match()?).await?;
    key_response(&AccountKey { account, id: key }, session.now())
}

fn account_key_body(key: &AccountKey, now: Timestamp) -> Result<KeyBody, AdminError> {
    let not_found = || AdminError::NotFound(format!("key: there is no key {:?}", key.id));
    Ok(key_body(&key.account, &key.id, key.record().ok_or_else(not_found)?, now))
}

fn key_response(key: &AccountKey, now: Timestamp) -> Result<Response, AdminErrorResponse> {
    Ok(versioned_response(StatusCode::OK, key.account.version, account_key_body(key, now)?))
}

fn issued_key_response(status: StatusCode, issued: IssuedKey, now: Timestamp) -> Result<Response, AdminErrorResponse> {
    let IssuedKey { key, secret } = issued;
    Ok(versioned_response(status, key.account.version, IssuedBody { key: account_key_body(&key, now)?, secret }))
}
