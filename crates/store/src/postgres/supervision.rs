//! What a supervisor has to know.

use async_trait::async_trait;
use resurgam_model::pool::Demand;
use resurgam_model::stuck::{LongRunning, Usual};
use resurgam_model::{Capability, Duration, TaskId, Timestamp};
use uuid::Uuid;

use super::{PostgresStore, get};
use crate::column::{micros, parsed, parsed_if, time, unsigned};
use crate::supervision::{COUNTED, SAMPLE, demand};
use crate::{Result, Supervision};

/// The newest tasks of all, and of those the ones that are wanted: ids sort by time. Where there
/// are more than are looked at, the time that they span is shorter.
const DEMAND: &str = "WITH newest AS MATERIALIZED (
        (SELECT created_at, capability, NULL::interval AS took, 1 AS part FROM tasks
         WHERE id > $1 ORDER BY id DESC LIMIT $3)
        UNION ALL
        (SELECT created_at, capability,
             CASE WHEN state = 'completed' THEN finished_at - started_at END, 2 FROM tasks_done
         WHERE id > $1 ORDER BY id DESC LIMIT $3)
    ), cut AS (
        SELECT max(oldest) AS at FROM (
            SELECT min(created_at) AS oldest FROM newest GROUP BY part HAVING count(*) >= $3
        ) AS full_parts
    ), came AS (
        SELECT count(n.created_at) AS number,
            (extract(epoch FROM min(now() - cut.at)) * 1000000)::bigint AS span
        FROM cut LEFT JOIN newest AS n
            ON (cut.at IS NULL OR n.created_at >= cut.at) AND n.capability = ANY ($2)
    ), took AS (
        SELECT (extract(epoch FROM avg(took)) * 1000000)::bigint AS mean
        FROM newest WHERE capability = ANY ($2)
    ), able AS (
        SELECT count(*) AS number, coalesce(sum(a.capacity), 0)::bigint AS places
        FROM (SELECT DISTINCT agent FROM agent_capabilities
              WHERE capability = ANY ($2) AND free >= 0) AS c
        JOIN agents AS a ON a.id = c.agent
    )
    SELECT came.number AS came, came.span, took.mean, able.number AS workers, able.places,
        (SELECT count(*) FROM (SELECT FROM tasks WHERE state = 'ready'
             AND capability = ANY ($2) LIMIT $4) AS counted) AS queue,
        (SELECT count(*) FROM tasks WHERE state = 'running' AND capability = ANY ($2)) AS running
    FROM came, took, able";

const USUAL: &str = "SELECT capability, count(*) AS samples,
        (extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY took)) * 1000000)::bigint
            AS median
    FROM (SELECT capability, finished_at - started_at AS took, state FROM tasks_done
          ORDER BY id DESC LIMIT $1) AS newest
    WHERE state = 'completed' AND took IS NOT NULL
    GROUP BY capability ORDER BY capability COLLATE \"C\"";

const LONG_RUNNING: &str = "SELECT id, capability, held_by, attempts,
        (extract(epoch FROM started_at) * 1000000)::bigint AS started_at,
        (extract(epoch FROM now() - started_at) * 1000000)::bigint AS age
    FROM tasks
    WHERE state = 'running' AND started_at < now() - $1::bigint * interval '1 microsecond'
    ORDER BY started_at LIMIT $2";

#[async_trait]
impl Supervision for PostgresStore {
    async fn demand(&self, capabilities: &[Capability], window: Duration) -> Result<Demand> {
        let names: Vec<_> = capabilities.iter().map(Capability::as_str).collect();
        let first = first_id(window);
        let params = [&first as _, &names as _, &SAMPLE as _, &COUNTED as _];
        let rows = self.query("weigh the demand", DEMAND, &params).await?;
        let Some(row) = rows.first() else { return Ok(Demand::default()) };
        demand(
            window,
            get(row, "came")?,
            get(row, "span")?,
            get(row, "mean")?,
            (get(row, "workers")?, get(row, "places")?),
            (get(row, "queue")?, get(row, "running")?),
        )
    }

    async fn usual(&self) -> Result<Vec<(Capability, Usual)>> {
        let rows = self.query("see what is usual", USUAL, &[&SAMPLE]).await?;
        let usual = rows.iter().map(|row| {
            let median = Duration(std::time::Duration::from_micros(unsigned(
                get::<i64>(row, "median")?.max(0),
            )?));
            let usual = Usual { median, samples: unsigned(get(row, "samples")?)? };
            Ok((parsed(get(row, "capability")?)?, usual))
        });
        usual.collect()
    }

    async fn long_running(&self, than: Duration, limit: u32) -> Result<Vec<LongRunning>> {
        let params = [&micros(than) as _, &i64::from(limit) as _];
        let rows = self.query("look for what runs long", LONG_RUNNING, &params).await?;
        let running = rows.iter().map(|row| {
            let age = unsigned(get::<i64>(row, "age")?.max(0))?;
            Ok(LongRunning {
                task: TaskId(get(row, "id")?),
                capability: parsed(get(row, "capability")?)?,
                held_by: parsed_if(get(row, "held_by")?)?,
                started_at: time(get(row, "started_at")?)?,
                running_for: Duration(std::time::Duration::from_micros(age)),
                attempt: unsigned(i64::from(get::<i32>(row, "attempts")?))?,
            })
        });
        running.collect()
    }
}

/// The smallest id of a task that was handed in within the time.
fn first_id(window: Duration) -> Uuid {
    let now = u128::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    Uuid::from_u128(now.saturating_sub(window.0.as_millis()) << 80)
}
