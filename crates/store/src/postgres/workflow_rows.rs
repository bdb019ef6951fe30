//! Rows of workflows, read and written.

use std::sync::Arc;

use resurgam_model::WorkflowId;
use resurgam_workflow::Definition;
use tokio_postgres::Row;
use uuid::Uuid;

use super::get;
use super::session::Session;
use crate::column::{from_json, parsed, to_json};
use crate::workflows::instance::{Instance, Word};
use crate::workflows::rows::{Columns, Record, slot, whole};
use crate::workflows::{Definitions, SMALL};
use crate::{Error, Result};

/// The columns of a step or item, with what is to be read of its data.
macro_rules! step_columns {
    ($value:literal, $input:literal, $output:literal) => {
        concat!(
            "s.step, s.item, s.state, s.run, s.ord, s.child, s.meta, ",
            $value,
            " AS value, s.value IS NOT NULL AS has_value, ",
            $input,
            " AS input, s.input IS NOT NULL AS has_input, ",
            $output,
            " AS output, s.output IS NOT NULL AS has_output"
        )
    };
}
pub(super) use step_columns;

pub(super) fn columns(row: &Row) -> Result<Columns> {
    let data = |column: &str, there: &str| slot(get(row, column)?, get(row, there)?);
    Ok(Columns {
        step: get(row, "step")?,
        item: get(row, "item")?,
        state: get(row, "state")?,
        run: get(row, "run")?,
        ord: get(row, "ord")?,
        child: get::<Option<Uuid>>(row, "child")?,
        meta: get(row, "meta")?,
        value: data("value", "has_value")?,
        input: data("input", "has_input")?,
        output: data("output", "has_output")?,
    })
}

/// The columns of a workflow; `$2` is how many bytes of input are read.
macro_rules! instance_columns {
    () => {
        "w.seq, w.id, w.root, w.digest, w.name, w.version, w.state, w.key, w.head, w.output,
         w.revision, w.created_at, w.changed_at, w.finished_at, w.expires_at,
         CASE WHEN octet_length(w.input) <= $2 THEN w.input END AS input"
    };
}
pub(super) use instance_columns;

pub(super) fn read_instance(row: &Row) -> Result<Instance> {
    let output: Option<String> = get(row, "output")?;
    let has_output = output.is_some();
    Ok(Instance {
        id: WorkflowId(get(row, "id")?),
        root: WorkflowId(get(row, "root")?),
        digest: get(row, "digest")?,
        name: get(row, "name")?,
        version: get(row, "version")?,
        state: parsed(get(row, "state")?)?,
        key: get(row, "key")?,
        head: from_json(get(row, "head")?)?,
        input: slot(get(row, "input")?, true)?,
        output: slot(output, has_output)?,
        revision: get(row, "revision")?,
        created_at: get(row, "created_at")?,
        changed_at: get(row, "changed_at")?,
        finished_at: get(row, "finished_at")?,
        expires_at: get(row, "expires_at")?,
    })
}

const ONE: &str = concat!("SELECT ", instance_columns!(), " FROM workflows AS w WHERE w.id = $1");
const LOCKED: &str =
    concat!("SELECT ", instance_columns!(), " FROM workflows AS w WHERE w.id = $1 FOR UPDATE");
const LOCKED_IF_FREE: &str = concat!(
    "SELECT ",
    instance_columns!(),
    " FROM workflows AS w WHERE w.id = $1 FOR UPDATE SKIP LOCKED"
);

/// How a workflow's row is read.
#[derive(Clone, Copy)]
pub(super) enum Lock {
    /// Without a lock.
    None,
    /// Waiting for its lock.
    Wait,
    /// With its lock if that is free.
    IfFree,
}

/// A workflow, with its input unless that is large.
pub(super) async fn instance(
    session: &mut Session<'_>,
    workflow: WorkflowId,
    lock: Lock,
) -> Result<Option<Instance>> {
    let sql = match lock {
        Lock::None => ONE,
        Lock::Wait => LOCKED,
        Lock::IfFree => LOCKED_IF_FREE,
    };
    let rows = session.query(sql, &[&workflow.0, &SMALL]).await?;
    rows.first().map(read_instance).transpose()
}

