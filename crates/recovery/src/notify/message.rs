//! What is told, in words and for each kind of receiver.

use resurgam_model::plan::Contacts;
use resurgam_model::{Severity, Timestamp};
use serde_json::{Value, json};

use super::event::{Event, What};
use crate::journal::{Incident, IncidentState};

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The deployment.
    pub deployment: String,
    /// In one line.
    pub subject: String,
    /// In several lines, with what to do.
    pub text: String,
    /// What it is about; none for a test, several when many came at once.
    pub about: Vec<About>,
}

/// An incident in a message.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// As it is now.
    pub incident: Incident,
    /// The word for what has happened.
    pub event: &'static str,
    /// When.
    pub at: Timestamp,
    /// The entry of the journal.
    pub entry: u64,
    /// It is over, and no person is needed.
    pub over: bool,
}

impl Told {
    pub(super) fn new(deployment: &str, event: &Event, contacts: &Contacts) -> Self {
        let Event { incident, what, at, number } = event;
        let Incident { id, severity, scenario, component, cause, .. } = incident;
        let (word, says, then) = match what {
            What::Opened => (
                "opened",
                "opened".to_owned(),
                format!("The recovery begins by itself. To follow it: resurgam incident show {id}"),
            ),
            What::Anew => (
                "begun-anew",
                format!("the recovery is begun anew, for the {}. time", incident.round + 1),
                format!("To follow it: resurgam incident show {id}"),
            ),
            What::Raised => (
                "raised",
                format!("graver than it was, {severity} by now"),
                format!("Why, and to follow it: resurgam incident show {id}"),
            ),
            What::Waits { step, question } => (
                "waits",
                format!("the step {step} WAITS FOR A PERSON"),
                format!(
                    "{question}\nTo agree: resurgam approve {id}\nTo refuse: resurgam reject {id}"
                ),
            ),
            What::Restored => (
                "restored",
                "the service works again".to_owned(),
                "Redundancy may still be missing; the recovery goes on.".to_owned(),
            ),
            What::Closed(IncidentState::Failed) => (
                "failed",
                "the recovery FAILED, a person is needed".to_owned(),
                format!(
                    "Look: resurgam incident show {id}\nBy hand: resurgam runbook {scenario}\nThen: resurgam recover --resume {id}"
                ),
            ),
            What::Closed(IncidentState::Refused) => (
                "refused",
                "the recovery was REFUSED, a person has to decide".to_owned(),
                format!("Why: resurgam incident show {id}\nBy hand: resurgam runbook {scenario}"),
            ),
            What::Closed(state) => (
                state.as_str(),
                format!("closed: {}", state.as_str()),
                format!("All of it: resurgam incident show {id}"),
            ),
        };
        let over = matches!(
            what,
            What::Closed(
                IncidentState::Recovered | IncidentState::FalseAlarm | IncidentState::Resolved
            )
        );
        let mut text = format!("Cause: {cause}\nSince: {}\n{then}", incident.first_sign);
        if !over {
            let database = crate::paper::is_for_database_team(*scenario);
            for (who, how, needed) in [
                ("On call", &contacts.on_call, true),
                ("Database team", &contacts.database, database),
                ("Infrastructure team", &contacts.infrastructure, true),
            ] {
                if let (Some(how), true) = (how, needed) {
                    text = format!("{text}\n{who}: {how}");
                }
            }
        }
        Self {
            deployment: deployment.to_owned(),
            subject: mask(&format!("[{severity}] {deployment}: {scenario} on {component}: {says}")),
            text: mask(&text),
            about: vec![About {
                incident: Incident { cause: mask(cause), ..incident.clone() },
                event: word,
                at: *at,
                entry: *number,
                over,
            }],
        }
    }

    /// To see that a channel works.
    #[must_use]
    pub fn test(deployment: &str) -> Self {
        Self {
            deployment: deployment.to_owned(),
            subject: format!("{deployment}: a test of notifications"),
            text: "Nothing has happened. Somebody tried whether this reaches you.".to_owned(),
            about: Vec::new(),
        }
    }

