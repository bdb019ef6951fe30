//! What is wrong with a deployment: one incident for each cause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use resurgam_deployment::{Component, ComponentKind, RunState};
use resurgam_model::{ComponentName, IncidentId, Scenario, Timestamp};

use crate::Result;
use crate::brokers;
use crate::causes::sorted;
use crate::connections::{Seen, account};
use crate::controller::Controller;
use crate::disk;
use crate::journal::NewIncident;
use crate::postgres::{Missing, SERVICE, Verdict, diagnose};
use crate::processes::subject;
use crate::stuck;

impl Controller {
    /// Whether the deployment is up, or was. Until then, not running is coming up.
    pub(crate) fn settle(&self, components: &[Component], watched: &mut Watched) -> bool {
        if *self.settled.borrow() {
            return true;
        }
        let board = self.board.borrow().clone();
        let up = components.iter().all(|component| {
            component.state == RunState::Running
                && board.get(&component.name).is_none_or(|health| health.met)
        });
        let met = self.parts.roles.iter().all(|(name, _)| board.get(name).is_some_and(|h| h.met));
        let database = self.authority().is_none_or(|a| a.view().reigning().is_some());
        if up && met && database {
            watched.lives = lives(components);
            self.settled.send_replace(true);
            return true;
        }
        false
    }

    /// What is wrong now.
    pub(crate) fn find(
        &self,
        components: &[Component],
        settled: bool,
        watched: &mut Watched,
    ) -> Result<Vec<NewIncident>> {
        let mut found = BTreeMap::new();
        if let Some(new) = self.find_database()
            && !self.database_is_recovering(new.scenario)?
        {
            found.insert(new.scenario, new);
        }
        if settled {
            let board = self.board.borrow().clone();
            for component in components {
                if component.kind == ComponentKind::Postgres {
                    let ended = watched.ended(component);
                    if ended.is_some() && !self.upkeep.is_planned(&component.name, ended) {
                        found.extend(self.standby_ended(component).map(|new| (new.scenario, new)));
                    }
                    continue;
                }
                if matches!(component.kind, ComponentKind::Kafka | ComponentKind::RabbitMq) {
                    let ended = watched.ended(component);
                    match (ended, self.upkeep.is_planned(&component.name, ended)) {
                        (Some(_), true) => watched.brokers.excuse(component, Instant::now()),
                        (Some(_), false) => watched.brokers.note_end(component, Instant::now()),
                        (None, _) => {}
                    }
                    continue;
                }
                let Some((scenario, about)) = subject(component.kind, &component.name) else {
                    continue;
                };
                let health = board.get(&component.name);
                let ended = watched.ended(component);
                if self.upkeep.is_planned(&component.name, ended) {
                    continue;
                }
                let silent = health.is_some_and(|h| h.is_suspect(&self.parts.plan.detection));
                let cause = if ended.is_some() {
                    let how = component.last_exit.as_deref().unwrap_or("ended");
                    format!("the process of {} ended: {how}", component.name)
                } else if silent {
                    let why = health.and_then(|h| h.why.clone()).unwrap_or_default();
                    format!("{} does not answer: {why}", component.name)
                } else {
                    continue;
                };
                let first_sign =
                    health.and_then(|h| h.failing_since).unwrap_or_else(Timestamp::now);
                found.entry(scenario).or_insert(NewIncident {
                    scenario,
                    component: about,
                    cause,
                    first_sign,
                });
            }
        }
        if settled {
            found.extend(self.find_brokers(components, watched));
            if let Some(new) = self.find_standby(watched) {
                found.entry(new.scenario).or_insert(new);
            }
            found.extend(self.find_stuck().map(|new| (new.scenario, new)));
            found.extend(self.find_disk().map(|new| (new.scenario, new)));
            found.extend(self.find_connections().map(|new| (new.scenario, new)));
        }
        let journal = &self.parts.journal;
        let (causes, symptoms) = sorted(found.into_values().collect(), &journal.open_incidents()?);
        for (id, symptom) in symptoms {
            if watched.symptoms.insert((id, symptom.scenario)) {
                let text = format!("a symptom: {}: {}", symptom.scenario, symptom.cause);
                journal.add_evidence(id, &text, Timestamp::now())?;
            }
        }
        Ok(causes)
    }

