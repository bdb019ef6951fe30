//! The runbook for the loss of the primary.
//!
//! confirm → evidence → fence → choose → restore → promote → reroute → verify → rebuild → redundancy

use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::postgres::wire::ServerState;
use resurgam_model::report::StepStatus;
use resurgam_model::{ComponentName, Timestamp};
use serde_json::json;

use super::authority::View;
use super::choosing::{Choose, DAMAGED, Restore, candidates, from_vault};
use super::database::{Aim, Database, FRESH, LOOK};
use super::diagnosis::{SqlSign, Verdict, diagnose};
use super::fencing::{Proof, prove};
use super::handover::catch_up;
use super::outline::{self, OUTLINE};
use crate::journal::StepRecord;
use crate::runbook::{Done, Outline, SoFar, Step, Stop};

/// A primary that is lost for so long does not come back by itself.
const LOST_AGAIN: Duration = Duration::from_secs(10);

/// The service by which clients reach whoever reigns.
pub const SERVICE: &str = "postgres";

/// The steps.
#[must_use]
pub fn steps(database: &Database) -> Vec<Box<dyn Step>> {
    let database = || database.clone();
    vec![
        Box::new(Confirm(database())),
        Box::new(Evidence(database())),
        Box::new(Fence(database())),
        Box::new(Choose(database())),
        Box::new(Restore(database())),
        Box::new(Promote(database())),
        Box::new(Reroute(database())),
        Box::new(Verify(database())),
        Box::new(Rebuild(database())),
        Box::new(Redundancy(database())),
    ]
}

/// Whether the recovery has led the clients to the new primary.
#[must_use]
pub fn is_rerouted(steps: &[StepRecord]) -> bool {
    let ended = |status| !matches!(status, StepStatus::Started | StepStatus::Waiting);
    steps.iter().any(|step| step.name == OUTLINE[outline::REROUTE].name && ended(step.status))
}

pub(super) fn name_in(so_far: &SoFar<'_>, step: &str, key: &str) -> Result<ComponentName, Stop> {
    let value = so_far.output(step).and_then(|output| output.get(key)).and_then(|v| v.as_str());
    let missing = || Stop::Retry(format!("the journal has no {key} of the step {step}"));
    value.and_then(|text| ComponentName::new(text).ok()).ok_or_else(missing)
}

/// Whether the recovery has begun to act: until then the database is as it was.
#[must_use]
pub fn has_begun(steps: &[StepRecord]) -> bool {
    let fence = OUTLINE[outline::FENCE].name;
    steps.iter().any(|step| step.name == fence && step.status != StepStatus::Waiting)
}

/// Is it really lost? More than one sign must say so.
struct Confirm(Database);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::CONFIRM]
    }

    fn timeout(&self) -> Duration {
        self.0.authority.lease() * 4 + Duration::from_secs(90)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        confirm(&self.0, so_far).await
    }
}

