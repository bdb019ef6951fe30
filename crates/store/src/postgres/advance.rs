//! Advancing workflows, each in one transaction under the lock of its row.

use std::collections::{BTreeSet, HashMap};

use resurgam_model::task::TaskState;
use resurgam_model::{Payload, TaskId, Timestamp, WorkflowId};
use resurgam_workflow::state::{End, Event, Signal};
use resurgam_workflow::{Definition, Need, Place, State, StepId, WorkKey, advance};
use tokio_postgres::Row;
use uuid::Uuid;

use super::finish::finish;
use super::session::Session;
use super::workflow_rows::{
    Lock, body, columns, drop_words, insert_instances, instance, step_columns, tell, write_records,
};
use super::{PostgresStore, get};
use crate::column::{parsed, payload};
use crate::workflows::instance::{Instance, Said, Word};
use crate::workflows::plan::Plan;
use crate::workflows::rows::slot;
use crate::workflows::{Advanced, Definitions, MAX_EVENTS, Named, SMALL};
use crate::{Error, Result};

const WORDS: &str =
    "SELECT seq, word FROM workflow_words WHERE workflow = $1 ORDER BY seq LIMIT $2";

const EVENTS: &str = "SELECT e.sequence, e.step, e.state, t.result, t.error
     FROM workflow_events AS e LEFT JOIN tasks_done AS t ON t.id = e.task
     WHERE e.workflow = $1 ORDER BY e.sequence LIMIT $2";

const SIGNALS: &str = "SELECT seq, name, payload FROM workflow_signals
     WHERE workflow = $1 AND taken_by IS NULL ORDER BY seq";

const STEPS: &str = concat!(
    "SELECT ",
    step_columns!(
        "NULL::text",
        "NULL::text",
        "CASE WHEN octet_length(s.output) <= $2 THEN s.output END"
    ),
    " FROM workflow_steps AS s WHERE s.workflow = $1 AND s.item = -1"
);

const EVENT_ITEMS: &str = concat!(
    "SELECT ",
    step_columns!("NULL::text", "NULL::text", "NULL::text"),
    " FROM unnest($2::text[], $3::int[]) AS t (step, item)
      JOIN workflow_steps AS s ON s.workflow = $1 AND s.step = t.step AND s.item = t.item"
);

const ITEMS: &str = concat!(
    "SELECT ",
    step_columns!("NULL::text", "NULL::text", "s.output"),
    " FROM workflow_steps AS s WHERE s.workflow = $1 AND s.step = $2 AND s.item >= 0"
);

const PENDING: &str = concat!(
    "SELECT ",
    step_columns!("s.value", "s.input", "NULL::text"),
    " FROM workflow_steps AS s
      WHERE s.workflow = $1 AND s.step = $2 AND s.item >= 0 AND s.state = 'pending'
      ORDER BY s.workflow, s.step, s.item LIMIT $3"
);

const ITEM: &str = concat!(
    "SELECT ",
    step_columns!("s.value", "NULL::text", "s.output"),
    " FROM workflow_steps AS s WHERE s.workflow = $1 AND s.step = $2 AND s.item = $3"
);

const LAST_COMPLETED: &str = concat!(
    "SELECT ",
    step_columns!("s.value", "NULL::text", "s.output"),
    " FROM workflow_steps AS s
      WHERE s.workflow = $1 AND s.step = $2 AND s.item >= 0 AND s.state = 'completed'
          AND s.ord IS NOT NULL
      ORDER BY s.workflow DESC, s.step DESC, s.ord DESC LIMIT 1"
);

/// Cancels the tasks that nobody works on.
const CANCEL_IDLE: &str = concat!(
    "WITH found AS MATERIALIZED (
        SELECT id FROM tasks WHERE workflow = $1 AND state IN ('ready', 'scheduled')
        ORDER BY id FOR UPDATE
    ), over AS (
        DELETE FROM tasks AS t USING found AS f WHERE t.id = f.id
            AND t.state IN ('ready', 'scheduled')
        RETURNING t.*, 'cancelled' AS end_state, NULL::text AS end_result,
            'its workflow goes back'::text AS end_error, t.failed_token AS end_failed, 1 AS n
    ), ",
    finish!("over"),
    " SELECT count(*) AS number FROM over"
);

const LAST_TRY: &str =
    "UPDATE tasks SET max_attempts = attempts WHERE workflow = $1 AND state = 'running'";

