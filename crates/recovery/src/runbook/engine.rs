//! Goes through a runbook, from wherever the journal says it was.

use std::collections::BTreeSet;
use std::time::Duration;

use resurgam_model::Timestamp;
use resurgam_model::plan::{Approval, Ask};
use resurgam_model::report::StepStatus;

use super::faults::{Fault, Kind, die};
use super::{Danger, Done, SoFar, Step, Stop};
use crate::Result;
use crate::journal::{Incident, IncidentState, Journal, StepRecord};

/// The pause before a step is tried again; it grows with each try.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How often the journal is asked for a person's decision.
const LOOK: Duration = Duration::from_millis(200);
/// A step that has asked looks again by itself after so long: the question may have gone away.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Marks the output of a step that found nothing to recover from.
const FALSE_ALARM: &str = "false_alarm";

/// On which terms a runbook is gone through.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// When people are asked.
    pub approval: Approval,
    /// A fault in the recovery itself, for tests.
    pub fault: Option<Fault>,
}

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
/// between, the step is run again by the next one. When a person resolves the incident meanwhile,
/// no further step is begun.
///
/// # Errors
/// When the journal fails; nothing more is done then, because it could not be recorded.
pub async fn execute(
    journal: &Journal,
    incident: &Incident,
    steps: &[Box<dyn Step>],
    terms: &Terms,
) -> Result<Ended> {
    let mut fault = terms.fault.clone();
    for (number, step) in (0_u32..).zip(steps) {
        let records = journal.steps(incident.id)?;
        let before = records.iter().find(|record| record.number == number);
        if let Some(record) = before.filter(|record| has_ended(record.status)) {
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
        let run = Run { journal, incident, records: &records, terms, number, step: step.as_ref() };
        let Some(outcome) = run.to_its_end(&mut fault).await? else {
            return taken_over(journal, incident);
        };
        let (status, detail, output, end) = match outcome {
            Ok(done) => (done.status, done.detail, done.output, None),
            Err(Stop::Retry(why)) => {
                (StepStatus::Failed, why, serde_json::Value::Null, Some(IncidentState::Failed))
            }
            Err(Stop::Refuse(why) | Stop::Ask(why)) => {
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

/// A person has closed the incident.
fn taken_over(journal: &Journal, incident: &Incident) -> Result<Ended> {
    let now = journal.incident(incident.id)?;
    let state = now.map_or(IncidentState::Resolved, |incident| incident.state);
    Ok(Ended { state, detail: "a person has taken over".to_owned() })
}

fn has_ended(status: StepStatus) -> bool {
    !matches!(status, StepStatus::Started | StepStatus::Waiting)
}

/// The end of the whole recovery, if the step was recorded as such.
fn recorded_end(record: &StepRecord) -> Option<IncidentState> {
    match record.status {
        StepStatus::Failed => Some(IncidentState::Failed),
        StepStatus::Refused => Some(IncidentState::Refused),
        StepStatus::Skipped if record.output.get(FALSE_ALARM).is_some() => {
            Some(IncidentState::FalseAlarm)
        }
        StepStatus::Started | StepStatus::Waiting | StepStatus::Done | StepStatus::Skipped => None,
    }
}

/// What people are asked.
enum Question {
    /// Whether the step is to be taken at all.
    Taking(String),
    /// What the step itself wants to know, with what it would cost.
    Own(String),
}

/// What people have said.
enum Word {
    Approved,
    Rejected(String),
    /// The incident is no longer open.
    TakenOver,
    /// Nothing yet.
    None,
}

/// One step on its way.
struct Run<'a> {
    journal: &'a Journal,
    incident: &'a Incident,
    records: &'a [StepRecord],
    terms: &'a Terms,
    number: u32,
    step: &'a dyn Step,
}

impl Run<'_> {
    /// Runs it, asking people where they are to be asked. None when a person has closed the
    /// incident.
    async fn to_its_end(&self, fault: &mut Option<Fault>) -> Result<Option<Result<Done, Stop>>> {
        let first = match self.terms.approval.ask {
            Ask::Never => false,
            Ask::Dangerous => self.step.danger() >= Danger::Dangerous,
            Ask::Always => self.step.danger() >= Danger::Acts,
        };
        let mut waited = false;
        if first {
            let question =
                Question::Taking(format!("shall the step {} be taken?", self.step.name()));
            match self.ask(&question, None).await? {
                Word::Approved => waited = true,
                Word::Rejected(why) => return Ok(Some(Err(Stop::Refuse(why)))),
                Word::TakenOver | Word::None => return Ok(None),
            }
        }
        // What the step itself has asked, and people have agreed to.
        let mut agreed = BTreeSet::new();
        loop {
            if !self.is_open()? {
                return Ok(None);
            }
            let question = match self.tries(waited, &agreed, fault).await? {
                Err(Stop::Ask(question)) if !agreed.contains(&question) => question,
                // To be asked what was answered already would never end.
                outcome => return Ok(Some(outcome)),
            };
            waited = true;
            let asked = Question::Own(question.clone());
            match self.ask(&asked, Some(LOOK_AGAIN)).await? {
                Word::Approved => drop(agreed.insert(question)),
                Word::Rejected(why) => return Ok(Some(Err(Stop::Refuse(why)))),
                Word::TakenOver => return Ok(None),
                Word::None => {}
            }
        }
    }

    fn is_open(&self) -> Result<bool> {
        let now = self.journal.incident(self.incident.id)?;
        Ok(now.is_none_or(|incident| incident.state == IncidentState::Open))
    }

    fn word(&self, question: &Question) -> Result<Word> {
        let decisions = self.journal.decisions(self.incident.id, self.step.name())?;
        if let Some(by) = decisions.rejected.first() {
            return Ok(Word::Rejected(format!("{by} has rejected it")));
        }
        let given = match question {
            Question::Taking(text) => decisions.in_favour_of_taking(text),
            Question::Own(text) => decisions.in_favour(text),
        };
        let enough = usize::try_from(self.terms.approval.required).unwrap_or(usize::MAX);
        Ok(if given >= enough { Word::Approved } else { Word::None })
    }

    /// Waits for people, at most so long.
    async fn ask(&self, question: &Question, patience: Option<Duration>) -> Result<Word> {
        let (id, name) = (self.incident.id, self.step.name());
        let (Question::Taking(text) | Question::Own(text)) = question;
        if let word @ (Word::Approved | Word::Rejected(_)) = self.word(question)? {
            return Ok(word);
        }
        let begun = self.journal.steps(id)?;
        if begun.iter().all(|record| record.number != self.number) {
            self.journal.start_step(id, self.number, name, Timestamp::now())?;
        }
        let asked = begun.iter().find(|record| record.number == self.number);
        if asked.is_none_or(|r| r.status != StepStatus::Waiting || r.detail != *text) {
            self.journal.step_waits(id, self.number, name, text, Timestamp::now())?;
            tracing::warn!(incident = %id, step = name, question = text, "a person has to decide: resurgam approve {id}");
        }
        let until = patience.map(|patience| tokio::time::Instant::now() + patience);
        loop {
            if !self.is_open()? {
                return Ok(Word::TakenOver);
            }
            match self.word(question)? {
                Word::None => {}
                word => return Ok(word),
            }
            if until.is_some_and(|until| tokio::time::Instant::now() >= until) {
                return Ok(Word::None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tries it as often as it allows.
    async fn tries(
        &self,
        waited: bool,
        agreed: &BTreeSet<String>,
        fault: &mut Option<Fault>,
    ) -> Result<Result<Done, Stop>> {
        let (step, name) = (self.step, self.step.name());
        let so_far = SoFar { incident: self.incident, steps: self.records, waited, agreed };
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.journal.start_step(self.incident.id, self.number, name, Timestamp::now())?;
            if fault.as_ref().is_some_and(|f| f.is(Kind::DieBefore, name)) {
                die();
            }
            let injected = fault.take_if(|f| f.is(Kind::FailOnce, name)).is_some();
            let outcome = if injected {
                Err(Stop::Retry("made to fail once".to_owned()))
            } else {
                match tokio::time::timeout(step.timeout(), step.run(&so_far)).await {
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
}
