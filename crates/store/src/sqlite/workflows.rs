//! Workflows and their definitions.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use resurgam_model::workflow::{
    DefinitionInfo, ItemQuery, NewSignal, StartedWorkflow, Workflow, WorkflowDetail, WorkflowQuery,
    WorkflowState, WorkflowStepView, page_limit,
};
use resurgam_model::{Timestamp, WorkflowId};
use resurgam_workflow::Definition;
use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::advance::advance_one;
use super::fault::Fault;
use super::workflow_rows::{
    columns, drop_words, insert_instance, instance, instance_columns, keep_body, read_instance,
    step_columns, tell,
};
use super::{SqliteStore, get, id, now};
use crate::column::{parsed, payload, time, unsigned};
use crate::workflows::instance::{Instance, Word};
use crate::workflows::rows::whole;
use crate::workflows::{
    Advanced, ChangedWorkflow, Checkpoint, Defined, NewWorkflow, Restored, SHOWN, Told,
};
use crate::{Result, Workflows};

#[async_trait]
impl Workflows for SqliteStore {
    async fn define(&self, definition: &Definition) -> Result<Defined> {
        let (name, version) = (definition.name.clone(), definition.version);
        let json = definition.source().to_string();
        let request = move |c: &Connection| define(c, &name, version, &json);
        self.writer.run("register a workflow's definition", request).await
    }

