//! What is known about an owned PostgreSQL, and the means to change it: what the runbook and the
//! diagnosis work on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use resurgam_deployment::Deployment;
use resurgam_deployment::postgres::wire::ServerState;
use resurgam_model::{ComponentName, IncidentId, Objectives, Scenario};
use tokio::sync::watch;

use super::authority::{Authority, View};
use super::diagnosis::{KeeperSign, Signs, SqlSign, StandbySign};
use super::probe::Beat;
use super::runbook::has_begun;
use crate::health::Readiness;
use crate::journal::Journal;
use crate::restorer::SharedRestorer;

/// A standby that hears nothing for longer receives nothing. The probe writes several times a
/// second, so there is always something to hear.
const DEAF_AFTER: Duration = Duration::from_millis(1200);
/// A keeper's word older than this says nothing about the present.
pub(super) const FRESH: Duration = Duration::from_millis(1000);
/// How often a condition is looked at when nothing rings.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// What the steps work on.
#[derive(Clone)]
pub struct Database {
    /// Who reigns.
    pub authority: Arc<Authority>,
    /// What the probe finds.
    pub beat: watch::Receiver<Beat>,
    /// Where it all runs.
    pub deployment: Arc<dyn Deployment>,
    /// Where everything is recorded.
    pub journal: Journal,
    /// Whether the platform works.
    pub platform: Readiness,
    /// What is promised.
    pub objectives: Objectives,
    /// Whether the plan wants commits to wait for a standby.
    pub synchronous: bool,
    /// What brings data back that nobody has any more, if anything does.
    pub restorer: Option<SharedRestorer>,
    /// What the recovery is about.
    pub aim: Aim,
}

/// What a recovery of the database is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The primary is lost.
    Lost,
    /// A person wants what is in the vault, and not the data that is there.
    FromVault,
    /// Pages of the primary are damaged: its data must not reign again.
    Damaged,
    /// All is well, and a person wants another instance to reign.
    Handover,
}

impl Database {
    /// The signs about the primary at this moment.
    #[must_use]
    pub fn signs(&self, patience: Duration) -> Signs {
        let view = self.authority.view();
        let now = Instant::now();
        let primary = view.state.primary.as_ref();
        let seen = primary.and_then(|name| view.seen.get(name));
        let keeper = match seen {
            None => KeeperSign::NeverHeard,
            // What it said last may be long out of date.
            Some(seen) if now - seen.at > FRESH => KeeperSign::Silent(now - seen.at),
            Some(seen) => KeeperSign::Reports(seen.renewal.observed.state.clone()),
        };
        let beat = self.beat.borrow().clone();
        let sql = if beat.target.as_ref() == primary { beat.sign } else { SqlSign::NotTried };
        let port = primary.and_then(|name| self.authority.members().get(name)).map(|a| a.port());
        let standbys = self
            .authority
            .members()
            .keys()
            .filter(|name| Some(*name) != primary)
            .map(|name| StandbySign {
                name: name.to_string(),
                receives: receives(&view, name, port, now),
            })
            .collect();
        Signs {
            keeper,
            sql,
            standbys,
            created: view.state.created,
            reigned: view.reigned,
            reign_for: now - view.since,
            patience,
        }
    }

    /// How many pages of the primary have failed their checksums, if any have.
    #[must_use]
    pub fn damaged(&self) -> Option<u64> {
        let primary = self.authority.view().state.primary;
        let beat = self.beat.borrow();
        (beat.target == primary && beat.damaged > 0).then_some(beat.damaged)
    }

    /// Another incident than this has begun to recover from the loss of the primary.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn loss_is_recovered(&self, than: IncidentId) -> crate::Result<bool> {
        for incident in self.journal.open_incidents()? {
            let other = incident.id != than && incident.scenario == Scenario::PostgresPrimary;
            if other && has_begun(&self.journal.steps(incident.id)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How long the keeper may be silent before an incident is opened.
    #[must_use]
    pub fn open_patience(&self) -> Duration {
        self.authority.lease() / 2
    }

    /// How long it must have been silent before its reign is taken away.
    pub(super) fn fence_patience(&self) -> Duration {
        self.authority.lease() * 3 / 4
    }

    /// Waits until `look` finds something, or rather until the step's time is over.
    pub(super) async fn until<T>(&self, mut look: impl FnMut(&View) -> Option<T>) -> T {
        let mut news = self.authority.news();
        loop {
            if let Some(found) = look(&self.authority.view()) {
                return found;
            }
            tokio::select! {
                _ = news.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

fn receives(view: &View, standby: &ComponentName, port: Option<u16>, now: Instant) -> Option<bool> {
    let seen = view.seen.get(standby).filter(|seen| now - seen.at < FRESH)?;
    let ServerState::Standby(state) = &seen.renewal.observed.state else { return None };
    let age = now - seen.at;
    let streams = state.streaming_from.is_some() && state.streaming_from == port;
    let silent = state.silent_ms.map_or(Duration::MAX, |ms| Duration::from_millis(ms) + age);
    Some(streams && silent < DEAF_AFTER)
}
