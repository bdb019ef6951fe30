//! Limits on kinds of work.

use async_trait::async_trait;
use resurgam_model::Capability;
use resurgam_model::limit::Limit;

use super::{PostgresStore, get};
use crate::column::{from_json, parsed, to_json};
use crate::{Limits, Result, Wake};

#[async_trait]
impl Limits for PostgresStore {
    async fn set_limit(&self, capability: &Capability, limit: &Limit) -> Result<()> {
        let (name, spec, by_key) = (capability.as_str(), to_json(limit)?, limit.by_key());
        let mut session = self.session("set a limit").await?;
        session.batch("BEGIN").await?;
        let sql = "INSERT INTO limits (capability, spec, by_key) VALUES ($1, $2, $3)
             ON CONFLICT (capability)
             DO UPDATE SET spec = excluded.spec, by_key = excluded.by_key";
        session.query(sql, &[&name, &spec, &by_key]).await?;
        // What is under a lease already counts from now on.
        let sql = "UPDATE tasks SET limited = true WHERE id IN (
                 SELECT id FROM tasks
                 WHERE state = 'running' AND capability = $1 AND limited IS NULL
                 ORDER BY id FOR UPDATE)";
        session.query(sql, &[&name]).await?;
        if by_key {
            let sql = "UPDATE tasks SET key = '' WHERE id IN (
                     SELECT id FROM tasks WHERE capability = $1 AND key IS NULL
                     ORDER BY id FOR UPDATE)";
            session.query(sql, &[&name]).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        // More may be allowed than before.
        self.ring(Wake { capability: capability.clone(), count: 1 });
        Ok(())
    }

    async fn remove_limit(&self, capability: &Capability) -> Result<bool> {
        let sql = "DELETE FROM limits WHERE capability = $1 RETURNING capability";
        let rows = self.query("remove a limit", sql, &[&capability.as_str()]).await?;
        self.ring(Wake { capability: capability.clone(), count: 1 });
        Ok(!rows.is_empty())
    }

    async fn limits(&self) -> Result<Vec<(Capability, Limit)>> {
        let sql = "SELECT capability, spec FROM limits ORDER BY capability COLLATE \"C\"";
        let rows = self.query("list limits", sql, &[]).await?;
        rows.iter()
            .map(|row| Ok((parsed(get(row, "capability")?)?, from_json(get(row, "spec")?)?)))
            .collect()
    }
}
