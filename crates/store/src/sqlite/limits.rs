//! Limits on kinds of work.

use async_trait::async_trait;
use resurgam_model::Capability;
use resurgam_model::limit::Limit;
use rusqlite::{Connection, params};

use super::fault::Fault;
use super::{SqliteStore, get};
use crate::column::{from_json, parsed, to_json};
use crate::{Limits, Result};

#[async_trait]
impl Limits for SqliteStore {
    async fn set_limit(&self, capability: &Capability, limit: &Limit) -> Result<()> {
        let (capability, limit) = (capability.clone(), *limit);
        self.writer.run("set a limit", move |c| set(c, &capability, &limit)).await?;
        // More may be allowed than before.
        self.bell.ring_for_all();
        Ok(())
    }

    async fn remove_limit(&self, capability: &Capability) -> Result<bool> {
        let name = capability.clone();
        let request = move |c: &Connection| {
            c.prepare_cached("DELETE FROM limit_keys WHERE capability = ?1")?
                .execute([name.as_str()])?;
            let removed = c
                .prepare_cached("DELETE FROM limits WHERE capability = ?1")?
                .execute([name.as_str()])?;
            Ok(removed > 0)
        };
        let removed = self.writer.run("remove a limit", request).await?;
        self.bell.ring_for_all();
        Ok(removed)
    }

    async fn limits(&self) -> Result<Vec<(Capability, Limit)>> {
        let request = |c: &Connection| {
            let mut statement =
                c.prepare_cached("SELECT capability, spec FROM limits ORDER BY capability")?;
            let mut rows = statement.query([])?;
            let mut limits = Vec::new();
            while let Some(row) = rows.next()? {
                let capability = parsed(&get::<String>(row, "capability")?)?;
                limits.push((capability, from_json(&get::<String>(row, "spec")?)?));
            }
            Ok(limits)
        };
        self.readers.run("list limits", request).await
    }
}

fn set(c: &Connection, capability: &Capability, limit: &Limit) -> Result<(), Fault> {
    let name = capability.as_str();
    c.prepare_cached(
        "INSERT INTO limits (capability, spec, by_key) VALUES (?1, ?2, ?3)
         ON CONFLICT (capability) DO UPDATE SET spec = excluded.spec, by_key = excluded.by_key",
    )?
    .execute(params![name, to_json(limit)?, limit.by_key()])?;
    // What is under a lease already counts from now on.
    c.prepare_cached("UPDATE tasks SET limited = 1 WHERE state = 'running' AND capability = ?1")?
        .execute([name])?;
    if limit.by_key() {
        for sql in [
            "UPDATE tasks SET key = '' WHERE state = 'ready' AND capability = ?1 AND key IS NULL",
            "UPDATE tasks SET key = ''
             WHERE state = 'scheduled' AND capability = ?1 AND key IS NULL",
            "UPDATE tasks SET key = '' WHERE state = 'running' AND capability = ?1 AND key IS NULL",
        ] {
            c.prepare_cached(sql)?.execute([name])?;
        }
    }
    Ok(())
}
