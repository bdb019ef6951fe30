//! `/tokens` and `/audit`.

use axum::Json as Answer;
use axum::extract::State;
use axum::http::StatusCode;
use resurgam_client::problem::code;
use resurgam_client::wire::{AuditLog, MadeToken, TokenList};
use resurgam_model::TokenId;
use resurgam_model::access::{AccessToken, AuditEntry, AuditQuery, NewAccessToken};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Caller;
use crate::access::Secret;
use crate::api::Shared;
use crate::api::body::{Json, Parameters, PathId};
use crate::api::route::Route;
use crate::problem::Problem;

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::get("/tokens", list_tokens).about("Tokens, in the order in which they were made"),
        Route::post("/tokens", create_token)
            .about("Makes a token")
            .details(
                "The secret is in this answer and nowhere else. Each call makes another token. A \
                 server without access control makes none.",
            )
            .answers::<MadeToken>(StatusCode::CREATED, "The token, with its secret"),
        Route::delete("/tokens/{id}", revoke_token)
            .about("Revokes a token for good")
            .details(
                "Within a second nobody can use it any more. Revoking it again changes nothing.",
            )
            .fails(&[code::NOT_FOUND]),
        Route::get("/audit", audit_log).about("The audit log, the newest entries first"),
    ]
}

/// While everybody may do everything, nobody makes tokens: they would be good for more once
/// access is controlled.
fn not_while_open(caller: &Caller) -> Result<(), Problem> {
    if !caller.is_anybody() {
        return Ok(());
    }
    Err(Problem::forbidden(
        "this server has no access control, and so makes and revokes no tokens; do it in the \
         database itself: resurgam token create --direct",
    ))
}

async fn create_token(
    State(app): Shared,
    caller: Caller,
    Json(token): Json<NewAccessToken>,
) -> Result<(StatusCode, Answer<MadeToken>), Problem> {
    not_while_open(&caller)?;
    token.check().map_err(|error| Problem::invalid_field(error.to_string()))?;
    let secret = Secret::generate().map_err(|error| {
        tracing::error!(%error, "cannot make a token");
        Problem::internal()
    })?;
    let created_by = caller.actor().to_string();
    let made = app.store.create_token(&token, &secret.hash(), &created_by).await?;
    caller.note(format!("{} {} for {}", made.role, made.id, made.name));
    let made = MadeToken { secret: secret.expose().to_owned(), token: made };
    Ok((StatusCode::CREATED, Answer(made)))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Page {
    /// The last token of the page before.
    after: Option<TokenId>,
    /// At most so many; 0 stands for 100, and 1000 is the most.
    #[serde(default)]
    limit: u32,
}

async fn list_tokens(
    State(app): Shared,
    Parameters(Page { after, limit }): Parameters<Page>,
) -> Result<Answer<TokenList<Vec<AccessToken>>>, Problem> {
    let limit = if limit == 0 { 100 } else { limit.min(1000) };
    Ok(Answer(TokenList { tokens: app.store.list_tokens(after, limit).await? }))
}

async fn revoke_token(
    State(app): Shared,
    caller: Caller,
    PathId(id): PathId<TokenId>,
) -> Result<Answer<AccessToken>, Problem> {
    not_while_open(&caller)?;
    let revoked = app.store.revoke_token(id).await?;
    app.access.cache.forget();
    let revoked = revoked.ok_or_else(|| Problem::not_found(format!("there is no token {id}")))?;
    caller.note(format!("{} of {}", revoked.role, revoked.name));
    Ok(Answer(revoked))
}

async fn audit_log(
    State(app): Shared,
    Parameters(query): Parameters<AuditQuery>,
) -> Result<Answer<AuditLog<Vec<AuditEntry>>>, Problem> {
    Ok(Answer(AuditLog { entries: app.store.audit_log(&query).await? }))
}
