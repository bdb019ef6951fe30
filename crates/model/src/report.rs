//! What a drill or a recovery reports.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Duration, Scenario, Severity};

/// How a step ended, or that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepStatus {
    /// Begun; recorded before anything is done.
    Started,
    /// Begun, and waits for a person's decision.
    Waiting,
    /// Done and verified.
    Done,
    /// Not needed: what it would bring about was so already.
    Skipped,
    /// Tried as often as allowed, without success.
    Failed,
    /// Not done, because it would have been unsafe.
    Refused,
}

impl StepStatus {
    /// The word in JSON and for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// One step of a recovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub status: StepStatus,
    /// When its first try began.
    pub started_at: Timestamp,
    /// From then to its end.
    pub duration_ms: u64,
    /// Tries, over all lives of the controller.
    pub attempts: u32,
    /// What was found or done, for people.
    pub detail: String,
}

/// An objective beside what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// What was promised.
    pub objective_ms: u64,
    /// What was found; none when the end was never reached.
    pub measured_ms: Option<u64>,
    /// Whether the promise was kept.
    pub met: bool,
}

impl Measured {
    /// Compares.
    #[must_use]
    pub fn new(objective: Duration, measured: Option<Duration>) -> Self {
        let met = measured.is_some_and(|measured| measured <= objective);
        Self {
            objective_ms: objective.as_millis(),
            measured_ms: measured.map(Duration::as_millis),
            met,
        }
    }
}

/// How a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillResult {
    /// Everything is back, redundancy included, and both objectives were met.
    Recovered,
    /// Something is not back, or an objective was missed, or something acknowledged is gone.
    Failed,
    /// Recovery would have been unsafe, so nothing was done; a person has to decide.
    Refused,
}

/// The record of a drill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    /// What was drilled.
    pub scenario: Scenario,
    /// How bad it would have been.
    pub severity: Severity,
    /// On what, such as `local/postgres`.
    pub deployment: String,
    /// How the fault was made, such as `kill` or `freeze`.
    pub fault: String,
    /// When the fault was made.
    pub started_at: Timestamp,
    /// From the fault to the opening of the incident.
    pub detection_ms: Option<u64>,
    /// What the recovery did.
    pub steps: Vec<StepReport>,
    /// From the fault to the first acknowledged write.
    pub rto: Measured,
    /// Age of the oldest acknowledged write that is missing.
    pub rpo: Measured,
    /// Writes that callers were told are safe.
    pub acknowledged: u64,
    /// Those of them that are missing.
    pub lost: u64,
    /// Tasks that took effect more than once.
    pub duplicated: u64,
    /// Whether two instances accepted writes at once.
    pub split_brain: bool,
    /// What was seen of the fence: each attempt to write on the old primary, and its answer.
    pub fence: Vec<String>,
    /// The verdict.
    pub result: DrillResult,
}
