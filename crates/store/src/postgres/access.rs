//! Tokens and the audit log.

use std::collections::HashMap;

use async_trait::async_trait;
use resurgam_model::access::{
    AccessToken, Actor, AuditEntry, AuditOutcome, AuditQuery, NewAccessToken, NewAuditEntry,
    TokenHash,
};
use resurgam_model::task::Token;
use resurgam_model::{Duration, TaskId, TokenId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{PostgresStore, get};
use crate::access::{Access, LeaseStanding};
use crate::column::{micros, parsed, parsed_if, time, time_if, unsigned};
use crate::{Error, Result};

/// The columns of a token.
macro_rules! token {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, name, role, agents, created_by,
             (extract(epoch FROM created_at) * 1000000)::bigint AS created_at,
             (extract(epoch FROM expires_at) * 1000000)::bigint AS expires_at,
             (extract(epoch FROM last_used_at) * 1000000)::bigint AS last_used_at,
             (extract(epoch FROM revoked_at) * 1000000)::bigint AS revoked_at ",
            $after
        )
    };
}

#[async_trait]
impl Access for PostgresStore {
    async fn create_token(
        &self,
        token: &NewAccessToken,
        hash: &TokenHash,
        created_by: &str,
    ) -> Result<AccessToken> {
        let sql = token!(
            "INSERT INTO tokens (id, hash, name, role, agents, created_by, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, now(), now() + $7::bigint * interval '1 microsecond')
             RETURNING",
            ""
        );
        let params = [
            &TokenId::new().0 as _,
            &hash.0.as_slice() as _,
            &token.name.as_str() as _,
            &token.role.as_str() as _,
            &token.agents.as_ref().map(ToString::to_string) as _,
            &created_by as _,
            &token.expires_in.map(micros) as _,
        ];
        let rows = self.query("make a token", sql, &params).await?;
        let row = rows.first().ok_or_else(|| Error::Corrupt("a new token is not there".into()))?;
        read_token(row)
    }

    async fn token_by_hash(&self, hash: &TokenHash) -> Result<Option<AccessToken>> {
        let sql = token!("SELECT", "FROM tokens WHERE hash = $1");
        let rows = self.query("look a token up", sql, &[&hash.0.as_slice()]).await?;
        rows.first().map(read_token).transpose()
    }

    async fn list_tokens(&self, after: Option<TokenId>, limit: u32) -> Result<Vec<AccessToken>> {
        // Ids of version 7 sort by the time at which they were made.
        let sql = token!("SELECT", "FROM tokens WHERE id > $1 ORDER BY tokens.id LIMIT $2");
        let after = after.map_or(Uuid::nil(), |after| after.0);
        let rows = self.query("list tokens", sql, &[&after, &i64::from(limit)]).await?;
        rows.iter().map(read_token).collect()
    }

    async fn revoke_token(&self, id: TokenId) -> Result<Option<AccessToken>> {
        let sql = token!(
            "WITH grown AS (UPDATE access_generation SET generation = generation + 1)
             UPDATE tokens SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 RETURNING",
            ""
        );
        let rows = self.query("revoke a token", sql, &[&id.0]).await?;
        rows.first().map(read_token).transpose()
    }

    async fn access_generation(&self) -> Result<i64> {
        let sql = "SELECT generation FROM access_generation";
        let rows = self.query("look for revoked tokens", sql, &[]).await?;
        let row =
            rows.first().ok_or_else(|| Error::Corrupt("access_generation is empty".into()))?;
        get(row, "generation")
    }