const OPEN_CHILDREN: &str = "SELECT id FROM workflows
     WHERE parent = $1 AND state NOT IN ('completed', 'failed', 'cancelled') ORDER BY id";

const SAVE: &str = "UPDATE workflows SET state = $2, head = $3, output = coalesce($4, output),
         wake_at = $5, finished_at = $6, expires_at = $7, changed_at = $8, revision = revision + 1
     WHERE id = $1";

impl PostgresStore {
    pub(super) async fn advance_one(&self, workflow: WorkflowId, wait: bool) -> Result<Advanced> {
        let mut session = self.session("advance a workflow").await?;
        session.batch("BEGIN").await?;
        let lock = if wait { Lock::Wait } else { Lock::IfFree };
        let Some(mut instance) = instance(&mut session, workflow, lock).await? else {
            let known = super::workflow_rows::instance(&mut session, workflow, Lock::None).await?;
            if known.is_none() {
                drop_words(&mut session, &[workflow.0]).await?;
            }
            session.batch("COMMIT").await?;
            session.finish();
            return Ok(if known.is_some() { Advanced::Busy } else { Advanced::Unknown });
        };
        let definition = body(&mut session, &instance.digest, &self.definitions).await?;
        let now = Timestamp::now();
        let (events, heard) = events(&mut session, workflow, &mut instance).await?;
        let mut state = instance.engine_state()?;
        load_steps(&mut session, workflow, &events, &mut state).await?;
        for row in &session.query(SIGNALS, &[&workflow.0]).await? {
            state.signals.push(Signal {
                seq: get(row, "seq")?,
                name: get(row, "name")?,
                payload: payload(get(row, "payload")?)?,
            });
        }
        let next = decide(&mut session, workflow, &definition, state, &events, now).await?;
        let mut plan = Plan::new(&instance, &definition, next, now);
        let mut moved = BTreeSet::new();
        write(&mut session, &instance, &mut plan, &self.definitions, now, &mut moved).await?;
        forget(&mut session, &heard).await?;
        session.batch("COMMIT").await?;
        session.finish();
        self.ring_for(plan.tasks.iter().collect());
        if plan.again(now) || heard.full {
            moved.insert(workflow);
        }
        let more = moved.contains(&workflow);
        self.moved.add(moved);
        Ok(if more { Advanced::More } else { Advanced::Done })
    }
}

