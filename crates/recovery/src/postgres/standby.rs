//! A standby that is lost, while the primary works: noticed, brought back, and redundancy proven.
//!
//! confirm → evidence → restart → redundancy
//!
//! Its keeper starts it again by itself, and copies the primary anew if it must. What the recovery adds is
//! that people know that the next loss would be one, that a keeper which hangs is started anew, and
//! that the end is seen: the standby streams, and has everything where commits are to wait for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::postgres::wire::ServerState;
use resurgam_deployment::{Component, RunState};
use resurgam_model::{ComponentName, Timestamp};

use super::authority::View;
use super::database::{Database, FRESH};
use super::runbook::{Redundant, until_redundant};
use crate::processes::{keep, start_again};
use crate::runbook::{Danger, Done, Outline, SoFar, Step, Stop};

/// A keeper that lives and says nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(10);
/// A standby that does not stream for so long, although its process runs, is lost. Long enough for a
/// broken connection, and for a machine that is very busy.
const MISSED: Duration = Duration::from_secs(10);

/// A keeper's word may be so old when it is heard.
const UNDER_WAY: Duration = Duration::from_millis(200);

const CONFIRM: usize = 0;
const EVIDENCE: usize = 1;
const RESTART: usize = 2;
const REDUNDANCY: usize = 3;

/// The steps, in order.
pub static STANDBY_OUTLINE: [Outline; 4] = [
    Outline {
        name: "confirm",
        danger: Danger::Looks,
        does: "Finds out whether the standby's process runs or was started again, what its keeper said last, and whether the primary sees it stream.",
        verified: "What was found is in the journal.",
        by_hand: &[
            "psql --host PRIMARY --username postgres --command \"SELECT application_name, state, sync_state, replay_lag FROM pg_stat_replication\"",
            "kubectl --namespace dotnetagents get pods --selector app=postgres",
        ],
    },
    Outline {
        name: "evidence",
        danger: Danger::Looks,
        does: "Keeps how the standby's process ended and the last lines that it logged, before anything is started again.",
        verified: "The records are in the journal.",
        by_hand: &[
            "kubectl --namespace dotnetagents logs STANDBY --tail 200",
            "kubectl --namespace dotnetagents logs STANDBY --previous --tail 200",
        ],
    },
    Outline {
        name: "restart",
        danger: Danger::Acts,
        does: "Makes sure that the standby's process runs: starts one that ended, and ends and starts one whose keeper says nothing.",
        verified: "It runs, and stays up.",
        by_hand: &["kubectl --namespace dotnetagents delete pod STANDBY"],
    },
    Outline {
        name: "redundancy",
        danger: Danger::Looks,
        does: "Waits until every standby streams from the primary, and has everything where commits are to wait for it. The keeper copies the primary anew if the standby's data are gone or do not fit.",
        verified: "The primary sees them stream, and a failover would lose nothing.",
        by_hand: &[
            "# if its data are gone or damaged, on the standby:",
            "pg_basebackup --host PRIMARY --username replicator --pgdata DATA --checkpoint fast --wal-method stream --write-recovery-conf",
            "psql --host PRIMARY --username postgres --command \"SELECT application_name, state, sync_state, replay_lag FROM pg_stat_replication\"",
        ],
    },
];

/// Since when standbys have not been seen to stream.
#[derive(Debug, Default)]
pub(crate) struct Missing(BTreeMap<ComponentName, (Instant, Timestamp)>);

impl Missing {
    /// The standby that has been missing for too long, with the first sign. One that has never followed
    /// is still being made, and one whose keeper is at work on it is on its way.
    pub(crate) fn look(
        &mut self,
        view: &View,
        now: Instant,
        moment: Timestamp,
    ) -> Option<(ComponentName, Timestamp)> {
        let missing = missing(view, now);
        self.0.retain(|name, _| missing.contains(&name));
        for name in missing {
            let (since, first_sign) = *self.0.entry(name.clone()).or_insert((now, moment));
            if now - since >= MISSED {
                return Some((name.clone(), first_sign));
            }
        }
        None
    }
}

