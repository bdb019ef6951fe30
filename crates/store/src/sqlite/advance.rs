//! Advancing workflows: one request to the writer, and so one transaction.

use std::collections::{BTreeSet, HashMap};

use resurgam_model::task::TaskState;
use resurgam_model::{Payload, TaskId, Timestamp, WorkflowId};
use resurgam_workflow::state::{End, Event, Signal};
use resurgam_workflow::{Definition, Need, Place, State, StepId, WorkKey, advance};
use rusqlite::{Connection, OptionalExtension, Row as Found, params};

use super::ends::{self, Ready};
use super::fault::Fault;
use super::workflow_rows::{
    body, columns, drop_words, insert_instance, instance, step_columns, tell, write_record,
};
use super::{get, id, submit};
use crate::column::{parsed, payload};
use crate::workflows::instance::{Instance, Said, Word};
use crate::workflows::plan::Plan;
use crate::workflows::{Advanced, Definitions, MAX_EVENTS, Named, SMALL};
use crate::{Error, Result};

/// What has been done, and who is to hear of it once it is durable.
pub(super) struct Moves {
    pub(super) advanced: Advanced,
    pub(super) moved: BTreeSet<WorkflowId>,
    pub(super) ready: Ready,
}

pub(super) fn advance_one(
    c: &Connection,
    workflow: WorkflowId,
    definitions: &Definitions,
) -> Result<Moves, Fault> {
    let mut moves =
        Moves { advanced: Advanced::Done, moved: BTreeSet::new(), ready: Ready::default() };
    let Some(mut instance) = instance(c, workflow)? else {
        drop_words(c, workflow)?;
        moves.advanced = Advanced::Unknown;
        return Ok(moves);
    };
    let definition = body(c, &instance.digest, definitions)?;
    let now = Timestamp::now();
    let (events, heard) = events(c, workflow, &mut instance)?;
    let mut state = instance.engine_state()?;
    load_steps(c, workflow, &mut state)?;
    load_event_items(c, workflow, &events, &mut state)?;
    state.signals = signals(c, workflow)?;
    let next = decide(c, workflow, &definition, state, &events, now)?;
    let mut plan = Plan::new(&instance, &definition, next, now);
    write(c, &instance, &mut plan, definitions, now, &mut moves)?;
    forget(c, &heard)?;
    if plan.again(now) || heard.full {
        moves.moved.insert(workflow);
    }
    if moves.moved.contains(&workflow) {
        moves.advanced = Advanced::More;
    }
    Ok(moves)
}

/// Asks the engine, and loads what it needs.
fn decide(
    c: &Connection,
    workflow: WorkflowId,
    definition: &Definition,
    mut state: State,
    events: &[Event],
    now: Timestamp,
) -> Result<resurgam_workflow::Advance, Fault> {
    let mut loaded = BTreeSet::new();
    loop {
        match advance(definition, state.clone(), events, now) {
            Ok(next) => return Ok(next),
            Err(needs) => {
                if needs.is_subset(&loaded) {
                    let what = format!("workflow {workflow} lacks {needs:?}");
                    return Err(Error::Corrupt(what).into());
                }
                for need in &needs {
                    load(c, workflow, need, &mut state)?;
                }
                loaded.extend(needs);
            }
        }
    }
}

/// What was read, to be forgotten once it has been taken note of.
struct Heard {
    events: Vec<i64>,
    words: Vec<i64>,
    /// There may be more.
    full: bool,
}

