//! Alerts of others that say what has failed: the webhook of Prometheus' Alertmanager.
//!
//! An alert names a scenario by a label. It is written down as an order, as what a person or a backup
//! has found is; the runbook finds out whether it is true before it changes anything.

use std::collections::BTreeMap;
use std::path::Path;

use resurgam_model::{ComponentName, Scenario, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::journal::Journal;
use crate::journal::orders::{Order, Ordered};

/// The label with the scenario.
pub const SCENARIO: &str = "resurgam_scenario";
/// The label with the component that it is about.
pub const COMPONENT: &str = "resurgam_component";
/// So many alerts at once at most.
const MOST: usize = 100;

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
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Alerts that were written down.
    pub taken: usize,
    /// Alerts that are over, or name no scenario.
    pub passed_over: usize,
}

/// The orders that follow from what was sent, and how many alerts were passed over.
///
/// # Errors
/// Which alert cannot be used, and why. Then none is.
pub fn orders(sent: Webhook) -> std::result::Result<(Vec<Order>, usize), String> {
    if sent.alerts.len() > MOST {
        return Err(format!("{} alerts at once are too many; at most {MOST}", sent.alerts.len()));
    }
    let all = sent.alerts.len();
    let mut orders = Vec::new();
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
        orders.push(Order::Report { scenario, component, finding });
    }
    let passed_over = all - orders.len();
    Ok((orders, passed_over))
}

/// Writes them down for the controller.
///
/// # Errors
/// When the journal fails.
pub(crate) fn take(journal: &Journal, orders: Vec<Order>, passed_over: usize) -> Result<Taken> {
    let taken = orders.len();
    for order in orders {
        journal.order(&Ordered { by: "alertmanager".to_owned(), order }, Timestamp::now())?;
    }
    Ok(Taken { taken, passed_over })
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

    fn read(alerts: &serde_json::Value) -> std::result::Result<(Vec<Order>, usize), String> {
        orders(serde_json::from_value(json!({ "version": "4", "alerts": alerts })).unwrap())
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
