//! What it would cost if a scenario struck now.
//!
//! A pure function of what is known at this moment: where the standbys are, up to when the vaults have
//! the log, how old the backups are, and how long recoveries took in drills. What is not known is said
//! to be unknown.

mod measured;

use std::time::Instant;

use resurgam_model::plan::{Plan, StoreKind};
use resurgam_model::report::DrillReport;
use resurgam_model::{Duration, Scenario, Severity, Timestamp};
use serde::{Deserialize, Serialize};

pub(crate) use self::measured::Measurements;
use crate::drill::history;
use crate::postgres::{View, candidates, choose};
use crate::restorer::{LogStanding, VaultStanding};

/// What would be lost of what was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "loses")]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// At most what was acknowledged in the last so many milliseconds.
    UpTo {
        /// So many.
        ms: u64,
    },
    /// Everything there is.
    Everything,
    /// Nobody can say.
    Unknown,
}

impl Loss {
    /// Whether that is more than an objective allows; none when nobody can say.
    #[must_use]
    pub fn exceeds(self, rpo: Duration) -> Option<bool> {
        match self {
            Self::Nothing => Some(false),
            Self::UpTo { ms } => Some(ms > rpo.as_millis()),
            Self::Everything => Some(true),
            Self::Unknown => None,
        }
    }
}

/// What a scenario would cost now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// If this happened.
    pub scenario: Scenario,
    /// How bad it would be.
    pub severity: Severity,
    /// What would be lost.
    pub loss: Loss,
    /// Why so much, for people.
    pub because: String,
    /// How long the slowest of the last drills took; none when there were none, or one never ended.
    pub recovery_ms: Option<u64>,
    /// How many drills that is taken from.
    pub drills: usize,
    /// How much may be lost.
    pub rpo_ms: u64,
    /// How long it may take.
    pub rto_ms: u64,
}

impl Exposure {
    /// Something is worse than its objective, or not known to be better.
    #[must_use]
    pub fn is_out_of_bounds(&self) -> bool {
        let rpo = Duration::from_millis(self.rpo_ms);
        self.loss.exceeds(rpo) != Some(false)
            || self.recovery_ms.is_some_and(|took| took > self.rto_ms)
    }
}

/// What a failover would lose at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// Nothing: a standby has everything.
    Complete,
    /// What the best standby does not have; none when nobody can say how much.
    Behind(Option<u64>),
    /// Nobody could take over.
    Nobody,
}

impl Failover {
    /// As things are known at this moment.
    #[must_use]
    pub fn now(view: &View, now: Instant) -> Self {
        let candidates = candidates(view);
        match choose(&candidates, view.state.complete.as_ref(), &view.samples, now) {
            Some(choice) if choice.complete => Self::Complete,
            Some(choice) => Self::Behind(choice.loss_ms),
            None => Self::Nobody,
        }
    }
}

/// What is known at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The plan in force.
    pub plan: &'a Plan,
    /// Of the owned PostgreSQL, if there is one.
    pub failover: Option<Failover>,
    /// How its log stands in the vaults.
    pub log: &'a [LogStanding],
    /// What the vaults have; empty while nobody has looked.
    pub vaults: &'a [VaultStanding],
    /// The drills of this deployment, the oldest first.
    pub drills: &'a [DrillReport],
    /// The moment.
    pub now: Timestamp,
}

/// Of each scenario that the plan has something for, the worst first.
#[must_use]
pub fn exposure(facts: &Facts<'_>) -> Vec<Exposure> {
    let concerned = Scenario::ALL
        .into_iter()
        .filter(|scenario| facts.plan.has(*scenario) && !scenario.is_planned());
    concerned.map(|scenario| of(facts, scenario)).collect()
}

