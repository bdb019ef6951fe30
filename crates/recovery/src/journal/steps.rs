//! The steps of recoveries: recorded as started before they act, then as ended.

use resurgam_model::report::{StepReport, StepStatus};
use resurgam_model::{IncidentId, Timestamp};
use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;

use super::{Journal, millis, timestamp, to_word, word};
use crate::{Error, Result};

/// A step as recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
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
    use StepStatus::{Done, Failed, Refused, Skipped, Started};
    matches!(
        (from, to),
        (None | Some(Started), Started) | (Some(Started), Done | Skipped | Failed | Refused)
    )
}

const COLUMNS: &str = "number, name, status, attempts, started_at, ended_at, detail, output";

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
    })
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
        let refused = self.with("be written", |c| {
            let transaction = c.transaction()?;
            let sql = format!("SELECT {COLUMNS} FROM steps WHERE incident = ?1 AND number = ?2");
            let key = params![incident.to_string(), number];
            let before = transaction.query_row(&sql, key, read).optional()?;
            let from = before.as_ref().map(|step| step.status);
            let same = before.as_ref().is_none_or(|step| step.name == name);
            if !same || !allowed(from, to) {
                return Ok(Some(before));
            }
            let ended = (to != StepStatus::Started).then_some(millis(now));
            transaction.execute(
                "INSERT INTO steps (incident, number, name, status, attempts, started_at, ended_at, detail, output)
                 VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?7, ?8)
                 ON CONFLICT (incident, number) DO UPDATE SET
                     status = excluded.status,
                     attempts = steps.attempts + (excluded.status = 'started'),
                     ended_at = excluded.ended_at,
                     detail = excluded.detail,
                     output = excluded.output",
                params![
                    incident.to_string(),
                    number,
                    name,
                    to_word(&to),
                    millis(now),
                    ended,
                    detail,
                    output.to_string(),
                ],
            )?;
            transaction.commit()?;
            Ok(None)
        })?;
        match refused {
            None => Ok(()),
            Some(before) => Err(Error::Transition {
                step: name.to_owned(),
                from: before.map_or("nothing", |step| status_word(step.status)),
                to: status_word(to),
            }),
        }
    }

    /// The steps of an incident in their order.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn steps(&self, incident: IncidentId) -> Result<Vec<StepRecord>> {
        self.with("be read", |c| {
            let sql = format!("SELECT {COLUMNS} FROM steps WHERE incident = ?1 ORDER BY number");
            c.prepare(&sql)?.query_map([incident.to_string()], read)?.collect()
        })
    }
}

fn status_word(status: StepStatus) -> &'static str {
    match status {
        StepStatus::Started => "started",
        StepStatus::Done => "done",
        StepStatus::Skipped => "skipped",
        StepStatus::Failed => "failed",
        StepStatus::Refused => "refused",
    }
}