/// Writes new workflows, whose definitions are there. Answers how many were written: a key that
/// is taken is passed over.
pub(super) async fn insert_instances(
    session: &mut Session<'_>,
    new: &[Instance],
    wake_at: i64,
) -> Result<usize> {
    let sql = "INSERT INTO workflows (id, root, parent, digest, name, version, state, key, head,
             input, output, revision, wake_at, created_at, changed_at, finished_at, expires_at)
         SELECT id, root, parent, digest, name, version, state, key, head, input, output, revision,
             $13, created_at, changed_at, finished_at, expires_at
         FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::bigint[],
             $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::bigint[],
             $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[])
             WITH ORDINALITY
             AS t (id, root, parent, digest, name, version, state, key, head, input, output,
                   revision, created_at, changed_at, finished_at, expires_at, n)
         ORDER BY n
         ON CONFLICT (key) DO NOTHING
         RETURNING id";
    let text = |slot| whole(slot).map(|payload| payload.json());
    let ids: Vec<Uuid> = new.iter().map(|w| w.id.0).collect();
    let roots: Vec<Uuid> = new.iter().map(|w| w.root.0).collect();
    let parents: Vec<Option<Uuid>> =
        new.iter().map(|w| w.head.parent.as_ref().map(|parent| parent.workflow.0)).collect();
    let digests: Vec<&str> = new.iter().map(|w| w.digest.as_str()).collect();
    let names: Vec<&str> = new.iter().map(|w| w.name.as_str()).collect();
    let versions: Vec<i64> = new.iter().map(|w| w.version).collect();
    let states: Vec<&str> = new.iter().map(|w| w.state.as_str()).collect();
    let keys: Vec<Option<&str>> = new.iter().map(|w| w.key.as_deref()).collect();
    let heads: Vec<String> = new.iter().map(|w| to_json(&w.head)).collect::<Result<_>>()?;
    let inputs: Vec<&str> = new.iter().map(|w| text(&w.input).unwrap_or("null")).collect();
    let outputs: Vec<Option<&str>> = new.iter().map(|w| text(&w.output)).collect();
    let revisions: Vec<i64> = new.iter().map(|w| w.revision).collect();
    let created: Vec<i64> = new.iter().map(|w| w.created_at).collect();
    let changed: Vec<i64> = new.iter().map(|w| w.changed_at).collect();
    let finished: Vec<Option<i64>> = new.iter().map(|w| w.finished_at).collect();
    let expires: Vec<Option<i64>> = new.iter().map(|w| w.expires_at).collect();
    let rows = session
        .query(
            sql,
            &[
                &ids, &roots, &parents, &digests, &names, &versions, &states, &keys, &heads,
                &inputs, &outputs, &revisions, &wake_at, &created, &changed, &finished, &expires,
            ],
        )
        .await?;
    Ok(rows.len())
}

