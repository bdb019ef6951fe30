//! What can be said of vaults, what is in them, and what of the schedule.

use jiff::tz::TimeZone;
use resurgam_backup::vault::{Backup, Proof};
use resurgam_model::plan::Plan;
use resurgam_model::{Duration, Timestamp};

use super::{Finding, Level};

/// So far ahead the schedule is looked at for its longest gap.
const AHEAD_DAYS: i64 = 400;
/// So many firings of it at most.
const FIRINGS: usize = 100_000;
/// A verified backup older than this many gaps of the schedule is out of date.
const GAPS: u32 = 2;
/// The log of a deployment that runs is written down to be whole every 30 s. One that is older than
/// this does not go on.
const LOG_AGE: i64 = 120;

/// What is known of a vault.
#[derive(Clone, Debug)]
pub(crate) struct VaultState {
    pub(crate) name: String,
    /// It lies within the state folder, or on the same device.
    pub(crate) same_device: bool,
    /// The backups, the newest first; or why they could not be read.
    pub(crate) backups: Result<Vec<Backup>, String>,
    /// The log of the plan's own PostgreSQL, if it is to be there.
    pub(crate) log: LogState,
}

/// What is known of a log in a vault.
#[derive(Clone, Debug)]
pub(crate) enum LogState {
    /// None is to be there, or nothing can be said.
    NotWanted,
    /// There is none, though the database runs.
    Missing,
    /// The newest backup cannot be brought further by it.
    Broken,
    /// It is whole up to then; `runs` says that the deployment runs, so that it should go on.
    WholeUntil {
        /// Up to then.
        at: Timestamp,
        /// It should go on.
        runs: bool,
    },
}

/// The longest time between two scheduled backups in the year to come, with the jitter of the second.
pub(super) fn longest_gap(plan: &Plan, now: Timestamp) -> Option<Duration> {
    if !plan.backup.scheduled {
        return None;
    }
    let zone = TimeZone::get(&plan.backup.timezone).ok()?;
    let end = now.as_second() + AHEAD_DAYS * 86_400;
    let mut last = plan.backup.schedule.next_after(now, &zone)?;
    let mut longest = 0;
    for _ in 0..FIRINGS {
        let Some(next) = plan.backup.schedule.next_after(last, &zone) else { break };
        longest = longest.max(next.as_second() - last.as_second());
        last = next;
        if next.as_second() > end {
            break;
        }
    }
    let seconds = u64::try_from(longest).ok().filter(|seconds| *seconds > 0)?;
    Some(Duration(std::time::Duration::from_secs(seconds) + plan.backup.jitter.0))
}

pub(super) fn backups(
    plan: &Plan,
    vaults: &[VaultState],
    gap: Option<Duration>,
    now: Timestamp,
    findings: &mut Vec<Finding>,
) {
    let mut add = |level, rule, problem: String, remedy: &str| {
        findings.push(Finding { level, rule, problem, remedy: remedy.to_owned() });
    };
    if !vaults.is_empty() && vaults.iter().all(|vault| vault.same_device) {
        add(
            Level::Risk,
            "same-failure-domain",
            "every vault lies on the same device as the state: what takes the one takes the other"
                .to_owned(),
            "add a vault on another device, best in another building",
        );
    }
    if !vaults.is_empty() && !plan.backup.verify {
        add(
            Level::Risk,
            "unverified",
            "scheduled backups are not restored on trial".to_owned(),
            "backup.verify = true",
        );
    }
    for vault in vaults {
        let name = &vault.name;
        let backups = match &vault.backups {
            Ok(backups) => backups,
            Err(why) => {
                add(
                    Level::Broken,
                    "vault-unreadable",
                    format!("the vault {name} cannot be read: {why}"),
                    "see: resurgam vault check",
                );
                continue;
            }
        };
        log(name, &vault.log, now, &mut add);
        if backups.is_empty() {
            add(
                Level::Broken,
                "no-backup",
                format!("the vault {name} has no backup"),
                "resurgam backup run --verify",
            );
            continue;
        }
        if backups.iter().any(|backup| matches!(backup.proof, Proof::Bad(_))) {
            add(
                Level::Risk,
                "bad-backup",
                format!("the vault {name} has backups that are bad"),
                "resurgam vault check --data",
            );
        }
        let verified = backups.iter().find(|backup| matches!(backup.proof, Proof::Verified(_)));
        let Some(verified) = verified else {
            add(
                Level::Risk,
                "never-restored",
                format!("no backup of the vault {name} was ever restored"),
                "resurgam backup verify --latest",
            );
            continue;
        };
        let age = now.as_second() - verified.taken_at.as_second();
        let limit = gap.map(|gap| gap.0.as_secs() * u64::from(GAPS));
        if limit.is_some_and(|limit| u64::try_from(age).is_ok_and(|age| age > limit)) {
            add(
                Level::Risk,
                "old-backup",
                format!(
                    "the newest verified backup of the vault {name} is {} old",
                    crate::commands::backup::age(now, verified.taken_at)
                ),
                "see the log of resurgam up, and: resurgam backup list",
            );
        }
    }
}

/// What is wrong with a log.
fn log(
    vault: &str,
    state: &LogState,
    now: Timestamp,
    add: &mut impl FnMut(Level, &'static str, String, &str),
) {
    match state {
        LogState::NotWanted => {}
        LogState::Missing => add(
            Level::Broken,
            "no-log",
            format!("the log of the database does not reach the vault {vault}"),
            "see the log of resurgam up",
        ),
        LogState::Broken => add(
            Level::Broken,
            "log-gap",
            format!("the newest backup in the vault {vault} cannot be brought further by the log"),
            "resurgam backup run",
        ),
        LogState::WholeUntil { at, runs } => {
            if *runs && now.as_second() - at.as_second() > LOG_AGE {
                add(
                    Level::Broken,
                    "log-behind",
                    format!(
                        "the log in the vault {vault} is whole only up to {} ago",
                        crate::commands::backup::age(now, *at)
                    ),
                    "see the log of resurgam up",
                );
            }
        }
    }
}
