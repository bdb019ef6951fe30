//! Whether the roles answer, and whether the platform works.

use std::collections::BTreeMap;
use std::time::Duration;

use resurgam_client::Client;
use resurgam_model::plan::Detection;
use resurgam_model::{ComponentName, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The health of one component, with hysteresis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// It answered at least once.
    pub met: bool,
    /// Failed probes in a row.
    pub failures: u32,
    /// Successful probes in a row.
    pub successes: u32,
    /// When the first of the failures in a row was.
    pub failing_since: Option<Timestamp>,
    /// When it answered last.
    pub answered_at: Option<Timestamp>,
    /// Why the last failed.
    pub why: Option<String>,
}

impl Health {
    fn note(&mut self, outcome: Result<(), String>, now: Timestamp) {
        match outcome {
            Ok(()) => {
                self.met = true;
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.failing_since = None;
                self.answered_at = Some(now);
                self.why = None;
            }
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
                self.failing_since.get_or_insert(now);
                self.why = Some(why);
            }
        }
    }

    /// So many probes in a row have failed that it is suspect.
    #[must_use]
    pub fn is_suspect(&self, detection: &Detection) -> bool {
        self.failures >= detection.failures
    }

    /// It has answered so often in a row that it counts as well.
    #[must_use]
    pub fn is_well(&self, detection: &Detection) -> bool {
        self.successes >= detection.successes
    }
}

/// The health of all components that are probed.
pub type Board = BTreeMap<ComponentName, Health>;

/// Probes the components over HTTP, until it is dropped.
pub async fn watch_all(
    targets: Vec<(ComponentName, Client)>,
    detection: Detection,
    board: watch::Sender<Board>,
) {
    let mut probes = JoinSet::new();
    for (name, client) in targets {
        let board = board.clone();
        let client = client.with_timeout(detection.timeout);
        probes.spawn(async move {
            loop {
                let outcome = client.health().await.map(|_| ()).map_err(|error| error.to_string());
                board.send_modify(|board| {
                    board.entry(name.clone()).or_default().note(outcome, Timestamp::now());
                });
                tokio::time::sleep(detection.interval.0).await;
            }
        });
    }
    while probes.join_next().await.is_some() {}
}

/// Asks the platform itself whether it works, down to a write in its store.
#[derive(Clone, Debug)]
pub struct Readiness {
    client: Client,
}

impl Readiness {
    /// By this API.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client: client.with_timeout(resurgam_model::Duration::from_secs(2)) }
    }

    /// The client, for other questions.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks once.
    pub async fn is_ready(&self) -> bool {
        self.client.ready().await.is_ok_and(|readiness| readiness.is_ready())
    }

    /// Returns once it works, asked from now on.
    pub async fn wait(&self) {
        while !self.is_ready().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_no_suspicion_and_one_success_no_health() {
        let detection = Detection { failures: 3, successes: 2, ..Detection::default() };
        let mut health = Health::default();
        let mut step = |ok: bool| {
            let outcome = if ok { Ok(()) } else { Err("refused".to_owned()) };
            health.note(outcome, Timestamp::UNIX_EPOCH);
            (health.is_suspect(&detection), health.is_well(&detection))
        };
        let seen: Vec<_> =
            [true, true, false, false, true, false, false, false, true, true].map(&mut step).into();
        let suspect: Vec<_> = seen.iter().map(|(suspect, _)| *suspect).collect();
        let well: Vec<_> = seen.iter().map(|(_, well)| *well).collect();
        assert_eq!(suspect, [false, false, false, false, false, false, false, true, false, false]);
        assert_eq!(well, [false, true, false, false, false, false, false, false, false, true]);
    }
}
