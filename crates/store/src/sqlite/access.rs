//! Tokens and the audit log.

use async_trait::async_trait;
use resurgam_model::access::{
    AccessToken, Actor, AuditEntry, AuditOutcome, AuditQuery, NewAccessToken, NewAuditEntry,
    TokenHash,
};
use resurgam_model::task::Token;
use resurgam_model::{Duration, TaskId, TokenId};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use uuid::Uuid;

use super::fault::Fault;
use super::{SqliteStore, get, id, now};
use crate::access::{Access, LeaseStanding};
use crate::column::{micros, parsed, parsed_if, time, time_if, unsigned};
use crate::{Error, Result};

#[async_trait]
impl Access for SqliteStore {
    async fn create_token(
        &self,
        token: &NewAccessToken,
        hash: &TokenHash,
        created_by: &str,
    ) -> Result<AccessToken> {
        let (token, hash, created_by) = (token.clone(), *hash, created_by.to_owned());
        let request = move |c: &Connection| create(c, &token, &hash, &created_by);
        self.writer.run("make a token", request).await
    }

    async fn token_by_hash(&self, hash: &TokenHash) -> Result<Option<AccessToken>> {
        let hash = *hash;
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT * FROM tokens WHERE hash = ?1")?;
            let mut rows = statement.query([hash.0])?;
            rows.next()?.map(read_token).transpose()
        };
        self.readers.run("look a token up", request).await
    }

    async fn list_tokens(&self, after: Option<TokenId>, limit: u32) -> Result<Vec<AccessToken>> {
        let request = move |c: &Connection| {
            // Ids of version 7 sort by the time at which they were made.
            let mut statement =
                c.prepare_cached("SELECT * FROM tokens WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let after = after.map_or(Uuid::nil(), |after| after.0);
            let mut rows = statement.query(params![after.as_bytes(), limit])?;
            let mut tokens = Vec::new();
            while let Some(row) = rows.next()? {
                tokens.push(read_token(row)?);
            }
            Ok(tokens)
        };
        self.readers.run("list tokens", request).await
    }

    async fn revoke_token(&self, token: TokenId) -> Result<Option<AccessToken>> {
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1 RETURNING *",
            )?;
            let mut rows = statement.query(params![token.0.as_bytes(), now()])?;
            let revoked = rows.next()?.map(read_token).transpose()?;
            c.prepare_cached("UPDATE access_generation SET generation = generation + 1")?
                .execute([])?;
            Ok(revoked)
        };
        self.writer.run("revoke a token", request).await
    }

    async fn access_generation(&self) -> Result<i64> {
        let request = |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT generation FROM access_generation")?;
            Ok(statement.query_row([], |row| row.get(0))?)
        };
        self.readers.run("look for revoked tokens", request).await
    }

    async fn tokens_used(&self, ids: &[TokenId]) -> Result<()> {
        let ids = ids.to_vec();
        let request = move |c: &Connection| {
            let mut statement =
                c.prepare_cached("UPDATE tokens SET last_used_at = ?2 WHERE id = ?1")?;
            for token in ids {
                statement.execute(params![token.0.as_bytes(), now()])?;
            }
            Ok(())
        };
        self.writer.run("note the use of tokens", request).await
    }

    async fn lease_standings(&self, tasks: &[TaskId]) -> Result<Vec<Option<LeaseStanding>>> {
        let tasks = tasks.to_vec();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT token, iif(state = 'running', held_by, NULL) AS holder
                 FROM tasks WHERE id = ?1",
            )?;
            let mut standings = Vec::with_capacity(tasks.len());
            for task in tasks {
                let mut rows = statement.query([task.0.as_bytes()])?;
                let standing = rows.next()?.map(|row| {
                    Ok::<_, Fault>(LeaseStanding {
                        token: Token(get(row, "token")?),
                        holder: parsed_if(get::<Option<String>>(row, "holder")?.as_deref())?,
                    })
                });
                standings.push(standing.transpose()?);
            }
            Ok(standings)
        };
        self.readers.run("look up who holds leases", request).await
    }

    async fn record_audit(&self, entries: &[NewAuditEntry]) -> Result<Vec<i64>> {
        let entries = entries.to_vec();
        let request = move |c: &Connection| entries.iter().map(|entry| record(c, entry)).collect();
        self.writer.run("write the audit log", request).await
    }

    async fn finish_audit(
        &self,
        sequence: i64,
        outcome: AuditOutcome,
        detail: Option<&str>,
    ) -> Result<()> {
        let detail = detail.map(ToOwned::to_owned);
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "UPDATE audit SET outcome = ?2, detail = coalesce(?3, detail)
                 WHERE sequence = ?1 AND outcome = 'begun'",
            )?;
            statement.execute(params![sequence, outcome.as_str(), detail])?;
            Ok(())
        };
        self.writer.run("write the audit log", request).await
    }

    async fn audit_log(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>> {
        let query = query.clone();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT * FROM audit
                 WHERE sequence < :before AND (:act IS NULL OR act = :act)
                     AND (:outcome IS NULL OR outcome = :outcome)
                     AND (:token IS NULL OR token = :token)
                 ORDER BY sequence DESC LIMIT :limit",
            )?;
            let mut rows = statement.query(named_params! {
                ":before": query.before.unwrap_or(i64::MAX),
                ":act": query.act,
                ":outcome": query.outcome.map(AuditOutcome::as_str),
                ":token": query.token.map(|token| *token.0.as_bytes()),
                ":limit": query.effective_limit(),
            })?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                entries.push(read_entry(row)?);
            }
            Ok(entries)
        };
        self.readers.run("read the audit log", request).await
    }

    async fn prune_access(&self, keep: Duration, limit: u32) -> Result<u64> {
        let keep = micros(keep);
        let request = move |c: &Connection| {
            let before = now().saturating_sub(keep);
            let gone = c
                .prepare_cached(
                    "DELETE FROM audit WHERE sequence IN (
                         SELECT sequence FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)",
                )?
                .execute((before, limit))?;
            c.prepare_cached(
                "DELETE FROM tokens WHERE id IN (
                     SELECT id FROM tokens WHERE min(coalesce(revoked_at, expires_at),
                         coalesce(expires_at, revoked_at)) < ?1 LIMIT ?2)",
            )?
            .execute((before, limit))?;
            Ok(unsigned(i64::try_from(gone).unwrap_or(i64::MAX))?)
        };
        self.writer.run("shorten the audit log", request).await
    }
}