    async fn definition(&self, name: &str, version: Option<u32>) -> Result<Option<DefinitionInfo>> {
        let name = name.to_owned();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT name, version, created_at, json
                 FROM workflow_names JOIN workflow_definitions USING (digest)
                 WHERE name = ?1 AND (?2 IS NULL OR version = ?2)
                 ORDER BY version DESC LIMIT 1",
            )?;
            let mut rows = statement.query(params![name, version])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let definition = Some(payload(get(row, "json")?)?);
            Ok(Some(DefinitionInfo { definition, ..definition_info(row)? }))
        };
        self.readers.run("read a workflow's definition", request).await
    }

    async fn definitions(
        &self,
        after: Option<(&str, u32)>,
        limit: u32,
    ) -> Result<Vec<DefinitionInfo>> {
        let after = after.map_or((String::new(), 0), |(name, version)| (name.to_owned(), version));
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT name, version, created_at FROM workflow_names
                 WHERE (name, version) > (?1, ?2) ORDER BY name, version LIMIT ?3",
            )?;
            let mut rows = statement.query(params![after.0, after.1, page_limit(limit)])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(definition_info(row)?);
            }
            Ok(all)
        };
        self.readers.run("list workflows' definitions", request).await
    }

    async fn start_workflow(&self, start: &NewWorkflow) -> Result<StartedWorkflow> {
        let start = start.clone();
        let request = move |c: &Connection| begin(c, &start);
        let started = self.writer.run("start a workflow", request).await?;
        if started.created {
            self.moved.add([started.id]);
        }
        Ok(started)
    }

    async fn workflow(&self, id: WorkflowId) -> Result<Option<WorkflowDetail>> {
        self.readers.run("read a workflow", move |c| detail(c, id)).await
    }

    async fn workflow_step(
        &self,
        id: WorkflowId,
        step: &str,
        items: &ItemQuery,
    ) -> Result<Vec<WorkflowStepView>> {
        let (step, items) = (step.to_owned(), items.clone());
        let request = move |c: &Connection| {
            let mut all = Vec::new();
            let mut statement = c.prepare_cached(concat!(
                "SELECT ",
                step_columns!("NULL", "NULL", "output"),
                ", octet_length(output) AS output_bytes FROM workflow_steps
                 WHERE workflow = ?1 AND step = ?2 AND (item = -1 AND ?3 < 0 OR item > ?3)
                 ORDER BY item LIMIT ?4"
            ))?;
            let after = items.after.map_or(-1, i64::from);
            let limit = i64::from(page_limit(items.limit)) + i64::from(items.after.is_none());
            let mut rows = statement.query(params![id.0.as_bytes(), step, after, limit])?;
            while let Some(row) = rows.next()? {
                all.push(columns(row)?.view(get(row, "output_bytes")?)?);
            }
            Ok(all)
        };
        self.readers.run("read a workflow's step", request).await
    }

    async fn workflows(&self, query: &WorkflowQuery) -> Result<Vec<Workflow>> {
        let query = query.clone();
        self.readers.run("list workflows", move |c| list(c, &query)).await
    }

    async fn signal_workflow(&self, id: WorkflowId, signal: &NewSignal) -> Result<Told> {
        let signal = signal.clone();
        let request = move |c: &Connection| {
            let Some(state) = state(c, id)? else { return Ok(Told::Unknown) };
            if state.is_final() {
                return Ok(Told::Refused);
            }
            let now = now();
            c.prepare_cached(
                "INSERT OR IGNORE INTO workflow_signals (workflow, id, name, payload, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                id.0.as_bytes(),
                signal.id,
                signal.name,
                signal.payload.json(),
                now
            ])?;
            c.prepare_cached("UPDATE workflows SET wake_at = ?2 WHERE id = ?1")?
                .execute(params![id.0.as_bytes(), now])?;
            Ok(Told::Accepted)
        };
        let told = self.writer.run("signal a workflow", request).await?;
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

    async fn advance_workflow(&self, id: WorkflowId, _wait: bool) -> Result<Advanced> {
        let definitions = Arc::clone(&self.definitions);
        let request = move |c: &Connection| advance_one(c, id, &definitions);
        let moves = self.writer.run("advance a workflow", request).await?;
        self.ring(moves.ready);
        self.moved.add(moves.moved);
        Ok(moves.advanced)
    }

    async fn due_workflows(&self, limit: u32) -> Result<Vec<WorkflowId>> {
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT id FROM (
                     SELECT id FROM workflows WHERE wake_at <= ?1
                     UNION SELECT workflow FROM workflow_words
                     UNION SELECT workflow FROM workflow_events
                 ) LIMIT ?2",
            )?;
            let mut rows = statement.query(params![now(), limit])?;
            let mut due = Vec::new();
            while let Some(row) = rows.next()? {
                due.push(WorkflowId(id(row, "id")?));
            }
            Ok(due)
        };
        self.readers.run("look for workflows that are due", request).await
    }

    async fn expire_workflows(&self, limit: u32) -> Result<u64> {
        let look = |c: &Connection| {
            Ok(c.prepare_cached("SELECT 1 FROM workflows WHERE expires_at <= ?1")?
                .exists([now()])?)
        };
        if !self.readers.run("look for workflows to forget", look).await? {
            return Ok(0);
        }
        self.writer.run("forget old workflows", move |c| expire(c, limit)).await
    }

    async fn changed_workflows(
        &self,
        since: Timestamp,
        after: Option<(Timestamp, WorkflowId)>,
        limit: u32,
    ) -> Result<Vec<ChangedWorkflow>> {
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached(
                "SELECT id, revision, changed_at FROM workflows
                 WHERE changed_at >= ?1 AND (changed_at, id) > (?2, ?3)
                 ORDER BY changed_at, id LIMIT ?4",
            )?;
            let (at, after) = after
                .map_or((i64::MIN, [0; 16]), |(at, id)| (at.as_microsecond(), *id.0.as_bytes()));
            let mut rows = statement.query(params![since.as_microsecond(), at, after, limit])?;
            let mut changed = Vec::new();
            while let Some(row) = rows.next()? {
                changed.push(ChangedWorkflow {
                    id: WorkflowId(id(row, "id")?),
                    revision: get(row, "revision")?,
                    changed_at: time(get(row, "changed_at")?)?,
                });
            }
            Ok(changed)
        };
        self.readers.run("look for changed workflows", request).await
    }

    async fn known_workflows(&self, ids: &[WorkflowId]) -> Result<BTreeSet<WorkflowId>> {
        let ids = ids.to_vec();
        let request = move |c: &Connection| {
            let mut statement = c.prepare_cached("SELECT 1 FROM workflows WHERE id = ?1")?;
            let mut known = BTreeSet::new();
            for id in ids {
                if statement.exists([id.0.as_bytes()])? {
                    known.insert(id);
                }
            }
            Ok(known)
        };
        self.readers.run("look whether workflows are there", request).await
    }

    async fn checkpoint(&self, id: WorkflowId) -> Result<Option<Checkpoint>> {
        let request = move |c: &Connection| super::checkpoints::take(c, id);
        self.readers.run("take a workflow's checkpoint", request).await
    }

    async fn restore(&self, checkpoint: &Checkpoint) -> Result<Restored> {
        let checkpoint = checkpoint.clone();
        let id = checkpoint.id;
        let request = move |c: &Connection| super::checkpoints::restore(c, checkpoint);
        let (restored, ready) = self.writer.run("restore a workflow", request).await?;
        self.ring(ready);
        self.moved.add((restored == Restored::Restored).then_some(id));
        Ok(restored)
    }

    async fn reconnect(&self, id: WorkflowId) -> Result<()> {
        let request = move |c: &Connection| super::checkpoints::reconnect(c, id);
        self.writer.run("reconnect a restored workflow", request).await?;
        self.moved.add([id]);
        Ok(())
    }
}

