//! Workflows and their definitions.

use std::collections::BTreeSet;

use async_trait::async_trait;
use resurgam_model::workflow::{
    DefinitionInfo, ItemQuery, NewSignal, StartedWorkflow, Workflow, WorkflowDetail, WorkflowQuery,
    WorkflowState, WorkflowStepView, page_limit,
};
use resurgam_model::{Timestamp, WorkflowId};
use resurgam_workflow::Definition;
use tokio_postgres::Row;
use uuid::Uuid;

use super::session::Session;
use super::workflow_rows::{
    Lock, columns, drop_words, insert_instances, instance, instance_columns, keep_body,
    read_instance, step_columns, tell,
};
use super::{PostgresStore, get};
use crate::column::{parsed, payload, time, unsigned};
use crate::workflows::instance::{Instance, Word};
use crate::workflows::rows::whole;
use crate::workflows::{
    Advanced, ChangedWorkflow, Checkpoint, Defined, NewWorkflow, Restored, SHOWN, Told,
};
use crate::{Error, Result, Workflows};

const DETAIL: &str = "SELECT w.input, d.json
     FROM workflows AS w JOIN workflow_definitions AS d ON d.digest = w.digest WHERE w.id = $1";

const DETAIL_STEPS: &str = concat!(
    "SELECT ",
    step_columns!(
        "NULL::text",
        "NULL::text",
        "CASE WHEN octet_length(s.output) <= $2 THEN s.output END"
    ),
    ", octet_length(s.output)::bigint AS output_bytes
     FROM workflow_steps AS s WHERE s.workflow = $1 AND s.item = -1 ORDER BY s.step"
);

const ONE_STEP: &str = concat!(
    "SELECT ",
    step_columns!("NULL::text", "NULL::text", "s.output"),
    ", octet_length(s.output)::bigint AS output_bytes FROM workflow_steps AS s
     WHERE s.workflow = $1 AND s.step = $2 AND (s.item = -1 AND $3 < 0 OR s.item > $3)
     ORDER BY s.item LIMIT $4"
);

/// A page of workflows. One statement for each way of asking, so that each has its index.
macro_rules! page {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            instance_columns!(),
            " FROM workflows AS w
              WHERE ($1::uuid IS NULL OR w.seq > (SELECT seq FROM workflows WHERE id = $1))
                  AND ($3::text IS NULL OR w.state = $3) AND ($4::text IS NULL OR w.name = $4)
                  AND ",
            $condition,
            " ORDER BY w.seq LIMIT $5"
        )
    };
}

const DUE: &str = "SELECT id FROM (
         SELECT id FROM workflows WHERE wake_at <= $1
         UNION SELECT workflow FROM workflow_words
         UNION SELECT workflow FROM workflow_events
     ) AS due LIMIT $2";

const CHANGED: &str = "SELECT id, revision, changed_at FROM workflows
     WHERE changed_at >= $1 AND (changed_at, id) > ($2, $3)
     ORDER BY changed_at, id LIMIT $4";

#[async_trait]
impl Workflows for PostgresStore {
    async fn define(&self, definition: &Definition) -> Result<Defined> {
        let json = definition.source().to_string();
        let mut session = self.session("register a workflow's definition").await?;
        session.batch("BEGIN").await?;
        let digest = keep_body(&mut session, &json).await?;
        let version = i64::from(definition.version);
        let sql = "INSERT INTO workflow_names (name, version, digest, created_at)
             VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING name";
        let now = Timestamp::now().as_microsecond();
        let created =
            !session.query(sql, &[&definition.name, &version, &digest, &now]).await?.is_empty();
        let sql = "SELECT digest FROM workflow_names WHERE name = $1 AND version = $2";
        let rows = session.query(sql, &[&definition.name, &version]).await?;
        let known: Option<&str> = rows.first().map(|row| get(row, "digest")).transpose()?;
        let same = known == Some(digest.as_str());
        session.batch("COMMIT").await?;
        session.finish();
        Ok(match (created, same) {
            (true, _) => Defined::Created,
            (false, true) => Defined::Same,
            (false, false) => Defined::Taken,
        })
    }

