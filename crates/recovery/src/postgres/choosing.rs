//! The steps that choose who reigns next: a standby, the former primary, or what is in a vault.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_deployment::postgres::wire::ServerState;
use resurgam_model::{ComponentName, Timestamp};
use serde_json::json;

use super::authority::{Seen, View};
use super::choose::{Candidate, Choice, choose};
use super::database::{Aim, Database, FRESH};
use super::outline::{self, OUTLINE};
use super::runbook::name_in;
use crate::restorer::Offer;
use crate::runbook::{Done, Outline, SoFar, Step, Stop};

/// Chooses the most advanced standby, and says what would be lost.
pub(super) struct Choose(pub(super) Database);

/// Why a damaged primary needs another one's data.
pub(super) const DAMAGED: &str = "its pages are damaged on disk";

/// Every instance says that it has no data.
fn nobody_has_data(view: &View) -> bool {
    let absent = |seen: &Seen| {
        seen.at.elapsed() < FRESH && seen.renewal.observed.state == ServerState::Absent
    };
    view.seen.len() == view.members && view.seen.values().all(absent)
}

/// What the vaults have, if that is not too old.
pub(super) async fn from_vault(
    database: &Database,
    so_far: &SoFar<'_>,
    former: &ComponentName,
    why: &str,
) -> Result<Done, Stop> {
    let Some(restorer) = &database.restorer else {
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
    let rpo = database.objectives.rpo;
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

/// So long a plan whose commits wait for a standby is given for a way without loss.
const LOSSLESS: Duration = Duration::from_secs(10);

/// Who could be promoted: standbys that are known to have followed this primary, and were heard just
/// now.
pub(crate) fn candidates(view: &View) -> Vec<Candidate> {
    view.seen
        .iter()
        .filter(|(name, seen)| {
            let fits =
                view.state.followers.contains(*name) || view.state.complete.as_ref() == Some(name);
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
            return from_vault(database, so_far, &former, "a person has ordered it").await;
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
                let candidates = candidates(view);
                let complete = view.state.complete.as_ref();
                let best = choose(&candidates, complete, &view.samples, fault);
                // A plan whose commits wait for a standby wants no loss that can be avoided: what
                // has died may be back in a moment, with everything. Unless that was tried in vain.
                let damaged = database.aim == Aim::Damaged;
                let hurried = !database.synchronous
                    || damaged
                    || so_far.incident.round > 0
                    || started.elapsed() > LOSSLESS;
                let affordable = best.as_ref().is_some_and(|choice| {
                    let loss = choice.loss_ms.is_some_and(|loss| loss <= rpo.as_millis());
                    choice.complete || (hurried && loss)
                });
                if affordable {
                    return best.map(|choice| Ok((choice, false)));
                }
                // Whoever has everything may still come; and the former primary itself has.
                let seen = view.seen.get(&former).filter(|seen| seen.at.elapsed() < FRESH);
                let former_has_data = !damaged
                    && seen.is_some()
                    && view.server(&former) == Some(&ServerState::Stopped);
                // Its keeper has not failed at it.
                let usable = seen.is_some_and(|seen| seen.renewal.observed.problem.is_none());
                let nobody_else = view.members == 1 || (complete.is_none() && usable);
                let waited = nobody_else || started.elapsed() > Duration::from_secs(5);
                if former_has_data && waited {
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
                from_vault(database, so_far, &former, DAMAGED).await
            }
            Err(None) if nobody_has_data(&database.authority.view()) => {
                from_vault(database, so_far, &former, "nobody has its data any more").await
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
pub(super) struct Restore(pub(super) Database);

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
        let names = |view: &View| candidates(view).into_iter().map(|c| c.name).collect::<Vec<_>>();
        assert_eq!(names(&view), std::slice::from_ref(&behind));
        view.state.complete = Some(ahead.clone());
        assert_eq!(names(&view), [ahead, behind]);
    }
}
