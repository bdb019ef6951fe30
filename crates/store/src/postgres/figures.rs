//! How things stand.

use std::time::Duration;

use async_trait::async_trait;

use super::{PostgresStore, get};
use crate::column::{parsed, unsigned};
use crate::figures::{Queue, Snapshot};
use crate::{Figures, Meters, Result};

#[async_trait]
impl Figures for PostgresStore {
    async fn figures(&self) -> Result<Snapshot> {
        // What is completed is left out, so that the partial indexes of the others answer.
        let sql = "SELECT capability, sum(ready)::bigint AS ready,
                 sum(scheduled)::bigint AS scheduled, sum(running)::bigint AS running,
                 sum(dead)::bigint AS dead,
                 (extract(epoch FROM now() - min(oldest)) * 1000000)::bigint AS oldest
             FROM (
                 SELECT capability, count(*) AS ready, 0 AS scheduled, 0 AS running, 0 AS dead,
                     min(run_at) AS oldest
                 FROM tasks WHERE state = 'ready' GROUP BY capability
                 UNION ALL SELECT capability, 0, count(*), 0, 0, NULL
                 FROM tasks WHERE state = 'scheduled' GROUP BY capability
                 UNION ALL SELECT capability, 0, 0, count(*), 0, NULL
                 FROM tasks WHERE state = 'running' GROUP BY capability
                 UNION ALL SELECT capability, 0, 0, 0, count(*), NULL
                 FROM tasks_done WHERE state = 'dead' GROUP BY capability
             ) AS counts GROUP BY capability ORDER BY capability COLLATE \"C\"";
        let rows = self.query("take stock", sql, &[]).await?;
        let mut queues = Vec::with_capacity(rows.len());
        for row in &rows {
            let oldest: Option<i64> = get(row, "oldest")?;
            queues.push(Queue {
                capability: parsed(get(row, "capability")?)?,
                ready: unsigned(get(row, "ready")?)?,
                scheduled: unsigned(get(row, "scheduled")?)?,
                running: unsigned(get(row, "running")?)?,
                dead: unsigned(get(row, "dead")?)?,
                // Less than nothing: the first one's time has not come.
                oldest_ready: oldest
                    .and_then(|age| u64::try_from(age).ok())
                    .map(Duration::from_micros),
            });
        }
        let sql = "SELECT CASE WHEN state = 'available' AND greatest(load, held) >= capacity
                 THEN 'busy' ELSE state END AS state, count(*) AS number
             FROM agents GROUP BY 1 ORDER BY 1";
        let rows = self.query("take stock", sql, &[]).await?;
        let agents = rows
            .iter()
            .map(|row| Ok((get(row, "state")?, unsigned(get(row, "number")?)?)))
            .collect::<Result<_>>()?;
        Ok(Snapshot { queues, agents })
    }

    fn meters(&self) -> &Meters {
        let status = self.pool.status();
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let pool = &self.meters.pool;
        pool.connections.get_or_create(&[("state", "idle")]).set(gauge(status.available));
        let in_use = status.size.saturating_sub(status.available);
        pool.connections.get_or_create(&[("state", "in-use")]).set(gauge(in_use));
        pool.most.set(gauge(status.max_size));
        pool.waiting.set(gauge(status.waiting));
        &self.meters
    }
}
