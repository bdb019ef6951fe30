//! What a recovery would do now, and why: a pure function of what the controller sees.

mod postgres;

use resurgam_deployment::{ComponentKind, RunState};
use resurgam_model::Scenario;
use resurgam_model::bus::BusKind;
use resurgam_model::plan::{Ask, Plan};
use serde::Serialize;

use crate::brokers::bus_of;
use crate::disk::account as account_of_disk;
use crate::runbook::{Danger, outline};
use crate::status::{Health, Status};

/// A recovery as it would go now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// What it is for.
    pub scenario: Scenario,
    /// Whether it could be begun, and come to its end by itself.
    pub possible: bool,
    /// What it would come to, in a sentence.
    pub summary: String,
    /// The steps in their order; empty when there is nothing to go through.
    pub steps: Vec<PlannedStep>,
    /// What would be lost, in words.
    pub loss: String,
    /// When people would be asked, in words.
    pub asks: String,
}

/// A step as it would go now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// Its name.
    pub name: String,
    /// What it may do to what still works.
    pub danger: Danger,
    /// What it would find or do.
    pub would: String,
    /// Whether people are asked before it.
    pub asks: bool,
}

/// Plans the recovery of a scenario. Nothing is done.
#[must_use]
pub fn plan(scenario: Scenario, status: &Status, plan: &Plan) -> Planned {
    let (possible, summary, loss, would) = match (scenario, &status.postgres) {
        (
            Scenario::PostgresPrimary
            | Scenario::PostgresRestore
            | Scenario::DatabaseCorruption
            | Scenario::PoolExhaustion
            | Scenario::PostgresStandby
            | Scenario::Failback,
            None,
        ) => {
            let summary =
                "this deployment runs no PostgreSQL of its own that could be recovered".to_owned();
            (false, summary, "nothing".to_owned(), Vec::new())
        }
        (Scenario::PostgresPrimary, Some(postgres)) => postgres::database(postgres, plan),
        (Scenario::PostgresRestore, Some(postgres)) => postgres::restore(postgres, plan),
        (Scenario::DatabaseCorruption, Some(postgres)) => postgres::damaged(postgres, plan),
        (Scenario::PostgresStandby, Some(postgres)) => postgres::standby(postgres, status),
        (Scenario::Failback, Some(postgres)) => {
            postgres::handover(postgres, &plan.postgres.preferred)
        }
        (Scenario::PoolExhaustion, Some(postgres)) => postgres::connections(postgres, plan),
        (Scenario::DiskFilling, _) => disk(status),
        (Scenario::StuckTasks, _) => stuck(),
        (Scenario::FullCluster, _) => {
            let summary = "this deployment runs, so not everything is lost; when it is: resurgam restore --latest, then resurgam up".to_owned();
            (false, summary, "what was acknowledged after the last backup".to_owned(), Vec::new())
        }
        (scenario, _) => match bus_of(scenario) {
            Some(bus) => brokers(bus, status, plan),
            None => processes(scenario, status),
        },
    };
    let approval = plan.approval(scenario);
    let asks_before = |danger| match approval.ask {
        Ask::Never => false,
        Ask::Dangerous => danger >= Danger::Dangerous,
        Ask::Always => danger >= Danger::Acts,
    };
    let steps: Vec<_> = outline(scenario)
        .iter()
        .zip(would)
        .map(|(step, would)| PlannedStep {
            name: step.name.to_owned(),
            danger: step.danger,
            would,
            asks: asks_before(step.danger),
        })
        .collect();
    let names: Vec<_> = steps.iter().filter(|s| s.asks).map(|s| s.name.as_str()).collect();
    let people = match approval.required {
        1 => "one person has to agree".to_owned(),
        n => format!("{n} different people have to agree"),
    };
    let asks = if names.is_empty() {
        "only if more would be lost than the objective allows".to_owned()
    } else {
        format!("before {}: {people}", names.join(", "))
    };
    Planned { scenario, possible, summary, steps, loss, asks }
}

type Parts = (bool, String, String, Vec<String>);

/// Tasks that hang.
fn stuck() -> Parts {
    let would = vec![
        "ask which tasks run for much longer than their like, and who holds them; without any, end as a false alarm".to_owned(),
        "keep them, and the last lines of a worker of the deployment".to_owned(),
        "start a worker of the deployment again; ask a person before tasks are taken from an agent elsewhere, which drains then".to_owned(),
        "make sure that each of them waits, runs elsewhere, or is over".to_owned(),
    ];
    let summary = "tasks that hang go back to the queue; name who holds them with --component";
    let loss = "nothing: they are done by somebody else; what was begun of them may be done twice";
    (true, summary.to_owned(), loss.to_owned(), would)
}

