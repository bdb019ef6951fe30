//! Workflows taken out as documents and brought back.

use resurgam_model::WorkflowId;
use resurgam_model::task::{TaskState, WorkflowStep};
use resurgam_workflow::WorkKey;
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::ends::Ready;
use super::fault::Fault;
use super::tasks::read_task;
use super::workflow_rows::{
    columns, insert_instance, instance, keep_body, step_columns, tell, write_record,
};
use super::{get, now, submit};
use crate::Error;
use crate::column::{from_json, parsed, payload};
use crate::workflows::checkpoint::{
    Checkpoint, FORMAT, Restored, SavedSignal, SavedStep, saved_task,
};
use crate::workflows::instance::{Instance, Said, Word};
use crate::workflows::rows::{Record, whole};

pub(super) fn take(c: &Connection, id: WorkflowId) -> Result<Option<Checkpoint>, Fault> {
    let Some(instance) = instance(c, id)? else { return Ok(None) };
    let (input, definition, registered): (String, String, bool) = c
        .prepare_cached(
            "SELECT w.input, d.json, EXISTS (SELECT 1 FROM workflow_names AS n
                 WHERE n.name = w.name AND n.version = w.version AND n.digest = w.digest)
             FROM workflows AS w JOIN workflow_definitions AS d USING (digest) WHERE w.id = ?1",
        )?
        .query_row([id.0.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(Some(Checkpoint {
        format: FORMAT,
        id,
        revision: instance.revision,
        state: instance.state,
        root: instance.root,
        registered,
        definition: payload(definition)?,
        input: payload(input)?,
        output: whole(&instance.output).cloned(),
        steps: steps(c, id)?,
        signals: signals(c, id)?,
        words: words(c, id)?,
        tasks: tasks(c, id)?,
        name: instance.name,
        version: instance.version,
        idempotency_key: instance.key,
        head: instance.head,
        created_at: instance.created_at,
        changed_at: instance.changed_at,
        finished_at: instance.finished_at,
        expires_at: instance.expires_at,
    }))
}

fn steps(c: &Connection, id: WorkflowId) -> Result<Vec<SavedStep>, Fault> {
    let mut statement = c.prepare_cached(concat!(
        "SELECT ",
        step_columns!("value", "input", "output"),
        " FROM workflow_steps WHERE workflow = ?1 ORDER BY step, item"
    ))?;
    let mut rows = statement.query([id.0.as_bytes()])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        let row = columns(row)?;
        steps.push(SavedStep {
            value: whole(&row.value).cloned(),
            input: whole(&row.input).cloned(),
            output: whole(&row.output).cloned(),
            step: row.step,
            item: row.item,
            state: row.state,
            run: row.run,
            ord: row.ord,
            child: row.child.map(WorkflowId),
            meta: row.meta,
        });
    }
    Ok(steps)
}

fn signals(c: &Connection, id: WorkflowId) -> Result<Vec<SavedSignal>, Fault> {
    let mut statement = c.prepare_cached(
        "SELECT id, name, payload, created_at, taken_by FROM workflow_signals
         WHERE workflow = ?1 ORDER BY seq",
    )?;
    let mut rows = statement.query([id.0.as_bytes()])?;
    let mut signals = Vec::new();
    while let Some(row) = rows.next()? {
        signals.push(SavedSignal {
            id: get(row, "id")?,
            name: get(row, "name")?,
            payload: payload(get(row, "payload")?)?,
            created_at: get(row, "created_at")?,
            taken_by: get(row, "taken_by")?,
        });
    }
    Ok(signals)
}

/// What it was told, also by tasks.
fn words(c: &Connection, id: WorkflowId) -> Result<Vec<Word>, Fault> {
    let mut words = Vec::new();
    let mut statement =
        c.prepare_cached("SELECT word FROM workflow_words WHERE workflow = ?1 ORDER BY seq")?;
    let mut rows = statement.query([id.0.as_bytes()])?;
    while let Some(row) = rows.next()? {
        words.push(from_json(&get::<String>(row, "word")?)?);
    }
    let mut statement = c.prepare_cached(
        "SELECT e.step, e.state, t.result, t.error
         FROM workflow_events AS e LEFT JOIN tasks AS t ON t.id = e.task
         WHERE e.workflow = ?1 ORDER BY e.sequence",
    )?;
    let mut rows = statement.query([id.0.as_bytes()])?;
    while let Some(row) = rows.next()? {
        let end = match parsed(&get::<String>(row, "state")?)? {
            TaskState::Completed => Said::Completed(
                get::<Option<String>>(row, "result")?.map_or(Ok(Default::default()), payload)?,
            ),
            TaskState::Cancelled => Said::Cancelled,
            _ => Said::Failed(get::<Option<String>>(row, "error")?.unwrap_or_default()),
        };
        words.push(Word::Ended { key: parsed(&get::<String>(row, "step")?)?, end });
    }
    Ok(words)
}

