//! Which runbook a scenario has, and what its steps work on.

use std::sync::Arc;

use resurgam_model::Scenario;

use crate::brokers::{self, Brokers};
use crate::connections::{self, Relief};
use crate::controller::Controller;
use crate::health::Readiness;
use crate::postgres::{self, Aim, Database};
use crate::processes::{self, Processes};
use crate::runbook::Step;
use crate::{disk, stuck};

impl Controller {
    /// What the steps of a scenario of the database work on.
    pub(crate) fn database(&self, scenario: Scenario) -> Option<Database> {
        let (authority, _, _) = self.parts.postgres.as_ref()?;
        Some(Database {
            authority: Arc::clone(authority),
            beat: self.beat.subscribe(),
            deployment: Arc::clone(&self.parts.deployment),
            journal: self.parts.journal.clone(),
            platform: Readiness::new(self.parts.api.clone()),
            objectives: self.parts.plan.objectives(scenario),
            synchronous: self.parts.plan.postgres.synchronous,
            restorer: self.parts.restorer.clone(),
            aim: match scenario {
                Scenario::PostgresRestore => Aim::FromVault,
                Scenario::DatabaseCorruption => Aim::Damaged,
                Scenario::Failback => Aim::Handover,
                _ => Aim::Lost,
            },
        })
    }

    fn processes(&self) -> Processes {
        Processes {
            deployment: Arc::clone(&self.parts.deployment),
            board: self.board.subscribe(),
            detection: self.parts.plan.detection,
            platform: Readiness::new(self.parts.api.clone()),
            journal: self.parts.journal.clone(),
        }
    }

    fn brokers(&self) -> Brokers {
        Brokers {
            deployment: Arc::clone(&self.parts.deployment),
            buses: self.buses.subscribe(),
            plan: self.parts.plan.bus.clone(),
            platform: Readiness::new(self.parts.api.clone()),
            journal: self.parts.journal.clone(),
        }
    }

    fn relief(&self) -> Option<Relief> {
        Some(Relief {
            line: Arc::clone(self.line.as_ref()?),
            seen: self.connections.clone(),
            policy: self.parts.plan.postgres.connections.clone(),
            deployment: Arc::clone(&self.parts.deployment),
            upkeep: Arc::clone(&self.upkeep),
            journal: self.parts.journal.clone(),
            platform: Readiness::new(self.parts.api.clone()),
        })
    }

    /// The steps of a scenario; none if this deployment has nothing that it is about.
    pub(crate) fn runbook(&self, scenario: Scenario) -> Option<Vec<Box<dyn Step>>> {
        match scenario {
            Scenario::PostgresPrimary
            | Scenario::PostgresRestore
            | Scenario::DatabaseCorruption => {
                self.database(scenario).map(|database| postgres::steps(&database))
            }
            Scenario::Failback => {
                self.database(scenario).map(|database| postgres::handover_steps(&database))
            }
            Scenario::PostgresStandby => {
                self.database(scenario).map(|database| postgres::standby_steps(&database))
            }
            Scenario::StuckTasks => Some(stuck::steps(&stuck::Hung {
                api: self.parts.api.clone(),
                deployment: Arc::clone(&self.parts.deployment),
                upkeep: Arc::clone(&self.upkeep),
                journal: self.parts.journal.clone(),
            })),
            Scenario::DiskFilling => Some(disk::steps(&disk::Disk {
                state: self.parts.state_dir.clone(),
                min_free_mb: self.parts.plan.disk.min_free_mb,
                journal: self.parts.journal.clone(),
                platform: Readiness::new(self.parts.api.clone()),
            })),
            Scenario::PoolExhaustion => self.relief().map(|relief| connections::steps(&relief)),
            other => brokers::steps(&self.brokers(), other)
                .or_else(|| processes::steps(&self.processes(), other)),
        }
    }
}