fn create(
    c: &Connection,
    token: &NewAccessToken,
    hash: &TokenHash,
    created_by: &str,
) -> Result<AccessToken, Fault> {
    let now = now();
    let mut statement = c.prepare_cached(
        "INSERT INTO tokens (id, hash, name, role, agents, created_by, created_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING *",
    )?;
    let made = statement
        .query_row(
            params![
                TokenId::new().0.as_bytes(),
                hash.0,
                token.name.as_str(),
                token.role.as_str(),
                token.agents.as_ref().map(ToString::to_string),
                created_by,
                now,
                token.expires_in.map(|expiry| now.saturating_add(micros(expiry))),
            ],
            |row| Ok(read_token(row)),
        )
        .optional()?;
    made.unwrap_or_else(|| Err(Error::Corrupt("a new token is not there".to_owned()).into()))
}

fn record(c: &Connection, entry: &NewAuditEntry) -> Result<i64, Fault> {
    let mut statement = c.prepare_cached(
        "INSERT INTO audit (at, actor, token, actor_name, act, object, outcome, detail, request_id,
             remote)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    Ok(statement.insert(params![
        now(),
        entry.actor.kind.as_str(),
        entry.actor.token.map(|token| *token.0.as_bytes()),
        entry.actor.name,
        entry.act,
        entry.object,
        entry.outcome.as_str(),
        entry.detail,
        entry.request_id,
        entry.remote,
    ])?)
}

fn read_token(row: &Row<'_>) -> Result<AccessToken, Fault> {
    Ok(AccessToken {
        id: TokenId(id(row, "id")?),
        name: parsed(&get::<String>(row, "name")?)?,
        role: parsed(&get::<String>(row, "role")?)?,
        agents: parsed_if(get::<Option<String>>(row, "agents")?.as_deref())?,
        created_by: get(row, "created_by")?,
        created_at: time(get(row, "created_at")?)?,
        expires_at: time_if(get(row, "expires_at")?)?,
        last_used_at: time_if(get(row, "last_used_at")?)?,
        revoked_at: time_if(get(row, "revoked_at")?)?,
    })
}

fn read_entry(row: &Row<'_>) -> Result<AuditEntry, Fault> {
    let token = get::<Option<[u8; 16]>>(row, "token")?;
    Ok(AuditEntry {
        sequence: get(row, "sequence")?,
        at: time(get(row, "at")?)?,
        actor: Actor {
            kind: parsed(&get::<String>(row, "actor")?)?,
            token: token.map(|bytes| TokenId(Uuid::from_bytes(bytes))),
            name: get(row, "actor_name")?,
        },
        act: get(row, "act")?,
        object: get(row, "object")?,
        outcome: parsed(&get::<String>(row, "outcome")?)?,
        detail: get(row, "detail")?,
        request_id: get(row, "request_id")?,
        remote: get(row, "remote")?,
    })
}