fn tasks(
    c: &Connection,
    id: WorkflowId,
) -> Result<Vec<crate::workflows::checkpoint::SavedTask>, Fault> {
    let mut statement = c.prepare_cached(
        "SELECT * FROM tasks
         WHERE workflow = ?1 AND state IN ('ready', 'scheduled', 'running') ORDER BY seq",
    )?;
    let mut rows = statement.query([id.0.as_bytes()])?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        tasks.extend(saved_task(read_task(row)?));
    }
    Ok(tasks)
}

pub(super) fn restore(c: &Connection, saved: Checkpoint) -> Result<(Restored, Ready), Fault> {
    let mut ready = Ready::default();
    saved.check().map_err(Error::Corrupt)?;
    let known: Option<i64> = c
        .prepare_cached("SELECT revision FROM workflows WHERE id = ?1")?
        .query_row([saved.id.0.as_bytes()], |row| row.get(0))
        .optional()?;
    if let Some(revision) = known {
        return Ok((Restored::Kept { revision }, ready));
    }
    let digest = keep_body(c, saved.definition.json())?;
    if saved.registered {
        c.prepare_cached(
            "INSERT OR IGNORE INTO workflow_names (name, version, digest, created_at)
             VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![saved.name, saved.version, digest, now()])?;
    }
    let instance = Instance::restored(&saved, digest);
    insert_instance(c, &instance, Some(now()))?;
    for step in saved.steps {
        let text = |payload: Option<resurgam_model::Payload>| payload.map(|p| p.json().to_owned());
        write_record(
            c,
            saved.id,
            &Record {
                state: parsed::<resurgam_model::workflow::StepState>(&step.state)?.as_str(),
                step: step.step,
                item: step.item,
                run: step.run,
                ord: step.ord,
                child: step.child.map(|id| -> Uuid { id.0 }),
                meta: step.meta,
                value: text(step.value),
                input: text(step.input),
                no_output: step.output.is_none(),
                output: text(step.output),
            },
        )?;
    }
    for signal in saved.signals {
        c.prepare_cached(
            "INSERT INTO workflow_signals (workflow, id, name, payload, created_at, taken_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            saved.id.0.as_bytes(),
            signal.id,
            signal.name,
            signal.payload.json(),
            signal.created_at,
            signal.taken_by
        ])?;
    }
    for word in &saved.words {
        tell(c, saved.id, word)?;
    }
    for task in saved.tasks {
        let mut new = task.task;
        new.workflow = Some(WorkflowStep { workflow: saved.id, step: task.step });
        let (_, is_ready) = submit::submit(c, &new)?;
        if is_ready {
            *ready.entry(new.capability).or_default() += 1;
        }
    }
    Ok((Restored::Restored, ready))
}

/// Tells a restored workflow of the ends of its sub-workflows.
pub(super) fn reconnect(c: &Connection, workflow: WorkflowId) -> Result<(), Fault> {
    let mut statement = c.prepare_cached(concat!(
        "SELECT ",
        step_columns!("NULL", "NULL", "NULL"),
        " FROM workflow_steps WHERE workflow = ?1 AND state = 'running' AND child IS NOT NULL"
    ))?;
    let mut rows = statement.query([workflow.0.as_bytes()])?;
    let mut running = Vec::new();
    while let Some(row) = rows.next()? {
        running.push(columns(row)?);
    }
    drop(rows);
    for row in running {
        let (step, item) = (row.step.clone(), row.item);
        let (place, row) = row.row()?;
        let Some(child) = row.child else { continue };
        let end = match instance(c, child)? {
            Some(child) => child.said(),
            None => {
                c.prepare_cached(
                    "UPDATE workflow_steps SET child = NULL
                     WHERE workflow = ?1 AND step = ?2 AND item = ?3",
                )?
                .execute(params![workflow.0.as_bytes(), step, item])?;
                Some(Said::lost())
            }
        };
        if let Some(end) = end {
            let key = WorkKey { place, undo: false, run: row.run };
            tell(c, workflow, &Word::Ended { key, end })?;
        }
    }
    Ok(())
}