/// Waits until the signs agree on what is the matter.
async fn confirm(database: &Database, so_far: &SoFar<'_>) -> Result<Done, Stop> {
    let mut well_since = None;
    loop {
        let state = database.authority.view().state;
        let Some(primary) = state.primary else {
            // Fenced already, by a controller before this one.
            let former = state.former.map(|name| name.to_string());
            return Ok(Done::skipped("nobody reigns").with(json!({ "former": former })));
        };
        if database.aim == Aim::Damaged {
            if so_far.incident.component != primary {
                let text = format!("{} does not reign any more", so_far.incident.component);
                return Err(Stop::FalseAlarm(text));
            }
            // The server does not count all that others find on its disk.
            let detail = match database.damaged() {
                Some(damaged) => {
                    format!("{damaged} pages of {primary} have failed their checksums")
                }
                None => format!("{primary}: {}", so_far.incident.cause),
            };
            // It still works, so nothing is begun that could not be brought to its end.
            let view = database.authority.view();
            match (candidates(&view).is_empty(), view.members) {
                (false, _) => {}
                (true, 1) => drop(from_vault(database, so_far, &primary, DAMAGED).await?),
                (true, _) => {
                    return Err(Stop::Refuse(format!(
                        "no standby can take over from {primary}, which goes on; start the recovery again when one streams"
                    )));
                }
            }
            return Ok(Done::now(detail).with(json!({ "former": primary })));
        }
        match diagnose(&database.signs(database.fence_patience())) {
            Verdict::Lost(signs) => {
                let detail = format!("{primary} is lost: {}", signs.join("; "));
                return Ok(Done::now(detail).with(json!({ "former": primary })));
            }
            Verdict::Healthy => {
                let since: Instant = *well_since.get_or_insert_with(Instant::now);
                if since.elapsed() > FRESH {
                    return Err(Stop::FalseAlarm(format!(
                        "{primary} accepts writes: it came back by itself"
                    )));
                }
            }
            Verdict::Starting | Verdict::Suspect(_) => well_since = None,
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Keeps what is known before anything is changed.
pub(super) struct Evidence(pub(super) Database);

#[async_trait]
impl Step for Evidence {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::EVIDENCE]
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let view = database.authority.view();
        let former = name_in(so_far, "confirm", "former")?;
        let now = Timestamp::now();
        let mut kept = 0;
        for (name, seen) in &view.seen {
            let text = format!(
                "{name}, {} ms ago: {}",
                seen.at.elapsed().as_millis(),
                serde_json::to_string(&seen.renewal.observed)?
            );
            database.journal.add_evidence(so_far.incident.id, &text, now)?;
            kept += 1;
        }
        let log = database.deployment.logs(&former, 20).await.unwrap_or_default();
        if !log.is_empty() {
            let text = format!("last lines of {former}:\n{}", log.join("\n"));
            database.journal.add_evidence(so_far.incident.id, &text, now)?;
            kept += 1;
        }
        Ok(Done::now(format!("{kept} records kept")))
    }
}

/// Takes the reign away, cuts the clients off, and makes sure that the former primary cannot
/// accept a write.
pub(super) struct Fence(pub(super) Database);

#[async_trait]
impl Step for Fence {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::FENCE]
    }

    fn timeout(&self) -> Duration {
        // Of which the half is for a look at whether it is still lost.
        self.0.authority.lease() * 4 + Duration::from_secs(20)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let former = name_in(so_far, "confirm", "former")?;
        if database.aim != Aim::Lost && database.loss_is_recovered(so_far.incident.id)? {
            return Err(Stop::Retry("the loss of the primary is being recovered from".to_owned()));
        }
        if database.aim == Aim::Handover {
            // People may have taken their time, in which the successor may have fallen behind.
            catch_up(database, &former, &so_far.incident.component).await?;
        } else if so_far.waited && database.authority.view().state.primary.as_ref() == Some(&former)
        {
            // People take their time, in which it may have come back.
            let patience = database.authority.lease() * 2 + Duration::from_secs(10);
            tokio::time::timeout(patience, confirm(database, so_far)).await.map_err(|_| {
                Stop::Retry(format!("the signs do not agree any more that {former} is lost"))
            })??;
        }
        let state = database.authority.change(|state| {
            // In order nobody is handed to who might lack something.
            let fits = database.aim != Aim::Handover
                || state.complete.as_ref() == Some(&so_far.incident.component);
            if state.primary.as_ref() == Some(&former) && fits {
                state.primary = None;
                state.former = Some(former.clone());
                state.stopped = Some(former.clone());
                state.epoch = state.epoch.next();
            }
        })?;
        let epoch = state.epoch;
        if database.aim == Aim::Handover && state.primary.as_ref() == Some(&former) {
            return Err(Stop::Retry(format!(
                "{} lacks something by now",
                so_far.incident.component
            )));
        }
        if state.primary.is_some() {
            // A later step has been here, before the controller died.
            return Ok(Done::skipped("a successor reigns").with(json!({ "epoch": epoch })));
        }
        database.deployment.route(SERVICE, None).await?;
        let proof = database
            .until(|view| match prove(view, &former, state.version, Instant::now()) {
                Proof::Fenced(why) => Some(Ok(why)),
                Proof::At(_) => None,
                Proof::None(why) => Some(Err(why)),
            })
            .await;
        match proof {
            Ok(why) => Ok(Done::now(format!("epoch {epoch}: {former} is out: {why}"))
                .with(json!({ "epoch": epoch }))),
            Err(why) => Err(Stop::Refuse(format!("{former} may still accept writes: {why}"))),
        }
    }
}

