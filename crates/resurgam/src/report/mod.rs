//! What drills and incidents of a deployment have shown, beside what its plan promises.

mod chart;
mod page;

use resurgam_model::plan::Plan;
use resurgam_model::report::{DrillReport, DrillResult, StepReport};
use resurgam_model::{Scenario, Severity, Timestamp};
use resurgam_recovery::account;
use resurgam_recovery::journal::{Incident, Journal};
use serde::Serialize;

use crate::failure::Failure;

pub(crate) use self::page::page;

/// Everything at one moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) deployment: String,
    pub(crate) made_at: Timestamp,
    /// Of each scenario that the plan has something for, the worst first.
    pub(crate) scenarios: Vec<Practice>,
    /// The newest first.
    pub(crate) incidents: Vec<Account>,
    /// The head of the journal: by it `resurgam journal verify --expect` tells whether all of this is
    /// still a part of it.
    pub(crate) journal_head: Option<String>,
}

/// How recoveries from a scenario went in drills.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Practice {
    pub(crate) scenario: Scenario,
    pub(crate) severity: Severity,
    pub(crate) rto_objective_ms: u64,
    pub(crate) rpo_objective_ms: u64,
    /// Those that did not recover, or missed an objective.
    pub(crate) failed: usize,
    pub(crate) detection: Option<Spread>,
    pub(crate) rto: Option<Spread>,
    pub(crate) rpo: Option<Spread>,
    /// The oldest first.
    pub(crate) drills: Vec<DrillReport>,
}

/// The least, the middle and the most of some measurements, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min_ms: u64,
    pub(crate) median_ms: u64,
    pub(crate) max_ms: u64,
}

impl Spread {
    /// None of none. The middle of an even number is the lower of the two in the middle.
    pub(crate) fn of(values: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut values: Vec<u64> = values.into_iter().collect();
        values.sort_unstable();
        let median = values.len().saturating_sub(1) / 2;
        Some(Self {
            min_ms: *values.first()?,
            median_ms: *values.get(median)?,
            max_ms: *values.last()?,
        })
    }
}

/// An incident with all that the journal has of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Account {
    #[serde(flatten)]
    pub(crate) incident: Incident,
    pub(crate) steps: Vec<StepReport>,
    pub(crate) timeline: Vec<(Timestamp, String)>,
    pub(crate) evidence: Vec<(Timestamp, String)>,
}

/// Puts the report together. `incidents` says of how many at most.
pub(crate) fn report(
    plan: &Plan,
    drills: &[DrillReport],
    journal: Option<&Journal>,
    incidents: u32,
    now: Timestamp,
) -> Result<Report, Failure> {
    let concerned = Scenario::ALL.into_iter().filter(|scenario| plan.has(*scenario));
    let mut accounts = Vec::new();
    if let Some(journal) = journal {
        for incident in journal.incidents(incidents)? {
            let id = incident.id;
            accounts.push(Account {
                steps: journal.all_steps(id)?.iter().map(|step| step.report(now)).collect(),
                timeline: account::timeline(journal, id)?,
                evidence: journal.evidence(id)?,
                incident,
            });
        }
        accounts.sort_by_key(|account| std::cmp::Reverse(account.incident.opened_at));
    }
    let head = journal.map(Journal::head).transpose()?;
    Ok(Report {
        deployment: plan.deployment.name.clone(),
        made_at: now,
        scenarios: concerned.map(|scenario| practice(plan, scenario, drills)).collect(),
        incidents: accounts,
        journal_head: head.map(|head| head.to_string()),
    })
}

fn practice(plan: &Plan, scenario: Scenario, drills: &[DrillReport]) -> Practice {
    let drills: Vec<_> =
        drills.iter().filter(|drill| drill.scenario == scenario).cloned().collect();
    let objectives = plan.objectives(scenario);
    Practice {
        scenario,
        severity: scenario.severity(),
        rto_objective_ms: objectives.rto.as_millis(),
        rpo_objective_ms: objectives.rpo.as_millis(),
        failed: drills.iter().filter(|drill| drill.result != DrillResult::Recovered).count(),
        detection: Spread::of(drills.iter().filter_map(|drill| drill.detection_ms)),
        rto: Spread::of(drills.iter().filter_map(|drill| drill.rto.measured_ms)),
        rpo: Spread::of(drills.iter().filter_map(|drill| drill.rpo.measured_ms)),
        drills,
    }
}

/// Milliseconds as people read them.
pub(crate) fn seconds(ms: u64) -> String {
    match ms {
        0 => "0 s".to_owned(),
        1..100_000 => format!("{}.{:03} s", ms / 1000, ms % 1000),
        _ => resurgam_model::Duration::from_secs(ms / 1000).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_one_of_the_measurements() {
        let spread = |values: &[u64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        let of = |min_ms, median_ms, max_ms| Some(Spread { min_ms, median_ms, max_ms });
        assert_eq!(spread(&[7]), of(7, 7, 7));
        assert_eq!(spread(&[9, 1, 5]), of(1, 5, 9));
        assert_eq!(spread(&[9, 1, 5, 6]), of(1, 5, 9));
    }

    #[test]
    fn lengths_of_time_are_readable() {
        for (ms, text) in [(0, "0 s"), (1234, "1.234 s"), (99_999, "99.999 s"), (900_000, "15m")] {
            assert_eq!(seconds(ms), text);
        }
    }
}
