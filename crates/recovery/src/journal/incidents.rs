//! Incidents: one per cause.

use resurgam_model::{ComponentName, IncidentId, Scenario, Severity, Timestamp};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Journal, millis, timestamp, to_word, word};
use crate::Result;

/// Where an incident stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncidentState {
    /// A recovery is under way.
    Open,
    /// Everything is back, redundancy included.
    Recovered,
    /// A step failed for good; a person is needed.
    Failed,
    /// To go on would not have been safe; a person has to decide.
    Refused,
    /// What looked like a failure was none.
    FalseAlarm,
}

/// An incident about to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewIncident {
    /// What happened.
    pub scenario: Scenario,
    /// To what.
    pub component: ComponentName,
    /// Why it is believed, for people.
    pub cause: String,
    /// When the first probe failed.
    pub first_sign: Timestamp,
}

/// An incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Its id.
    pub id: IncidentId,
    /// What happened.
    pub scenario: Scenario,
    /// How bad it is.
    pub severity: Severity,
    /// To what.
    pub component: ComponentName,
    /// Why it is believed.
    pub cause: String,
    /// Where it stands.
    pub state: IncidentState,
    /// When the first probe failed.
    pub first_sign: Timestamp,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When the service was verified to work again; redundancy may still be missing.
    pub restored_at: Option<Timestamp>,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
}

const COLUMNS: &str = "id, scenario, severity, component, cause, state, first_sign, opened_at, restored_at, closed_at";

fn read(row: &Row<'_>) -> rusqlite::Result<Incident> {
    Ok(Incident {
        id: word(row.get(0)?)?,
        scenario: word(row.get(1)?)?,
        severity: word(row.get(2)?)?,
        component: word(row.get(3)?)?,
        cause: row.get(4)?,
        state: word(row.get(5)?)?,
        first_sign: timestamp(row.get(6)?),
        opened_at: timestamp(row.get(7)?),
        restored_at: row.get::<_, Option<i64>>(8)?.map(timestamp),
        closed_at: row.get::<_, Option<i64>>(9)?.map(timestamp),
    })
}

impl Journal {
    /// Opens an incident, or gives the open one of the same scenario and component.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn open_incident(&self, new: &NewIncident, now: Timestamp) -> Result<Incident> {
        let id = IncidentId::new();
        self.with("be written", |c| {
            c.execute(
                "INSERT INTO incidents (id, scenario, severity, component, cause, state, first_sign, opened_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'open', ?6, ?7) ON CONFLICT DO NOTHING",
                params![
                    id.to_string(),
                    to_word(&new.scenario),
                    to_word(&new.scenario.severity()),
                    new.component.as_str(),
                    new.cause,
                    millis(new.first_sign),
                    millis(now),
                ],
            )?;
            c.query_row(
                &format!("SELECT {COLUMNS} FROM incidents WHERE scenario = ?1 AND component = ?2 AND state = 'open'"),
                params![to_word(&new.scenario), new.component.as_str()],
                read,
            )
        })
    }

    /// One incident.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn incident(&self, id: IncidentId) -> Result<Option<Incident>> {
        self.with("be read", |c| {
            let sql = format!("SELECT {COLUMNS} FROM incidents WHERE id = ?1");
            c.query_row(&sql, [id.to_string()], read).optional()
        })
    }

    /// The last incidents, the newest first.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn incidents(&self, limit: u32) -> Result<Vec<Incident>> {
        self.with("be read", |c| {
            let sql = format!(
                "SELECT {COLUMNS} FROM incidents ORDER BY opened_at DESC, rowid DESC LIMIT ?1"
            );
            c.prepare(&sql)?.query_map([limit], read)?.collect()
        })
    }

    /// The open incidents, the oldest first.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn open_incidents(&self) -> Result<Vec<Incident>> {
        self.with("be read", |c| {
            let sql = format!(
                "SELECT {COLUMNS} FROM incidents WHERE state = 'open' ORDER BY opened_at, rowid"
            );
            c.prepare(&sql)?.query_map([], read)?.collect()
        })
    }

    /// Notes that the service works again. The first time counts.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn restored(&self, id: IncidentId, now: Timestamp) -> Result<()> {
        self.with("be written", |c| {
            c.execute(
                "UPDATE incidents SET restored_at = ?2 WHERE id = ?1 AND restored_at IS NULL",
                params![id.to_string(), millis(now)],
            )?;
            Ok(())
        })
    }

    /// Closes an incident. One that is closed stays as it is.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn close_incident(
        &self,
        id: IncidentId,
        state: IncidentState,
        now: Timestamp,
    ) -> Result<()> {
        self.with("be written", |c| {
            c.execute(
                "UPDATE incidents SET state = ?2, closed_at = ?3 WHERE id = ?1 AND state = 'open'",
                params![id.to_string(), to_word(&state), millis(now)],
            )?;
            Ok(())
        })
    }

    /// Keeps what was seen, before anything is changed.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn add_evidence(&self, id: IncidentId, text: &str, now: Timestamp) -> Result<()> {
        self.with("be written", |c| {
            c.execute(
                "INSERT INTO evidence (incident, at, text) VALUES (?1, ?2, ?3)",
                params![id.to_string(), millis(now), text],
            )?;
            Ok(())
        })
    }

    /// What was seen, the oldest first.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn evidence(&self, id: IncidentId) -> Result<Vec<(Timestamp, String)>> {
        self.with("be read", |c| {
            c.prepare("SELECT at, text FROM evidence WHERE incident = ?1 ORDER BY rowid")?
                .query_map([id.to_string()], |row| Ok((timestamp(row.get(0)?), row.get(1)?)))?
                .collect()
        })
    }
}
