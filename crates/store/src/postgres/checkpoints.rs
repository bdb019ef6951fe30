//! Workflows taken out as documents and brought back.

use resurgam_model::task::{NewTask, TaskState, WorkflowStep};
use resurgam_model::workflow::StepState;
use resurgam_model::{Payload, TaskId, Timestamp, WorkflowId};
use resurgam_workflow::WorkKey;

use super::session::Session;
use super::task_rows::{self, read_task};
use super::workflow_rows::{
    Lock, columns, insert_instances, instance, keep_body, step_columns, tell, write_records,
};
use super::workflows::SNAPSHOT;
use super::{PostgresStore, get};
use crate::column::{from_json, parsed, payload};
use crate::workflows::checkpoint::{
    Checkpoint, FORMAT, Restored, SavedSignal, SavedStep, SavedTask, saved_task,
};
use crate::workflows::instance::{Instance, Said, Word};
use crate::workflows::rows::{Record, whole};
use crate::{Error, Result};

const WHOLE: &str = "SELECT w.input, d.json, EXISTS (SELECT FROM workflow_names AS n
         WHERE n.name = w.name AND n.version = w.version AND n.digest = w.digest) AS registered
     FROM workflows AS w JOIN workflow_definitions AS d ON d.digest = w.digest WHERE w.id = $1";

const STEPS: &str = concat!(
    "SELECT ",
    step_columns!("s.value", "s.input", "s.output"),
    " FROM workflow_steps AS s WHERE s.workflow = $1 ORDER BY s.step, s.item"
);

const RUNNING_CHILDREN: &str = concat!(
    "SELECT ",
    step_columns!("NULL::text", "NULL::text", "NULL::text"),
    " FROM workflow_steps AS s
      WHERE s.workflow = $1 AND s.state = 'running' AND s.child IS NOT NULL"
);

impl PostgresStore {
    pub(super) async fn take_checkpoint(&self, id: WorkflowId) -> Result<Option<Checkpoint>> {
        let mut session = self.session("take a workflow's checkpoint").await?;
        session.batch(SNAPSHOT).await?;
        let checkpoint = match instance(&mut session, id, Lock::None).await? {
            Some(instance) => Some(take(&mut session, instance).await?),
            None => None,
        };
        session.batch("COMMIT").await?;
        session.finish();
        Ok(checkpoint)
    }

    pub(super) async fn restore_checkpoint(&self, saved: Checkpoint) -> Result<Restored> {
        saved.check().map_err(Error::Corrupt)?;
        let mut session = self.session("restore a workflow").await?;
        session.batch("BEGIN").await?;
        let id = saved.id;
        let sql = "SELECT revision FROM workflows WHERE id = $1";
        if let Some(row) = session.query(sql, &[&id.0]).await?.first() {
            let revision = get(row, "revision")?;
            session.batch("COMMIT").await?;
            session.finish();
            return Ok(Restored::Kept { revision });
        }
        let tasks = restore(&mut session, saved).await?;
        session.batch("COMMIT").await?;
        session.finish();
        self.ring_for(tasks.iter().collect());
        self.moved.add([id]);
        Ok(Restored::Restored)
    }

    /// Tells a restored workflow of the ends of its sub-workflows.
    pub(super) async fn reconnect_children(&self, id: WorkflowId) -> Result<()> {
        let mut session = self.session("reconnect a restored workflow").await?;
        session.batch("BEGIN").await?;
        instance(&mut session, id, Lock::Wait).await?;
        let mut words = Vec::new();
        for row in &session.query(RUNNING_CHILDREN, &[&id.0]).await? {
            let found = columns(row)?;
            let (step, item) = (found.step.clone(), found.item);
            let (place, row) = found.row()?;
            let Some(child) = row.child else { continue };
            let end = match instance(&mut session, child, Lock::None).await? {
                Some(child) => child.said(),
                None => {
                    let sql = "UPDATE workflow_steps SET child = NULL
                         WHERE workflow = $1 AND step = $2 AND item = $3";
                    session.query(sql, &[&id.0, &step, &item]).await?;
                    Some(Said::lost())
                }
            };
            if let Some(end) = end {
                let key = WorkKey { place, undo: false, run: row.run };
                words.push((id, Word::Ended { key, end }));
            }
        }
        tell(&mut session, &words).await?;
        session.batch("COMMIT").await?;
        session.finish();
        self.moved.add([id]);
        Ok(())
    }
}

async fn take(session: &mut Session<'_>, instance: Instance) -> Result<Checkpoint> {
    let id = instance.id;
    let rows = session.query(WHOLE, &[&id.0]).await?;
    let row = rows.first().ok_or_else(|| Error::Corrupt("a definition is gone".to_owned()))?;
    Ok(Checkpoint {
        format: FORMAT,
        id,
        revision: instance.revision,
        state: instance.state,
        root: instance.root,
        registered: get(row, "registered")?,
        definition: payload(get(row, "json")?)?,
        input: payload(get(row, "input")?)?,
        output: whole(&instance.output).cloned(),
        steps: steps(session, id).await?,
        signals: signals(session, id).await?,
        words: words(session, id).await?,
        tasks: tasks(session, id).await?,
        name: instance.name,
        version: instance.version,
        idempotency_key: instance.key,
        head: instance.head,
        created_at: instance.created_at,
        changed_at: instance.changed_at,
        finished_at: instance.finished_at,
        expires_at: instance.expires_at,
    })
}