fn of(facts: &Facts<'_>, scenario: Scenario) -> Exposure {
    let (loss, because) = match loses_nothing(scenario) {
        Some(because) => (Loss::Nothing, because.to_owned()),
        None if facts.plan.store.kind == StoreKind::External => (
            Loss::Unknown,
            "the database is run by somebody else, and not backed up from here".to_owned(),
        ),
        None => match (scenario, facts.failover) {
            (Scenario::PostgresPrimary | Scenario::DatabaseCorruption, Some(failover)) => {
                by_failover(facts, failover)
            }
            _ => from_vaults(facts),
        },
    };
    let objectives = facts.plan.objectives(scenario);
    let slowest = history::slowest(facts.drills, scenario);
    Exposure {
        scenario,
        severity: scenario.severity(),
        loss,
        because,
        recovery_ms: slowest.took.map(Duration::as_millis),
        drills: slowest.drills,
        rpo_ms: objectives.rpo.as_millis(),
        rto_ms: objectives.rto.as_millis(),
    }
}

/// Why a scenario loses nothing by its nature; none for those in which something may be lost.
#[must_use]
pub fn loses_nothing(scenario: Scenario) -> Option<&'static str> {
    match scenario {
        Scenario::KafkaBroker | Scenario::KafkaCluster | Scenario::RabbitMq => {
            Some("what is not delivered is in the store")
        }
        Scenario::StuckTasks => Some("tasks that are taken back are done by somebody else"),
        Scenario::DiskFilling => Some("only what can be had again is removed"),
        Scenario::PostgresStandby => Some("the primary has everything"),
        Scenario::Failback => Some("only who has everything is handed to"),
        Scenario::PoolExhaustion => {
            Some("what an ended connection had not committed was not acknowledged")
        }
        Scenario::Api
        | Scenario::AgentRegistry
        | Scenario::WorkerPool
        | Scenario::FullStop
        | Scenario::Controller => Some("what is acknowledged is on disk"),
        Scenario::PostgresPrimary
        | Scenario::PostgresRestore
        | Scenario::DatabaseCorruption
        | Scenario::FullCluster => None,
    }
}

fn by_failover(facts: &Facts<'_>, failover: Failover) -> (Loss, String) {
    match failover {
        Failover::Complete => {
            (Loss::Nothing, "a standby has everything that was acknowledged".to_owned())
        }
        Failover::Behind(Some(ms)) => {
            (Loss::UpTo { ms }, format!("the best standby lacks the last {ms} ms"))
        }
        Failover::Behind(None) => {
            (Loss::Unknown, "how far the best standby is behind is not known".to_owned())
        }
        Failover::Nobody => {
            let (loss, because) = from_vaults(facts);
            (loss, format!("no standby could take over; {because}"))
        }
    }
}

