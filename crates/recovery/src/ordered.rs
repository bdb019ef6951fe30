//! What people, and programs that notice something, have ordered.

use std::sync::Arc;

use resurgam_deployment::Component;
use resurgam_model::{ComponentName, Scenario, Timestamp};
use tokio::task::JoinSet;

use crate::controller::{Controller, is_of_database};
use crate::journal::NewIncident;
use crate::journal::orders::Order;
use crate::processes::subject;
use crate::{Result, brokers, postgres, scaling, upkeep};

impl Controller {
    /// Does what people have ordered. What is about steps that wait, these take themselves.
    pub(crate) async fn take_orders(
        self: &Arc<Self>,
        components: &[Component],
        running: &mut JoinSet<Result<()>>,
    ) -> Result<()> {
        let journal = &self.parts.journal;
        for (number, ordered) in journal.open_orders()? {
            let by = &ordered.by;
            tracing::info!(by, order = ?ordered.order, "an order");
            match ordered.order {
                Order::Approve { .. } | Order::Reject { .. } => {}
                Order::Recover { scenario, component, ask } => {
                    let component = match component.or_else(|| self.usual(scenario, components)) {
                        Some(component) => component,
                        None => self.parts.name.clone(),
                    };
                    if self.database_is_recovering(scenario)? {
                        tracing::warn!(%scenario, "not begun: another recovery of the database is under way");
                        journal.orders_done(number)?;
                        continue;
                    }
                    let new = NewIncident {
                        scenario,
                        component,
                        cause: format!("ordered by {by}"),
                        first_sign: Timestamp::now(),
                    };
                    let incident = journal.open_incident(&new, Timestamp::now())?;
                    if let Some(ask) = ask {
                        journal.set_ask(incident.id, ask, Timestamp::now())?;
                    }
                }
                Order::Report { scenario, component, finding } => {
                    let component = component.or_else(|| self.usual(scenario, components));
                    let new = NewIncident {
                        scenario,
                        component: component.unwrap_or_else(|| self.parts.name.clone()),
                        cause: format!("{finding} (found by {by})"),
                        first_sign: Timestamp::now(),
                    };
                    if !self.database_is_recovering(scenario)? {
                        self.raise(&new)?;
                    }
                }
                Order::Resume { incident } => {
                    if !journal.reopen_incident(incident, None, Timestamp::now())? {
                        tracing::warn!(%incident, "not begun anew: it did not fail, or the same cause has another incident that is open");
                    }
                }
                Order::Restart { components: named } => {
                    let upkeep = Arc::clone(&self.upkeep);
                    let names = upkeep::in_turn(components, &named);
                    running.spawn(async move {
                        if let Err(why) = upkeep.restart(&names).await {
                            tracing::error!(why, "the order to start again was not carried out");
                        }
                        Ok(())
                    });
                }
                Order::Scale { pool, size } => {
                    if pool.as_str() == scaling::POOL {
                        self.ordered_size.send_replace(Some(size));
                    }
                    if let Err(error) = self.parts.deployment.scale(&pool, size).await {
                        tracing::error!(%pool, %error, "the order to scale was not carried out");
                    }
                }
            }
            journal.orders_done(number)?;
        }
        Ok(())
    }

    /// What a recovery of this scenario is about when nobody says more.
    fn usual(&self, scenario: Scenario, components: &[Component]) -> Option<ComponentName> {
        if scenario == Scenario::PostgresStandby {
            let authority = self.authority()?;
            let primary = authority.view().state.primary;
            return authority
                .members()
                .keys()
                .find(|name| Some(*name) != primary.as_ref())
                .cloned();
        }
        if scenario == Scenario::PoolExhaustion {
            self.authority()?;
            return ComponentName::new(postgres::SERVICE).ok();
        }
        if scenario == Scenario::Failback {
            self.authority()?;
            return Some(self.parts.plan.postgres.preferred.clone());
        }
        if is_of_database(scenario) {
            let state = self.authority()?.view().state;
            return state.primary.or(state.former);
        }
        if let Some(bus) = brokers::bus_of(scenario) {
            return ComponentName::new(bus.as_str()).ok();
        }
        let subjects = components.iter().filter_map(|c| subject(c.kind, &c.name));
        subjects.into_iter().find(|(of, _)| *of == scenario).map(|(_, name)| name)
    }
}