/// The standbys that do not stream, as far as the primary's word is fresh.
fn missing(view: &View, now: Instant) -> Vec<&ComponentName> {
    let Some(primary) = view.reigning() else { return Vec::new() };
    let fresh = view.seen.get(primary).is_some_and(|seen| now - seen.at < FRESH);
    let Some(ServerState::Primary(state)) = view.server(primary).filter(|_| fresh) else {
        return Vec::new();
    };
    let streams = |name: &ComponentName| {
        state.standbys.iter().any(|standby| standby.streaming && standby.name == name.as_str())
    };
    let at_work = |name: &ComponentName| {
        let seen = view.seen.get(name).filter(|seen| now - seen.at < FRESH);
        seen.is_some_and(|seen| seen.renewal.observed.doing.is_some())
    };
    let followers = view.state.followers.iter();
    followers.filter(|name| *name != primary && !streams(name) && !at_work(name)).collect()
}

/// The steps.
#[must_use]
pub fn standby_steps(database: &Database) -> Vec<Box<dyn Step>> {
    vec![
        Box::new(Confirm(database.clone())),
        Box::new(Evidence(database.clone())),
        Box::new(Restart(database.clone())),
        Box::new(Redundancy(database.clone())),
    ]
}

#[allow(clippy::indexing_slicing, reason = "the places are constants of this module")]
fn step(place: usize) -> &'static Outline {
    &STANDBY_OUTLINE[place]
}

impl Database {
    async fn standby(&self, so_far: &SoFar<'_>) -> Result<Component, Stop> {
        let name = &so_far.incident.component;
        let all = self.deployment.components().await?;
        let found = all.into_iter().find(|component| component.name == *name);
        found.ok_or_else(|| Stop::Refuse(format!("this deployment has no {name}")))
    }

    /// Whether the keeper of an instance has said nothing for so long.
    fn is_silent(&self, name: &ComponentName, patience: Duration) -> bool {
        let view = self.authority.view();
        view.seen.get(name).is_none_or(|seen| seen.at.elapsed() > patience)
    }
}

/// Is it lost?
struct Confirm(Database);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        step(CONFIRM)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let standby = database.standby(so_far).await?;
        let view = database.authority.view();
        let name = &standby.name;
        if view.state.primary.as_ref() == Some(name) {
            return Err(Stop::FalseAlarm(format!("{name} is the primary now")));
        }
        let mut signs = Vec::new();
        if standby.state != RunState::Running {
            signs.push(format!("{name} does not run"));
        } else if standby
            .started_at
            .is_some_and(|at| at.as_millisecond() >= so_far.incident.first_sign.as_millisecond())
        {
            signs.push(format!("{name} was started again"));
        } else if database.is_silent(name, FRESH * 2) {
            signs.push("its keeper says nothing".to_owned());
        }
        if missing(&view, Instant::now()).contains(&name) {
            signs.push("the primary does not see it stream".to_owned());
        }
        if signs.is_empty() {
            return Err(Stop::FalseAlarm(format!("{name} runs and streams")));
        }
        Ok(Done::now(signs.join("; ")))
    }
}

/// Keeps what is known before anything is started again.
struct Evidence(Database);

#[async_trait]
impl Step for Evidence {
    fn outline(&self) -> &'static Outline {
        step(EVIDENCE)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let standby = database.standby(so_far).await?;
        let view = database.authority.view();
        if let Some(seen) = view.seen.get(&standby.name) {
            let text = serde_json::to_string(&seen.renewal.observed)?;
            database.journal.add_evidence(so_far.incident.id, &text, Timestamp::now())?;
        }
        let components = [standby];
        let kept = keep(&*database.deployment, &database.journal, so_far.incident, &components);
        Ok(Done::now(format!("{} records kept", kept.await?)))
    }
}

/// Makes sure that it runs.
struct Restart(Database);

