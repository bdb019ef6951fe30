//! What a step is, for people: the part of a runbook that can be read without running it.
//!
//! Steps, plans (`recover --dry-run`) and printed runbooks take their names and dangers from here,
//! so that the paper cannot say something else than the program does.

use resurgam_model::Scenario;

use super::Danger;

/// One step, for people.
#[derive(Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its name in journal, report and plan.
    pub name: &'static str,
    /// What it may do to what still works.
    pub danger: Danger,
    /// What it does.
    pub does: &'static str,
    /// How it makes sure that it is done.
    pub verified: &'static str,
    /// What a person would type in its place, when the program is not there; `#` begins a remark.
    pub by_hand: &'static [&'static str],
}

/// The steps of a scenario's runbook, in order.
#[must_use]
pub fn outline(scenario: Scenario) -> &'static [Outline] {
    match scenario {
        Scenario::PostgresPrimary | Scenario::PostgresRestore | Scenario::DatabaseCorruption => {
            &crate::postgres::OUTLINE
        }
        Scenario::PostgresStandby => &crate::postgres::STANDBY_OUTLINE,
        Scenario::StuckTasks => &crate::stuck::OUTLINE,
        Scenario::DiskFilling => &crate::disk::OUTLINE,
        Scenario::Failback => &crate::postgres::HANDOVER_OUTLINE,
        Scenario::PoolExhaustion => &crate::connections::OUTLINE,
        Scenario::KafkaBroker => &crate::brokers::KAFKA_BROKER,
        Scenario::KafkaCluster => &crate::brokers::KAFKA_CLUSTER,
        Scenario::RabbitMq => &crate::brokers::RABBITMQ,
        Scenario::Api => &crate::processes::API,
        Scenario::AgentRegistry => &crate::processes::REGISTRY,
        Scenario::WorkerPool => &crate::processes::WORKERS,
        Scenario::FullStop | Scenario::Controller => &crate::processes::EVERYTHING,
        Scenario::FullCluster => &crate::drill::lost::OUTLINE,
    }
}
