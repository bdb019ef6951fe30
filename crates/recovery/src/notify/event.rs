//! What in the journal is worth telling, and to whom: pure functions.

use resurgam_model::plan::{Notify, Team};
use resurgam_model::report::StepStatus;
use resurgam_model::{IncidentId, Scenario, Timestamp};

use crate::journal::chain::{Entry, Kind};
use crate::journal::{Incident, IncidentState};

/// Something that has happened to an incident.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The incident as it is now.
    pub incident: Incident,
    /// What has happened.
    pub what: What,
    /// When.
    pub at: Timestamp,
    /// The entry of the journal that says so.
    pub number: u64,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was opened.
    Opened,
    /// Its recovery was begun anew.
    Anew,
    /// It is graver than it was.
    Raised,
    /// A step waits for a person.
    Waits {
        /// Which.
        step: String,
        /// What is asked.
        question: String,
    },
    /// The service works again; redundancy may be missing.
    Restored,
    /// It was closed, with this state.
    Closed(IncidentState),
}

/// What an entry tells of an incident, if it tells something that people want to know.
pub(super) fn event(entry: &Entry) -> Option<(IncidentId, What)> {
    let at = |moment: Option<Timestamp>| {
        moment.is_some_and(|moment| moment.as_millisecond() == entry.at.as_millisecond())
    };
    match entry.kind {
        Kind::Incident => {
            let incident: Incident = serde_json::from_value(entry.content.clone()).ok()?;
            let what = match incident.state {
                IncidentState::Open if at(Some(incident.opened_at)) => What::Opened,
                IncidentState::Open if at(incident.restored_at) => What::Restored,
                IncidentState::Open if incident.is_raised() && incident.restored_at.is_none() => {
                    What::Raised
                }
                IncidentState::Open if incident.round > 0 && incident.restored_at.is_none() => {
                    What::Anew
                }
                // Only what is asked about it has changed.
                IncidentState::Open => return None,
                closed => What::Closed(closed),
            };
            Some((incident.id, what))
        }
        Kind::Step => {
            let status = entry.content.get("status")?.clone();
            if serde_json::from_value::<StepStatus>(status).ok()? != StepStatus::Waiting {
                return None;
            }
            let text = |key| Some(entry.content.get(key)?.as_str()?.to_owned());
            let id = entry.about.split('/').next()?.parse().ok()?;
            Some((id, What::Waits { step: text("name")?, question: text("detail")? }))
        }
        _ => None,
    }
}

/// What a channel does with an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision<T> {
    /// Its time has not come.
    Wait,
    /// It is none of its business.
    Skip,
    /// It tells.
    Tell(T),
}

/// Decides. `waits` says that the step, if the event is about one, waits still.
pub(super) fn decide(notify: &Notify, event: &Event, waits: bool, now: Timestamp) -> Decision<()> {
    let incident = &event.incident;
    if incident.severity > notify.severity || !concerns(notify.team, incident.scenario) {
        return Decision::Skip;
    }
    let after = i64::try_from(notify.after.as_millis()).unwrap_or(i64::MAX);
    if after == 0 {
        return Decision::Tell(());
    }
    let lasted =
        |until: Timestamp| until.as_millisecond() - incident.opened_at.as_millisecond() >= after;
    match &event.what {
        What::Opened | What::Anew | What::Raised | What::Waits { .. } => {
            if now.as_millisecond() - event.at.as_millisecond() < after {
                return Decision::Wait;
            }
            let still = match &event.what {
                What::Waits { .. } => waits && incident.state == IncidentState::Open,
                _ => match incident.state {
                    IncidentState::Open => incident.restored_at.is_none(),
                    IncidentState::Failed | IncidentState::Refused => true,
                    IncidentState::Recovered
                    | IncidentState::FalseAlarm
                    | IncidentState::Resolved => false,
                },
            };
            if still { Decision::Tell(()) } else { Decision::Skip }
        }
        // Whoever was told of the beginning is told of the end.
        What::Restored => {
            if incident.restored_at.is_some_and(lasted) {
                Decision::Tell(())
            } else {
                Decision::Skip
            }
        }
        What::Closed(state) => {
            let needs_people = matches!(state, IncidentState::Failed | IncidentState::Refused);
            let end = incident.restored_at.or(incident.closed_at).unwrap_or(event.at);
            if needs_people || lasted(end) { Decision::Tell(()) } else { Decision::Skip }
        }
    }
}

