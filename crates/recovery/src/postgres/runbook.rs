//! The runbook for the loss of the primary.
//!
//! confirm → evidence → fence → choose → restore → promote → reroute → verify → rebuild → redundancy

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::postgres::wire::ServerState;
use resurgam_model::report::StepStatus;
use resurgam_model::{ComponentName, Timestamp};
use serde_json::json;

use super::authority::{Seen, View};
use super::choose::{Candidate, Choice, choose};
use super::database::{Aim, Database, FRESH, LOOK};
use super::diagnosis::{SqlSign, Verdict, diagnose};
use super::fencing::{Proof, prove};
use super::outline::{self, OUTLINE};
use crate::journal::StepRecord;
use crate::restorer::Offer;
use crate::runbook::{Done, Outline, SoFar, Step, Stop};

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

fn name_in(so_far: &SoFar<'_>, step: &str, key: &str) -> Result<ComponentName, Stop> {
    let value = so_far.output(step).and_then(|output| output.get(key)).and_then(|v| v.as_str());
    let missing = || Stop::Retry(format!("the journal has no {key} of the step {step}"));
    value.and_then(|text| ComponentName::new(text).ok()).ok_or_else(missing)
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
struct Evidence(Database);

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
struct Fence(Database);

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
        if so_far.waited && database.authority.view().state.primary.as_ref() == Some(&former) {
            // People take their time, in which it may have come back.
            let patience = database.authority.lease() * 2 + Duration::from_secs(10);
            tokio::time::timeout(patience, confirm(database, so_far)).await.map_err(|_| {
                Stop::Retry(format!("the signs do not agree any more that {former} is lost"))
            })??;
        }
        let state = database.authority.change(|state| {
            if state.primary.as_ref() == Some(&former) {
                state.primary = None;
                state.former = Some(former.clone());
                state.stopped = Some(former.clone());
                state.epoch = state.epoch.next();
            }
        })?;
        let epoch = state.epoch;
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

/// Chooses the most advanced standby, and says what would be lost.
struct Choose(Database);

/// Every instance says that it has no data.
fn nobody_has_data(view: &View) -> bool {
    let absent = |seen: &Seen| {
        seen.at.elapsed() < FRESH && seen.renewal.observed.state == ServerState::Absent
    };
    view.seen.len() == view.members && view.seen.values().all(absent)
}

impl Choose {
    /// What the vaults have, if that is not too old.
    async fn take_from_vault(
        &self,
        so_far: &SoFar<'_>,
        former: &ComponentName,
        why: &str,
    ) -> Result<Done, Stop> {
        let Some(restorer) = &self.0.restorer else {
            return Err(Stop::Refuse(format!(
                "{why}, and the plan has no vault to restore from; bring an instance back and start the recovery again"
            )));
        };
        let offer = restorer.best().await.map_err(|why_not| {
            Stop::Refuse(format!(
                "{why}, and nothing can be restored: {why_not}; bring an instance or a vault back and start the recovery again"
            ))
        })?;
        let loss = so_far.incident.first_sign.duration_since(offer.until);
        let loss = Duration::try_from(loss).unwrap_or_default();
        let rpo = self.0.objectives.rpo;
        // In whole seconds, so that it stays the same for as long as the matter does.
        let question = format!(
            "{why}; there is {}, but up to {} s of acknowledged writes would be lost, and the objective allows {rpo}. Shall it be restored all the same?",
            offer.what,
            loss.as_millis().div_ceil(1000)
        );
        if loss > rpo.0 && !so_far.agreed.contains(&question) {
            return Err(Stop::Ask(question));
        }
        let allowed = match loss > rpo.0 {
            true => "as people have agreed".to_owned(),
            false => format!("which the objective of {rpo} allows"),
        };
        let detail = format!(
            "{why}: {former} gets {}; up to {} ms may be missing, {allowed}",
            offer.what,
            loss.as_millis()
        );
        Ok(Done::now(detail).with(json!({ "chosen": former, "restore": offer })))
    }

    fn candidates(view: &View) -> Vec<Candidate> {
        view.seen
            .iter()
            .filter(|(name, seen)| {
                let fits = view.state.followers.contains(*name)
                    || view.state.complete.as_ref() == Some(name);
                fits && seen.at.elapsed() < FRESH && view.state.stopped.as_ref() != Some(name)
            })
            .filter_map(|(name, seen)| match &seen.renewal.observed.state {
                ServerState::Standby(state) => Some(Candidate {
                    name: name.clone(),
                    timeline: state.timeline,
                    received: state.received,
                }),
                _ => None,
            })
            .collect()
    }
}

#[async_trait]
impl Step for Choose {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::CHOOSE]
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(120)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let former = name_in(so_far, "confirm", "former")?;
        if database.aim == Aim::FromVault && database.authority.view().state.primary.is_none() {
            return self.take_from_vault(so_far, &former, "a person has ordered it").await;
        }
        let started = Instant::now();
        // Up to the first sign the primary may have acknowledged writes.
        let age = Timestamp::now().duration_since(so_far.incident.first_sign);
        let age = Duration::try_from(age).unwrap_or_default();
        let fault = started.checked_sub(age).unwrap_or(started);
        let rpo = database.objectives.rpo;
        let choice = database
            .until(|view| {
                if let Some(primary) = &view.state.primary {
                    let chosen = primary.clone();
                    return Some(Ok((
                        Choice { name: chosen, complete: true, loss_ms: None, loss_bytes: None },
                        true,
                    )));
                }
                let candidates = Self::candidates(view);
                let complete = view.state.complete.as_ref();
                let best = choose(&candidates, complete, &view.samples, fault);
                let affordable = best.as_ref().is_some_and(|choice| {
                    choice.complete || choice.loss_ms.is_some_and(|loss| loss <= rpo.as_millis())
                });
                if affordable {
                    return best.map(|choice| Ok((choice, false)));
                }
                // Whoever has everything may still come; and the former primary itself has.
                let damaged = database.aim == Aim::Damaged;
                let former_has_data = !damaged
                    && view.server(&former) == Some(&ServerState::Stopped)
                    && view.seen.get(&former).is_some_and(|seen| seen.at.elapsed() < FRESH);
                let waited = started.elapsed() > Duration::from_secs(5);
                if former_has_data && (waited || database.authority.members().len() == 1) {
                    let choice = Choice {
                        name: former.clone(),
                        complete: true,
                        loss_ms: Some(0),
                        loss_bytes: Some(0),
                    };
                    return Some(Ok((choice, false)));
                }
                let alone = damaged && view.members == 1;
                let nothing = best.is_none() && (alone || nobody_has_data(view));
                (nothing || started.elapsed() > Duration::from_secs(30)).then_some(Err(best))
            })
            .await;
        match choice {
            Ok((choice, true)) => Ok(Done::skipped(format!("{} reigns", choice.name))
                .with(json!({ "chosen": choice.name }))),
            Ok((choice, false)) => {
                let loss = match (choice.complete, choice.loss_ms, choice.loss_bytes) {
                    (true, _, _) => "nothing acknowledged is missing".to_owned(),
                    (false, Some(ms), Some(bytes)) => {
                        format!("up to {ms} ms ({bytes} bytes of log) may be missing, which the objective of {rpo} allows")
                    }
                    (false, Some(ms), None) => format!("up to {ms} ms may be missing"),
                    (false, None, _) => "what is missing is not known".to_owned(),
                };
                let how = if choice.name == former { "the only one with all data" } else { "the most advanced" };
                Ok(Done::now(format!("{}, {how}: {loss}", choice.name))
                    .with(json!({ "chosen": choice.name, "loss_ms": choice.loss_ms, "loss_bytes": choice.loss_bytes })))
            }
            Err(None) if database.aim == Aim::Damaged && database.authority.members().len() == 1 => {
                self.take_from_vault(so_far, &former, "its pages are damaged on disk").await
            }
            Err(None) if nobody_has_data(&database.authority.view()) => {
                self.take_from_vault(so_far, &former, "nobody has its data any more").await
            }
            // Whoever cannot be asked may have everything.
            Err(None) => Err(Stop::Refuse(
                "no standby can be reached, and the former primary has no usable data; bring an instance back, or restore what is in the vault with: resurgam recover postgres-restore".to_owned(),
            )),
            Err(Some(choice)) => {
                let question = question(&choice, rpo);
                if !so_far.agreed.contains(&question) {
                    return Err(Stop::Ask(question));
                }
                let detail = format!("{}, as people have agreed: {question}", choice.name);
                Ok(Done::now(detail).with(json!({ "chosen": choice.name, "loss_ms": choice.loss_ms, "loss_bytes": choice.loss_bytes })))
            }
        }
    }
}