#[async_trait]
impl Step for Restart {
    fn outline(&self) -> &'static Outline {
        step(RESTART)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let standby = database.standby(so_far).await?;
        if database.authority.view().state.primary.as_ref() == Some(&standby.name) {
            return Ok(Done::skipped(format!("{} is the primary now", standby.name)));
        }
        // One that has just been started has had no time to say something.
        let young = standby
            .started_at
            .is_some_and(|at| Timestamp::now().as_millisecond() - at.as_millisecond() < 5_000);
        let silent = database.is_silent(&standby.name, FRESH * 2) && !young;
        let stuck = silent.then(|| standby.name.clone()).into_iter().collect();
        start_again(&*database.deployment, &[standby], &stuck).await
    }
}

/// Every member but the primary has said since `begun` that it streams from it.
fn all_stream(view: &View, members: &BTreeMap<ComponentName, SocketAddr>, begun: Instant) -> bool {
    let Some(primary) = view.reigning() else { return false };
    let port = members.get(primary).map(SocketAddr::port);
    let mut standbys = members.keys().filter(|name| *name != primary);
    standbys.all(|name| {
        view.seen.get(name).is_some_and(|seen| match &seen.renewal.observed.state {
            ServerState::Standby(state) => {
                seen.at > begun && state.streaming_from.is_some() && state.streaming_from == port
            }
            _ => false,
        })
    })
}

/// Would the next loss be harmless again?
struct Redundancy(Database);

#[async_trait]
impl Step for Redundancy {
    fn outline(&self) -> &'static Outline {
        step(REDUNDANCY)
    }

    fn timeout(&self) -> Duration {
        // A base backup of a large database takes its time.
        Duration::from_secs(6 * 3600)
    }

    fn restores_service(&self) -> bool {
        true
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        tokio::select! {
            done = self.wait() => done,
            stop = self.watch_over(so_far) => Err(stop),
        }
    }
}

impl Redundancy {
    /// Starts the standby anew if it gets stuck meanwhile: the step before may have found it too young to
    /// tell. Ends only when that cannot be done.
    async fn watch_over(&self, so_far: &SoFar<'_>) -> Stop {
        let database = &self.0;
        loop {
            tokio::time::sleep(FRESH).await;
            let standby = match database.standby(so_far).await {
                Ok(standby) => standby,
                Err(stop) => return stop,
            };
            let old = standby.started_at.is_some_and(|at| {
                let age = Duration::try_from(Timestamp::now().duration_since(at));
                age.is_ok_and(|age| age > STUCK)
            });
            let primary = database.authority.view().state.primary;
            if primary.as_ref() == Some(&standby.name)
                || !old
                || !database.is_silent(&standby.name, STUCK)
            {
                continue;
            }
            let stuck = std::iter::once(standby.name.clone()).collect();
            if let Err(stop) = start_again(&*database.deployment, &[standby], &stuck).await {
                return stop;
            }
        }
    }