/// A disk that fills.
fn disk(status: &Status) -> Parts {
    let nothing = "nothing: only what can be had again is removed, or what a person gives up";
    let Some(space) = &status.disk else {
        let summary = "how much of the disk is free is not known, or disk.min_free_mb is 0";
        return (false, summary.to_owned(), "not known".to_owned(), Vec::new());
    };
    let found = account_of_disk(space);
    let summary = match space.is_low() {
        true => format!("{found}; room is made"),
        false => format!("{found}, so this would end at its first step as a false alarm"),
    };
    let would = vec![
        format!("find that {found}"),
        "keep what takes most of the room".to_owned(),
        "remove logs that were moved aside, and what backups and trials have left behind; ask a person about what restores and drills have moved aside".to_owned(),
        "make sure that enough is free, and ask the platform for its readiness".to_owned(),
    ];
    (true, summary, nothing.to_owned(), would)
}

/// Lost brokers.
fn brokers(bus: BusKind, status: &Status, plan: &Plan) -> Parts {
    if !plan.bus.order.contains(&bus) {
        let summary = format!("the plan has no bus {bus}; see bus.order");
        return (false, summary, "nothing".to_owned(), Vec::new());
    }
    let kind = crate::brokers::kind_of(bus);
    let own: Vec<_> =
        status.components.iter().filter(|health| Some(health.component.kind) == kind).collect();
    let down: Vec<_> = own
        .iter()
        .filter(|health| health.component.state != RunState::Running)
        .map(|health| health.component.name.to_string())
        .collect();
    let restart = match (own.is_empty(), down.is_empty()) {
        (true, _) => "nothing: the brokers run elsewhere, and are started there".to_owned(),
        (false, true) => {
            "nothing, unless one of them runs and is missing from its cluster".to_owned()
        }
        (false, false) => format!("start {} again", down.join(", ")),
    };
    let others: Vec<_> =
        plan.bus.order.iter().filter(|other| **other != bus).map(|other| other.as_str()).collect();
    let carry = match others.as_slice() {
        [] => format!("wait until messages take {bus} again: the plan has no other bus"),
        others => format!("make sure that messages flow, over {bus} or {}", others.join(" or ")),
    };
    let would = vec![
        format!("ask the relay and the deployment what {bus} lacks"),
        "keep how the buses are, and the last lines that the brokers logged".to_owned(),
        restart,
        carry,
        format!("wait until {bus} lacks no broker and no copy"),
        format!(
            "wait until messages take {} again, after {}",
            plan.bus.order.first().copied().unwrap_or(bus),
            plan.bus.return_after
        ),
    ];
    let loss = "nothing: what was not delivered is in the store";
    (true, format!("{bus} is brought back while messages take what works"), loss.to_owned(), would)
}

/// Lost processes.
fn processes(scenario: Scenario, status: &Status) -> Parts {
    let kinds: &[ComponentKind] = match scenario {
        Scenario::Api => &[ComponentKind::Api],
        Scenario::AgentRegistry => &[ComponentKind::Registry],
        Scenario::WorkerPool => &[ComponentKind::Worker],
        Scenario::FullStop | Scenario::Controller => &[
            ComponentKind::Registry,
            ComponentKind::Supervisor,
            ComponentKind::Api,
            ComponentKind::Worker,
        ],
        Scenario::PostgresPrimary
        | Scenario::PostgresRestore
        | Scenario::DatabaseCorruption
        | Scenario::PoolExhaustion
        | Scenario::PostgresStandby
        | Scenario::Failback
        | Scenario::DiskFilling
        | Scenario::StuckTasks
        | Scenario::FullCluster
        | Scenario::KafkaBroker
        | Scenario::KafkaCluster
        | Scenario::RabbitMq => &[],
    };
    let these: Vec<&Health> = status
        .components
        .iter()
        .filter(|health| {
            kinds.contains(&health.component.kind) && health.component.state != RunState::Draining
        })
        .collect();
    if these.is_empty() {
        let summary = format!("this deployment has no component that {scenario} is about");
        return (false, summary, "nothing".to_owned(), Vec::new());
    }
    let ill: Vec<_> = these.iter().filter(|health| why(health).is_some()).collect();
    let signs: Vec<_> = ill.iter().filter_map(|health| why(health)).collect();
    let names = |list: &[String]| list.join(", ");
    let all: Vec<_> = these.iter().map(|health| health.component.name.to_string()).collect();
    let down: Vec<_> = ill.iter().map(|health| health.component.name.to_string()).collect();
    let (summary, confirm, restart) = if ill.is_empty() {
        (
            format!(
                "{} run and answer; nothing would be started again, only verified",
                names(&all)
            ),
            "find that all of them run and answer".to_owned(),
            "nothing: all of them run".to_owned(),
        )
    } else {
        (
            format!("{} would be started again", names(&down)),
            format!("find that {}", signs.join("; ")),
            format!("start {} again", names(&down)),
        )
    };
    let would = vec![
        confirm,
        format!("keep state and last log lines of {}", names(&all)),
        restart,
        "wait until they answer, the platform is ready, every worker is registered, and no task is held by the dead".to_owned(),
    ];
    let loss = "nothing: tasks that they held return to the queue, and their state is in the store";
    (true, summary, loss.to_owned(), would)
}

fn why(health: &Health) -> Option<String> {
    let name = &health.component.name;
    match (health.component.state, health.answers) {
        (RunState::Running, Some(false)) => Some(format!("{name} does not answer")),
        (RunState::Running, _) => None,
        _ => Some(format!("{name} does not run")),
    }
}
