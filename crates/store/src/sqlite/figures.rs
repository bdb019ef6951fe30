//! How things stand.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;

use super::fault::Fault;
use super::{SqliteStore, get, now};
use crate::column::{parsed, unsigned};
use crate::figures::{Queue, Snapshot};
use crate::{Figures, Meters, Result};

#[async_trait]
impl Figures for SqliteStore {
    async fn figures(&self) -> Result<Snapshot> {
        self.readers.run("take stock", take_stock).await
    }

    fn meters(&self) -> &Meters {
        &self.meters
    }
}

fn take_stock(c: &Connection) -> Result<Snapshot, Fault> {
    let now = now();
    // What is completed is left out, so that the partial indexes of the others answer.
    let mut statement = c.prepare_cached(
        "SELECT capability, sum(ready) AS ready, sum(scheduled) AS scheduled,
             sum(running) AS running, sum(dead) AS dead, min(oldest) AS oldest
         FROM (
             SELECT capability, count(*) AS ready, 0 AS scheduled, 0 AS running, 0 AS dead,
                 min(run_at) AS oldest
             FROM tasks WHERE state = 'ready' GROUP BY capability
             UNION ALL SELECT capability, 0, count(*), 0, 0, NULL
             FROM tasks WHERE state = 'scheduled' GROUP BY capability
             UNION ALL SELECT capability, 0, 0, count(*), 0, NULL
             FROM tasks WHERE state = 'running' GROUP BY capability
             UNION ALL SELECT capability, 0, 0, 0, count(*), NULL
             FROM tasks WHERE state = 'dead' GROUP BY capability
         ) GROUP BY capability ORDER BY capability",
    )?;
    let mut rows = statement.query([])?;
    let mut queues = Vec::new();
    while let Some(row) = rows.next()? {
        let oldest: Option<i64> = get(row, "oldest")?;
        queues.push(Queue {
            capability: parsed(&get::<String>(row, "capability")?)?,
            ready: unsigned(get(row, "ready")?)?,
            scheduled: unsigned(get(row, "scheduled")?)?,
            running: unsigned(get(row, "running")?)?,
            dead: unsigned(get(row, "dead")?)?,
            oldest_ready: oldest
                .filter(|at| *at <= now)
                .and_then(|at| u64::try_from(now.saturating_sub(at)).ok())
                .map(Duration::from_micros),
        });
    }
    let mut statement = c.prepare_cached(
        "SELECT iif(state = 'available' AND max(load, held) >= capacity, 'busy', state) AS place,
             count(*) AS number
         FROM agents GROUP BY 1 ORDER BY 1",
    )?;
    let mut rows = statement.query([])?;
    let mut agents = Vec::new();
    while let Some(row) = rows.next()? {
        agents.push((get(row, "place")?, unsigned(get(row, "number")?)?));
    }
    Ok(Snapshot { queues, agents })
}