    async fn wait(&self) -> Result<Done, Stop> {
        let database = &self.0;
        // What was heard before says how it was before: first the standbys must say anew that they
        // stream, and after that the primary.
        let begun = Instant::now() + UNDER_WAY;
        let members = database.authority.members();
        database.until(|view| all_stream(view, members, begun).then_some(())).await;
        let streamed = Instant::now() + UNDER_WAY;
        database
            .until(|view| {
                let primary = view.seen.get(view.reigning()?)?;
                (primary.at > streamed).then_some(())
            })
            .await;
        match until_redundant(database, None).await {
            Redundant::Yes(how) => Ok(Done::now(how)),
            Redundant::Overtaken(_) | Redundant::Lost(_) => {
                Err(Stop::Retry("the primary has changed meanwhile".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use resurgam_deployment::postgres::contain::Strength;
    use resurgam_deployment::postgres::wire::{
        Observed, PrimaryState, Renewal, SeenStandby, StandbyState,
    };
    use resurgam_model::InstanceId;
    use resurgam_model::database::{Epoch, Lsn};

    use super::super::authority::Seen;
    use super::*;
    use crate::journal::cluster::ClusterState;

    fn name(text: &str) -> ComponentName {
        ComponentName::new(text).unwrap()
    }

    fn seen(state: ServerState, doing: Option<&str>, at: Instant) -> Seen {
        let observed = Observed { state, doing: doing.map(str::to_owned), ..Observed::default() };
        let renewal = Renewal {
            life: InstanceId::new(),
            fence: Strength::Kernel,
            address: "127.0.0.1:5432".parse().unwrap(),
            observed,
            heard: 0,
            carried_out: 0,
        };
        Seen { renewal, at }
    }

    /// postgres-0 reigns; postgres-1 follows, and streams or not; its keeper does something or not.
    fn view(streams: bool, doing: Option<&str>, now: Instant) -> View {
        let primary = PrimaryState {
            epoch: Epoch(3),
            furnished: true,
            timeline: 1,
            flushed: Lsn(9),
            synchronous: None,
            standbys: vec![SeenStandby {
                name: "postgres-1".to_owned(),
                streaming: streams,
                synchronous: false,
                flushed: Lsn(9),
                lag_ms: None,
            }],
        };
        View {
            state: ClusterState {
                created: true,
                epoch: Epoch(3),
                primary: Some(name("postgres-0")),
                followers: [name("postgres-1")].into(),
                ..ClusterState::default()
            },
            members: 2,
            seen: BTreeMap::from([
                (name("postgres-0"), seen(ServerState::Primary(primary), None, now)),
                (name("postgres-1"), seen(ServerState::Stopped, doing, now)),
            ]),
            lease: None,
            reigned: true,
            since: now,
            samples: vec![],
        }
    }

    #[test]
    fn a_standby_is_lost_when_it_is_missing_for_long_enough() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = Timestamp::from_second(77).unwrap();
        let mut missing = Missing::default();
        let mut look = |streams, doing, seconds: u64| {
            let moment = Timestamp::from_second(i64::try_from(seconds).unwrap() + 77).unwrap();
            missing.look(&view(streams, doing, at(seconds)), at(seconds), moment)
        };
        assert_eq!(look(true, None, 0), None);
        assert_eq!(look(false, None, 0), None);
        assert_eq!(look(false, None, 9), None);
        assert_eq!(look(false, None, 10), Some((name("postgres-1"), first)));
        assert_eq!(look(true, None, 11), None, "it is back");
        assert_eq!(look(false, None, 12), None, "and missing anew");
        assert_eq!(look(false, Some("base backup"), 23), None, "its keeper is at work");
        assert_eq!(look(false, None, 24), None);
    }

    #[test]
    fn what_was_heard_before_proves_nothing_now() {
        let now = Instant::now();
        let standby = |streaming_from: Option<u16>| {
            let state = StandbyState {
                timeline: 1,
                received: Lsn(9),
                replayed: Lsn(9),
                streaming_from,
                silent_ms: Some(5),
            };
            seen(ServerState::Standby(state), None, now)
        };
        let mut view = view(true, None, now);
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let members =
            BTreeMap::from([(name("postgres-0"), address(1)), (name("postgres-1"), address(2))]);
        let before = now - Duration::from_secs(1);
        assert!(!all_stream(&view, &members, before), "it has said that it is stopped");
        view.seen.insert(name("postgres-1"), standby(Some(1)));
        assert!(all_stream(&view, &members, before));
        assert!(!all_stream(&view, &members, now), "that was before");
        view.seen.insert(name("postgres-1"), standby(Some(7)));
        assert!(!all_stream(&view, &members, before), "from somebody else");
        view.seen.insert(name("postgres-1"), standby(None));
        assert!(!all_stream(&view, &members, before));
    }

    #[test]
    fn what_is_not_known_is_no_loss() {
        let now = Instant::now();
        let mut view = view(false, None, now);
        assert_eq!(missing(&view, now).len(), 1);
        let old = now + Duration::from_secs(2);
        assert_eq!(missing(&view, old).len(), 0, "the primary's word is old");
        view.state.followers.clear();
        assert_eq!(missing(&view, now).len(), 0, "it is still being made");
        view.state.followers.insert(name("postgres-1"));
        view.state.epoch = Epoch(4);
        assert_eq!(missing(&view, now).len(), 0, "nobody reigns");
    }
}