/// Asks the engine, and loads what it needs.
async fn decide(
    session: &mut Session<'_>,
    workflow: WorkflowId,
    definition: &Definition,
    mut state: State,
    events: &[Event],
    now: Timestamp,
) -> Result<resurgam_workflow::Advance> {
    let mut loaded = BTreeSet::new();
    loop {
        match advance(definition, state.clone(), events, now) {
            Ok(next) => return Ok(next),
            Err(needs) => {
                if needs.is_subset(&loaded) {
                    return Err(Error::Corrupt(format!("workflow {workflow} lacks {needs:?}")));
                }
                for need in &needs {
                    load(session, workflow, need, &mut state).await?;
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

async fn events(
    session: &mut Session<'_>,
    workflow: WorkflowId,
    instance: &mut Instance,
) -> Result<(Vec<Event>, Heard)> {
    let limit = i64::from(MAX_EVENTS);
    let mut heard = Heard { events: Vec::new(), words: Vec::new(), full: false };
    let mut events = Vec::new();
    for row in &session.query(WORDS, &[&workflow.0, &limit]).await? {
        heard.words.push(get(row, "seq")?);
        let word: Word = crate::column::from_json(get(row, "word")?)?;
        events.push(word.event(&mut instance.head));
    }
    for row in &session.query(EVENTS, &[&workflow.0, &limit]).await? {
        heard.events.push(get(row, "sequence")?);
        events.push(task_event(row)?);
    }
    let most = usize::try_from(MAX_EVENTS).unwrap_or(usize::MAX);
    heard.full = heard.events.len() >= most || heard.words.len() >= most;
    Ok((events, heard))
}

/// How a task ended.
fn task_event(row: &Row) -> Result<Event> {
    let key: WorkKey = parsed(get(row, "step")?)?;
    let end = match parsed(get(row, "state")?)? {
        TaskState::Completed => End::Completed(
            get::<Option<String>>(row, "result")?.map_or(Ok(Payload::default()), payload)?,
        ),
        TaskState::Cancelled => End::Cancelled,
        _ => End::Failed(get::<Option<String>>(row, "error")?.unwrap_or_default()),
    };
    Ok(Event::Ended { key, end })
}

async fn forget(session: &mut Session<'_>, heard: &Heard) -> Result<()> {
    if !heard.events.is_empty() {
        let sql = "DELETE FROM workflow_events WHERE sequence = ANY ($1)";
        session.query(sql, &[&heard.events]).await?;
    }
    if !heard.words.is_empty() {
        let sql = "DELETE FROM workflow_words WHERE seq = ANY ($1)";
        session.query(sql, &[&heard.words]).await?;
    }
    Ok(())
}

/// All steps, and the items that events are about without their data.
async fn load_steps(
    session: &mut Session<'_>,
    workflow: WorkflowId,
    events: &[Event],
    state: &mut State,
) -> Result<()> {
    for row in &session.query(STEPS, &[&workflow.0, &SMALL]).await? {
        let (place, row) = columns(row)?.row()?;
        state.steps.insert(place.step, row);
    }
    let mut places = BTreeSet::new();
    for event in events {
        if let Event::Ended { key: WorkKey { place, .. }, .. } = event
            && let Some(item) = place.item
        {
            places.insert((place.step.as_str(), i32::try_from(item).unwrap_or(i32::MAX)));
        }
    }
    let (steps, items): (Vec<&str>, Vec<i32>) = places.into_iter().unzip();
    if !steps.is_empty() {
        let rows = session.query(EVENT_ITEMS, &[&workflow.0, &steps, &items]).await?;
        put_items(&rows, state)?;
    }
    Ok(())
}

fn put_items(rows: &[Row], state: &mut State) -> Result<()> {
    for row in rows {
        let (place, row) = columns(row)?.row()?;
        if let Some(item) = place.item {
            state.items.insert((place.step, item), row);
        }
    }
    Ok(())
}

async fn load(
    session: &mut Session<'_>,
    workflow: WorkflowId,
    need: &Need,
    state: &mut State,
) -> Result<()> {
    let workflow = workflow.0;
    match need {
        Need::Input => {
            let sql = "SELECT input FROM workflows WHERE id = $1";
            for row in &session.query(sql, &[&workflow]).await? {
                state.input = slot(get(row, "input")?, true)?;
            }
        }
        Need::Output(step) => {
            let sql = "SELECT output FROM workflow_steps
                 WHERE workflow = $1 AND step = $2 AND item = -1";
            for found in &session.query(sql, &[&workflow, &step.as_str()]).await? {
                if let Some(row) = state.steps.get_mut(step) {
                    row.output = slot(get(found, "output")?, true)?;
                }
            }
        }
        Need::Items(step) => {
            put_items(&session.query(ITEMS, &[&workflow, &step.as_str()]).await?, state)?;
        }
        Need::Pending(step, count) => {
            let params = [&workflow as _, &step.as_str() as _, &i64::from(*count) as _];
            put_items(&session.query(PENDING, &params).await?, state)?;
        }
        Need::Item(step, item) => {
            let item = i32::try_from(*item).unwrap_or(i32::MAX);
            let rows = session.query(ITEM, &[&workflow, &step.as_str(), &item]).await?;
            put_items(&rows, state)?;
        }
        Need::LastCompleted(step) => {
            let rows = session.query(LAST_COMPLETED, &[&workflow, &step.as_str()]).await?;
            put_items(&rows, state)?;
            state.last_completed.insert(step.clone());
        }
    }
    Ok(())
}

async fn write(
    session: &mut Session<'_>,
    instance: &Instance,
    plan: &mut Plan,
    definitions: &Definitions,
    now: Timestamp,
    moved: &mut BTreeSet<WorkflowId>,
) -> Result<()> {
    forget_steps(session, instance.id, plan).await?;
    let mut words = Vec::new();
    if plan.wind_down {
        wind_down(session, instance.id, &mut words, moved).await?;
    }
    let tasks: Vec<TaskId> = plan.tasks.iter().map(|_| TaskId::new()).collect();
    PostgresStore::submit_within(session, &tasks, &plan.tasks).await?;
    let mut children = HashMap::<Place, WorkflowId>::new();
    let mut new = Vec::new();
    let mut known = HashMap::<(String, Option<u32>), Named>::new();
    for child in std::mem::take(&mut plan.children) {
        let wanted = (child.name.clone(), child.version);
        let definition = match known.get(&wanted) {
            Some(definition) => definition.clone(),
            None => {
                let found = named(session, &child.name, child.version, definitions).await?;
                known.entry(wanted).or_insert(found).clone()
            }
        };
        let definition =
            definition.as_ref().map(|(definition, digest)| (definition, digest.as_str()));
        match Instance::child(instance, &child, definition, now) {
            Ok(begun) => {
                moved.insert(begun.id);
                children.insert(child.key.place, begun.id);
                new.push(begun);
            }
            Err(why) => {
                let end = Said::Failed(why);
                words.push((instance.id, Word::Ended { key: child.key, end }));
                moved.insert(instance.id);
            }
        }
    }
    if !new.is_empty() {
        insert_instances(session, &new, now.as_microsecond()).await?;
    }
    for (child, key) in std::mem::take(&mut plan.resumed) {
        words.push((child, Word::Retry { key: Some(key) }));
        moved.insert(child);
    }
    let records = plan.records(&tasks, &children)?;
    write_records(session, instance.id, &records).await?;
    if !plan.taken.is_empty() {
        let (seqs, steps): (Vec<i64>, Vec<&str>) =
            plan.taken.iter().map(|(seq, step)| (*seq, step.as_str())).unzip();
        let sql = "UPDATE workflow_signals AS s SET taken_by = t.step
             FROM unnest($1::bigint[], $2::text[]) AS t (seq, step) WHERE s.seq = t.seq";
        session.query(sql, &[&seqs, &steps]).await?;
    }
    if let Some((parent, word)) = plan.report.take() {
        words.push((parent, word));
        moved.insert(parent);
    }
    tell(session, &words).await?;
    let head = crate::column::to_json(&plan.head)?;
    let (state, changed) = (plan.state.as_str(), now.as_microsecond());
    session
        .query(
            SAVE,
            &[
                &instance.id.0,
                &state,
                &head,
                &plan.output,
                &plan.wake_at,
                &plan.finished_at,
                &plan.expires_at,
                &changed,
            ],
        )
        .await?;
    Ok(())
}

async fn forget_steps(session: &mut Session<'_>, id: WorkflowId, plan: &Plan) -> Result<()> {
    for (sql, steps) in [
        ("DELETE FROM workflow_steps WHERE workflow = $1 AND step = ANY ($2)", &plan.forgotten),
        (
            "UPDATE workflow_steps
             SET child = CASE WHEN state <> 'compensated' THEN child END, state = 'pending',
                 run = 0, ord = NULL, meta = '{}', output = NULL
             WHERE workflow = $1 AND step = ANY ($2) AND item >= 0 AND state <> 'completed'",
            &plan.reset_items,
        ),
        (
            "UPDATE workflow_steps SET state = 'completed'
             WHERE workflow = $1 AND step = ANY ($2) AND item >= 0
                 AND state = 'compensation-failed'",
            &plan.reset_undos,
        ),
    ] {
        if !steps.is_empty() {
            let steps: Vec<&str> = steps.iter().map(StepId::as_str).collect();
            session.query(sql, &[&id.0, &steps]).await?;
        }
    }
    Ok(())
}

/// Tasks that nobody works on are cancelled, the others are not tried again, and sub-workflows
/// are told.
async fn wind_down(
    session: &mut Session<'_>,
    workflow: WorkflowId,
    words: &mut Vec<(WorkflowId, Word)>,
    moved: &mut BTreeSet<WorkflowId>,
) -> Result<()> {
    let rows = session.query(CANCEL_IDLE, &[&workflow.0]).await?;
    if rows.first().map_or(Ok(0), |row| get::<i64>(row, "number"))? > 0 {
        moved.insert(workflow);
    }
    session.query(LAST_TRY, &[&workflow.0]).await?;
    for row in &session.query(OPEN_CHILDREN, &[&workflow.0]).await? {
        let child = WorkflowId(get::<Uuid>(row, "id")?);
        let reason = "the workflow that started it goes back".to_owned();
        words.push((child, Word::Cancel { reason }));
        moved.insert(child);
    }
    Ok(())
}

/// A registered definition with its digest.
async fn named(
    session: &mut Session<'_>,
    name: &str,
    version: Option<u32>,
    definitions: &Definitions,
) -> Result<Named> {
    let sql = "SELECT digest FROM workflow_names WHERE name = $1
             AND ($2::bigint IS NULL OR version = $2)
         ORDER BY version DESC LIMIT 1";
    let version = version.map(i64::from);
    let rows = session.query(sql, &[&name, &version]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let digest: String = get(row, "digest")?;
    Ok(Some((body(session, &digest, definitions).await?, digest)))
}
