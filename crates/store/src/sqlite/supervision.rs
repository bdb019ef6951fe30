//! What a supervisor has to know.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use resurgam_model::pool::Demand;
use resurgam_model::stuck::{LongRunning, Usual};
use resurgam_model::{Capability, Duration, TaskId};
use rusqlite::{Connection, params};

use super::fault::Fault;
use super::{SqliteStore, get, id, now};
use crate::column::{micros, parsed, parsed_if, time, to_json, unsigned};
use crate::supervision::{COUNTED, SAMPLE, demand};
use crate::{Result, Supervision};

#[async_trait]
impl Supervision for SqliteStore {
    async fn demand(&self, capabilities: &[Capability], window: Duration) -> Result<Demand> {
        let names: BTreeSet<Capability> = capabilities.iter().cloned().collect();
        self.readers.run("weigh the demand", move |c| weigh(c, &names, window)).await
    }

    async fn usual(&self) -> Result<Vec<(Capability, Usual)>> {
        self.readers.run("see what is usual", usual).await
    }

    async fn long_running(&self, than: Duration, limit: u32) -> Result<Vec<LongRunning>> {
        let than = micros(than);
        self.readers.run("look for what runs long", move |c| long_running(c, than, limit)).await
    }
}

fn weigh(
    c: &Connection,
    capabilities: &BTreeSet<Capability>,
    window: Duration,
) -> Result<Demand, Fault> {
    let now = now();
    let since = now.saturating_sub(micros(window));
    // The newest of all, and of those the ones that are wanted: they lie in the order of time.
    let mut statement = c.prepare_cached(
        "SELECT capability, created_at, state, finished_at - started_at AS took
         FROM tasks ORDER BY seq DESC LIMIT ?1",
    )?;
    let mut rows = statement.query([SAMPLE])?;
    let (mut seen, mut came, mut oldest) = (0, 0, now);
    let (mut took, mut ended) = (0_i64, 0_i64);
    while let Some(row) = rows.next()? {
        let created: i64 = get(row, "created_at")?;
        if created < since {
            break;
        }
        seen += 1;
        oldest = oldest.min(created);
        let capability: Capability = parsed(&get::<String>(row, "capability")?)?;
        if !capabilities.contains(&capability) {
            continue;
        }
        came += 1;
        if get::<String>(row, "state")? == "completed"
            && let Some(micros) = get::<Option<i64>>(row, "took")?
        {
            took = took.saturating_add(micros.max(0));
            ended += 1;
        }
    }
    drop(rows);
    let span = (seen >= SAMPLE).then_some(now.saturating_sub(oldest));
    let names = to_json(capabilities)?;
    let mut able = c.prepare_cached(
        "SELECT count(*), coalesce(sum(a.capacity), 0)
         FROM (SELECT DISTINCT agent FROM agent_capabilities
               WHERE capability IN (SELECT value FROM json_each(?1)) AND free >= 0) AS c
         CROSS JOIN agents AS a ON a.id = c.agent",
    )?;
    let able = able.query_row([&names], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut counted = c.prepare_cached(
        "SELECT (SELECT count(*) FROM (SELECT 1 FROM tasks WHERE state = 'ready'
                     AND capability IN (SELECT value FROM json_each(?1)) LIMIT ?2)),
             (SELECT count(*) FROM tasks WHERE state = 'running'
                     AND capability IN (SELECT value FROM json_each(?1)))",
    )?;
    let counted =
        counted.query_row(params![names, COUNTED], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mean = (ended > 0).then(|| took / ended.max(1));
    Ok(demand(window, came, span, mean, able, counted)?)
}

fn usual(c: &Connection) -> Result<Vec<(Capability, Usual)>, Fault> {
    let mut statement = c.prepare_cached(
        "SELECT capability, took FROM (
             SELECT capability, state, finished_at - started_at AS took
             FROM tasks ORDER BY seq DESC LIMIT ?1)
         WHERE state = 'completed' AND took IS NOT NULL",
    )?;
    let mut rows = statement.query([SAMPLE])?;
    let mut times: BTreeMap<Capability, Vec<i64>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let capability = parsed(&get::<String>(row, "capability")?)?;
        times.entry(capability).or_default().push(get::<i64>(row, "took")?.max(0));
    }
    let usual = times.into_iter().map(|(capability, mut times)| {
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = Duration(std::time::Duration::from_micros(unsigned(*median)?));
        Ok((capability, Usual { median, samples: times.len() as u64 }))
    });
    usual.collect()
}

fn long_running(c: &Connection, than: i64, limit: u32) -> Result<Vec<LongRunning>, Fault> {
    let now = now();
    let mut statement = c.prepare_cached(
        "SELECT id, capability, held_by, attempts, started_at FROM tasks
         WHERE state = 'running' AND started_at < ?1 ORDER BY started_at LIMIT ?2",
    )?;
    let mut rows = statement.query(params![now.saturating_sub(than), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let started: i64 = get(row, "started_at")?;
        let age = unsigned(now.saturating_sub(started).max(0))?;
        found.push(LongRunning {
            task: TaskId(id(row, "id")?),
            capability: parsed(&get::<String>(row, "capability")?)?,
            held_by: parsed_if(get::<Option<String>>(row, "held_by")?.as_deref())?,
            started_at: time(started)?,
            running_for: Duration(std::time::Duration::from_micros(age)),
            attempt: unsigned(get(row, "attempts")?)?,
        });
    }
    Ok(found)
}