fn events(
    c: &Connection,
    workflow: WorkflowId,
    instance: &mut Instance,
) -> Result<(Vec<Event>, Heard), Fault> {
    let mut heard = Heard { events: Vec::new(), words: Vec::new(), full: false };
    let mut events = Vec::new();
    let mut statement = c.prepare_cached(
        "SELECT seq, word FROM workflow_words WHERE workflow = ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut rows = statement.query(params![workflow.0.as_bytes(), MAX_EVENTS])?;
    while let Some(row) = rows.next()? {
        heard.words.push(get(row, "seq")?);
        let word: Word = crate::column::from_json(&get::<String>(row, "word")?)?;
        events.push(word.event(&mut instance.head));
    }
    let mut statement = c.prepare_cached(
        "SELECT e.sequence, e.step, e.state, t.result, t.error
         FROM workflow_events AS e LEFT JOIN tasks AS t ON t.id = e.task
         WHERE e.workflow = ?1 ORDER BY e.sequence LIMIT ?2",
    )?;
    let mut rows = statement.query(params![workflow.0.as_bytes(), MAX_EVENTS])?;
    while let Some(row) = rows.next()? {
        heard.events.push(get(row, "sequence")?);
        events.push(task_event(row)?);
    }
    let most = usize::try_from(MAX_EVENTS).unwrap_or(usize::MAX);
    heard.full = heard.events.len() >= most || heard.words.len() >= most;
    Ok((events, heard))
}

/// How a task ended.
fn task_event(row: &Found<'_>) -> Result<Event, Fault> {
    let key: WorkKey = parsed(&get::<String>(row, "step")?)?;
    let end = match parsed(&get::<String>(row, "state")?)? {
        TaskState::Completed => End::Completed(
            get::<Option<String>>(row, "result")?.map_or(Ok(Payload::default()), payload)?,
        ),
        TaskState::Cancelled => End::Cancelled,
        _ => End::Failed(get::<Option<String>>(row, "error")?.unwrap_or_default()),
    };
    Ok(Event::Ended { key, end })
}

fn forget(c: &Connection, heard: &Heard) -> Result<(), Fault> {
    let mut statement = c.prepare_cached("DELETE FROM workflow_events WHERE sequence = ?1")?;
    for seq in &heard.events {
        statement.execute([seq])?;
    }
    let mut statement = c.prepare_cached("DELETE FROM workflow_words WHERE seq = ?1")?;
    for seq in &heard.words {
        statement.execute([seq])?;
    }
    Ok(())
}

fn load_steps(c: &Connection, workflow: WorkflowId, state: &mut State) -> Result<(), Fault> {
    let mut statement = c.prepare_cached(concat!(
        "SELECT ",
        step_columns!("NULL", "NULL", "iif(octet_length(output) <= ?2, output, NULL)"),
        " FROM workflow_steps WHERE workflow = ?1 AND item = -1"
    ))?;
    let mut rows = statement.query(params![workflow.0.as_bytes(), SMALL])?;
    while let Some(row) = rows.next()? {
        let (place, row) = columns(row)?.row()?;
        state.steps.insert(place.step, row);
    }
    Ok(())
}

/// The items that events are about, without their data.
fn load_event_items(
    c: &Connection,
    workflow: WorkflowId,
    events: &[Event],
    state: &mut State,
) -> Result<(), Fault> {
    let mut statement = c.prepare_cached(concat!(
        "SELECT ",
        step_columns!("NULL", "NULL", "NULL"),
        " FROM workflow_steps WHERE workflow = ?1 AND step = ?2 AND item = ?3"
    ))?;
    for event in events {
        let Event::Ended { key: WorkKey { place, .. }, .. } = event else { continue };
        let Some(item) = place.item else { continue };
        let mut rows =
            statement.query(params![workflow.0.as_bytes(), place.step.as_str(), item])?;
        put_items(&mut rows, state)?;
    }
    Ok(())
}

fn put_items(rows: &mut rusqlite::Rows<'_>, state: &mut State) -> Result<(), Fault> {
    while let Some(row) = rows.next()? {
        let (place, row) = columns(row)?.row()?;
        if let Some(item) = place.item {
            state.items.insert((place.step, item), row);
        }
    }
    Ok(())
}

fn load(c: &Connection, workflow: WorkflowId, need: &Need, state: &mut State) -> Result<(), Fault> {
    let workflow = workflow.0.as_bytes();
    match need {
        Need::Input => {
            let input: String = c
                .prepare_cached("SELECT input FROM workflows WHERE id = ?1")?
                .query_row([workflow], |row| row.get(0))?;
            state.input = crate::workflows::rows::slot(Some(input), true)?;
        }
        Need::Output(step) => {
            let output: Option<String> = c
                .prepare_cached(
                    "SELECT output FROM workflow_steps
                     WHERE workflow = ?1 AND step = ?2 AND item = -1",
                )?
                .query_row(params![workflow, step.as_str()], |row| row.get(0))?;
            if let Some(row) = state.steps.get_mut(step) {
                row.output = crate::workflows::rows::slot(output, true)?;
            }
        }
        Need::Items(step) => {
            let mut statement = c.prepare_cached(concat!(
                "SELECT ",
                step_columns!("NULL", "NULL", "output"),
                " FROM workflow_steps WHERE workflow = ?1 AND step = ?2 AND item >= 0"
            ))?;
            put_items(&mut statement.query(params![workflow, step.as_str()])?, state)?;
        }
        Need::Pending(step, count) => {
            let mut statement = c.prepare_cached(concat!(
                "SELECT ",
                step_columns!("value", "input", "NULL"),
                " FROM workflow_steps INDEXED BY workflow_items_pending
                  WHERE workflow = ?1 AND step = ?2 AND item >= 0 AND state = 'pending'
                  ORDER BY item LIMIT ?3"
            ))?;
            put_items(&mut statement.query(params![workflow, step.as_str(), count])?, state)?;
        }
        Need::Item(step, item) => {
            let mut statement = c.prepare_cached(concat!(
                "SELECT ",
                step_columns!("value", "NULL", "output"),
                " FROM workflow_steps WHERE workflow = ?1 AND step = ?2 AND item = ?3"
            ))?;
            put_items(&mut statement.query(params![workflow, step.as_str(), item])?, state)?;
        }
        Need::LastCompleted(step) => {
            let mut statement = c.prepare_cached(concat!(
                "SELECT ",
                step_columns!("value", "NULL", "output"),
                " FROM workflow_steps INDEXED BY workflow_items_completed
                  WHERE workflow = ?1 AND step = ?2 AND state = 'completed' AND item >= 0
                     AND ord IS NOT NULL
                  ORDER BY ord DESC LIMIT 1"
            ))?;
            put_items(&mut statement.query(params![workflow, step.as_str()])?, state)?;
            state.last_completed.insert(step.clone());
        }
    }
    Ok(())
}

fn signals(c: &Connection, workflow: WorkflowId) -> Result<Vec<Signal>, Fault> {
    let mut statement = c.prepare_cached(
        "SELECT seq, name, payload FROM workflow_signals
         WHERE workflow = ?1 AND taken_by IS NULL ORDER BY seq",
    )?;
    let mut rows = statement.query([workflow.0.as_bytes()])?;
    let mut signals = Vec::new();
    while let Some(row) = rows.next()? {
        signals.push(Signal {
            seq: get(row, "seq")?,
            name: get(row, "name")?,
            payload: payload(get(row, "payload")?)?,
        });
    }
    Ok(signals)
}

fn write(
    c: &Connection,
    instance: &Instance,
    plan: &mut Plan,
    definitions: &Definitions,
    now: Timestamp,
    moves: &mut Moves,
) -> Result<(), Fault> {
    let workflow = instance.id.0.as_bytes();
    forget_steps(c, instance.id, plan)?;
    if plan.wind_down {
        wind_down(c, instance.id, moves)?;
    }
    let mut tasks: Vec<TaskId> = Vec::with_capacity(plan.tasks.len());
    for task in &plan.tasks {
        let (submitted, is_ready) = submit::submit(c, task)?;
        tasks.push(submitted.id);
        if is_ready {
            *moves.ready.entry(task.capability.clone()).or_default() += 1;
        }
    }
    let mut children = HashMap::<Place, WorkflowId>::new();
    let mut known = HashMap::<(String, Option<u32>), Named>::new();
    for child in std::mem::take(&mut plan.children) {
        let wanted = (child.name.clone(), child.version);
        let definition = match known.get(&wanted) {
            Some(definition) => definition.clone(),
            None => {
                let found = named(c, &child.name, child.version, definitions)?;
                known.entry(wanted).or_insert(found).clone()
            }
        };
        let definition =
            definition.as_ref().map(|(definition, digest)| (definition, digest.as_str()));
        match Instance::child(instance, &child, definition, now) {
            Ok(new) => {
                insert_instance(c, &new, Some(now.as_microsecond()))?;
                moves.moved.insert(new.id);
                children.insert(child.key.place, new.id);
            }
            Err(why) => {
                tell(c, instance.id, &Word::Ended { key: child.key, end: Said::Failed(why) })?;
                moves.moved.insert(instance.id);
            }
        }
    }
    for (child, key) in std::mem::take(&mut plan.resumed) {
        tell(c, child, &Word::Retry { key: Some(key) })?;
        moves.moved.insert(child);
    }
    for record in plan.records(&tasks, &children)? {
        write_record(c, instance.id, &record)?;
    }
    let mut statement =
        c.prepare_cached("UPDATE workflow_signals SET taken_by = ?2 WHERE seq = ?1")?;
    for (seq, step) in &plan.taken {
        statement.execute(params![seq, step])?;
    }
    if let Some((parent, word)) = &plan.report {
        tell(c, *parent, word)?;
        moves.moved.insert(*parent);
    }
    c.prepare_cached(
        "UPDATE workflows SET state = ?2, head = ?3, output = ifnull(?4, output), wake_at = ?5,
             finished_at = ?6, expires_at = ?7, changed_at = ?8, revision = revision + 1
         WHERE id = ?1",
    )?
    .execute(params![
        workflow,
        plan.state.as_str(),
        crate::column::to_json(&plan.head)?,
        plan.output,
        plan.wake_at,
        plan.finished_at,
        plan.expires_at,
        now.as_microsecond(),
    ])?;
    Ok(())
}

fn forget_steps(c: &Connection, workflow: WorkflowId, plan: &Plan) -> Result<(), Fault> {
    let workflow = workflow.0.as_bytes();
    let run = |sql: &str, steps: &BTreeSet<StepId>| -> Result<(), Fault> {
        let mut statement = c.prepare_cached(sql)?;
        for step in steps {
            statement.execute(params![workflow, step.as_str()])?;
        }
        Ok(())
    };
    run("DELETE FROM workflow_steps WHERE workflow = ?1 AND step = ?2", &plan.forgotten)?;
    run(
        "UPDATE workflow_steps
         SET child = iif(state = 'compensated', NULL, child), state = 'pending', run = 0,
             ord = NULL, meta = '{}', output = NULL
         WHERE workflow = ?1 AND step = ?2 AND item >= 0 AND state <> 'completed'",
        &plan.reset_items,
    )?;
    run(
        "UPDATE workflow_steps SET state = 'completed'
         WHERE workflow = ?1 AND step = ?2 AND item >= 0 AND state = 'compensation-failed'",
        &plan.reset_undos,
    )
}

/// Tasks that nobody works on are cancelled, the others are not tried again, and sub-workflows
/// are told.
fn wind_down(c: &Connection, workflow: WorkflowId, moves: &mut Moves) -> Result<(), Fault> {
    let mut statement = c.prepare_cached(
        "SELECT id FROM tasks WHERE workflow = ?1 AND state IN ('ready', 'scheduled')",
    )?;
    let mut rows = statement.query([workflow.0.as_bytes()])?;
    let mut idle = Vec::new();
    while let Some(row) = rows.next()? {
        idle.push(TaskId(id(row, "id")?));
    }
    drop(rows);
    for task in idle {
        ends::cancel(c, task, "its workflow goes back", &mut moves.ready)?;
        moves.moved.insert(workflow);
    }
    c.prepare_cached(
        "UPDATE tasks SET max_attempts = attempts WHERE workflow = ?1 AND state = 'running'",
    )?
    .execute([workflow.0.as_bytes()])?;
    let mut statement = c.prepare_cached(
        "SELECT id FROM workflows
         WHERE parent = ?1 AND state NOT IN ('completed', 'failed', 'cancelled')",
    )?;
    let mut rows = statement.query([workflow.0.as_bytes()])?;
    while let Some(row) = rows.next()? {
        let child = WorkflowId(id(row, "id")?);
        let reason = "the workflow that started it goes back".to_owned();
        tell(c, child, &Word::Cancel { reason })?;
        moves.moved.insert(child);
    }
    Ok(())
}

/// A registered definition with its digest.
fn named(
    c: &Connection,
    name: &str,
    version: Option<u32>,
    definitions: &Definitions,
) -> Result<Named, Fault> {
    let digest: Option<String> = c
        .prepare_cached(
            "SELECT digest FROM workflow_names WHERE name = ?1 AND (?2 IS NULL OR version = ?2)
             ORDER BY version DESC LIMIT 1",
        )?
        .query_row(params![name, version], |row| row.get(0))
        .optional()?;
    digest.map(|digest| Ok((body(c, &digest, definitions)?, digest))).transpose()
}
