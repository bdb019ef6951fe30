//! Alerts of others that say what has failed: the webhook of Prometheus' Alertmanager.
//!
//! An alert names a scenario by a label. It is written down as an order, as what a person or a backup
//! has found is; the runbook finds out whether it is true before it changes anything.

use std::collections::BTreeMap;
use std::path::Path;

use resurgam_model::{ComponentName, Scenario, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::journal::orders::{Order, Ordered};
use crate::journal::{IncidentState, Journal};

/// The label with the scenario.
pub const SCENARIO: &str = "resurgam_scenario";
/// The label with the component that it is about.
pub const COMPONENT: &str = "resurgam_component";
/// So many alerts at once at most.
const MOST: usize = 100;
/// Among so many incidents the last of a scenario is looked for.
const RECENT: u32 = 50;

/// What Alertmanager sends, as far as it is of use here; there is more in it.
#[derive(Debug, Deserialize)]
pub struct Webhook {
    alerts: Vec<Alert>,
}

#[derive(Debug, Deserialize)]
struct Alert {
    status: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// Stays the same for as long as the labels do.
    #[serde(default)]
    fingerprint: Option<String>,
    #[serde(default, rename = "startsAt")]
    starts_at: Option<Timestamp>,
}

/// One firing of an alert, which is sent again and again while it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firing {
    fingerprint: String,
    since: Timestamp,
}

/// What follows from all that was sent.
#[derive(Debug, Default)]
pub struct Orders {
    /// Each with the firing that it is of, if that is known.
    told: Vec<(Option<Firing>, Order)>,
    /// How many alerts were passed over.
    passed_over: usize,
}

impl Firing {
    fn of(alert: &Alert) -> Option<Self> {
        let fingerprint = alert.fingerprint.clone()?;
        let known = !fingerprint.is_empty()
            && fingerprint.len() <= 64
            && fingerprint.bytes().all(|byte| byte.is_ascii_alphanumeric());
        known.then_some(Self { fingerprint, since: alert.starts_at? })
    }

