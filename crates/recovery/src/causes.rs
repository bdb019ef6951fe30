//! One incident for each cause: what explains what, and what else could have been the matter.
//!
//! The graph is small and written down here. Something that ended by itself is never explained away: it has to
//! be started again whatever else is the matter.

use resurgam_model::{IncidentId, Scenario};

use crate::controller::{Controller, is_of_database};
use crate::health::Health;
use crate::journal::{Incident, NewIncident};
use crate::postgres::{Verdict, diagnose};

/// Whether the one, while it lasts, brings the other with it.
#[must_use]
fn explains(cause: Scenario, symptom: Scenario) -> bool {
    match cause {
        // All is being started anyway; but only the database itself knows how it is.
        Scenario::FullStop | Scenario::Controller => !matches!(
            symptom,
            Scenario::FullStop
                | Scenario::Controller
                | Scenario::PostgresPrimary
                | Scenario::DatabaseCorruption
        ),
        Scenario::KafkaCluster => symptom == Scenario::KafkaBroker,
        // With a database that is being replaced go its connections, and its standby is made anew.
        cause if is_of_database(cause) => matches!(
            symptom,
            Scenario::PoolExhaustion | Scenario::PostgresStandby | Scenario::StuckTasks
        ),
        // Who cannot report what it has done seems to be at it still.
        Scenario::Api | Scenario::PoolExhaustion => symptom == Scenario::StuckTasks,
        _ => false,
    }
}

/// What was found, as causes on their own, and as symptoms of what is open or was found beside them.
pub(crate) fn sorted(
    found: Vec<NewIncident>,
    open: &[Incident],
) -> (Vec<NewIncident>, Vec<(IncidentId, NewIncident)>) {
    let all: Vec<_> = found.iter().map(|new| new.scenario).collect();
    let mut causes = Vec::new();
    let mut symptoms = Vec::new();
    for new in found {
        let known = open.iter().find(|open| explains(open.scenario, new.scenario));
        if let Some(known) = known {
            symptoms.push((known.id, new));
        } else if !all.iter().any(|other| *other != new.scenario && explains(*other, new.scenario))
        {
            causes.push(new);
        }
    }
    (causes, symptoms)
}

impl Controller {
    /// What else could be the matter, each with what speaks for or against it; kept as evidence when an
    /// incident is opened. None where nothing else could.
    pub(crate) fn considered(&self, new: &NewIncident) -> Option<String> {
        let mut lines = Vec::new();
        let others = Scenario::ALL.into_iter().filter(|other| {
            *other != new.scenario
                && self.parts.plan.has(*other)
                && !other.is_planned()
                && explains(*other, new.scenario)
        });
        for other in others {
            if let Some(says) = self.signs_of(other) {
                lines.push(format!("{other}: {says}"));
            }
        }
        // Whoever does not answer may only be slow.
        let silent = matches!(
            new.scenario,
            Scenario::Api | Scenario::AgentRegistry | Scenario::PostgresPrimary
        );
        if silent && let Some(load) = load() {
            lines.push(load);
        }
        if lines.is_empty() {
            return None;
        }
        Some(format!("also considered:\n{}", lines.join("\n")))
    }

    /// What is seen now of a scenario.
    fn signs_of(&self, scenario: Scenario) -> Option<String> {
        match scenario {
            Scenario::PostgresPrimary => {
                let database = self.database(scenario)?;
                Some(match diagnose(&database.signs(database.open_patience())) {
                    Verdict::Healthy => {
                        "no: the primary takes writes and gives them back".to_owned()
                    }
                    Verdict::Starting => "not known: the primary is coming up".to_owned(),
                    Verdict::Suspect(signs) => {
                        format!("not excluded: {}", signs.join("; "))
                    }
                    Verdict::Lost(signs) => format!("yes: {}", signs.join("; ")),
                })
            }
            Scenario::DatabaseCorruption => {
                let database = self.database(scenario)?;
                Some(match database.damaged() {
                    None => "no: no page has failed its checksum".to_owned(),
                    Some(pages) => format!("yes: {pages} pages have failed their checksums"),
                })
            }
            Scenario::FullStop | Scenario::Controller => {
                let board = self.board.borrow();
                let detection = &self.parts.plan.detection;
                let suspect = |health: &Health| health.is_suspect(detection);
                let ill = board.values().filter(|health| suspect(health)).count();
                Some(format!("no: {} of {} roles answer", board.len() - ill, board.len()))
            }
            _ => None,
        }
    }
}

/// Whether this machine has more to do than it can.
fn load() -> Option<String> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().ok()?.get();
    #[allow(clippy::cast_precision_loss, reason = "a number of cores")]
    let word = if load > 2.0 * cores as f64 { "not excluded" } else { "no" };
    Some(format!("an overloaded machine: {word}: a load of {load} on {cores} cores"))
}

#[cfg(test)]
mod tests {
    use resurgam_model::{ComponentName, Timestamp};

    use super::*;

    fn new(scenario: Scenario) -> NewIncident {
        NewIncident {
            scenario,
            component: ComponentName::new("x").unwrap(),
            cause: "seen".to_owned(),
            first_sign: Timestamp::UNIX_EPOCH,
        }
    }

    fn open(scenario: Scenario) -> Incident {
        Incident::example(scenario, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn symptoms_belong_to_their_cause() {
        let look = |found: &[Scenario], opened: &[Scenario]| {
            let opened: Vec<_> = opened.iter().copied().map(open).collect();
            let (causes, symptoms) = sorted(found.iter().copied().map(new).collect(), &opened);
            let of = |id| opened.iter().find(|open| open.id == id).unwrap().scenario;
            (
                causes.into_iter().map(|new| new.scenario).collect::<Vec<_>>(),
                symptoms.into_iter().map(|(id, new)| (of(id), new.scenario)).collect::<Vec<_>>(),
            )
        };
        use Scenario::{
            AgentRegistry, DatabaseCorruption, FullStop, KafkaBroker, KafkaCluster, PoolExhaustion,
            PostgresPrimary, PostgresStandby, WorkerPool,
        };
        assert_eq!(look(&[PoolExhaustion], &[]), (vec![PoolExhaustion], vec![]));
        let explained = look(&[PoolExhaustion, WorkerPool], &[PostgresPrimary]);
        assert_eq!(explained, (vec![WorkerPool], vec![(PostgresPrimary, PoolExhaustion)]));
        // Both at once: the symptom waits until its cause has an incident.
        assert_eq!(look(&[PostgresPrimary, PostgresStandby], &[]), (vec![PostgresPrimary], vec![]));
        assert_eq!(look(&[KafkaBroker, KafkaCluster], &[]).0, [KafkaCluster]);
        let stopped = look(&[PostgresPrimary, AgentRegistry, DatabaseCorruption], &[FullStop]);
        assert_eq!(stopped.0, [PostgresPrimary, DatabaseCorruption]);
        assert_eq!(stopped.1, [(FullStop, AgentRegistry)]);
        // What is open itself is no symptom of anything else.
        assert_eq!(look(&[KafkaBroker], &[KafkaBroker]).0, [KafkaBroker]);
    }

    #[test]
    fn nothing_explains_itself_and_no_two_explain_each_other() {
        for one in Scenario::ALL {
            assert!(!explains(one, one), "{one}");
            for other in Scenario::ALL.into_iter().filter(|other| *other != one) {
                assert!(!(explains(one, other) && explains(other, one)), "{one} and {other}");
            }
        }
    }
}
