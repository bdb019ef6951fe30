//! The runbook that hands the reign over while all is well: the way back after a failover.
//!
//! confirm → evidence → catch-up → fence → choose → promote → reroute → verify → rebuild → redundancy
//!
//! Only who is on record as having everything is handed to, so that nothing acknowledged can be missing.
//! From the fence on it goes the way of a failover; should the successor be lost right then, the former
//! primary, which is stopped in order and has everything as well, reigns again.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::postgres::wire::ServerState;
use resurgam_model::ComponentName;
use serde_json::json;

use super::database::{Database, FRESH};
use super::runbook::{Evidence, Fence, Promote, Rebuild, Redundancy, Reroute, Verify, name_in};
use crate::runbook::{Danger, Done, Outline, SoFar, Step, Stop};

const CONFIRM: usize = 0;
const CATCH_UP: usize = 2;
const CHOOSE: usize = 4;

/// So long the successor may take to stream, and then to have everything.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long it may take to answer once nobody reigns, before the former primary reigns again.
const SUCCESSION: Duration = Duration::from_secs(10);

/// In order.
pub static HANDOVER_OUTLINE: [Outline; 10] = [
    Outline {
        name: "confirm",
        danger: Danger::Looks,
        does: "Makes sure that another instance reigns, and that the preferred one streams from it.",
        verified: "Both are in the journal.",
        by_hand: &[
            "resurgam status",
            "psql --host PRIMARY --username postgres --command \"SELECT application_name, state, sync_state, replay_lag FROM pg_stat_replication\"",
        ],
    },
    Outline {
        name: "evidence",
        danger: Danger::Looks,
        does: "Keeps what every keeper said last, with positions in the log.",
        verified: "The records are in the journal.",
        by_hand: &[
            "psql --host PRIMARY --username postgres --command \"SELECT pg_current_wal_flush_lsn()\"",
        ],
    },
    Outline {
        name: "catch-up",
        danger: Danger::Acts,
        does: "Has commits wait for the preferred instance, and waits until it has everything that was acknowledged before. If it does not get there, nothing is changed.",
        verified: "It is on record as having every acknowledged write.",
        by_hand: &[
            "psql --host PRIMARY --username postgres --command \"ALTER SYSTEM SET synchronous_standby_names = '\\\"postgres-0\\\"'\" --command \"SELECT pg_reload_conf()\"",
            "psql --host PRIMARY --username postgres --command CHECKPOINT",
            "# Wait until it is sync, and nothing is left to flush:",
            "psql --host PRIMARY --username postgres --command \"SELECT application_name, sync_state, pg_current_wal_flush_lsn() - flush_lsn AS lacks FROM pg_stat_replication\"",
        ],
    },
    Outline {
        name: "fence",
        danger: Danger::Dangerous,
        does: "Takes the reign away, cuts the clients off, and waits for the word of the keeper that its server is stopped. From here to the new route nobody can write.",
        verified: "The proof is in the journal.",
        by_hand: &[
            "# Nothing may follow before this is certain: two primaries that accept writes lose data.",
            "pg_ctl stop --pgdata DATA_OF_THE_PRIMARY --mode fast --wait",
        ],
    },
    Outline {
        name: "choose",
        danger: Danger::Looks,
        does: "Chooses the preferred instance, which has everything. Should it not answer any more, the former primary, which has everything too, reigns again.",
        verified: "The choice is in the journal.",
        by_hand: &[
            "# Both must say the same position; the control file of the stopped one has it too:",
            "pg_controldata DATA_OF_THE_FORMER_PRIMARY | grep 'checkpoint location'",
            "psql --host PREFERRED --username postgres --command \"SELECT pg_last_wal_receive_lsn()\"",
        ],
    },
    Outline {
        name: "promote",
        danger: Danger::Dangerous,
        does: "Gives the reign to the chosen one, in a new epoch that is in the journal before the instance can learn of it.",
        verified: "The instance itself says that it is a primary, in that epoch and on a new timeline.",
        by_hand: &[
            "pg_ctl promote --pgdata DATA_OF_THE_PREFERRED --wait",
            "# Kubernetes (as the user postgres: pg_ctl does not run as root):",
            "kubectl --namespace dotnetagents exec postgres-0 -- psql --username postgres --command \"SELECT pg_promote(wait => true)\"",
        ],
    },
    Outline {
        name: "reroute",
        danger: Danger::Acts,
        does: "Leads the service of the database to the new primary.",
        verified: "The service leads to the new address.",
        by_hand: &[
            "# Kubernetes: pods are labelled by what they are; the service only selects.",
            "kubectl --namespace dotnetagents label pod postgres-0 role=primary --overwrite",
            "kubectl --namespace dotnetagents label pod postgres-1 role=former --overwrite",
        ],
    },
    Outline {
        name: "verify",
        danger: Danger::Looks,
        does: "Writes a row as a client does and reads it back, and asks the platform for its readiness down to the store.",
        verified: "The row came back from the new primary, and the platform is ready.",
        by_hand: &[
            "psql \"$DATABASE_URL\" --command \"SELECT pg_is_in_recovery(), pg_current_wal_lsn()\"",
            "curl --fail --silent --show-error http://127.0.0.1:7070/ready",
        ],
    },
    Outline {
        name: "rebuild",
        danger: Danger::Dangerous,
        does: "Makes the former primary a standby of the new one: its data fits, or is rewound or copied anew where it does not.",
        verified: "It streams from the new primary.",
        by_hand: &[
            "touch DATA_OF_THE_FORMER_PRIMARY/standby.signal",
            "# with primary_conninfo to the new primary:",
            "pg_ctl start --pgdata DATA_OF_THE_FORMER_PRIMARY --wait",
        ],
    },
    Outline {
        name: "redundancy",
        danger: Danger::Looks,
        does: "Waits until every standby streams and, where the plan wants it, commits wait for one of them.",
        verified: "The new primary lists the standbys as streaming.",
        by_hand: &[
            "psql --host NEW_PRIMARY --username postgres --command \"SELECT application_name, state, sync_state, replay_lag FROM pg_stat_replication\"",
        ],
    },
];