    /// One message of all of them; none of none.
    pub(super) fn together(all: Vec<Self>) -> Option<Self> {
        let count = all.len();
        let mut all = all.into_iter();
        let first = all.next()?;
        if count == 1 {
            return Some(first);
        }
        let whole = |told: &Self| format!("{}\n{}", told.subject, told.text);
        let mut text = whole(&first);
        let mut about = first.about;
        for told in all {
            text = format!("{text}\n\n{}", whole(&told));
            about.extend(told.about);
        }
        let gravest = about.iter().map(|about| about.incident.severity).min();
        let gravest = gravest.unwrap_or(Severity::P3);
        let subject = format!("[{gravest}] {}: {count} messages", first.deployment);
        Some(Self { deployment: first.deployment, subject, text, about })
    }

    /// Of each incident what has happened last: for receivers that keep one state of it.
    fn latest(&self) -> Vec<&About> {
        let mut latest: Vec<&About> = Vec::new();
        for about in &self.about {
            latest.retain(|other| other.incident.id != about.incident.id);
            latest.push(about);
        }
        latest
    }

    /// For webhooks.
    pub(super) fn webhook(&self) -> Value {
        let about = |about: &About| {
            json!({
                "event": about.event,
                "at": about.at,
                "entry": about.entry,
                "incident": about.incident,
            })
        };
        json!({
            "deployment": self.deployment,
            "subject": self.subject,
            "text": self.text,
            "events": self.about.iter().map(about).collect::<Vec<_>>(),
        })
    }

    /// For Slack. What it would take for markup is escaped, as its documents ask.
    pub(super) fn slack(&self) -> Value {
        let plain =
            |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        json!({ "text": format!("*{}*\n{}", plain(&self.subject), plain(&self.text)) })
    }

    /// For Alertmanager: one alert for each incident. One that goes on is said to end in a day, lest it
    /// count as over because nobody repeats it.
    pub(super) fn alerts(&self) -> Value {
        const DAY_SECONDS: i64 = 86_400;
        let alert = |about: &About| {
            let incident = &about.incident;
            let going_on = || Timestamp::from_second(about.at.as_second() + DAY_SECONDS).ok();
            let end = if about.over { incident.closed_at } else { going_on() };
            json!({
                "labels": {
                    "alertname": "ResurgamIncident",
                    "deployment": self.deployment,
                    "scenario": incident.scenario,
                    "component": incident.component,
                    "severity": incident.severity,
                    "incident": incident.id,
                },
                "annotations": { "summary": self.subject, "description": self.text },
                "startsAt": incident.first_sign,
                "endsAt": end,
            })
        };
        let test = || {
            json!({
                "labels": { "alertname": "ResurgamTest", "deployment": self.deployment },
                "annotations": { "summary": self.subject, "description": self.text },
            })
        };
        match self.about.as_slice() {
            [] => json!([test()]),
            _ => self.latest().into_iter().map(alert).collect(),
        }
    }

    /// For PagerDuty: one event for each incident, which knows its own again by the id.
    pub(super) fn pager_events(&self, key: &str) -> Vec<Value> {
        let event = |action: &str, dedup: String, severity: Severity, details: Value| {
            json!({
                "routing_key": key,
                "event_action": action,
                "dedup_key": dedup,
                "payload": {
                    "summary": self.subject.chars().take(1000).collect::<String>(),
                    "source": self.deployment,
                    "severity": match severity {
                        Severity::P0 => "critical",
                        Severity::P1 => "error",
                        Severity::P2 => "warning",
                        Severity::P3 => "info",
                    },
                    "custom_details": details,
                },
            })
        };
        let of = |about: &About| {
            let action = if about.over { "resolve" } else { "trigger" };
            let incident = &about.incident;
            let details = json!({ "text": self.text, "incident": incident });
            event(action, incident.id.to_string(), incident.severity, details)
        };
        match self.about.as_slice() {
            [] => {
                let dedup = format!("resurgam-test-{}", self.deployment);
                vec![event("trigger", dedup, Severity::P3, json!({ "text": self.text }))]
            }
            _ => self.latest().into_iter().map(of).collect(),
        }
    }
}