    async fn tokens_used(&self, ids: &[TokenId]) -> Result<()> {
        // Locked in order, as everywhere.
        let sql = "WITH used AS MATERIALIZED (
                 SELECT id FROM tokens WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE
             )
             UPDATE tokens SET last_used_at = clock_timestamp() FROM used WHERE tokens.id = used.id";
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        self.query("note the use of tokens", sql, &[&ids]).await?;
        Ok(())
    }

    async fn lease_standings(&self, tasks: &[TaskId]) -> Result<Vec<Option<LeaseStanding>>> {
        // One snapshot, so that a task that moves is seen in one of the two.
        let sql = "SELECT id, token, CASE WHEN state = 'running' THEN held_by END AS holder
             FROM tasks WHERE id = ANY ($1)
             UNION ALL SELECT id, token, NULL FROM tasks_done WHERE id = ANY ($1)";
        let ids: Vec<_> = tasks.iter().map(|task| task.0).collect();
        let rows = self.query("look up who holds leases", sql, &[&ids]).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let token = Token(get(row, "token")?);
            let holder = parsed_if(get(row, "holder")?)?;
            found.insert(TaskId(get(row, "id")?), LeaseStanding { token, holder });
        }
        Ok(tasks.iter().map(|task| found.get(task).cloned()).collect())
    }

    async fn record_audit(&self, entries: &[NewAuditEntry]) -> Result<Vec<i64>> {
        let sql = "INSERT INTO audit (at, actor, token, actor_name, act, object, outcome, detail,
                 request_id, remote)
             SELECT clock_timestamp(), actor, token, actor_name, act, object, outcome, detail,
                 request_id, remote
             FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[],
                         $7::text[], $8::text[], $9::text[])
                 WITH ORDINALITY AS e (actor, token, actor_name, act, object, outcome, detail,
                                       request_id, remote, n)
             ORDER BY n
             RETURNING sequence";
        let column = |of: fn(&NewAuditEntry) -> Option<&str>| {
            // PostgreSQL's text cannot hold the character NUL.
            entries.iter().map(|e| of(e).map(|t| t.replace('\0', "\u{fffd}"))).collect::<Vec<_>>()
        };
        let tokens: Vec<_> = entries.iter().map(|e| e.actor.token.map(|token| token.0)).collect();
        let params = [
            &column(|e| Some(e.actor.kind.as_str())) as _,
            &tokens as _,
            &column(|e| e.actor.name.as_deref()) as _,
            &column(|e| Some(&e.act)) as _,
            &column(|e| Some(&e.object)) as _,
            &column(|e| Some(e.outcome.as_str())) as _,
            &column(|e| e.detail.as_deref()) as _,
            &column(|e| e.request_id.as_deref()) as _,
            &column(|e| e.remote.as_deref()) as _,
        ];
        let rows = self.query("write the audit log", sql, &params).await?;
        rows.iter().map(|row| get(row, "sequence")).collect()
    }

    async fn finish_audit(
        &self,
        sequence: i64,
        outcome: AuditOutcome,
        detail: Option<&str>,
    ) -> Result<()> {
        let sql = "UPDATE audit SET outcome = $2, detail = coalesce($3, detail)
             WHERE sequence = $1 AND outcome = 'begun'";
        let detail = detail.map(|text| text.replace('\0', "\u{fffd}"));
        self.query("write the audit log", sql, &[&sequence, &outcome.as_str(), &detail]).await?;
        Ok(())
    }

    async fn audit_log(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>> {
        let sql = "SELECT sequence, (extract(epoch FROM at) * 1000000)::bigint AS at, actor, token,
                 actor_name, act, object, outcome, detail, request_id, remote
             FROM audit
             WHERE sequence < $1 AND ($2::text IS NULL OR act = $2)
                 AND ($3::text IS NULL OR outcome = $3) AND ($4::uuid IS NULL OR token = $4)
             ORDER BY sequence DESC LIMIT $5";
        let params = [
            &query.before.unwrap_or(i64::MAX) as _,
            &query.act.as_ref().map(|act| act.replace('\0', "\u{fffd}")) as _,
            &query.outcome.map(AuditOutcome::as_str) as _,
            &query.token.map(|token| token.0) as _,
            &i64::from(query.effective_limit()) as _,
        ];
        let rows = self.query("read the audit log", sql, &params).await?;
        rows.iter().map(read_entry).collect()
    }

    async fn prune_access(&self, keep: Duration, limit: u32) -> Result<u64> {
        let sql = "WITH old AS (
                 SELECT sequence FROM audit
                 WHERE at < statement_timestamp() - $1::bigint * interval '1 microsecond'
                 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
             ), forgotten AS (
                 DELETE FROM audit WHERE sequence IN (SELECT sequence FROM old) RETURNING 1
             ), over AS (
                 SELECT id FROM tokens
                 WHERE least(revoked_at, expires_at)
                     < clock_timestamp() - $1::bigint * interval '1 microsecond'
                 LIMIT $2 FOR UPDATE SKIP LOCKED
             ), gone AS (
                 DELETE FROM tokens WHERE id IN (SELECT id FROM over)
             )
             SELECT count(*) AS number FROM forgotten";
        let params = [&micros(keep) as _, &i64::from(limit) as _];
        let rows = self.query("shorten the audit log", sql, &params).await?;
        rows.first().map_or(Ok(0), |row| unsigned(get(row, "number")?))
    }
}

fn read_token(row: &Row) -> Result<AccessToken> {
    Ok(AccessToken {
        id: TokenId(get(row, "id")?),
        name: parsed(get(row, "name")?)?,
        role: parsed(get(row, "role")?)?,
        agents: parsed_if(get(row, "agents")?)?,
        created_by: get(row, "created_by")?,
        created_at: time(get(row, "created_at")?)?,
        expires_at: time_if(get(row, "expires_at")?)?,
        last_used_at: time_if(get(row, "last_used_at")?)?,
        revoked_at: time_if(get(row, "revoked_at")?)?,
    })
}

fn read_entry(row: &Row) -> Result<AuditEntry> {
    Ok(AuditEntry {
        sequence: get(row, "sequence")?,
        at: time(get(row, "at")?)?,
        actor: Actor {
            kind: parsed(get(row, "actor")?)?,
            token: get::<Option<Uuid>>(row, "token")?.map(TokenId),
            name: get(row, "actor_name")?,
        },
        act: get(row, "act")?,
        object: get(row, "object")?,
        outcome: parsed(get(row, "outcome")?)?,
        detail: get(row, "detail")?,
        request_id: get(row, "request_id")?,
        remote: get(row, "remote")?,
    })
}