/// What a restore would lose: the best of the vaults counts.
fn from_vaults(facts: &Facts<'_>) -> (Loss, String) {
    if facts.plan.backup.vaults.is_empty() {
        return (Loss::Everything, "there is no vault to restore from".to_owned());
    }
    let age = |at: Timestamp| {
        let age = std::time::Duration::try_from(facts.now.duration_since(at)).unwrap_or_default();
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    };
    let each = facts.vaults.iter().filter_map(|vault| {
        let newest = vault.newest?;
        let log = facts.log.iter().find(|log| log.vault == vault.vault).and_then(|log| log.until);
        Some(match log.filter(|until| *until > newest) {
            Some(until) => {
                (age(until), format!("the vault {} has the log up to then", vault.vault))
            }
            None => {
                (age(newest), format!("that old is the newest backup in the vault {}", vault.vault))
            }
        })
    });
    if let Some((ms, because)) = each.min_by_key(|(ms, _)| *ms) {
        return (Loss::UpTo { ms }, because);
    }
    let error = facts.vaults.iter().find_map(|vault| Some((&vault.vault, vault.error.as_ref()?)));
    match error {
        Some((vault, error)) => {
            (Loss::Unknown, format!("the vault {vault} cannot be looked into: {error}"))
        }
        None if facts.vaults.is_empty() => {
            (Loss::Unknown, "nobody has looked into the vaults yet".to_owned())
        }
        None => (Loss::Everything, "no vault has a backup".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::plan::EffectivePlan;

    use super::*;

    const VAULT: &str = "[[backup.vaults]]\nname = \"near\"\npath = \"v\"\npassword_file = \"p\"\n";

    fn plan(text: &str) -> Plan {
        EffectivePlan::resolve(Some(text), |_| None).unwrap().plan
    }

    fn now() -> Timestamp {
        "2026-11-30T12:00:00Z".parse().unwrap()
    }

    fn ago(seconds: i64) -> Timestamp {
        Timestamp::from_second(now().as_second() - seconds).unwrap()
    }

    fn vault(name: &str, newest: Option<i64>, error: Option<&str>) -> VaultStanding {
        VaultStanding {
            vault: name.to_owned(),
            newest: newest.map(ago),
            proven: None,
            error: error.map(str::to_owned),
        }
    }

    fn loss(
        plan: &Plan,
        failover: Option<Failover>,
        log: &[LogStanding],
        vaults: &[VaultStanding],
        scenario: Scenario,
    ) -> Loss {
        let facts = Facts { plan, failover, log, vaults, drills: &[], now: now() };
        let all = exposure(&facts);
        let found = all.into_iter().find(|exposure| exposure.scenario == scenario).unwrap();
        assert!(!found.because.is_empty());
        found.loss
    }

    #[test]
    fn unknown_is_neither_nothing_nor_everything() {
        let bare = plan("");
        let lost = |plan: &Plan, vaults: &[VaultStanding]| {
            loss(plan, None, &[], vaults, Scenario::FullCluster)
        };
        assert_eq!(lost(&bare, &[]), Loss::Everything);
        let with = plan(VAULT);
        assert_eq!(lost(&with, &[]), Loss::Unknown);
        assert_eq!(lost(&with, &[vault("near", None, Some("it is away"))]), Loss::Unknown);
        assert_eq!(lost(&with, &[vault("near", None, None)]), Loss::Everything);
        let two = [vault("near", Some(7200), None), vault("far", Some(60), None)];
        assert_eq!(lost(&with, &two), Loss::UpTo { ms: 60_000 });
        assert_eq!(loss(&with, None, &[], &[], Scenario::Api), Loss::Nothing);
    }

    #[test]
    fn a_log_counts_only_with_the_backup_that_it_goes_on_from() {
        let plan = plan(&format!("[store]\nkind = \"postgres\"\n{VAULT}"));
        let log = [LogStanding { vault: "near".to_owned(), until: Some(ago(3)), error: None }];
        let lost = |vaults: &[VaultStanding]| {
            loss(&plan, Some(Failover::Nobody), &log, vaults, Scenario::PostgresRestore)
        };
        assert_eq!(lost(&[vault("near", Some(3600), None)]), Loss::UpTo { ms: 3000 });
        assert_eq!(lost(&[vault("near", None, None)]), Loss::Everything);
        // A backup that is newer than what is known of the log.
        assert_eq!(lost(&[vault("near", Some(1), None)]), Loss::UpTo { ms: 1000 });
    }

    #[test]
    fn a_failover_loses_what_the_best_standby_lacks() {
        let plan = plan(&format!("[store]\nkind = \"postgres\"\n{VAULT}"));
        let lost = |failover| {
            let vaults = [vault("near", Some(60), None)];
            loss(&plan, Some(failover), &[], &vaults, Scenario::PostgresPrimary)
        };
        assert_eq!(lost(Failover::Complete), Loss::Nothing);
        assert_eq!(lost(Failover::Behind(Some(250))), Loss::UpTo { ms: 250 });
        assert_eq!(lost(Failover::Behind(None)), Loss::Unknown);
        assert_eq!(lost(Failover::Nobody), Loss::UpTo { ms: 60_000 });
    }

    #[test]
    fn what_is_not_known_to_be_within_bounds_is_out_of_them() {
        let of = |loss, recovery_ms| Exposure {
            scenario: Scenario::FullCluster,
            severity: Severity::P0,
            loss,
            because: String::new(),
            recovery_ms,
            drills: 0,
            rpo_ms: 1000,
            rto_ms: 5000,
        };
        assert!(!of(Loss::UpTo { ms: 1000 }, Some(5000)).is_out_of_bounds());
        assert!(
            !of(Loss::Nothing, None).is_out_of_bounds(),
            "never drilled is a finding of its own"
        );
        assert!(of(Loss::UpTo { ms: 1001 }, None).is_out_of_bounds());
        assert!(of(Loss::Unknown, None).is_out_of_bounds());
        assert!(of(Loss::Nothing, Some(5001)).is_out_of_bounds());
    }
}