    async fn definition(&self, name: &str, version: Option<u32>) -> Result<Option<DefinitionInfo>> {
        let sql = "SELECT n.name, n.version, n.created_at, d.json
             FROM workflow_names AS n JOIN workflow_definitions AS d ON d.digest = n.digest
             WHERE n.name = $1 AND ($2::bigint IS NULL OR n.version = $2)
             ORDER BY n.version DESC LIMIT 1";
        let version = version.map(i64::from);
        let rows = self.query("read a workflow's definition", sql, &[&name, &version]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let definition = Some(payload(get(row, "json")?)?);
        Ok(Some(DefinitionInfo { definition, ..definition_info(row)? }))
    }

    async fn definitions(
        &self,
        after: Option<(&str, u32)>,
        limit: u32,
    ) -> Result<Vec<DefinitionInfo>> {
        let sql = "SELECT name, version, created_at FROM workflow_names
             WHERE (name, version) > ($1, $2) ORDER BY name, version LIMIT $3";
        let (name, version) = after.unwrap_or(("", 0));
        let (version, limit) = (i64::from(version), i64::from(page_limit(limit)));
        let params = [&name as _, &version as _, &limit as _];
        let rows = self.query("list workflows' definitions", sql, &params).await?;
        rows.iter().map(definition_info).collect()
    }

    async fn start_workflow(&self, start: &NewWorkflow) -> Result<StartedWorkflow> {
        let mut session = self.session("start a workflow").await?;
        session.batch("BEGIN").await?;
        let digest = keep_body(&mut session, &start.definition.source().to_string()).await?;
        let now = Timestamp::now();
        let new = Instance::new(start, digest, now);
        let id = new.id;
        let created = insert_instances(&mut session, &[new], now.as_microsecond()).await? > 0;
        let known = if created {
            None
        } else {
            let sql = "SELECT id FROM workflows WHERE key = $1";
            session.query(sql, &[&start.idempotency_key]).await?.into_iter().next()
        };
        session.batch("COMMIT").await?;
        session.finish();
        if created {
            self.moved.add([id]);
            return Ok(StartedWorkflow { id, created });
        }
        let known = known
            .ok_or_else(|| Error::Corrupt("a key is taken, but its workflow is missing".into()))?;
        Ok(StartedWorkflow { id: WorkflowId(get(&known, "id")?), created })
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowDetail>> {
        let mut session = self.session("read a workflow").await?;
        session.batch(SNAPSHOT).await?;
        let Some(instance) = instance(&mut session, id, Lock::None).await? else {
            session.batch("COMMIT").await?;
            session.finish();
            return Ok(None);
        };
        let rows = session.query(DETAIL, &[&id.0]).await?;
        let shown = i32::try_from(SHOWN).unwrap_or(i32::MAX);
        let steps = session.query(DETAIL_STEPS, &[&id.0, &shown]).await?;
        session.batch("COMMIT").await?;
        session.finish();
        let row = rows.first().ok_or_else(|| Error::Corrupt("a definition is gone".into()))?;
        Ok(Some(WorkflowDetail {
            input: payload(get(row, "input")?)?,
            output: whole(&instance.output).cloned(),
            definition: payload(get(row, "json")?)?,
            steps: steps.iter().map(step_view).collect::<Result<_>>()?,
            workflow: instance.view()?,
        }))
    }

    async fn workflow_step(
        &self,
        id: WorkflowId,
        step: &str,
        items: &ItemQuery,
    ) -> Result<Vec<WorkflowStepView>> {
        let after = items.after.map_or(-1, |after| i32::try_from(after).unwrap_or(i32::MAX));
        let limit = i64::from(page_limit(items.limit)) + i64::from(items.after.is_none());
        let params = [&id.0 as _, &step as _, &after as _, &limit as _];
        let rows = self.query("read a workflow's step", ONE_STEP, &params).await?;
        rows.iter().map(step_view).collect()
    }

    async fn workflows(&self, query: &WorkflowQuery) -> Result<Vec<Workflow>> {
        let sql = match (query.state, &query.name) {
            (None, None) => page!("true"),
            (Some(_), None) => page!("w.state = $3"),
            (None, Some(_)) => page!("w.name = $4"),
            (Some(_), Some(_)) => page!("w.state = $3 AND w.name = $4"),
        };
        let after = query.after.map(|after| after.0);
        let state = query.state.map(WorkflowState::as_str);
        let limit = i64::from(page_limit(query.limit));
        let params = [&after as _, &0_i32 as _, &state as _, &query.name as _, &limit as _];
        let rows = self.query("list workflows", sql, &params).await?;
        rows.iter().map(|row| read_instance(row)?.view()).collect()
    }

    async fn signal_workflow(&self, id: WorkflowId, signal: &NewSignal) -> Result<Told> {
        let mut session = self.session("signal a workflow").await?;
        session.batch("BEGIN").await?;
        // The lock keeps it from being forgotten or coming to its end in between.
        let told = match locked_state(&mut session, id).await? {
            None => Told::Unknown,
            Some(state) if state.is_final() => Told::Refused,
            Some(_) => {
                let now = Timestamp::now().as_microsecond();
                let sql = "INSERT INTO workflow_signals (workflow, id, name, payload, created_at)
                     VALUES ($1, $2, $3, $4, $5) ON CONFLICT (workflow, id) DO NOTHING";
                let payload = signal.payload.json();
                session.query(sql, &[&id.0, &signal.id, &signal.name, &payload, &now]).await?;
                let sql = "UPDATE workflows SET wake_at = $2 WHERE id = $1";
                session.query(sql, &[&id.0, &now]).await?;
                Told::Accepted
            }
        };
        session.batch("COMMIT").await?;
        session.finish();
        self.moved.add((told == Told::Accepted).then_some(id));
        Ok(told)
    }

    async fn cancel_workflow(&self, id: WorkflowId, reason: &str) -> Result<Told> {
        let word = Word::Cancel { reason: reason.to_owned() };
        self.tell_workflow("cancel a workflow", id, word, |state| !state.is_final()).await
    }

    async fn retry_workflow(&self, id: WorkflowId) -> Result<Told> {
        let may = |state| matches!(state, WorkflowState::Failed | WorkflowState::Cancelled);
        self.tell_workflow("retry a workflow", id, Word::Retry { key: None }, may).await
    }

    async fn advance_workflow(&self, id: WorkflowId, wait: bool) -> Result<Advanced> {
        self.advance_one(id, wait).await
    }

    async fn due_workflows(&self, limit: u32) -> Result<Vec<WorkflowId>> {
        let now = Timestamp::now().as_microsecond();
        let params = [&now as _, &i64::from(limit) as _];
        let rows = self.query("look for workflows that are due", DUE, &params).await?;
        rows.iter().map(|row| Ok(WorkflowId(get(row, "id")?))).collect()
    }

    async fn expire_workflows(&self, limit: u32) -> Result<u64> {
        self.expire(limit).await
    }

    async fn changed_workflows(
        &self,
        since: Timestamp,
        after: Option<(Timestamp, WorkflowId)>,
        limit: u32,
    ) -> Result<Vec<ChangedWorkflow>> {
        let (at, after) =
            after.map_or((i64::MIN, Uuid::nil()), |(at, id)| (at.as_microsecond(), id.0));
        let since = since.as_microsecond();
        let params = [&since as _, &at as _, &after as _, &i64::from(limit) as _];
        let rows = self.query("look for changed workflows", CHANGED, &params).await?;
        let changed = |row: &Row| {
            Ok(ChangedWorkflow {
                id: WorkflowId(get(row, "id")?),
                revision: get(row, "revision")?,
                changed_at: time(get(row, "changed_at")?)?,
            })
        };
        rows.iter().map(changed).collect()
    }

    async fn known_workflows(&self, ids: &[WorkflowId]) -> Result<BTreeSet<WorkflowId>> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let sql = "SELECT id FROM workflows WHERE id = ANY ($1)";
        let rows = self.query("look whether workflows are there", sql, &[&ids]).await?;
        rows.iter().map(|row| Ok(WorkflowId(get(row, "id")?))).collect()
    }

    async fn checkpoint(&self, id: WorkflowId) -> Result<Option<Checkpoint>> {
        self.take_checkpoint(id).await
    }

    async fn restore(&self, checkpoint: &Checkpoint) -> Result<Restored> {
        self.restore_checkpoint(checkpoint.clone()).await
    }

    async fn reconnect(&self, id: WorkflowId) -> Result<()> {
        self.reconnect_children(id).await
    }
}

/// Begins a transaction that sees one moment.
pub(super) const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl PostgresStore {
    async fn tell_workflow(
        &self,
        action: &'static str,
        id: WorkflowId,
        word: Word,
        may: fn(WorkflowState) -> bool,
    ) -> Result<Told> {
        let mut session = self.session(action).await?;
        session.batch("BEGIN").await?;
        let told = match locked_state(&mut session, id).await? {
            None => Told::Unknown,
            Some(state) if !may(state) => Told::Refused,
            Some(_) => {
                tell(&mut session, &[(id, word)]).await?;
                Told::Accepted
            }
        };
        session.batch("COMMIT").await?;
        session.finish();
        self.moved.add((told == Told::Accepted).then_some(id));
        Ok(told)
    }

    async fn expire(&self, limit: u32) -> Result<u64> {
        let now = Timestamp::now().as_microsecond();
        let mut session = self.session("forget old workflows").await?;
        session.batch("BEGIN").await?;
        let sql = "SELECT id FROM workflows WHERE expires_at <= $1
             ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED";
        let rows = session.query(sql, &[&now, &i64::from(limit)]).await?;
        let roots: Vec<Uuid> = rows.iter().map(|row| get(row, "id")).collect::<Result<_>>()?;
        if !roots.is_empty() {
            let sql = "DELETE FROM workflows WHERE root = ANY ($1) RETURNING id, digest";
            let rows = session.query(sql, &[&roots]).await?;
            let gone: Vec<Uuid> = rows.iter().map(|row| get(row, "id")).collect::<Result<_>>()?;
            let digests: Vec<&str> =
                rows.iter().map(|row| get(row, "digest")).collect::<Result<_>>()?;
            session.query("DELETE FROM workflow_steps WHERE workflow = ANY ($1)", &[&gone]).await?;
            session
                .query("DELETE FROM workflow_signals WHERE workflow = ANY ($1)", &[&gone])
                .await?;
            drop_words(&mut session, &gone).await?;
            // One that somebody holds for a start is left alone.
            let sql = "DELETE FROM workflow_definitions WHERE digest IN (
                     SELECT digest FROM workflow_definitions AS d WHERE digest = ANY ($1)
                         AND NOT EXISTS (SELECT FROM workflow_names WHERE digest = d.digest)
                         AND NOT EXISTS (SELECT FROM workflows WHERE digest = d.digest)
                     FOR UPDATE SKIP LOCKED)";
            session.query(sql, &[&digests]).await?;
        }
        session.batch("COMMIT").await?;
        session.finish();
        Ok(u64::try_from(roots.len()).unwrap_or(u64::MAX))
    }
}

async fn locked_state(session: &mut Session<'_>, id: WorkflowId) -> Result<Option<WorkflowState>> {
    let sql = "SELECT state FROM workflows WHERE id = $1 FOR UPDATE";
    let rows = session.query(sql, &[&id.0]).await?;
    rows.first().map(|row| parsed(get(row, "state")?)).transpose()
}

fn definition_info(row: &Row) -> Result<DefinitionInfo> {
    Ok(DefinitionInfo {
        name: get(row, "name")?,
        version: unsigned(get(row, "version")?)?,
        created_at: time(get(row, "created_at")?)?,
        definition: None,
    })
}

fn step_view(row: &Row) -> Result<WorkflowStepView> {
    columns(row)?.view(get(row, "output_bytes")?)
}