/// Writes steps and items. Data that were not loaded stay as they are.
pub(super) async fn write_records(
    session: &mut Session<'_>,
    workflow: WorkflowId,
    records: &[Record],
) -> Result<()> {
    let sql = "INSERT INTO workflow_steps AS s (workflow, step, item, state, run, ord, child, meta,
             value, input, output)
         SELECT $1, step, item, state, run, ord, child, meta, value, input, output
         FROM unnest($2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[], $7::uuid[],
             $8::text[], $9::text[], $10::text[], $11::text[])
             AS t (step, item, state, run, ord, child, meta, value, input, output)
         ON CONFLICT (workflow, step, item) DO UPDATE SET
             state = excluded.state, run = excluded.run, ord = excluded.ord,
             child = excluded.child, meta = excluded.meta,
             value = coalesce(excluded.value, s.value), input = coalesce(excluded.input, s.input),
             output = coalesce(excluded.output, s.output)";
    // What is written with an output and then without one is rare: a statement of its own.
    let emptied = "UPDATE workflow_steps AS s SET output = NULL
         FROM unnest($2::text[], $3::int[]) AS t (step, item)
         WHERE s.workflow = $1 AND s.step = t.step AND s.item = t.item AND s.output IS NOT NULL";
    if records.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Record) -> Option<&str>| records.iter().map(of).collect::<Vec<_>>();
    let steps: Vec<&str> = records.iter().map(|r| r.step.as_str()).collect();
    let items: Vec<i32> = records.iter().map(|r| r.item).collect();
    let states: Vec<&str> = records.iter().map(|r| r.state).collect();
    let runs: Vec<i32> = records.iter().map(|r| r.run).collect();
    let ords: Vec<Option<i64>> = records.iter().map(|r| r.ord).collect();
    let children: Vec<Option<Uuid>> = records.iter().map(|r| r.child).collect();
    let metas: Vec<&str> = records.iter().map(|r| r.meta.as_str()).collect();
    let values = column(|r| r.value.as_deref());
    let inputs = column(|r| r.input.as_deref());
    let outputs = column(|r| r.output.as_deref());
    session
        .query(
            sql,
            &[
                &workflow.0,
                &steps,
                &items,
                &states,
                &runs,
                &ords,
                &children,
                &metas,
                &values,
                &inputs,
                &outputs,
            ],
        )
        .await?;
    let (steps, items): (Vec<&str>, Vec<i32>) = records
        .iter()
        .filter(|r| r.no_output && (r.run > 1 || r.state == "pending"))
        .map(|r| (r.step.as_str(), r.item))
        .unzip();
    if !steps.is_empty() {
        session.query(emptied, &[&workflow.0, &steps, &items]).await?;
    }
    Ok(())
}

/// Tells workflows something.
pub(super) async fn tell(session: &mut Session<'_>, words: &[(WorkflowId, Word)]) -> Result<()> {
    if words.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = words.iter().map(|(id, _)| id.0).collect();
    let texts: Vec<String> = words.iter().map(|(_, word)| word.to_json()).collect::<Result<_>>()?;
    let sql = "INSERT INTO workflow_words (workflow, word)
         SELECT workflow, word FROM unnest($1::uuid[], $2::text[]) AS t (workflow, word)";
    session.query(sql, &[&ids, &texts]).await?;
    Ok(())
}

/// Throws away what a workflow that is not there was told.
pub(super) async fn drop_words(session: &mut Session<'_>, workflows: &[Uuid]) -> Result<()> {
    session.query("DELETE FROM workflow_words WHERE workflow = ANY ($1)", &[&workflows]).await?;
    session.query("DELETE FROM workflow_events WHERE workflow = ANY ($1)", &[&workflows]).await?;
    Ok(())
}

/// A definition by its digest.
pub(super) async fn body(
    session: &mut Session<'_>,
    digest: &str,
    definitions: &Definitions,
) -> Result<Arc<Definition>> {
    if let Some(known) = definitions.get(digest) {
        return Ok(known);
    }
    let sql = "SELECT json FROM workflow_definitions WHERE digest = $1";
    let rows = session.query(sql, &[&digest]).await?;
    let row =
        rows.first().ok_or_else(|| Error::Corrupt("a workflow's definition is gone".to_owned()))?;
    definitions.read(digest, get(row, "json")?)
}

/// Writes a definition's text, if it is not there, and holds it against being forgotten until
/// the commit. Answers its digest.
pub(super) async fn keep_body(session: &mut Session<'_>, json: &str) -> Result<String> {
    let digest = crate::workflows::instance::digest(json);
    let sql = "INSERT INTO workflow_definitions AS d (digest, json) VALUES ($1, $2)
         ON CONFLICT (digest) DO NOTHING";
    session.query(sql, &[&digest, &json]).await?;
    let sql = "SELECT FROM workflow_definitions WHERE digest = $1 FOR KEY SHARE";
    if session.query(sql, &[&digest]).await?.is_empty() {
        // Forgotten in between: it is free again.
        let sql = "INSERT INTO workflow_definitions (digest, json) VALUES ($1, $2)";
        session.query(sql, &[&digest, &json]).await?;
    }
    Ok(digest)
}
