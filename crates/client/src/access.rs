//! Tokens and the audit log: for callers of the role `admin`.

use http::Method;
use resurgam_model::access::{AccessToken, AuditEntry, AuditQuery, NewAccessToken};
use resurgam_model::{Duration, TokenId};

use crate::client::{Client, Result};
use crate::wire;

impl Client {
    /// Makes a token, and gives its secret this one time. Not safe to repeat: each call makes
    /// another one.
    pub async fn create_token(&self, token: &NewAccessToken) -> Result<wire::MadeToken> {
        self.post("tokens", token).await
    }

    /// Tokens in the order in which they were made, those after `after` if given; 0 stands for
    /// 100 of them, and 1000 is the most.
    pub async fn tokens(&self, after: Option<TokenId>, limit: u32) -> Result<Vec<AccessToken>> {
        let mut parameters = vec![("limit", limit.to_string())];
        parameters.extend(after.map(|after| ("after", after.to_string())));
        let answer: wire::TokenList<_> = self.get("tokens", &parameters).await?;
        Ok(answer.tokens)
    }

    /// Revokes a token for good. Within a second nobody can use it any more.
    pub async fn revoke_token(&self, id: TokenId) -> Result<AccessToken> {
        let url = self.url(&format!("tokens/{id}"), &[])?;
        self.call::<_, ()>(Method::DELETE, url, None, Duration::default()).await
    }

    /// Entries of the audit log, the newest first.
    pub async fn audit_log(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>> {
        let mut parameters = vec![("limit", query.effective_limit().to_string())];
        parameters.extend(query.before.map(|before| ("before", before.to_string())));
        parameters.extend(query.act.as_ref().map(|act| ("act", act.clone())));
        parameters.extend(query.outcome.map(|outcome| ("outcome", outcome.to_string())));
        parameters.extend(query.token.map(|token| ("token", token.to_string())));
        let answer: wire::AuditLog<_> = self.get("audit", &parameters).await?;
        Ok(answer.entries)
    }
}