/// The text without what looks like a secret: the passwords in addresses, and what stands after words
/// such as `password=`. Nothing in the journal should hold any; this is the second lock on that door.
fn mask(text: &str) -> String {
    const WORDS: [&str; 4] = ["password=", "secret=", "token=", "apikey="];
    let word = |word: &str| {
        let lower = word.to_ascii_lowercase();
        if let Some(at) = WORDS.iter().find_map(|w| lower.find(w).map(|at| at + w.len())) {
            return format!("{}***", word.get(..at).unwrap_or_default());
        }
        let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
        match rest.split_once('@') {
            Some((_, host)) => format!("{scheme}://***@{host}"),
            None => word.to_owned(),
        }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use resurgam_model::Scenario;

    use super::super::event::tests::incident;
    use super::*;

    fn told(scenario: Scenario, what: What) -> Told {
        let contacts = Contacts {
            on_call: Some("+41 1".to_owned()),
            database: Some("dba@example.org".to_owned()),
            infrastructure: None,
        };
        let incident = incident(scenario);
        let at = incident.opened_at;
        Told::new("fleet", &Event { incident, what, at, number: 7 }, &contacts)
    }

    #[test]
    fn a_message_says_what_has_happened_and_what_to_do() {
        let waits = What::Waits { step: "fence".to_owned(), question: "lose 3 s?".to_owned() };
        let told = told(Scenario::PostgresPrimary, waits);
        assert_eq!(
            told.subject,
            "[P0] fleet: postgres-primary on postgres-0: the step fence WAITS FOR A PERSON"
        );
        for part in ["Cause: killed", "lose 3 s?", "resurgam approve 0199a2c0", "dba@example.org"] {
            assert!(told.text.contains(part), "{}", told.text);
        }
    }

    #[test]
    fn only_what_is_over_resolves() {
        for (what, action) in [
            (What::Opened, "trigger"),
            (What::Restored, "trigger"),
            (What::Closed(IncidentState::Failed), "trigger"),
            (What::Closed(IncidentState::Refused), "trigger"),
            (What::Closed(IncidentState::Recovered), "resolve"),
            (What::Closed(IncidentState::FalseAlarm), "resolve"),
        ] {
            let told = told(Scenario::Api, what);
            let event = told.pager_events("key").remove(0);
            assert_eq!(event["event_action"], action, "{event:#}");
            assert_eq!(event["payload"]["severity"], "critical");
        }
        assert_eq!(Told::test("fleet").pager_events("k").len(), 1);
        assert_eq!(Told::test("fleet").alerts()[0]["labels"]["alertname"], "ResurgamTest");
    }

    #[test]
    fn many_become_one_that_holds_all() {
        let one = told(Scenario::WorkerPool, What::Opened);
        assert_eq!(Told::together(vec![one.clone()]), Some(one.clone()));
        assert_eq!(Told::together(Vec::new()), None);
        let two = Told::together(vec![one, told(Scenario::Api, What::Opened)]).unwrap();
        assert_eq!(two.subject, "[P0] fleet: 2 messages");
        assert!(two.text.contains("worker-pool on") && two.text.contains("api on"), "{}", two.text);
        assert_eq!(two.webhook()["events"].as_array().unwrap().len(), 2);
        // Both are about the same incident, of which the last word counts.
        let end = told(Scenario::Api, What::Closed(IncidentState::Recovered));
        let both = Told::together(vec![told(Scenario::Api, What::Opened), end]).unwrap();
        assert_eq!(both.alerts().as_array().unwrap().len(), 1);
        let events = both.pager_events("key");
        assert_eq!((events.len(), &events[0]["event_action"]), (1, &"resolve".into()));
    }

    #[test]
    fn what_looks_like_a_secret_is_masked() {
        assert_eq!(
            mask("cannot reach postgresql://me:geheim@host/db with PASSWORD=geheim now\nfine"),
            "cannot reach postgresql://***@host/db with PASSWORD=*** now\nfine"
        );
        assert_eq!(mask("see https://host/path"), "see https://host/path");
    }

    #[test]
    fn slack_gets_no_markup_that_is_none() {
        let mut told = Told::test("fleet");
        told.text = "a <b> & c".to_owned();
        assert!(told.slack()["text"].as_str().unwrap().ends_with("a &lt;b&gt; &amp; c"));
    }
}