/// What people are asked before more is given up than was promised. It holds all that the answer
/// depends on, in whole seconds, so that it stays the same for as long as the matter does.
fn question(choice: &Choice, rpo: resurgam_model::Duration) -> String {
    let time = choice.loss_ms.map_or("an unknown amount".to_owned(), |ms| {
        format!("up to {} s of acknowledged writes", ms.div_ceil(1000))
    });
    let bytes = choice.loss_bytes.map_or(String::new(), |bytes| format!(" ({bytes} bytes of log)"));
    format!(
        "{} is the best, but {time} would be lost{bytes}, and the objective allows {rpo}. Shall it reign all the same?",
        choice.name
    )
}

/// Brings back from a vault what nobody has any more.
struct Restore(Database);

#[async_trait]
impl Step for Restore {
    fn outline(&self) -> &'static Outline {
        &OUTLINE[outline::RESTORE]
    }

    fn timeout(&self) -> Duration {
        // A large database takes its time.
        Duration::from_secs(12 * 3600)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let database = &self.0;
        let chosen = name_in(so_far, "choose", "chosen")?;
        let offer = so_far.output("choose").and_then(|output| output.get("restore"));
        let Some(offer) = offer else {
            return Ok(Done::skipped(format!("{chosen} has the data")));
        };
        let offer: Offer = serde_json::from_value(offer.clone())?;
        let Some(restorer) = &database.restorer else {
            return Err(Stop::Refuse("the plan has no vault any more".to_owned()));
        };
        // Whoever reigns has data that must not be touched; and what is to be replaced must rest.
        let at_rest = database
            .until(|view| match (&view.state.primary, view.server(&chosen)) {
                (Some(primary), _) => Some(Err(primary.clone())),
                (None, Some(ServerState::Absent | ServerState::Stopped)) => Some(Ok(())),
                (None, _) => None,
            })
            .await;
        if let Err(primary) = at_rest {
            return Ok(Done::skipped(format!("{primary} reigns")));
        }
        let did = restorer.restore(&offer, &chosen, so_far.incident.id).await;
        did.map(Done::now).map_err(Stop::Retry)
    }
}