    /// Under which the journal keeps the last firing of the alert, and its value.
    fn mark(&self) -> (String, u64) {
        let since = u64::try_from(self.since.as_millisecond()).unwrap_or_default();
        (format!("alert/{}", self.fingerprint), since)
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Alerts that were written down.
    pub taken: usize,
    /// Alerts that are over, or name no scenario.
    pub passed_over: usize,
    /// Alerts that were taken before, and still fire: what was recovered is not recovered again and again.
    pub repeated: usize,
}

/// The orders that follow from what was sent.
///
/// # Errors
/// Which alert cannot be used, and why. Then none is.
pub fn orders(sent: Webhook) -> std::result::Result<Orders, String> {
    if sent.alerts.len() > MOST {
        return Err(format!("{} alerts at once are too many; at most {MOST}", sent.alerts.len()));
    }
    let all = sent.alerts.len();
    let mut told = Vec::new();
    for alert in sent.alerts.into_iter().filter(|alert| alert.status == "firing") {
        let Some(scenario) = alert.labels.get(SCENARIO) else { continue };
        let name = alert.labels.get("alertname").map_or("an alert", String::as_str);
        let scenario: Scenario =
            scenario.parse().map_err(|error| format!("{name}: the label {SCENARIO}: {error}"))?;
        let component = alert.labels.get(COMPONENT).map(|name| ComponentName::new(name.clone()));
        let component = component
            .transpose()
            .map_err(|error| format!("{name}: the label {COMPONENT}: {error}"))?;
        let summary =
            alert.annotations.get("summary").or_else(|| alert.annotations.get("description"));
        let finding = match summary {
            Some(summary) => format!("{name}: {}", summary.chars().take(500).collect::<String>()),
            None => name.to_owned(),
        };
        told.push((Firing::of(&alert), Order::Report { scenario, component, finding }));
    }
    let passed_over = all - told.len();
    Ok(Orders { told, passed_over })
}

/// Writes them down for the controller.
///
/// # Errors
/// When the journal fails.
pub(crate) fn take(journal: &Journal, orders: Orders) -> Result<Taken> {
    let Orders { told, passed_over } = orders;
    let (mut taken, mut repeated) = (0, 0);
    for (firing, order) in told {
        let mark = firing.as_ref().map(Firing::mark);
        if let Some((reader, since)) = &mark
            && journal.marked(reader)? == Some(*since)
            && !has_failed(journal, &order)?
        {
            repeated += 1;
            continue;
        }
        journal.order(&Ordered { by: "alertmanager".to_owned(), order }, Timestamp::now())?;
        if let Some((reader, since)) = mark {
            journal.mark(&reader, since)?;
        }
        taken += 1;
    }
    Ok(Taken { taken, passed_over, repeated })
}

/// Whether the last recovery of what is reported did not succeed: then the next word is welcome.
fn has_failed(journal: &Journal, order: &Order) -> Result<bool> {
    let Order::Report { scenario, .. } = order else { return Ok(false) };
    let last = journal.incidents(RECENT)?.into_iter().find(|last| last.scenario == *scenario);
    Ok(last.is_some_and(|l| matches!(l.state, IncidentState::Failed | IncidentState::Refused)))
}

/// The token that callers must show.
///
/// # Errors
/// Why there is none, without showing it.
pub(crate) fn token(file: Option<&Path>, base: &Path) -> std::result::Result<String, String> {
    let file = file.ok_or(
        "this deployment takes no alerts; set alerts.token_file in its plan, and let the caller show that token",
    )?;
    let path = base.join(file);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let token = text.lines().next().unwrap_or_default().trim();
    match token.len() {
        0..16 => Err(format!("the token in {} has fewer than 16 characters", path.display())),
        _ => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent(alerts: &serde_json::Value) -> Webhook {
        serde_json::from_value(json!({ "version": "4", "alerts": alerts })).unwrap()
    }

    fn read(alerts: &serde_json::Value) -> std::result::Result<(Vec<Order>, usize), String> {
        let Orders { told, passed_over } = orders(sent(alerts))?;
        Ok((told.into_iter().map(|(_, order)| order).collect(), passed_over))
    }

    #[test]
    fn an_alert_that_is_sent_again_while_it_fires_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal.db")).unwrap();
        let alert = |since: &str| {
            json!([{ "status": "firing", "labels": { SCENARIO: "api" },
                     "fingerprint": "091afb4f962320df", "startsAt": since }])
        };
        let take = |alerts: &serde_json::Value| {
            let taken = take(&journal, orders(sent(alerts)).unwrap()).unwrap();
            (taken.taken, taken.repeated)
        };
        let first = alert("2026-11-30T15:42:56.828Z");
        assert_eq!(take(&first), (1, 0));
        assert_eq!(take(&first), (0, 1));
        assert_eq!(take(&alert("2026-11-30T16:00:00Z")), (1, 0), "it fires anew");
        let nameless = json!([{ "status": "firing", "labels": { SCENARIO: "api" } }]);
        assert_eq!((take(&nameless), take(&nameless)), ((1, 0), (1, 0)), "nobody can tell");
        // What did not succeed is tried again at the next word.
        let new = crate::journal::NewIncident {
            scenario: Scenario::Api,
            component: ComponentName::new("api").unwrap(),
            cause: "told".to_owned(),
            first_sign: Timestamp::now(),
        };
        let incident = journal.open_incident(&new, Timestamp::now()).unwrap();
        let second = alert("2026-11-30T16:00:00Z");
        assert_eq!(take(&second), (0, 1));
        journal.close_incident(incident.id, IncidentState::Failed, Timestamp::now()).unwrap();
        assert_eq!(take(&second), (1, 0));
    }

    #[test]
    fn only_what_fires_and_names_a_scenario_is_taken() {
        let (orders, passed_over) = read(&json!([
            { "status": "firing", "labels": { "alertname": "Down", SCENARIO: "api" },
              "annotations": { "summary": "no answer" }, "startsAt": "2026-11-30T12:00:00Z" },
            { "status": "resolved", "labels": { SCENARIO: "api" } },
            { "status": "firing", "labels": { "alertname": "Other" } },
        ]))
        .unwrap();
        assert_eq!(passed_over, 2);
        let expected = Order::Report {
            scenario: Scenario::Api,
            component: None,
            finding: "Down: no answer".to_owned(),
        };
        assert_eq!(orders, [expected]);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_nothing_is_taken() {
        let error = read(&json!([
            { "status": "firing", "labels": { SCENARIO: "api" } },
            { "status": "firing", "labels": { "alertname": "Typo", SCENARIO: "postgers" } },
        ]))
        .unwrap_err();
        assert!(error.contains("Typo") && error.contains("postgers"), "{error}");
        let alert =
            json!({ "status": "firing", "labels": { SCENARIO: "api", COMPONENT: "no such" } });
        assert!(read(&json!([alert])).unwrap_err().contains(COMPONENT));
        let many = vec![json!({ "status": "firing" }); MOST + 1];
        assert!(read(&json!(many)).unwrap_err().contains("too many"));
    }

    #[test]
    fn without_a_token_of_some_length_none_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let of = |file: Option<&str>| token(file.map(Path::new), dir.path());
        assert!(of(None).unwrap_err().contains("alerts.token_file"));
        assert!(of(Some("none")).unwrap_err().contains("cannot read"));
        std::fs::write(dir.path().join("short"), "hunter2\n").unwrap();
        let error = of(Some("short")).unwrap_err();
        assert!(error.contains("fewer than") && !error.contains("hunter2"), "{error}");
        std::fs::write(dir.path().join("long"), " 0123456789abcdef \n").unwrap();
        assert_eq!(of(Some("long")).unwrap(), "0123456789abcdef");
    }
}