impl SqliteStore {
    async fn tell_workflow(
        &self,
        action: &'static str,
        id: WorkflowId,
        word: Word,
        may: fn(WorkflowState) -> bool,
    ) -> Result<Told> {
        let request = move |c: &Connection| {
            let Some(state) = state(c, id)? else { return Ok(Told::Unknown) };
            if !may(state) {
                return Ok(Told::Refused);
            }
            tell(c, id, &word)?;
            Ok(Told::Accepted)
        };
        let told = self.writer.run(action, request).await?;
        self.moved.add((told == Told::Accepted).then_some(id));
        Ok(told)
    }
}

fn state(c: &Connection, id: WorkflowId) -> Result<Option<WorkflowState>, Fault> {
    let state: Option<String> = c
        .prepare_cached("SELECT state FROM workflows WHERE id = ?1")?
        .query_row([id.0.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(state.as_deref().map(parsed).transpose()?)
}

fn define(c: &Connection, name: &str, version: u32, json: &str) -> Result<Defined, Fault> {
    let digest = keep_body(c, json)?;
    let known: Option<String> = c
        .prepare_cached("SELECT digest FROM workflow_names WHERE name = ?1 AND version = ?2")?
        .query_row(params![name, version], |row| row.get(0))
        .optional()?;
    if let Some(known) = known {
        return Ok(if known == digest { Defined::Same } else { Defined::Taken });
    }
    c.prepare_cached(
        "INSERT INTO workflow_names (name, version, digest, created_at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![name, version, digest, now()])?;
    Ok(Defined::Created)
}

fn definition_info(row: &rusqlite::Row<'_>) -> Result<DefinitionInfo, Fault> {
    Ok(DefinitionInfo {
        name: get(row, "name")?,
        version: unsigned(get(row, "version")?)?,
        created_at: time(get(row, "created_at")?)?,
        definition: None,
    })
}

fn begin(c: &Connection, start: &NewWorkflow) -> Result<StartedWorkflow, Fault> {
    if let Some(key) = &start.idempotency_key {
        let known = c
            .prepare_cached("SELECT id FROM workflows WHERE key = ?1")?
            .query_row([key], |row| Ok(id(row, "id")))
            .optional()?;
        if let Some(known) = known {
            return Ok(StartedWorkflow { id: WorkflowId(known?), created: false });
        }
    }
    let digest = keep_body(c, &start.definition.source().to_string())?;
    let now = Timestamp::now();
    let new = Instance::new(start, digest, now);
    insert_instance(c, &new, Some(now.as_microsecond()))?;
    Ok(StartedWorkflow { id: new.id, created: true })
}

fn detail(c: &Connection, id: WorkflowId) -> Result<Option<WorkflowDetail>, Fault> {
    let Some(instance) = instance(c, id)? else { return Ok(None) };
    let (input, definition): (String, String) = c
        .prepare_cached(
            "SELECT input, json FROM workflows JOIN workflow_definitions USING (digest)
             WHERE id = ?1",
        )?
        .query_row([id.0.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut statement = c.prepare_cached(concat!(
        "SELECT ",
        step_columns!("NULL", "NULL", "iif(octet_length(output) <= ?2, output, NULL)"),
        ", octet_length(output) AS output_bytes
         FROM workflow_steps WHERE workflow = ?1 AND item = -1 ORDER BY step"
    ))?;
    let mut rows = statement.query(params![id.0.as_bytes(), SHOWN])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        steps.push(columns(row)?.view(get(row, "output_bytes")?)?);
    }
    Ok(Some(WorkflowDetail {
        input: payload(input)?,
        output: whole(&instance.output).cloned(),
        definition: payload(definition)?,
        steps,
        workflow: instance.view()?,
    }))
}

fn list(c: &Connection, query: &WorkflowQuery) -> Result<Vec<Workflow>, Fault> {
    let after = match query.after {
        Some(after) => c
            .prepare_cached("SELECT seq FROM workflows WHERE id = ?1")?
            .query_row([after.0.as_bytes()], |row| row.get::<_, i64>(0))
            .optional()?
            .unwrap_or(i64::MAX),
        None => 0,
    };
    // Without inputs: `?2` of the columns is 0.
    let mut sql =
        concat!("SELECT ", instance_columns!(), " FROM workflows WHERE seq > ?1").to_owned();
    sql.push_str(if query.state.is_some() { " AND state = ?3" } else { " AND ?3 IS NULL" });
    sql.push_str(if query.name.is_some() { " AND name = ?4" } else { " AND ?4 IS NULL" });
    sql.push_str(" ORDER BY seq LIMIT ?5");
    let mut statement = c.prepare_cached(&sql)?;
    let mut rows = statement.query(params![
        after,
        0,
        query.state.map(WorkflowState::as_str),
        query.name,
        page_limit(query.limit)
    ])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(read_instance(row)?.view()?);
    }
    Ok(all)
}

fn expire(c: &Connection, limit: u32) -> Result<u64, Fault> {
    let mut statement = c.prepare_cached(
        "SELECT id, root, digest FROM workflows WHERE root IN (
             SELECT id FROM workflows WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)",
    )?;
    let mut rows = statement.query(params![now(), limit])?;
    let (mut gone, mut digests, mut roots) = (Vec::new(), BTreeSet::new(), 0_u64);
    while let Some(row) = rows.next()? {
        let (this, root) = (id(row, "id")?, id(row, "root")?);
        roots += u64::from(this == root);
        gone.push(WorkflowId(this));
        digests.insert(get::<String>(row, "digest")?);
    }
    drop(rows);
    for workflow in gone {
        drop_words(c, workflow)?;
        for sql in [
            "DELETE FROM workflow_steps WHERE workflow = ?1",
            "DELETE FROM workflow_signals WHERE workflow = ?1",
            "DELETE FROM workflows WHERE id = ?1",
        ] {
            c.prepare_cached(sql)?.execute([workflow.0.as_bytes()])?;
        }
    }
    for digest in digests {
        c.prepare_cached(
            "DELETE FROM workflow_definitions WHERE digest = :digest
                 AND NOT EXISTS (SELECT 1 FROM workflow_names WHERE digest = :digest)
                 AND NOT EXISTS (SELECT 1 FROM workflows WHERE digest = :digest)",
        )?
        .execute(named_params! { ":digest": digest })?;
    }
    Ok(roots)
}
