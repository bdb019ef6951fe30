//! The steps when connections have run out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::{Component, ComponentKind, Deployment};
use resurgam_model::plan::Connections;
use resurgam_model::{ComponentName, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use super::census::{Census, Session, State, account};
use super::leak::{Choice, OWN, choose, may_be_ended};
use super::line::Line;
use super::outline;
use super::watch::Seen;
use crate::health::Readiness;
use crate::journal::Journal;
use crate::runbook::{Done, Outline, SoFar, Step, Stop};
use crate::upkeep::{self, Upkeep};

/// How often to look while something is waited for.
const LOOK: Duration = Duration::from_millis(250);
/// A try to see who holds the connections waits for so long.
const SEEN: Duration = Duration::from_secs(50);
/// A try to relieve waits for so long until something may be ended.
const PATIENCE: Duration = Duration::from_secs(290);
/// A try to verify waits for so long for what is missing.
const VERIFIED: Duration = Duration::from_secs(50);

/// What the steps work on.
#[derive(Clone)]
pub(crate) struct Relief {
    pub(crate) line: Arc<Line>,
    /// What was seen of the connections, which a recovery makes void.
    pub(crate) seen: watch::Sender<Option<Seen>>,
    pub(crate) policy: Connections,
    pub(crate) deployment: Arc<dyn Deployment>,
    pub(crate) upkeep: Arc<Upkeep>,
    pub(crate) journal: Journal,
    pub(crate) platform: Readiness,
}

/// The steps.
pub(crate) fn steps(relief: &Relief) -> Vec<Box<dyn Step>> {
    vec![
        Box::new(Confirm(relief.clone())),
        Box::new(Evidence(relief.clone())),
        Box::new(Relieve(relief.clone())),
        Box::new(Restart(relief.clone())),
        Box::new(Verify(relief.clone())),
    ]
}

impl Relief {
    /// Who holds the connections. What cannot be seen is not acted on: a database that is just being
    /// started, or recovered, is waited for.
    async fn census(&self) -> Result<Census, Stop> {
        let deadline = Instant::now() + SEEN;
        loop {
            match self.line.census().await {
                Ok(census) => return Ok(census),
                Err(why) if Instant::now() > deadline => {
                    let why = format!("it is not known who holds the connections: {why}");
                    return Err(Stop::Retry(why));
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

#[allow(clippy::indexing_slicing, reason = "the places are constants of this module")]
fn step(place: usize) -> &'static Outline {
    &outline::OUTLINE[place]
}

/// Have they run out?
struct Confirm(Relief);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        step(outline::CONFIRM)
    }

    fn timeout(&self) -> Duration {
        SEEN + Duration::from_secs(10)
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let census = self.0.census().await?;
        let found = account(census.seats, &census.holders());
        if !census.seats.reach(self.0.policy.full_at) {
            let full = self.0.policy.full_at;
            self.0.seen.send_replace(None);
            return Err(Stop::FalseAlarm(format!("{found}; {full} % would be too many")));
        }
        Ok(Done::now(found))
    }
}

/// Keeps who holds them.
struct Evidence(Relief);

#[async_trait]
impl Step for Evidence {
    fn outline(&self) -> &'static Outline {
        step(outline::EVIDENCE)
    }

    fn timeout(&self) -> Duration {
        SEEN + Duration::from_secs(10)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let census = self.0.census().await?;
        let holders = census.holders();
        let now = Timestamp::now();
        for holder in &holders {
            let text = serde_json::to_string(holder)?;
            self.0.journal.add_evidence(so_far.incident.id, &text, now)?;
        }
        Ok(Done::now(format!(
            "{} holders of {} connections kept",
            holders.len(),
            census.seats.taken
        )))
    }
}

/// Connections that were ended, of one application and one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    application: String,
    user: String,
    connections: u32,
}

/// What was told to end.
#[derive(Default)]
struct Told {
    /// Which connections: by process and beginning.
    connections: BTreeSet<(i32, i64)>,
    /// How many of which application and user.
    of: BTreeMap<(String, String), u32>,
}

/// Ends those that leaked.
struct Relieve(Relief);

impl Relieve {
    /// Ends these, and counts those that were still what they were. Journaled before.
    async fn end(
        &self,
        so_far: &SoFar<'_>,
        these: &[&Session],
        ended: &mut Told,
    ) -> Result<(), Stop> {
        for session in these {
            if !ended.connections.insert((session.pid, session.began_us)) {
                // On its way.
                continue;
            }
            let Session { pid, application, user, address, state_ms, statement, .. } = session;
            let state = match session.state {
                State::IdleInTransaction => "idle in transaction",
                State::Idle => "idle",
                State::Active => "active",
                State::Unknown => "in an unknown state",
            };
            let text = format!(
                "ending connection {pid} of {application:?}, user {user}, from {address}: {state} for {state_ms} ms, after {statement:?}"
            );
            self.0.journal.add_evidence(so_far.incident.id, &text, Timestamp::now())?;
            if self.0.line.end(session).await.map_err(Stop::Retry)? {
                *ended.of.entry((application.clone(), user.clone())).or_default() += 1;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Step for Relieve {
    fn outline(&self) -> &'static Outline {
        step(outline::RELIEVE)
    }

    fn timeout(&self) -> Duration {
        PATIENCE + Duration::from_secs(10)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let deadline = Instant::now() + PATIENCE;
        let mut ended = Told::default();
        let census = loop {
            let census = self.0.census().await?;
            match choose(&census, &self.0.policy) {
                Choice::Relieved => break census,
                Choice::End(these) => {
                    self.end(so_far, &these, &mut ended).await?;
                    // The server's processes take a moment to go.
                    tokio::time::sleep(LOOK / 5).await;
                }
                Choice::Wait(wait) => {
                    if Instant::now() + wait > deadline {
                        return Err(Stop::Retry(format!(
                            "{}; the plan allows to end one in {} s",
                            account(census.seats, &census.holders()),
                            wait.as_secs()
                        )));
                    }
                    tokio::time::sleep(wait.clamp(Duration::from_millis(10), LOOK)).await;
                }
                Choice::Stuck => {
                    let question = stuck(&census, &self.0.policy)?;
                    if !so_far.agreed.contains(&question) {
                        return Err(Stop::Ask(question));
                    }
                    let these = resting(&census, &self.0.policy);
                    self.end(so_far, &these, &mut ended).await?;
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        let list: Vec<_> = ended
            .of
            .into_iter()
            .map(|((application, user), connections)| Ended { application, user, connections })
            .collect();
        let words: Vec<_> = list
            .iter()
            .map(|of| format!("{} of {} as {}", of.connections, named(&of.application), of.user))
            .collect();
        let seats = census.seats;
        let now = format!("{} of {} are taken now", seats.taken, seats.limit);
        if list.is_empty() {
            return Ok(Done::skipped(format!("none had to be ended: {now}")));
        }
        let detail = format!("ended {}; {now}", words.join(", "));
        Ok(Done::now(detail).with(json!({ "ended": list })))
    }
}

fn named(application: &str) -> &str {
    if application.is_empty() { "(no application name)" } else { application }
}

/// Those that do nothing and that the plan does not let end by itself; a person may. Those of the
/// platform and what is protected stay out of it.
fn resting<'a>(census: &'a Census, policy: &Connections) -> Vec<&'a Session> {
    use resurgam_model::plan::Endable;
    let all =
        Connections { end: vec![Endable::IdleInTransaction, Endable::Idle], ..policy.clone() };
    may_be_ended(census, &all)
}

/// What a person is asked when the plan allows nothing that helps. The same as long as the same
/// applications are concerned: an answer must hold for what was asked.
fn stuck(census: &Census, policy: &Connections) -> Result<String, Stop> {
    let resting = resting(census, policy);
    let mut names: Vec<_> = resting.iter().map(|session| named(&session.application)).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Err(Stop::Refuse(format!(
            "{}, and nothing that rests may be ended: they are at work, or protected. Fewer clients help, or a larger max_connections under [postgres.settings]",
            account(census.seats, &census.holders())
        )));
    }
    Ok(format!(
        "the plan allows to end no connection that is there. End those that do nothing, of {}, all the same? What they have not committed is undone",
        names.join(", ")
    ))
}

/// Starts those components again whose connections leaked.
struct Restart(Relief);

#[async_trait]
impl Step for Restart {
    fn outline(&self) -> &'static Outline {
        step(outline::RESTART)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(300)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let ended =
            so_far.output(step(outline::RELIEVE).name).and_then(|output| output.get("ended"));
        let ended: Vec<Ended> = match ended {
            Some(ended) => serde_json::from_value(ended.clone())?,
            None => Vec::new(),
        };
        if ended.is_empty() {
            return Ok(Done::skipped("no connection was ended"));
        }
        let components = self.0.deployment.components().await?;
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for Ended { application, .. } in &ended {
            let these: Vec<_> =
                components.iter().filter(|component| is_of(application, component)).collect();
            if these.is_empty() {
                others.push(named(application));
            }
            own.extend(these.into_iter().map(|component| component.name.clone()));
        }
        let elsewhere = match others.is_empty() {
            true => String::new(),
            false => format!("those who run {} have to mend or restart it", others.join(", ")),
        };
        if own.is_empty() {
            return Ok(Done::skipped(elsewhere));
        }
        let names = upkeep::in_turn(&components, &own);
        self.0.upkeep.restart(&names).await.map_err(Stop::Retry)?;
        let names: Vec<_> = names.iter().map(ComponentName::to_string).collect();
        let also = if elsewhere.is_empty() { elsewhere } else { format!("; {elsewhere}") };
        Ok(Done::now(format!("started again {}{also}", names.join(", "))))
    }
}

/// The application is this component, by the name of its role, its own or its pool's.
fn is_of(application: &str, component: &Component) -> bool {
    let kind = match component.kind {
        ComponentKind::Api => "api",
        ComponentKind::Registry => "registry",
        ComponentKind::Supervisor => "supervisor",
        ComponentKind::Worker => "worker",
        ComponentKind::Postgres | ComponentKind::Kafka | ComponentKind::RabbitMq => return false,
    };
    let name = component.name.as_str();
    let pool = name.rsplit_once('-').map_or(name, |(pool, _)| pool);
    let of_pool = component.kind == ComponentKind::Worker && application == pool;
    let mut roles = application.strip_prefix(OWN).into_iter().flat_map(|roles| roles.split('+'));
    roles.any(|role| role == kind) || application == name || of_pool
}

/// Can others connect again?
struct Verify(Relief);

impl Verify {
    /// What is still missing.
    async fn missing(&self) -> Option<String> {
        if let Err(why) = self.0.line.try_as_others().await {
            return Some(format!("a new connection does not work: {why}"));
        }
        match self.0.line.seats().await {
            Ok(seats) if seats.reach(self.0.policy.full_at) => {
                return Some(format!("{} of {} are taken again", seats.taken, seats.limit));
            }
            Ok(_) => {}
            Err(why) => return Some(why),
        }
        (!self.0.platform.is_ready().await).then(|| "the platform is not ready".to_owned())
    }
}

#[async_trait]
impl Step for Verify {
    fn outline(&self) -> &'static Outline {
        step(outline::VERIFY)
    }

    fn timeout(&self) -> Duration {
        VERIFIED + Duration::from_secs(10)
    }

    fn restores_service(&self) -> bool {
        true
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let deadline = Instant::now() + VERIFIED;
        while let Some(missing) = self.missing().await {
            if Instant::now() > deadline {
                return Err(Stop::Retry(missing));
            }
            tokio::time::sleep(LOOK / 5).await;
        }
        self.0.seen.send_replace(None);
        Ok(Done::now("a new connection writes and reads; the platform is ready"))
    }
}

#[cfg(test)]
mod tests {
    use resurgam_deployment::RunState;

    use super::super::census::Seats;
    use super::super::leak::tests::session;
    use super::*;

    fn component(name: &str, kind: ComponentKind) -> Component {
        Component {
            name: ComponentName::new(name).unwrap(),
            kind,
            state: RunState::Running,
            pid: None,
            address: None,
            started_at: None,
            restarts: 0,
            last_exit: None,
        }
    }

    #[test]
    fn applications_are_known_by_role_name_and_pool() {
        let api = component("dotnetagents-api", ComponentKind::Api);
        let worker = component("worker-pool-2", ComponentKind::Worker);
        let postgres = component("postgres-0", ComponentKind::Postgres);
        assert!(is_of("resurgam api", &api) && is_of("resurgam registry+api", &api));
        assert!(is_of("dotnetagents-api", &api));
        assert!(!is_of("api", &api) && !is_of("resurgam apis", &api) && !is_of("", &api));
        assert!(is_of("worker-pool", &worker) && is_of("worker-pool-2", &worker));
        assert!(!is_of("worker-pool-1", &worker) && !is_of("worker", &worker));
        assert!(!is_of("postgres-0", &postgres));
    }

    #[test]
    fn what_a_person_is_asked_names_only_what_may_be_ended() {
        let policy = Connections {
            end: Vec::new(),
            protect: vec!["vip".to_owned()],
            ..Connections::default()
        };
        let census =
            |sessions: Vec<Session>| Census { seats: Seats { taken: 3, limit: 3 }, sessions };
        let busy = session(1, "busy", State::Active, 5);
        let own = session(2, "resurgam api", State::Idle, 5);
        let vip = session(3, "vip", State::Idle, 5);
        let refused = stuck(&census(vec![busy.clone(), own.clone(), vip.clone()]), &policy);
        assert!(matches!(refused, Err(Stop::Refuse(why)) if why.contains("max_connections")));
        let nameless = session(4, "", State::Idle, 5);
        let asked = stuck(&census(vec![busy, own, vip, nameless]), &policy).unwrap();
        assert!(asked.contains("of (no application name), all the same?"), "{asked}");
    }
}