async fn steps(session: &mut Session<'_>, id: WorkflowId) -> Result<Vec<SavedStep>> {
    let rows = session.query(STEPS, &[&id.0]).await?;
    let step = |row| {
        let row = columns(row)?;
        Ok(SavedStep {
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
        })
    };
    rows.iter().map(step).collect()
}

async fn signals(session: &mut Session<'_>, id: WorkflowId) -> Result<Vec<SavedSignal>> {
    let sql = "SELECT id, name, payload, created_at, taken_by FROM workflow_signals
         WHERE workflow = $1 ORDER BY seq";
    let rows = session.query(sql, &[&id.0]).await?;
    let signal = |row| {
        Ok(SavedSignal {
            id: get(row, "id")?,
            name: get(row, "name")?,
            payload: payload(get(row, "payload")?)?,
            created_at: get(row, "created_at")?,
            taken_by: get(row, "taken_by")?,
        })
    };
    rows.iter().map(signal).collect()
}

/// What it was told, also by tasks.
async fn words(session: &mut Session<'_>, id: WorkflowId) -> Result<Vec<Word>> {
    let sql = "SELECT word FROM workflow_words WHERE workflow = $1 ORDER BY seq";
    let mut words = Vec::new();
    for row in &session.query(sql, &[&id.0]).await? {
        words.push(from_json(get(row, "word")?)?);
    }
    let sql = "SELECT e.step, e.state, t.result, t.error
         FROM workflow_events AS e LEFT JOIN tasks_done AS t ON t.id = e.task
         WHERE e.workflow = $1 ORDER BY e.sequence";
    for row in &session.query(sql, &[&id.0]).await? {
        let end = match parsed(get(row, "state")?)? {
            TaskState::Completed => Said::Completed(
                get::<Option<String>>(row, "result")?.map_or(Ok(Payload::default()), payload)?,
            ),
            TaskState::Cancelled => Said::Cancelled,
            _ => Said::Failed(get::<Option<String>>(row, "error")?.unwrap_or_default()),
        };
        words.push(Word::Ended { key: parsed(get(row, "step")?)?, end });
    }
    Ok(words)
}

async fn tasks(session: &mut Session<'_>, id: WorkflowId) -> Result<Vec<SavedTask>> {
    let rows = session.query(task_rows::OF_WORKFLOW, &[&id.0]).await?;
    let mut tasks = Vec::new();
    for row in &rows {
        tasks.extend(saved_task(read_task(row)?));
    }
    Ok(tasks)
}

/// Writes all of it. Answers the tasks that were handed in.
async fn restore(session: &mut Session<'_>, saved: Checkpoint) -> Result<Vec<NewTask>> {
    let id = saved.id;
    let digest = keep_body(session, saved.definition.json()).await?;
    let now = Timestamp::now().as_microsecond();
    if saved.registered {
        let sql = "INSERT INTO workflow_names (name, version, digest, created_at)
             VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        session.query(sql, &[&saved.name, &saved.version, &digest, &now]).await?;
    }
    if insert_instances(session, &[Instance::restored(&saved, digest)], now).await? == 0 {
        let key = saved.idempotency_key.unwrap_or_default();
        return Err(Error::Corrupt(format!("another workflow has the key {key:?} of {id}")));
    }
    let text = |payload: Option<Payload>| payload.map(|payload| payload.json().to_owned());
    let record = |step: SavedStep| {
        Ok(Record {
            state: parsed::<StepState>(&step.state)?.as_str(),
            step: step.step,
            item: step.item,
            run: step.run,
            ord: step.ord,
            child: step.child.map(|id| id.0),
            meta: step.meta,
            value: text(step.value),
            input: text(step.input),
            no_output: step.output.is_none(),
            output: text(step.output),
        })
    };
    let records = saved.steps.into_iter().map(record).collect::<Result<Vec<_>>>()?;
    write_records(session, id, &records).await?;
    for signal in saved.signals {
        let sql = "INSERT INTO workflow_signals (workflow, id, name, payload, created_at, taken_by)
             VALUES ($1, $2, $3, $4, $5, $6)";
        let payload = signal.payload.json();
        session
            .query(
                sql,
                &[&id.0, &signal.id, &signal.name, &payload, &signal.created_at, &signal.taken_by],
            )
            .await?;
    }
    let words: Vec<_> = saved.words.into_iter().map(|word| (id, word)).collect();
    tell(session, &words).await?;
    let new = |task: SavedTask| NewTask {
        workflow: Some(WorkflowStep { workflow: id, step: task.step }),
        ..task.task
    };
    let tasks: Vec<NewTask> = saved.tasks.into_iter().map(new).collect();
    let ids: Vec<TaskId> = tasks.iter().map(|_| TaskId::new()).collect();
    PostgresStore::submit_within(session, &ids, &tasks).await?;
    Ok(tasks)
}
