//! The steps of recoveries: recorded as started before they act, then as ended.

use resurgam_model::report::{StepReport, StepStatus};
use resurgam_model::{IncidentId, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::chain::{Kind, append};
use super::{Journal, json, millis, timestamp, to_word, word};
use crate::{Error, Result};

/// A step as recorded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Which recovery of the incident it belongs to; see [`super::Incident::round`].
    pub round: u32,
    /// Its place in the runbook.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// How it stands.
    pub status: StepStatus,
    /// How often it was begun, over all lives of the controller.
    pub attempts: u32,
    /// When it was first begun.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What was found or done.
    pub detail: String,
    /// What later steps need to know.
    pub output: Value,
}

impl StepRecord {
    /// For people.
    #[must_use]
    pub fn report(&self, now: Timestamp) -> StepReport {
        let end = self.ended_at.unwrap_or(now);
        let duration = millis(end).saturating_sub(millis(self.started_at));
        StepReport {
            name: self.name.clone(),
            status: self.status,
            started_at: self.started_at,
            duration_ms: duration.max(0).unsigned_abs(),
            attempts: self.attempts,
            detail: self.detail.clone(),
        }
    }
}

/// Whether a step may go from one state to the next. This is the whole life of a step; what is
/// not listed is a mistake, and refused.
fn allowed(from: Option<StepStatus>, to: StepStatus) -> bool {
    use StepStatus::{Done, Failed, Refused, Skipped, Started, Waiting};
    matches!(
        (from, to),
        (None | Some(Started | Waiting), Started)
            | (Some(Started), Waiting | Done | Skipped | Failed | Refused)
            | (Some(Waiting), Waiting | Refused)
    )
}

const COLUMNS: &str = "number, name, status, attempts, started_at, ended_at, detail, output, round";

fn read(row: &Row<'_>) -> rusqlite::Result<StepRecord> {
    let output: String = row.get(7)?;
    Ok(StepRecord {
        number: row.get(0)?,
        name: row.get(1)?,
        status: word(row.get(2)?)?,
        attempts: row.get(3)?,
        started_at: timestamp(row.get(4)?),
        ended_at: row.get::<_, Option<i64>>(5)?.map(timestamp),
        detail: row.get(6)?,
        output: serde_json::from_str(&output).unwrap_or(Value::Null),
        round: row.get(8)?,
    })
}

/// What an entry about a step is about.
fn about(incident: &str, round: u32, number: u32) -> String {
    format!("{incident}/{round}/{number}")
}

/// All steps, as entries have them.
pub(super) fn rows(c: &Connection) -> rusqlite::Result<Vec<(Kind, String, String)>> {
    let sql = format!("SELECT {COLUMNS}, incident FROM steps ORDER BY rowid");
    let mut statement = c.prepare(&sql)?;
    let steps = statement.query_map([], |row| Ok((read(row)?, row.get::<_, String>(9)?)))?;
    steps
        .map(|step| {
            let (step, incident) = step?;
            Ok((Kind::Step, about(&incident, step.round, step.number), json(&step)?))
        })
        .collect()
}

impl Journal {
    /// Records that a step begins, or begins again.
    ///
    /// # Errors
    /// When the step has ended already, or another one stands in its place: the runbook is then
    /// not the one that was begun.
    pub fn start_step(
        &self,
        incident: IncidentId,
        number: u32,
        name: &str,
        now: Timestamp,
    ) -> Result<()> {
        self.change_step(incident, number, name, StepStatus::Started, "", &Value::Null, now)
    }

    /// Records how a step ended.
    ///
    /// # Errors
    /// When it was not begun, or has ended already.
    #[allow(clippy::too_many_arguments, reason = "the columns of one row")]
    pub fn end_step(
        &self,
        incident: IncidentId,
        number: u32,
        name: &str,
        status: StepStatus,
        detail: &str,
        output: &Value,
        now: Timestamp,
    ) -> Result<()> {
        self.change_step(incident, number, name, status, detail, output, now)
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of one row")]
    fn change_step(
        &self,
        incident: IncidentId,
        number: u32,
        name: &str,
        to: StepStatus,
        detail: &str,
        output: &Value,
        now: Timestamp,
    ) -> Result<()> {
        let refused = self.write(|transaction| {
            let id = incident.to_string();
            let round: u32 = transaction
                .query_row("SELECT round FROM incidents WHERE id = ?1", [&id], |row| row.get(0))?;
            let sql = format!(
                "SELECT {COLUMNS} FROM steps WHERE incident = ?1 AND round = ?2 AND number = ?3"
            );
            let key = params![id, round, number];
            let before = transaction.query_row(&sql, key, read).optional()?;
            let from = before.as_ref().map(|step| step.status);
            let same = before.as_ref().is_none_or(|step| step.name == name);
            if !same || !allowed(from, to) {
                return Ok(Some(before));
            }
            let goes_on = matches!(to, StepStatus::Started | StepStatus::Waiting);
            let ended = (!goes_on).then_some(millis(now));
            transaction.execute(
                "INSERT INTO steps (incident, round, number, name, status, attempts, started_at, ended_at, detail, output)
                 VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, ?8, ?9)
                 ON CONFLICT (incident, round, number) DO UPDATE SET
                     status = excluded.status,
                     attempts = steps.attempts + (excluded.status = 'started'),
                     ended_at = excluded.ended_at,
                     detail = excluded.detail,
                     output = excluded.output",
                params![
                    id,
                    round,
                    number,
                    name,
                    to_word(&to),
                    millis(now),
                    ended,
                    detail,
                    output.to_string(),
                ],
            )?;
            let now_is = transaction.query_row(&sql, key, read)?;
            append(transaction, now, Kind::Step, &about(&id, round, number), &now_is)?;
            Ok(None)
        })?;
        match refused {
            None => Ok(()),
            Some(before) => Err(Error::Transition {
                step: name.to_owned(),
                from: before.map_or("nothing", |step| step.status.as_str()),
                to: to.as_str(),
            }),
        }
    }

    /// Records that a step waits for a person's decision, and what is asked.
    ///
    /// # Errors
    /// When it was not begun, or has ended already.
    pub fn step_waits(
        &self,
        incident: IncidentId,
        number: u32,
        name: &str,
        question: &str,
        now: Timestamp,
    ) -> Result<()> {
        self.change_step(incident, number, name, StepStatus::Waiting, question, &Value::Null, now)
    }

    /// The steps of the present recovery of an incident, in their order.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn steps(&self, incident: IncidentId) -> Result<Vec<StepRecord>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM steps WHERE incident = ?1
             AND round = (SELECT round FROM incidents WHERE id = ?1) ORDER BY number"
        );
        self.read_steps(&sql, incident)
    }

    /// The steps of all recoveries of an incident, the first ones first.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn all_steps(&self, incident: IncidentId) -> Result<Vec<StepRecord>> {
        let sql = format!("SELECT {COLUMNS} FROM steps WHERE incident = ?1 ORDER BY round, number");
        self.read_steps(&sql, incident)
    }

    fn read_steps(&self, sql: &str, incident: IncidentId) -> Result<Vec<StepRecord>> {
        self.with("be read", |c| c.prepare(sql)?.query_map([incident.to_string()], read)?.collect())
    }
}