/// Whether a team is needed for a scenario.
fn concerns(team: Team, scenario: Scenario) -> bool {
    match team {
        Team::OnCall | Team::Infrastructure => true,
        Team::Database => crate::paper::is_for_database_team(scenario),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use resurgam_model::Severity;
    use resurgam_model::plan::EffectivePlan;
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    pub(crate) fn incident(scenario: Scenario) -> Incident {
        Incident {
            id: "0199a2c0-0000-7000-8000-000000000001".parse().unwrap(),
            ..Incident::example(scenario, at(0))
        }
    }

    fn channel(more: &str) -> Notify {
        let text =
            format!("[[notify]]\nname = 'n'\nkind = 'webhook'\nurl = 'http://127.0.0.1/'\n{more}");
        EffectivePlan::resolve(Some(&text), |_| None).unwrap().plan.notify[0].clone()
    }

    fn entry(kind: Kind, seconds: i64, content: serde_json::Value) -> Entry {
        let about = "0199a2c0-0000-7000-8000-000000000001/0/3".to_owned();
        Entry { number: 1, at: at(seconds), kind, about, content, hash: String::new() }
    }

    #[test]
    fn entries_are_told_once_for_what_has_changed() {
        let of = |incident: &Incident, seconds| {
            let content = serde_json::to_value(incident).unwrap();
            event(&entry(Kind::Incident, seconds, content)).map(|(_, what)| what)
        };
        let mut incident = incident(Scenario::Api);
        assert_eq!(of(&incident, 0), Some(What::Opened));
        assert_eq!(of(&incident, 1), None, "when people are asked was changed");
        let raised = Incident { severity: Severity::P0, ..self::incident(Scenario::WorkerPool) };
        assert_eq!(of(&raised, 1), Some(What::Raised));
        incident.restored_at = Some(at(5));
        assert_eq!(of(&incident, 5), Some(What::Restored));
        incident.state = IncidentState::Recovered;
        incident.closed_at = Some(at(9));
        assert_eq!(of(&incident, 9), Some(What::Closed(IncidentState::Recovered)));
        let waits = json!({"name": "fence", "status": "waiting", "detail": "shall it?"});
        let found = event(&entry(Kind::Step, 2, waits)).unwrap();
        assert_eq!(found.0, incident.id);
        assert!(matches!(found.1, What::Waits { step, .. } if step == "fence"));
        let done = json!({"name": "fence", "status": "done", "detail": ""});
        assert_eq!(event(&entry(Kind::Step, 2, done)), None);
    }

    #[test]
    fn channels_hear_what_concerns_them() {
        let hears = |more: &str, scenario: Scenario| {
            let event =
                Event { incident: incident(scenario), what: What::Opened, at: at(0), number: 1 };
            decide(&channel(more), &event, false, at(1)) == Decision::Tell(())
        };
        assert!(hears("", Scenario::WorkerPool));
        assert!(hears("severity = 'P0'", Scenario::Api));
        assert!(!hears("severity = 'P0'", Scenario::WorkerPool));
        assert_eq!(Scenario::WorkerPool.severity(), Severity::P1);
        assert!(hears("team = 'database'", Scenario::PoolExhaustion));
        assert!(!hears("team = 'database'", Scenario::Api));
        assert!(hears("team = 'infrastructure'", Scenario::Api));
    }

    #[test]
    fn who_comes_next_is_told_of_what_lasts() {
        let channel = channel("after = '10m'");
        let decide = |incident: &Incident, what: What, event_at: i64, waits: bool, now: i64| {
            let event = Event { incident: incident.clone(), what, at: at(event_at), number: 1 };
            decide(&channel, &event, waits, at(now))
        };
        let open = incident(Scenario::Api);
        assert_eq!(decide(&open, What::Opened, 0, false, 599), Decision::Wait);
        assert_eq!(decide(&open, What::Opened, 0, false, 600), Decision::Tell(()));
        let quick = Incident { restored_at: Some(at(5)), ..open.clone() };
        assert_eq!(decide(&quick, What::Opened, 0, false, 600), Decision::Skip);
        assert_eq!(decide(&quick, What::Restored, 5, false, 600), Decision::Skip);
        let closed =
            |seconds, state| Incident { closed_at: Some(at(seconds)), state, ..open.clone() };
        let recovered = IncidentState::Recovered;
        let what = || What::Closed(recovered);
        assert_eq!(decide(&closed(9, recovered), what(), 9, false, 9), Decision::Skip);
        assert_eq!(decide(&closed(700, recovered), what(), 700, false, 700), Decision::Tell(()));
        let failed = closed(9, IncidentState::Failed);
        let what = What::Closed(IncidentState::Failed);
        assert_eq!(
            decide(&failed, what, 9, false, 9),
            Decision::Tell(()),
            "a person is needed now"
        );
        let waits = || What::Waits { step: "fence".to_owned(), question: String::new() };
        assert_eq!(decide(&open, waits(), 20, true, 619), Decision::Wait);
        assert_eq!(decide(&open, waits(), 20, true, 620), Decision::Tell(()));
        assert_eq!(decide(&open, waits(), 20, false, 620), Decision::Skip, "somebody has answered");
    }
}
