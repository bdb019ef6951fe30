//! What a campaign reports.

use resurgam_model::{ComponentName, Scenario, Timestamp};
use serde::{Deserialize, Serialize};

use crate::journal::{Incident, IncidentState};

/// The record of a campaign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CampaignReport {
    /// From which its faults follow.
    pub seed: u64,
    /// On what, such as `local/postgres`.
    pub deployment: String,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it was.
    pub lasted_ms: u64,
    /// Tasks that callers were told are safe.
    pub acknowledged: u64,
    /// Writes that instances of PostgreSQL accepted from the drill itself.
    pub writes: u64,
    /// Its rounds, of which only the last one can have violations.
    pub rounds: Vec<RoundReport>,
}

impl CampaignReport {
    /// Whether all was as it must be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.rounds.iter().all(|round| round.violations.is_empty())
    }
}

/// The record of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// From which its faults follow.
    pub seed: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// What was struck, and how.
    pub strikes: Vec<String>,
    /// The incidents that were opened.
    pub incidents: Vec<IncidentReport>,
    /// From the end of the last fault until everything was back; none when it never was.
    pub recovered_ms: Option<u64>,
    /// The longest time in which no task was acknowledged.
    pub outage_ms: u64,
    /// Tasks acknowledged.
    pub acknowledged: u64,
    /// What must not be.
    pub violations: Vec<String>,
}

/// An incident in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentReport {
    /// What happened.
    pub scenario: Scenario,
    /// To what.
    pub component: ComponentName,
    /// How it ended.
    pub state: IncidentState,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
}

impl From<Incident> for IncidentReport {
    fn from(incident: Incident) -> Self {
        Self {
            scenario: incident.scenario,
            component: incident.component,
            state: incident.state,
            opened_at: incident.opened_at,
            closed_at: incident.closed_at,
        }
    }
}
