//! Incidents: one per cause.

use resurgam_model::plan::Ask;
use resurgam_model::{ComponentName, IncidentId, Scenario, Severity, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::chain::{Kind, append};
use super::{Journal, json, millis, timestamp, to_word, word};
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
    /// A person has said that it is over.
    Resolved,
}

impl IncidentState {
    /// The word in the journal, in JSON and for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Recovered => "recovered",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::FalseAlarm => "false-alarm",
            Self::Resolved => "resolved",
        }
    }
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
    /// How often its recovery was begun anew; 0 while the first one runs.
    #[serde(default)]
    pub round: u32,
    /// When people are asked about its steps, if otherwise than the plan says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
}

impl Incident {
    /// Whether it is graver by now than it was when it was opened.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.severity < self.scenario.severity()
    }
}

#[cfg(test)]
impl Incident {
    /// One that was just opened, for tests.
    pub(crate) fn example(scenario: Scenario, opened_at: Timestamp) -> Self {
        Self {
            id: IncidentId::new(),
            scenario,
            severity: scenario.severity(),
            component: ComponentName::instance(0),
            cause: "killed".to_owned(),
            state: IncidentState::Open,
            first_sign: opened_at,
            opened_at,
            restored_at: None,
            closed_at: None,
            round: 0,
            ask: None,
        }
    }
}

const COLUMNS: &str = "id, scenario, severity, component, cause, state, first_sign, opened_at, restored_at, closed_at, round, ask";

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
        round: row.get(10)?,
        ask: row.get::<_, Option<String>>(11)?.map(word).transpose()?,
    })
}

/// What a person said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Who.
    pub by: String,
    /// What.
    pub text: String,
}

/// Who speaks when nobody does.
const CONTROLLER: &str = "the controller";

/// Enters how the incident is now.
fn enter(transaction: &Transaction<'_>, id: IncidentId, now: Timestamp) -> rusqlite::Result<()> {
    let sql = format!("SELECT {COLUMNS} FROM incidents WHERE id = ?1");
    let incident = transaction.query_row(&sql, [id.to_string()], read)?;
    append(transaction, now, Kind::Incident, &id.to_string(), &incident)?;
    Ok(())
}

/// All incidents and their evidence, as entries have them.
pub(super) fn rows(c: &Connection) -> rusqlite::Result<Vec<(Kind, String, String)>> {
    let mut all = Vec::new();
    let mut statement = c.prepare(&format!("SELECT {COLUMNS} FROM incidents ORDER BY rowid"))?;
    for incident in statement.query_map([], read)? {
        let incident = incident?;
        all.push((Kind::Incident, incident.id.to_string(), json(&incident)?));
    }
    let mut statement = c.prepare("SELECT incident, text FROM evidence ORDER BY rowid")?;
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
    for evidence in statement.query_map([], read)? {
        let (incident, text) = evidence?;
        all.push((Kind::Evidence, incident, json(&text)?));
    }
    Ok(all)
}

impl Journal {
    /// Opens an incident, or gives the open one of the same scenario and component.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn open_incident(&self, new: &NewIncident, now: Timestamp) -> Result<Incident> {
        let id = IncidentId::new();
        self.write(|transaction| {
            let opened = transaction.execute(
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
            if opened > 0 {
                enter(transaction, id, now)?;
            }
            transaction.query_row(
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

    /// Lets people be asked about its steps otherwise than the plan says.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn set_ask(&self, id: IncidentId, ask: Ask, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE incidents SET ask = ?2 WHERE id = ?1 AND ask IS NOT ?2",
                params![id.to_string(), to_word(&ask)],
            )?;
            if changed > 0 { enter(transaction, id, now) } else { Ok(()) }
        })
    }