/// The steps.
#[must_use]
pub fn handover_steps(database: &Database) -> Vec<Box<dyn Step>> {
    let database = || database.clone();
    vec![
        Box::new(Confirm(database())),
        Box::new(Evidence(database())),
        Box::new(CatchUp(database())),
        Box::new(Fence(database())),
        Box::new(Choose(database())),
        Box::new(Promote(database())),
        Box::new(Reroute(database())),
        Box::new(Verify(database())),
        Box::new(Rebuild(database())),
        Box::new(Redundancy(database())),
    ]
}

#[allow(clippy::indexing_slicing, reason = "the places are constants of this module")]
fn step(place: usize) -> &'static Outline {
    &HANDOVER_OUTLINE[place]
}

/// Is there anything to be handed over, and somebody to take it?
struct Confirm(Database);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        step(CONFIRM)
    }

    fn timeout(&self) -> Duration {
        PATIENCE + Duration::from_secs(10)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let successor = &so_far.incident.component;
        let members = database.authority.members();
        if !members.contains_key(successor) {
            let names: Vec<_> = members.keys().map(ToString::to_string).collect();
            return Err(Stop::Refuse(format!(
                "there is no instance {successor}; there are {}",
                names.join(", ")
            )));
        }
        let found = database.until(|view| {
            let primary = view.reigning()?;
            if primary == successor {
                return Some(Err(Stop::FalseAlarm(format!("{successor} reigns already"))));
            }
            let fresh = view.seen.get(successor).is_some_and(|seen| seen.at.elapsed() < FRESH);
            let follows = view.state.followers.contains(successor);
            match view.server(primary) {
                Some(ServerState::Primary(state)) if fresh && follows => state
                    .standbys
                    .iter()
                    .any(|standby| standby.streaming && standby.name == successor.as_str())
                    .then(|| Ok(primary.clone())),
                _ => None,
            }
        });
        let former = tokio::time::timeout(PATIENCE, found).await.map_err(|_| {
            Stop::Refuse(format!(
                "{successor} does not stream from a primary, so that it cannot take over; nothing was changed. See: resurgam status"
            ))
        })??;
        let detail = format!("{former} reigns, and {successor} streams from it");
        Ok(Done::now(detail).with(json!({ "former": former })))
    }
}