/// Gives the reign to the chosen one.
pub(super) struct Promote(pub(super) Database);

#[async_trait]
impl Step for Promote {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::PROMOTE]
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(120)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let chosen = name_in(so_far, "choose", "chosen")?;
        database.authority.change(|state| {
            if state.primary.is_some() {
                return;
            }
            state.primary = Some(chosen.clone());
            // The fence has used up one epoch; a reign takes a fresh one, also because the
            // chosen may be the former primary.
            state.epoch = state.epoch.next();
            state.synchronous = None;
            state.complete = None;
            state.followers.clear();
            if state.stopped.as_ref() == Some(&chosen) {
                state.stopped = None;
            }
        })?;
        let (epoch, timeline) = database
            .until(|view| match (view.reigning(), view.server(&chosen)) {
                (Some(name), Some(ServerState::Primary(state))) if *name == chosen => {
                    Some((state.epoch, state.timeline))
                }
                _ => None,
            })
            .await;
        Ok(Done::now(format!("{chosen} reigns in epoch {epoch}, on timeline {timeline}"))
            .with(json!({ "epoch": epoch, "timeline": timeline })))
    }
}

/// Leads every client to the new primary.
pub(super) struct Reroute(pub(super) Database);

#[async_trait]
impl Step for Reroute {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::REROUTE]
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let chosen = name_in(so_far, "choose", "chosen")?;
        let address = database.authority.members().get(&chosen).copied();
        let address = address.ok_or_else(|| Stop::Retry(format!("{chosen} has no address")))?;
        database.deployment.route(SERVICE, Some(address)).await?;
        Ok(Done::now(format!(
            "the service {SERVICE} leads to {chosen} at {address}; connections to the former primary are cut"
        )))
    }
}

/// Writes as a client does, and asks the platform itself.
pub(super) struct Verify(pub(super) Database);

#[async_trait]
impl Step for Verify {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::VERIFY]
    }

    fn restores_service(&self) -> bool {
        true
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let chosen = name_in(so_far, "choose", "chosen")?;
        let overtaken = database
            .until(|view| {
                let beat = database.beat.borrow();
                match successor(view, &chosen) {
                    Some(next) => Some(Some(next)),
                    None => (beat.target.as_ref() == Some(&chosen) && beat.sign == SqlSign::Works)
                        .then_some(None),
                }
            })
            .await;
        if let Some(next) = overtaken {
            return Ok(overtaken_by(&next));
        }
        database.platform.wait().await;
        Ok(Done::now(format!("{chosen} takes writes and gives them back; the platform is ready")))
    }
}

/// Makes the former primary a standby of the new one.
pub(super) struct Rebuild(pub(super) Database);

#[async_trait]
impl Step for Rebuild {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::REBUILD]
    }

    fn timeout(&self) -> Duration {
        // A base backup of a large database takes its time.
        Duration::from_secs(6 * 3600)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let former = name_in(so_far, "confirm", "former")?;
        let chosen = name_in(so_far, "choose", "chosen")?;
        if former == chosen {
            return Ok(Done::skipped(format!("{former} itself reigns again")));
        }
        if let Some(next) = successor(&database.authority.view(), &chosen) {
            return Ok(overtaken_by(&next));
        }
        let mut did: Vec<String> = Vec::new();
        let rests = database.authority.view().state.stopped.as_ref() == Some(&former);
        if database.aim == Aim::Damaged && rests {
            let Some(restorer) = &database.restorer else {
                return Err(Stop::Refuse(format!("nobody can move the data of {former} aside")));
            };
            database
                .until(|view| match view.server(&former) {
                    Some(ServerState::Absent | ServerState::Stopped) => Some(()),
                    _ => None,
                })
                .await;
            did.push(restorer.set_aside(&former).await.map_err(Stop::Retry)?);
        }
        database.authority.change(|state| {
            if state.stopped.as_ref() == Some(&former) {
                state.stopped = None;
            }
        })?;
        let port = database.authority.members().get(&chosen).map(|address| address.port());
        let overtaken = database
            .until(|view| {
                if let Some(next) = successor(view, &chosen) {
                    return Some(Some(next));
                }
                let seen = view.seen.get(&former)?;
                if let Some(doing) = &seen.renewal.observed.doing
                    && !did.contains(doing)
                {
                    did.push(doing.clone());
                }
                match &seen.renewal.observed.state {
                    ServerState::Standby(state)
                        if state.streaming_from.is_some() && state.streaming_from == port =>
                    {
                        Some(None)
                    }
                    _ => None,
                }
            })
            .await;
        if let Some(next) = overtaken {
            return Ok(overtaken_by(&next));
        }
        let how = if did.is_empty() { "its data fitted".to_owned() } else { did.join(", then ") };
        Ok(Done::now(format!("{former} streams from {chosen} ({how})")))
    }
}