    /// Notes that an open incident is graver than was thought, and why. Tells whether that was new.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn escalate(
        &self,
        id: IncidentId,
        to: Severity,
        why: &str,
        now: Timestamp,
    ) -> Result<bool> {
        self.write(|transaction| {
            // The words sort as the grades do: the gravest first.
            let raised = transaction.execute(
                "UPDATE incidents SET severity = ?2 WHERE id = ?1 AND state = 'open' AND severity > ?2",
                params![id.to_string(), to_word(&to)],
            )?;
            if raised > 0 {
                let note = Note { by: CONTROLLER.to_owned(), text: format!("{to} by now: {why}") };
                append(transaction, now, Kind::Note, &id.to_string(), &note)?;
                enter(transaction, id, now)?;
            }
            Ok(raised > 0)
        })
    }

    /// Notes that the service works again. The first time counts.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn restored(&self, id: IncidentId, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let noted = transaction.execute(
                "UPDATE incidents SET restored_at = ?2 WHERE id = ?1 AND restored_at IS NULL",
                params![id.to_string(), millis(now)],
            )?;
            if noted > 0 { enter(transaction, id, now) } else { Ok(()) }
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
        self.write(|transaction| {
            let closed = transaction.execute(
                "UPDATE incidents SET state = ?2, closed_at = ?3 WHERE id = ?1 AND state = 'open'",
                params![id.to_string(), to_word(&state), millis(now)],
            )?;
            if closed > 0 { enter(transaction, id, now) } else { Ok(()) }
        })
    }

    /// Begins the recovery of an incident anew, one that failed or was refused: all its steps, for
    /// what they found may no longer hold. With `again` also its first sign and cause are those of
    /// now: meanwhile all may have been well. Does nothing to others, nor while the same cause has
    /// another open incident, and tells whether it did.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn reopen_incident(
        &self,
        id: IncidentId,
        again: Option<&NewIncident>,
        now: Timestamp,
    ) -> Result<bool> {
        let first_sign = again.map(|new| millis(new.first_sign));
        let cause = again.map(|new| new.cause.as_str());
        // How grave it is shows anew.
        let Some(known) = self.incident(id)? else { return Ok(false) };
        let severity = to_word(&known.scenario.severity());
        self.write(|transaction| {
            let reopened = transaction.execute(
                "UPDATE incidents SET state = 'open', closed_at = NULL, restored_at = NULL,
                     severity = ?4, round = round + 1, first_sign = COALESCE(?2, first_sign),
                     cause = COALESCE(?3, cause)
                 WHERE id = ?1 AND state IN ('failed', 'refused') AND NOT EXISTS (
                     SELECT 1 FROM incidents AS other WHERE other.state = 'open'
                     AND other.scenario = incidents.scenario
                     AND other.component = incidents.component)",
                params![id.to_string(), first_sign, cause, severity],
            )?;
            if reopened > 0 {
                enter(transaction, id, now)?;
            }
            Ok(reopened > 0)
        })
    }

    /// Notes a person's word that the incident is over, whatever its recovery has come to. Tells
    /// whether there was anything to resolve. A recovery that runs ends before its next step.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn resolve_incident(
        &self,
        id: IncidentId,
        by: &str,
        why: &str,
        now: Timestamp,
    ) -> Result<bool> {
        self.write(|transaction| {
            let resolved = transaction.execute(
                "UPDATE incidents SET state = 'resolved', closed_at = ?2
                 WHERE id = ?1 AND state IN ('open', 'failed', 'refused')",
                params![id.to_string(), millis(now)],
            )?;
            if resolved > 0 {
                let note = Note { by: by.to_owned(), text: format!("resolved: {why}") };
                append(transaction, now, Kind::Note, &id.to_string(), &note)?;
                enter(transaction, id, now)?;
            }
            Ok(resolved > 0)
        })
    }

    /// The last incident of a cause, open or not.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn last_incident(
        &self,
        scenario: Scenario,
        component: &ComponentName,
    ) -> Result<Option<Incident>> {
        self.with("be read", |c| {
            let sql = format!(
                "SELECT {COLUMNS} FROM incidents WHERE scenario = ?1 AND component = ?2
                 ORDER BY opened_at DESC, rowid DESC LIMIT 1"
            );
            c.query_row(&sql, params![to_word(&scenario), component.as_str()], read).optional()
        })
    }

    /// Keeps what a person says about an incident.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn note(&self, id: IncidentId, by: &str, text: &str, now: Timestamp) -> Result<()> {
        let note = Note { by: by.to_owned(), text: text.to_owned() };
        self.write(|transaction| {
            append(transaction, now, Kind::Note, &id.to_string(), &note)?;
            Ok(())
        })
    }

    /// Writes down that a person begins, or has done, something to the deployment while nothing
    /// runs on it.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn act(&self, by: &str, text: &str, now: Timestamp) -> Result<()> {
        let act = Note { by: by.to_owned(), text: text.to_owned() };
        self.write(|transaction| {
            append(transaction, now, Kind::Act, "deployment", &act)?;
            Ok(())
        })
    }

    /// Keeps what was seen, before anything is changed.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn add_evidence(&self, id: IncidentId, text: &str, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO evidence (incident, at, text) VALUES (?1, ?2, ?3)",
                params![id.to_string(), millis(now), text],
            )?;
            append(transaction, now, Kind::Evidence, &id.to_string(), &text)?;
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
