//! Agents whose tries keep failing.

use resurgam_model::{AgentId, Duration};
use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::registry::spread;
use super::{get, now};
use crate::column::{micros, parsed};
use crate::{FAILING_AFTER, FAILING_FOR};

/// Whether some agent failed lately: if not, a completion has nothing to forget.
pub(super) fn some(c: &Connection) -> Result<bool, Fault> {
    let sql = "SELECT EXISTS (SELECT 1 FROM agent_failures)";
    Ok(c.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Counts a try of the task with this row that fails but may be made again; to be called while
/// the task still says who holds it. A task that fails again is counted once as long as no other
/// fails in between.
pub(super) fn failed(c: &Connection, seq: i64) -> Result<(), Fault> {
    let counted: Option<(String, i64)> = c
        .prepare_cached(
            "INSERT INTO agent_failures AS f (agent, instance, tasks, last_task, since)
             SELECT a.id, a.instance, 1, t.id, ?2 FROM tasks AS t
             JOIN agents AS a ON a.id = t.held_by AND a.instance = t.held_instance
             WHERE t.seq = ?1 AND NOT a.gone
             ON CONFLICT (agent) DO UPDATE SET
                 instance = excluded.instance, last_task = excluded.last_task,
                 since = iif(f.instance = excluded.instance, f.since, excluded.since),
                 tasks = CASE WHEN f.instance <> excluded.instance THEN 1
                     WHEN f.last_task = excluded.last_task THEN f.tasks
                     ELSE f.tasks + 1 END
             RETURNING agent, tasks",
        )?
        .query_row(params![seq, now()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((agent, tasks)) = counted else { return Ok(()) };
    if tasks < i64::from(FAILING_AFTER) {
        return Ok(());
    }
    let stopped = c
        .prepare_cached(
            "UPDATE agents SET failing_until = ?2,
                 reason = iif(drained, reason, ?3 || ' tasks failed one after the other')
             WHERE id = ?1 AND failing_until IS NULL",
        )?
        .execute(params![agent, now().saturating_add(micros(FAILING_FOR)), tasks])?;
    if stopped > 0 {
        tracing::warn!(agent, "its tries keep failing: it is given no tasks for now");
        spread(c, &agent)?;
    }
    Ok(())
}

/// A try of the task with this row succeeded.
pub(super) fn succeeded(c: &Connection, seq: i64) -> Result<(), Fault> {
    let agent: Option<String> = c
        .prepare_cached(
            "DELETE FROM agent_failures
             WHERE agent = (SELECT held_by FROM tasks WHERE seq = ?1) RETURNING agent",
        )?
        .query_row([seq], |row| row.get(0))
        .optional()?;
    match agent {
        Some(agent) => go_on(c, &agent),
        None => Ok(()),
    }
}

fn go_on(c: &Connection, agent: &str) -> Result<(), Fault> {
    let sql = "UPDATE agents SET failing_until = NULL, reason = iif(drained, reason, NULL)
         WHERE id = ?1 AND failing_until IS NOT NULL";
    if c.prepare_cached(sql)?.execute([agent])? > 0 {
        spread(c, agent)?;
    }
    Ok(())
}

/// Those whose time is over by `then`.
pub(super) fn due(c: &Connection, then: i64) -> Result<Vec<String>, Fault> {
    let sql = "SELECT id FROM agents WHERE failing_until <= ?1 ORDER BY failing_until LIMIT 1000";
    let mut statement = c.prepare_cached(sql)?;
    let mut rows = statement.query([then])?;
    let mut due = Vec::new();
    while let Some(row) = rows.next()? {
        due.push(get(row, "id")?);
    }
    Ok(due)
}

/// Lets those go on whose time is over within `early`. The next task that fails is one too many
/// again.
pub(super) fn forgive(c: &Connection, early: Duration) -> Result<Vec<AgentId>, Fault> {
    let mut forgiven = Vec::new();
    for agent in due(c, now().saturating_add(micros(early)))? {
        c.prepare_cached("UPDATE agent_failures SET tasks = min(tasks, ?2 - 1) WHERE agent = ?1")?
            .execute(params![agent, FAILING_AFTER])?;
        go_on(c, &agent)?;
        forgiven.push(parsed(&agent)?);
    }
    forgiven.sort();
    Ok(forgiven)
}