/// Gives the reign to the chosen one.
struct Promote(Database);

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
struct Reroute(Database);

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
struct Verify(Database);

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
        let mut beat = database.beat.clone();
        beat.wait_for(|beat| beat.target.as_ref() == Some(&chosen) && beat.sign == SqlSign::Works)
            .await
            .map_err(|_| Stop::Retry("the probe has ended".to_owned()))?;
        database.platform.wait().await;
        Ok(Done::now(format!("{chosen} takes writes and gives them back; the platform is ready")))
    }
}

/// Makes the former primary a standby of the new one.
struct Rebuild(Database);

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
        database
            .until(|view| {
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
                        Some(())
                    }
                    _ => None,
                }
            })
            .await;
        let how = if did.is_empty() { "its data fitted".to_owned() } else { did.join(", then ") };
        Ok(Done::now(format!("{former} streams from {chosen} ({how})")))
    }
}

/// Makes sure that the next loss would be as harmless.
struct Redundancy(Database);

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
        let members: BTreeMap<_, _> = database.authority.members().clone();
        if members.len() == 1 {
            return Ok(Done::skipped("the plan has no standby"));
        }
        let synchronous = database.synchronous;
        let standbys = database
            .until(|view| {
                let Some(ServerState::Primary(state)) = view.server(&chosen) else { return None };
                let streaming: Vec<_> = state
                    .standbys
                    .iter()
                    .filter(|standby| standby.streaming)
                    .map(|standby| standby.name.clone())
                    .collect();
                let all = streaming.len() + 1 >= members.len();
                let safe = !synchronous || view.state.complete.is_some();
                (all && safe).then_some(streaming)
            })
            .await;
        let mode = if synchronous { "synchronously" } else { "asynchronously" };
        Ok(Done::now(format!("{} replicates {mode} to {}", chosen, standbys.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use resurgam_deployment::postgres::contain::Strength;
    use resurgam_deployment::postgres::wire::{Observed, Renewal, StandbyState};
    use resurgam_model::InstanceId;
    use resurgam_model::database::Lsn;

    use super::super::authority::Seen;
    use super::*;
    use crate::journal::cluster::ClusterState;

    fn standby(received: u64) -> Seen {
        let state = ServerState::Standby(StandbyState {
            timeline: 3,
            received: Lsn(received),
            replayed: Lsn(received),
            streaming_from: None,
            silent_ms: None,
        });
        let renewal = Renewal {
            life: InstanceId::new(),
            fence: Strength::Kernel,
            address: "127.0.0.1:1".parse().unwrap(),
            observed: Observed { state, ..Observed::default() },
            heard: 1,
            carried_out: 1,
        };
        Seen { renewal, at: Instant::now() }
    }

    #[test]
    fn data_that_was_never_seen_to_follow_is_no_candidate_however_far_it_is() {
        let name = |text: &str| ComponentName::new(text).unwrap();
        let (behind, ahead, stopped) = (name("behind"), name("ahead"), name("stopped"));
        let mut state = ClusterState { stopped: Some(stopped.clone()), ..ClusterState::default() };
        state.followers.extend([behind.clone(), stopped.clone()]);
        let seen = BTreeMap::from([
            (behind.clone(), standby(100)),
            (ahead.clone(), standby(900)),
            (stopped, standby(950)),
        ]);
        let mut view = View {
            state,
            members: 4,
            seen,
            lease: None,
            reigned: true,
            since: Instant::now(),
            samples: vec![],
        };
        let names =
            |view: &View| Choose::candidates(view).into_iter().map(|c| c.name).collect::<Vec<_>>();
        assert_eq!(names(&view), std::slice::from_ref(&behind));
        view.state.complete = Some(ahead.clone());
        assert_eq!(names(&view), [ahead, behind]);
    }
}