/// Makes sure that the next loss would be as harmless.
pub(super) struct Redundancy(pub(super) Database);

#[async_trait]
impl Step for Redundancy {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::REDUNDANCY]
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(600)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let chosen = name_in(so_far, "choose", "chosen")?;
        if database.authority.members().len() == 1 {
            return Ok(Done::skipped("the plan has no standby"));
        }
        match until_redundant(database, Some(&chosen)).await {
            Redundant::Yes(how) => Ok(Done::now(how)),
            Redundant::Overtaken(next) => Ok(overtaken_by(&next)),
            // Nobody else would recover from it: the incident of its loss would be this one.
            Redundant::Lost(why) => Err(Stop::Retry(format!(
                "{chosen} was lost again before redundancy was back: {why}"
            ))),
        }
    }
}

/// Who reigns by now instead of the one that a recovery has made primary.
fn successor(view: &View, chosen: &ComponentName) -> Option<ComponentName> {
    view.state.primary.as_ref().filter(|primary| *primary != chosen).cloned()
}

/// What is left to be done is the business of the later recovery. This one must not stay open: the
/// next loss of what it is about would be taken for it, and nobody would recover from that.
fn overtaken_by(next: &ComponentName) -> Done {
    Done::skipped(format!("{next} reigns by now: a later recovery has taken over"))
}

/// Whether the next loss would be harmless.
pub(super) enum Redundant {
    /// It would; and how.
    Yes(String),
    /// Another one than was expected reigns.
    Overtaken(ComponentName),
    /// The expected primary is lost again; and by what signs.
    Lost(String),
}

/// Waits until all standbys stream from the primary, and one of them has everything if the plan wants
/// commits to wait: from the expected one, or from whichever reigns.
pub(super) async fn until_redundant(
    database: &Database,
    expected: Option<&ComponentName>,
) -> Redundant {
    let (synchronous, members) = (database.synchronous, database.authority.members().len());
    let mut lost_since = None;
    database
        .until(|view| {
            if let Some(next) = expected.and_then(|chosen| successor(view, chosen)) {
                return Some(Redundant::Overtaken(next));
            }
            match diagnose(&database.signs(database.fence_patience())) {
                Verdict::Lost(signs) if expected.is_some() => {
                    let since: Instant = *lost_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > LOST_AGAIN {
                        return Some(Redundant::Lost(signs.join("; ")));
                    }
                }
                _ => lost_since = None,
            }
            let primary = expected.or_else(|| view.reigning())?;
            let Some(ServerState::Primary(state)) = view.server(primary) else { return None };
            let streaming: Vec<_> = state
                .standbys
                .iter()
                .filter(|standby| standby.streaming)
                .map(|standby| standby.name.clone())
                .collect();
            let all = streaming.len() + 1 >= members;
            let safe = !synchronous || view.state.complete.is_some();
            let mode = if synchronous { "synchronously" } else { "asynchronously" };
            (all && safe).then(|| {
                let standbys = streaming.join(", ");
                Redundant::Yes(format!("{primary} replicates {mode} to {standbys}"))
            })
        })
        .await
}
