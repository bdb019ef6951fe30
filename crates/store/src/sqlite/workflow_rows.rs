//! Rows of workflows, read and written.

use std::sync::Arc;

use resurgam_model::WorkflowId;
use resurgam_workflow::Definition;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::fault::Fault;
use super::{get, id};
use crate::Error;
use crate::column::{from_json, parsed, to_json};
use crate::workflows::instance::{Instance, Word, digest};
use crate::workflows::rows::{Columns, Record, slot};
use crate::workflows::{Definitions, SMALL};

/// The columns of a step or item, with what is to be read of its data.
macro_rules! step_columns {
    ($value:literal, $input:literal, $output:literal) => {
        concat!(
            "step, item, state, run, ord, child, meta, ",
            $value,
            " AS value, value IS NOT NULL AS has_value, ",
            $input,
            " AS input, input IS NOT NULL AS has_input, ",
            $output,
            " AS output, output IS NOT NULL AS has_output"
        )
    };
}
pub(super) use step_columns;

pub(super) fn columns(row: &Row<'_>) -> Result<Columns, Fault> {
    let data = |column: &str, there: &str| -> Result<_, Fault> {
        Ok(slot(get::<Option<String>>(row, column)?, get(row, there)?)?)
    };
    Ok(Columns {
        step: get(row, "step")?,
        item: get(row, "item")?,
        state: get(row, "state")?,
        run: get(row, "run")?,
        ord: get(row, "ord")?,
        child: get::<Option<[u8; 16]>>(row, "child")?.map(Uuid::from_bytes),
        meta: get(row, "meta")?,
        value: data("value", "has_value")?,
        input: data("input", "has_input")?,
        output: data("output", "has_output")?,
    })
}

/// The columns of a workflow; `?2` is how many bytes of input are read.
macro_rules! instance_columns {
    () => {
        "seq, id, root, digest, name, version, state, key, head, output, revision, created_at,
         changed_at, finished_at, expires_at, iif(octet_length(input) <= ?2, input, NULL) AS input"
    };
}
pub(super) use instance_columns;

pub(super) fn read_instance(row: &Row<'_>) -> Result<Instance, Fault> {
    let output: Option<String> = get(row, "output")?;
    let has_output = output.is_some();
    Ok(Instance {
        id: WorkflowId(id(row, "id")?),
        root: WorkflowId(id(row, "root")?),
        digest: get(row, "digest")?,
        name: get(row, "name")?,
        version: get(row, "version")?,
        state: parsed(&get::<String>(row, "state")?)?,
        key: get(row, "key")?,
        head: from_json(&get::<String>(row, "head")?)?,
        input: slot(get(row, "input")?, true)?,
        output: slot(output, has_output)?,
        revision: get(row, "revision")?,
        created_at: get(row, "created_at")?,
        changed_at: get(row, "changed_at")?,
        finished_at: get(row, "finished_at")?,
        expires_at: get(row, "expires_at")?,
    })
}

/// A workflow, with its input unless that is large.
pub(super) fn instance(c: &Connection, workflow: WorkflowId) -> Result<Option<Instance>, Fault> {
    let mut statement =
        c.prepare_cached(concat!("SELECT ", instance_columns!(), " FROM workflows WHERE id = ?1"))?;
    let mut rows = statement.query(params![workflow.0.as_bytes(), SMALL])?;
    rows.next()?.map(read_instance).transpose()
}

/// Writes a new workflow, whose definition is there.
pub(super) fn insert_instance(
    c: &Connection,
    new: &Instance,
    wake_at: Option<i64>,
) -> Result<(), Fault> {
    let text = |slot| crate::workflows::rows::whole(slot).map(|payload| payload.json().to_owned());
    c.prepare_cached(
        "INSERT INTO workflows (id, root, parent, digest, name, version, state, key, head, input,
             output, revision, wake_at, created_at, changed_at, finished_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?
    .execute(params![
        new.id.0.as_bytes(),
        new.root.0.as_bytes(),
        new.head.parent.as_ref().map(|parent| *parent.workflow.0.as_bytes()),
        new.digest,
        new.name,
        new.version,
        new.state.as_str(),
        new.key,
        to_json(&new.head)?,
        text(&new.input).unwrap_or_else(|| "null".to_owned()),
        text(&new.output),
        new.revision,
        wake_at,
        new.created_at,
        new.changed_at,
        new.finished_at,
        new.expires_at,
    ])?;
    Ok(())
}

/// Writes a step or item. Data that were not loaded stay as they are.
pub(super) fn write_record(
    c: &Connection,
    workflow: WorkflowId,
    record: &Record,
) -> Result<(), Fault> {
    c.prepare_cached(
        "INSERT INTO workflow_steps (workflow, step, item, state, run, ord, child, meta, value,
             input, output)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (workflow, step, item) DO UPDATE SET
             state = excluded.state, run = excluded.run, ord = excluded.ord,
             child = excluded.child, meta = excluded.meta,
             value = ifnull(excluded.value, value), input = ifnull(excluded.input, input),
             output = iif(?12, NULL, ifnull(excluded.output, output))",
    )?
    .execute(params![
        workflow.0.as_bytes(),
        record.step,
        record.item,
        record.state,
        record.run,
        record.ord,
        record.child.as_ref().map(Uuid::as_bytes),
        record.meta,
        record.value,
        record.input,
        record.output,
        record.no_output,
    ])?;
    Ok(())
}

/// Tells a workflow something.
pub(super) fn tell(c: &Connection, workflow: WorkflowId, word: &Word) -> Result<(), Fault> {
    c.prepare_cached("INSERT INTO workflow_words (workflow, word) VALUES (?1, ?2)")?
        .execute(params![workflow.0.as_bytes(), word.to_json()?])?;
    Ok(())
}

/// Throws away what a workflow that is not there was told.
pub(super) fn drop_words(c: &Connection, workflow: WorkflowId) -> Result<(), Fault> {
    for sql in [
        "DELETE FROM workflow_words WHERE workflow = ?1",
        "DELETE FROM workflow_events WHERE workflow = ?1",
    ] {
        c.prepare_cached(sql)?.execute([workflow.0.as_bytes()])?;
    }
    Ok(())
}

/// A definition by its digest.
pub(super) fn body(
    c: &Connection,
    digest: &str,
    definitions: &Definitions,
) -> Result<Arc<Definition>, Fault> {
    if let Some(known) = definitions.get(digest) {
        return Ok(known);
    }
    let json: Option<String> = c
        .prepare_cached("SELECT json FROM workflow_definitions WHERE digest = ?1")?
        .query_row([digest], |row| row.get(0))
        .optional()?;
    let json = json.ok_or_else(|| Error::Corrupt("a workflow's definition is gone".to_owned()))?;
    Ok(definitions.read(digest, &json)?)
}

/// Writes a definition's text, if it is not there. Answers its digest.
pub(super) fn keep_body(c: &Connection, json: &str) -> Result<String, Fault> {
    let digest = digest(json);
    c.prepare_cached("INSERT OR IGNORE INTO workflow_definitions (digest, json) VALUES (?1, ?2)")?
        .execute([&digest, json])?;
    Ok(digest)
}
