//! Who may come in, and what was done.

use async_trait::async_trait;
use resurgam_model::access::{
    AccessToken, AuditEntry, AuditOutcome, AuditQuery, NewAccessToken, NewAuditEntry, TokenHash,
};
use resurgam_model::task::Token;
use resurgam_model::{AgentId, Duration, TaskId, TokenId};

use crate::Result;

/// Tokens and the audit log.
#[async_trait]
pub trait Access: Send + Sync + 'static {
    /// Puts a token on record. The secret never comes here, only its hash.
    async fn create_token(
        &self,
        token: &NewAccessToken,
        hash: &TokenHash,
        created_by: &str,
    ) -> Result<AccessToken>;

    /// The token with that hash, also one that is revoked or over.
    async fn token_by_hash(&self, hash: &TokenHash) -> Result<Option<AccessToken>>;

    /// Tokens in the order in which they were made, those after `after` if given.
    async fn list_tokens(&self, after: Option<TokenId>, limit: u32) -> Result<Vec<AccessToken>>;

    /// Revokes a token for good, and gives it; one that is revoked already stays as it was.
    /// [`Access::access_generation`] grows in the same transaction.
    async fn revoke_token(&self, id: TokenId) -> Result<Option<AccessToken>>;

    /// Grows with each revocation. What was read of tokens before a call that gave the same
    /// number still holds.
    async fn access_generation(&self) -> Result<i64>;

    /// Notes that these tokens were just used.
    async fn tokens_used(&self, ids: &[TokenId]) -> Result<()>;

    /// Where the leases on these tasks stand, in order; nothing for a task that there is not.
    async fn lease_standings(&self, tasks: &[TaskId]) -> Result<Vec<Option<LeaseStanding>>>;

    /// Puts entries on record, in order, and gives their numbers.
    async fn record_audit(&self, entries: &[NewAuditEntry]) -> Result<Vec<i64>>;

    /// Tells what became of an act that was [`AuditOutcome::Begun`]. Of an entry that has its
    /// outcome nothing changes any more.
    async fn finish_audit(
        &self,
        sequence: i64,
        outcome: AuditOutcome,
        detail: Option<&str>,
    ) -> Result<()>;

    /// Entries of the audit log, the newest first.
    async fn audit_log(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>>;

    /// Forgets up to `limit` entries of the audit log that are older than `keep`, the oldest
    /// first, and as many tokens that have been revoked or over for so long. Answers how many
    /// entries went.
    async fn prune_access(&self, keep: Duration, limit: u32) -> Result<u64>;
}

/// Where the lease on a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStanding {
    /// The token of the last claim; each claim raises it.
    pub token: Token,
    /// Who holds the lease under that token; nobody if it is over.
    pub holder: Option<AgentId>,
}
