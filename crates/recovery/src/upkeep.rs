//! Care on a person's order: starting components again, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resurgam_deployment::{Component, ComponentKind, Deployment, RunState};
use resurgam_model::ComponentName;
use resurgam_model::plan::Detection;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::health::Board;

/// A component that does not come back in this time is left to detection, and the others are not
/// touched.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Who is started again when, so that whoever is needed by others comes first. What keeps data only
/// when it is named: the end of a primary is a failover.
pub(crate) fn in_turn(components: &[Component], named: &[ComponentName]) -> Vec<ComponentName> {
    let turn = |kind: ComponentKind| match kind {
        ComponentKind::Postgres | ComponentKind::Kafka | ComponentKind::RabbitMq => 0,
        ComponentKind::Registry => 1,
        ComponentKind::Supervisor => 2,
        ComponentKind::Api => 3,
        ComponentKind::Worker => 4,
    };
    let mut these: Vec<_> = components
        .iter()
        .filter(|component| match named {
            [] => !component.kind.keeps_data(),
            named => named.contains(&component.name),
        })
        .filter(|component| !component.state.is_on_purpose())
        .map(|component| (turn(component.kind), component.name.clone()))
        .collect();
    these.sort();
    these.into_iter().map(|(_, name)| name).collect()
}

/// What is started again on purpose, so that its end is no failure.
#[derive(Debug, Default)]
struct Planned {
    under_way: BTreeSet<ComponentName>,
    /// The process that was ended last. Whoever watches may hear of its end only when the next
    /// one serves already.
    ended: BTreeMap<ComponentName, u32>,
}

impl Planned {
    fn begin(&mut self, name: &ComponentName, pid: Option<u32>) {
        self.under_way.insert(name.clone());
        self.ended.extend(pid.map(|pid| (name.clone(), pid)));
    }

    fn is_planned(&self, name: &ComponentName, ended: Option<u32>) -> bool {
        self.under_way.contains(name) || (ended.is_some() && self.ended.get(name).copied() == ended)
    }
}

/// Starts components again so that nobody takes it for a failure.
pub(crate) struct Upkeep {
    deployment: Arc<dyn Deployment>,
    board: watch::Sender<Board>,
    detection: Detection,
    planned: Mutex<Planned>,
}

impl Upkeep {
    pub(crate) fn new(
        deployment: Arc<dyn Deployment>,
        board: watch::Sender<Board>,
        detection: Detection,
    ) -> Self {
        Self { deployment, board, detection, planned: Mutex::default() }
    }

    fn planned(&self) -> MutexGuard<'_, Planned> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is seen of the component comes of an order: it is being started again, or the
    /// process whose end was seen now is the one that was ended for that.
    pub(crate) fn is_planned(&self, name: &ComponentName, ended: Option<u32>) -> bool {
        self.planned().is_planned(name, ended)
    }

    /// Starts these again, each when the one before serves.
    ///
    /// # Errors
    /// Which one did not come back, and why; those after it are left as they are.
    pub(crate) async fn restart(&self, names: &[ComponentName]) -> Result<(), String> {
        for name in names {
            let served = self.restart_one(name).await;
            self.planned().under_way.remove(name);
            match served {
                Ok(true) => tracing::info!(component = %name, "started again, as ordered"),
                Ok(false) => {
                    return Err(format!(
                        "{name} does not serve again; the others are left as they are"
                    ));
                }
                Err(error) => {
                    return Err(format!(
                        "{name} cannot be started again, and the others are left as they are: {error}"
                    ));
                }
            }
        }
        Ok(())
    }

    async fn restart_one(&self, name: &ComponentName) -> crate::Result<bool> {
        let deployment = &self.deployment;
        let components = deployment.components().await?;
        let pid = components.iter().find(|c| c.name == *name).and_then(|c| c.pid);
        self.planned().begin(name, pid);
        // What the probes knew is of the life before.
        self.board.send_modify(|board| drop(board.remove(name)));
        deployment.restart(name).await?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let components = deployment.components().await?;
            let Some(component) = components.iter().find(|component| component.name == *name)
            else {
                // Removed meanwhile: nobody waits for it.
                return Ok(true);
            };
            let answers = component.address.is_none()
                || component.kind.keeps_data()
                || self
                    .board
                    .borrow()
                    .get(name)
                    .is_some_and(|health| health.is_well(&self.detection));
            if component.state == RunState::Running && answers {
                return Ok(true);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str, kind: ComponentKind, state: RunState) -> Component {
        Component {
            name: ComponentName::new(name).unwrap(),
            kind,
            state,
            pid: Some(1),
            address: None,
            started_at: None,
            restarts: 0,
            last_exit: None,
        }
    }

    #[test]
    fn an_end_that_is_seen_late_is_no_failure_and_the_next_one_is() {
        let name = ComponentName::new("worker-pool-0").unwrap();
        let mut planned = Planned::default();
        planned.begin(&name, Some(7));
        assert!(planned.is_planned(&name, None) && planned.is_planned(&name, Some(8)));
        planned.under_way.remove(&name);
        assert!(planned.is_planned(&name, Some(7)));
        assert!(!planned.is_planned(&name, Some(8)) && !planned.is_planned(&name, None));
    }

    #[test]
    fn databases_are_spared_and_whoever_leaves_is_let_go() {
        let components = [
            component("worker-pool-0", ComponentKind::Worker, RunState::Running),
            component("worker-pool-1", ComponentKind::Worker, RunState::Draining),
            component("api", ComponentKind::Api, RunState::Restarting),
            component("agent-registry", ComponentKind::Registry, RunState::Running),
            component("postgres-0", ComponentKind::Postgres, RunState::Running),
        ];
        let texts = |names: Vec<ComponentName>| {
            names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(texts(in_turn(&components, &[])), ["agent-registry", "api", "worker-pool-0"]);
        let named = [ComponentName::new("postgres-0").unwrap()];
        assert_eq!(texts(in_turn(&components, &named)), ["postgres-0"]);
    }
}
