//! Goes through a runbook, from wherever the journal says it was.

use std::time::Duration;

use resurgam_model::Timestamp;
use resurgam_model::report::StepStatus;

use super::faults::{Fault, Kind, die};
use super::{Done, SoFar, Step, Stop};
use crate::Result;
use crate::journal::{Incident, IncidentState, Journal, StepRecord};

/// The pause before a step is tried again; it grows with each try.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Marks the output of a step that found nothing to recover from.
const FALSE_ALARM: &str = "false_alarm";

/// How a recovery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Never open.
    pub state: IncidentState,
    /// The last word, for people.
    pub detail: String,
}

/// Runs the steps that are not done yet, in order, and closes the incident.
///
/// Each step is journaled as started, run, and journaled as ended. When the controller dies in
/// between, the step is run again by the next one.
///
/// # Errors
/// When the journal fails; nothing more is done then, because it could not be recorded.
pub async fn execute(
    journal: &Journal,
    incident: &Incident,
    steps: &[Box<dyn Step>],
    fault: Option<&Fault>,
) -> Result<Ended> {
    let mut fault = fault.cloned();
    for (number, step) in (0_u32..).zip(steps) {
        let records = journal.steps(incident.id)?;
        let before = records.iter().find(|record| record.number == number);
        if let Some(record) = before.filter(|record| record.status != StepStatus::Started) {
            if let Some(state) = recorded_end(record) {
                // The controller died before it closed the incident.
                journal.close_incident(incident.id, state, Timestamp::now())?;
                return Ok(Ended { state, detail: record.detail.clone() });
            }
            if step.restores_service() {
                // The controller may have died before it noted this.
                let at = record.ended_at.unwrap_or_else(Timestamp::now);
                journal.restored(incident.id, at)?;
            }
            continue;
        }
        let so_far = SoFar { incident, steps: &records };
        let outcome = run(journal, number, step.as_ref(), &so_far, &mut fault).await?;
        let (status, detail, output, end) = match outcome {
            Ok(done) => (done.status, done.detail, done.output, None),
            Err(Stop::Retry(why)) => {
                (StepStatus::Failed, why, serde_json::Value::Null, Some(IncidentState::Failed))
            }
            Err(Stop::Refuse(why)) => {
                (StepStatus::Refused, why, serde_json::Value::Null, Some(IncidentState::Refused))
            }
            Err(Stop::FalseAlarm(why)) => {
                let mark = serde_json::json!({ FALSE_ALARM: true });
                (StepStatus::Skipped, why, mark, Some(IncidentState::FalseAlarm))
            }
        };
        let now = Timestamp::now();
        journal.end_step(incident.id, number, step.name(), status, &detail, &output, now)?;
        tracing::info!(incident = %incident.id, step = step.name(), ?status, detail, "step ended");
        if let Some(state) = end {
            journal.close_incident(incident.id, state, now)?;
            return Ok(Ended { state, detail });
        }
        if step.restores_service() {
            journal.restored(incident.id, now)?;
        }
    }
    journal.close_incident(incident.id, IncidentState::Recovered, Timestamp::now())?;
    Ok(Ended { state: IncidentState::Recovered, detail: "every step is done".to_owned() })
}

/// The end of the whole recovery, if the step was recorded as such.
fn recorded_end(record: &StepRecord) -> Option<IncidentState> {
    match record.status {
        StepStatus::Failed => Some(IncidentState::Failed),
        StepStatus::Refused => Some(IncidentState::Refused),
        StepStatus::Skipped if record.output.get(FALSE_ALARM).is_some() => {
            Some(IncidentState::FalseAlarm)
        }
        StepStatus::Started | StepStatus::Done | StepStatus::Skipped => None,
    }
}

/// Tries one step as often as it allows.
async fn run(
    journal: &Journal,
    number: u32,
    step: &dyn Step,
    so_far: &SoFar<'_>,
    fault: &mut Option<Fault>,
) -> Result<Result<Done, Stop>> {
    let name = step.name();
    let mut attempt = 0;
    loop {
        attempt += 1;
        journal.start_step(so_far.incident.id, number, name, Timestamp::now())?;
        if fault.as_ref().is_some_and(|f| f.is(Kind::DieBefore, name)) {
            die();
        }
        let injected = fault.take_if(|f| f.is(Kind::FailOnce, name)).is_some();
        let outcome = if injected {
            Err(Stop::Retry("made to fail once".to_owned()))
        } else {
            match tokio::time::timeout(step.timeout(), step.run(so_far)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    let limit = resurgam_model::Duration(step.timeout());
                    Err(Stop::Retry(format!("was not done within {limit}")))
                }
            }
        };
        if outcome.is_ok() && fault.take_if(|f| f.is(Kind::Repeat, name)).is_some() {
            continue;
        }
        if fault.as_ref().is_some_and(|f| f.is(Kind::DieAfter, name)) {
            die();
        }
        match outcome {
            Err(Stop::Retry(why)) if attempt < step.attempts() => {
                tracing::warn!(step = name, attempt, why, "step failed, it is tried again");
                tokio::time::sleep(RETRY_PAUSE * attempt).await;
            }
            outcome => return Ok(outcome),
        }
    }
}