    fn find_brokers(
        &self,
        components: &[Component],
        watched: &mut Watched,
    ) -> BTreeMap<Scenario, NewIncident> {
        let status = self.buses();
        let found = watched.brokers.find(components, status.as_ref(), Instant::now());
        let new = |brokers::Found { scenario, cause, first_sign }| {
            let bus = brokers::bus_of(scenario)?;
            let component = ComponentName::new(bus.as_str()).ok()?;
            Some((scenario, NewIncident { scenario, component, cause, first_sign }))
        };
        found.into_iter().filter_map(new).collect()
    }

    /// A process of PostgreSQL has ended. That of the primary is another matter.
    fn standby_ended(&self, component: &Component) -> Option<NewIncident> {
        let state = self.authority()?.view().state;
        if state.primary.is_none() || state.primary.as_ref() == Some(&component.name) {
            return None;
        }
        let how = component.last_exit.as_deref().unwrap_or("ended");
        Some(NewIncident {
            scenario: Scenario::PostgresStandby,
            component: component.name.clone(),
            cause: format!("the process of {} ended: {how}", component.name),
            first_sign: Timestamp::now(),
        })
    }

    fn find_standby(&self, watched: &mut Watched) -> Option<NewIncident> {
        let view = self.authority()?.view();
        let (now, moment) = (Instant::now(), Timestamp::now());
        let (component, first_sign) = watched.standbys.look(&view, now, moment)?;
        let cause = format!("{component} does not stream from the primary");
        Some(NewIncident { scenario: Scenario::PostgresStandby, component, cause, first_sign })
    }

    fn find_stuck(&self) -> Option<NewIncident> {
        let holders = self.stuck.borrow();
        let holder = holders.iter().find(|holder| holder.is_sure())?;
        Some(NewIncident {
            scenario: Scenario::StuckTasks,
            component: ComponentName::new(holder.agent.as_str()).ok()?,
            cause: stuck::account(holder),
            first_sign: holder.since,
        })
    }

    fn find_disk(&self) -> Option<NewIncident> {
        let space = *self.disk.borrow();
        let (space, first_sign) = space.and_then(|space| Some((space, space.low_since?)))?;
        Some(NewIncident {
            scenario: Scenario::DiskFilling,
            component: self.parts.name.clone(),
            cause: disk::account(&space),
            first_sign,
        })
    }

    fn find_connections(&self) -> Option<NewIncident> {
        let seen = self.connections.borrow().clone().filter(Seen::exhausted)?;
        Some(NewIncident {
            scenario: Scenario::PoolExhaustion,
            component: ComponentName::new(SERVICE).ok()?,
            cause: account(seen.seats, &seen.holders),
            first_sign: seen.since.unwrap_or_else(Timestamp::now),
        })
    }

    fn find_database(&self) -> Option<NewIncident> {
        let scenario = Scenario::PostgresPrimary;
        let database = self.database(scenario)?;
        let state = database.authority.view().state;
        let first_sign = self.beat.borrow().failing_since.unwrap_or_else(Timestamp::now);
        let new = |component, cause| NewIncident { scenario, component, cause, first_sign };
        let Some(primary) = state.primary else {
            // A recovery that took the reign away did not end.
            return Some(new(state.former?, "nobody reigns".to_owned()));
        };
        match diagnose(&database.signs(database.open_patience())) {
            Verdict::Lost(signs) => Some(new(primary, signs.join("; "))),
            Verdict::Starting | Verdict::Healthy | Verdict::Suspect(_) => {
                let damaged = database.damaged()?;
                let cause = format!("{damaged} pages of {primary} have failed their checksums");
                Some(NewIncident {
                    scenario: Scenario::DatabaseCorruption,
                    first_sign: Timestamp::now(),
                    ..new(primary, cause)
                })
            }
        }
    }
}

/// The processes that run now.
fn lives(components: &[Component]) -> BTreeMap<ComponentName, Option<u32>> {
    components.iter().map(|component| (component.name.clone(), component.pid)).collect()
}

/// What was seen of the processes so far.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    lives: BTreeMap<ComponentName, Option<u32>>,
    brokers: brokers::Seen,
    standbys: Missing,
    /// What was noted as a symptom of an incident.
    symptoms: BTreeSet<(IncidentId, Scenario)>,
}

impl Watched {
    /// The process that was seen before, if it has ended. Told once for each end.
    fn ended(&mut self, component: &Component) -> Option<u32> {
        // On purpose is no failure.
        let now = component.pid.filter(|_| !component.state.is_on_purpose());
        let before = self.lives.insert(component.name.clone(), now).flatten();
        before.filter(|_| before != now && !component.state.is_on_purpose())
    }
}