/// Has commits wait for the successor until it is on record as having everything.
pub(super) async fn catch_up(
    database: &Database,
    former: &ComponentName,
    successor: &ComponentName,
) -> Result<(), Stop> {
    let until = Instant::now() + PATIENCE;
    loop {
        let state = database.authority.view().state;
        if state.primary.as_ref() != Some(former) {
            // Handed over already, or lost meanwhile: the fence finds out.
            return Ok(());
        }
        if state.complete.as_ref() == Some(successor) {
            return Ok(());
        }
        if Instant::now() > until {
            break;
        }
        database.authority.change(|state| {
            let waits = state.synchronous.as_ref() == Some(successor);
            if state.primary.as_ref() == Some(former) && !waits {
                // Who had everything has no longer from the moment on at which nobody waits for it.
                state.complete = None;
                state.synchronous = Some(successor.clone());
            }
        })?;
        let looked = database.until(|view| {
            let state = &view.state;
            let changed = state.synchronous.as_ref() != Some(successor)
                || state.complete.is_some()
                || state.primary.as_ref() != Some(former);
            changed.then_some(())
        });
        let rest = until.saturating_duration_since(Instant::now());
        // An error means that the time is up.
        let _ = tokio::time::timeout(rest, looked).await;
    }
    // Commits wait again as the plan wants it.
    database.authority.change(|state| {
        let waits = state.synchronous.as_ref() == Some(successor);
        if waits && state.primary.as_ref() == Some(former) && state.complete.is_none() {
            state.synchronous = None;
        }
    })?;
    Err(Stop::Refuse(format!(
        "{successor} did not get everything within {} s; {former} reigns on",
        PATIENCE.as_secs()
    )))
}

/// Does the successor have everything?
struct CatchUp(Database);

#[async_trait]
impl Step for CatchUp {
    fn outline(&self) -> &'static Outline {
        step(CATCH_UP)
    }

    fn timeout(&self) -> Duration {
        PATIENCE + Duration::from_secs(10)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let successor = &so_far.incident.component;
        let former = name_in(so_far, "confirm", "former")?;
        catch_up(&self.0, &former, successor).await?;
        Ok(Done::now(format!("{successor} has everything that was acknowledged")))
    }
}

/// The successor, if it is still there.
struct Choose(Database);

#[async_trait]
impl Step for Choose {
    fn outline(&self) -> &'static Outline {
        step(CHOOSE)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let successor = &so_far.incident.component;
        let former = name_in(so_far, "confirm", "former")?;
        let begun = Instant::now();
        let choice = database.until(|view| {
            if let Some(primary) = &view.state.primary {
                let detail = format!("{primary} reigns");
                return Some(Done::skipped(detail).with(json!({ "chosen": primary })));
            }
            let server = |name| {
                let fresh = view.seen.get(name).is_some_and(|seen| seen.at.elapsed() < FRESH);
                view.server(name).filter(|_| fresh)
            };
            let complete = view.state.complete.as_ref() == Some(successor);
            if complete && matches!(server(successor), Some(ServerState::Standby(_))) {
                let detail = format!("{successor}: nothing acknowledged is missing");
                return Some(Done::now(detail).with(json!({ "chosen": successor })));
            }
            let stopped = server(&former) == Some(&ServerState::Stopped);
            (stopped && begun.elapsed() > SUCCESSION).then(|| {
                let detail = format!("{former} itself: {successor} does not answer any more");
                Done::now(detail).with(json!({ "chosen": former }))
            })
        });
        Ok(choice.await)
    }
}
