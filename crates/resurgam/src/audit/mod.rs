//! What a plan can keep of what it promises: a pure function of the plan, of what is known of its
//! vaults, and of what drills have shown.

mod calendar;
mod database;
mod vaults;

use resurgam_model::plan::{Ask, Drills, Plan, StoreKind};
use resurgam_model::report::DrillReport;
use resurgam_model::{Duration, Scenario, Severity, Timestamp};
use resurgam_recovery::drill::history::{recent, slowest};
use resurgam_recovery::exposure::loses_nothing;
use serde::Serialize;

use crate::calendar::Entry;

pub(crate) use self::vaults::{LogState, VaultState};
use self::vaults::{backups, longest_gap};

/// A failover of the database is drilled weekly, everything else monthly, with a day or two of
/// patience. The source is the calendar of disaster recovery tests that the objectives are from.
const DATABASE_EVERY: Duration = Duration::from_secs(8 * 86_400);
const OTHERS_EVERY: Duration = Duration::from_secs(33 * 86_400);

/// A log that is shipped every so often is behind by this much more: the pace at which it is looked
/// at, and one write.
const SHIPPING: Duration = Duration::from_secs(1);

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Level {
    /// An objective cannot be met.
    Broken,
    /// It can be met, but something will go wrong one day.
    Risk,
    /// Worth knowing.
    Note,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// Stays the same from version to version.
    pub(crate) rule: &'static str,
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

/// What a scenario can lose under the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Reach {
    pub(crate) scenario: Scenario,
    pub(crate) severity: Severity,
    pub(crate) rto_objective: Duration,
    pub(crate) rpo_objective: Duration,
    /// The most that can be lost; none when nothing bounds it.
    pub(crate) rpo_reach: Option<Duration>,
    pub(crate) because: String,
    /// The longest recovery of the last drills; none when there was none, or one never ended.
    pub(crate) rto_measured: Option<Duration>,
    /// How many drills that is taken from.
    pub(crate) drills: usize,
}

/// Everything that the audit has to say.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Audit {
    pub(crate) reach: Vec<Reach>,
    pub(crate) findings: Vec<Finding>,
}

impl Audit {
    /// Whether every objective can be met as far as the plan decides it.
    pub(crate) fn holds(&self) -> bool {
        self.findings.iter().all(|finding| finding.level != Level::Broken)
    }
}

/// Looks at everything.
pub(crate) fn audit(
    plan: &Plan,
    vaults: &[VaultState],
    drills: &[DrillReport],
    entries: &[Entry],
    now: Timestamp,
) -> Audit {
    let mut findings = Vec::new();
    let gap = longest_gap(plan, now);
    let reach: Vec<_> = Scenario::ALL
        .into_iter()
        .filter(|scenario| plan.has(*scenario))
        .map(|scenario| reach(plan, scenario, gap, drills))
        .collect();
    for reach in &reach {
        if reach.rpo_reach.is_none_or(|reach_of| reach_of > reach.rpo_objective) {
            let most = reach.rpo_reach.map_or("without bound".to_owned(), |d| format!("up to {d}"));
            findings.push(Finding {
                level: Level::Broken,
                rule: "rpo-out-of-reach",
                problem: format!(
                    "{} promises to lose at most {}, and can lose {most}: {}",
                    reach.scenario, reach.rpo_objective, reach.because
                ),
                remedy: remedy(plan, reach.scenario),
            });
        }
    }
    database::database(plan, &mut findings);
    backups(plan, vaults, gap, now, &mut findings);
    if plan.deployment.drills == Drills::Allowed {
        practice(&reach, drills, now, &mut findings);
    }
    calendar::calendar(plan, entries, &mut findings);
    people(plan, &mut findings);
    findings.sort_by_key(|finding| finding.level);
    Audit { reach, findings }
}

fn reach(plan: &Plan, scenario: Scenario, gap: Option<Duration>, drills: &[DrillReport]) -> Reach {
    let objectives = plan.objectives(scenario);
    let zero = Some(Duration::from_secs(0));
    let continuous = plan.backup.continuous && plan.store.kind == StoreKind::Postgres;
    let of_backups = || match (plan.backup.vaults.is_empty(), gap) {
        (false, _) if continuous => {
            let every = plan.backup.ship_every;
            (
                Some(Duration(every.0 + SHIPPING.0)),
                format!("the log reaches the vaults every {every}"),
            )
        }
        (true, _) => (None, "there is no vault, so nothing could be restored".to_owned()),
        (false, None) => (None, "no backups are taken by themselves".to_owned()),
        (false, Some(gap)) => {
            (Some(gap), format!("the schedule leaves up to {gap} between two backups"))
        }
    };
    let (rpo_reach, because) = match (loses_nothing(scenario), scenario) {
        (Some(because), _) => (zero, because.to_owned()),
        (None, Scenario::FullCluster) if plan.store.kind == StoreKind::External => {
            (None, "the database is run by somebody else, and not backed up from here".to_owned())
        }
        (None, Scenario::FullCluster | Scenario::PostgresRestore) => of_backups(),
        // What is left is the loss of a primary.
        (None, _) if plan.postgres.standbys == 0 => {
            let (reach, because) = of_backups();
            (reach, format!("there is no standby; {because}"))
        }
        (None, _) if plan.postgres.synchronous => {
            let patience = plan.postgres.degrade_after;
            (zero, format!("commits wait for a standby, while one was there within {patience}"))
        }
        // That a person is asked before more is given up bounds nothing: it is gone by then.
        (None, _) => {
            (None, "standbys follow without being waited for, however far behind".to_owned())
        }
    };
    let slowest = slowest(drills, scenario);
    Reach {
        scenario,
        severity: scenario.severity(),
        rto_objective: objectives.rto,
        rpo_objective: objectives.rpo,
        rpo_reach,
        because,
        rto_measured: slowest.took,
        drills: slowest.drills,
    }
}

/// What drills have shown, and whether they are made at all.
fn practice(reach: &[Reach], drills: &[DrillReport], now: Timestamp, findings: &mut Vec<Finding>) {
    let mut never = Vec::new();
    for Reach { scenario, .. } in reach {
        let Some(last) = recent(drills, *scenario).next() else {
            never.push(scenario.to_string());
            continue;
        };
        for (rule, what, measured) in
            [("rto-missed", "took", &last.rto), ("rpo-missed", "lost", &last.rpo)]
        {
            if !measured.met {
                let found = measured.measured_ms.map_or("it never came back".to_owned(), |ms| {
                    format!("it {what} {}", Duration::from_millis(ms))
                });
                findings.push(Finding {
                    level: Level::Broken,
                    rule,
                    problem: format!(
                        "the last drill of {scenario} missed its objective of {}: {found}",
                        Duration::from_millis(measured.objective_ms)
                    ),
                    remedy: format!(
                        "resurgam drill --history {scenario} has the figures; mend it, and drill it again"
                    ),
                });
            }
        }
        let every = match scenario {
            Scenario::PostgresPrimary => DATABASE_EVERY,
            _ => OTHERS_EVERY,
        };
        let age = now.as_second().saturating_sub(last.started_at.as_second());
        if u64::try_from(age).is_ok_and(|age| age > every.0.as_secs()) {
            findings.push(Finding {
                level: Level::Risk,
                rule: "drill-overdue",
                problem: format!("{scenario} was last drilled {} days ago", age / 86_400),
                remedy: format!("resurgam drill {scenario} --plan FILE"),
            });
        }
    }
    if !never.is_empty() {
        findings.push(Finding {
            level: Level::Risk,
            rule: "not-drilled",
            problem: format!(
                "never drilled here, so that nobody knows how long it takes: {}",
                never.join(", ")
            ),
            remedy: "resurgam drill --all --plan FILE".to_owned(),
        });
    }
}

fn remedy(plan: &Plan, scenario: Scenario) -> String {
    let rpo = plan.objectives(scenario).rpo;
    match scenario {
        Scenario::PostgresPrimary | Scenario::DatabaseCorruption if plan.postgres.standbys > 0 => {
            "set postgres.synchronous = true".to_owned()
        }
        Scenario::PostgresPrimary | Scenario::DatabaseCorruption => {
            "set postgres.standbys to 1 or more".to_owned()
        }
        _ if plan.backup.vaults.is_empty() => "add a vault under [[backup.vaults]]".to_owned(),
        _ if !plan.backup.scheduled => "set backup.scheduled = true".to_owned(),
        _ => format!(
            "have backup.schedule come at least every {rpo}, or promise less under [objectives.{scenario}]"
        ),
    }
}

fn people(plan: &Plan, findings: &mut Vec<Finding>) {
    if plan.deployment.drills == Drills::Refused {
        findings.push(Finding {
            level: Level::Note,
            rule: "never-drilled",
            problem: "the plan refuses drills, so that nobody knows how long a recovery takes here".to_owned(),
            remedy: "drill a copy of it: the same plan with another state_dir and deployment.drills = \"allowed\"".to_owned(),
        });
    }
    if plan.notify.is_empty() {
        findings.push(Finding {
            level: Level::Risk,
            rule: "nobody-is-told",
            problem: "nobody is told of an incident, unless they look".to_owned(),
            remedy: "add a channel under [[notify]]".to_owned(),
        });
    }
    let contacts = &plan.contacts;
    if contacts.on_call.is_none() {
        findings.push(Finding {
            level: Level::Risk,
            rule: "no-contact",
            problem: "nobody is on call".to_owned(),
            remedy: "set contacts.on-call".to_owned(),
        });
    }
    for scenario in Scenario::ALL {
        let objectives = plan.objectives(scenario);
        let approval = plan.approval(scenario);
        if approval.ask != Ask::Never
            && scenario.severity() == Severity::P0
            && objectives.rto < Duration::from_secs(15 * 60)
            && scenario != Scenario::FullCluster
        {
            findings.push(Finding {
                level: Level::Note,
                rule: "people-within-the-rto",
                problem: format!(
                    "{scenario} waits for {} to agree, within {}",
                    if approval.required == 1 {
                        "a person".to_owned()
                    } else {
                        format!("{} people", approval.required)
                    },
                    objectives.rto
                ),
                remedy: format!(
                    "ask = \"never\" under [approvals.{scenario}], or somebody who is always there"
                ),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::plan::EffectivePlan;
    use resurgam_model::report::{DrillResult, Measured};
    use resurgam_recovery::drill::history;

    use resurgam_backup::vault::{Backup, Proof};

    use super::*;

    const VAULT: &str = "[[backup.vaults]]\nname = 'here'\npath = 'p'\npassword_file = 'f'\n";

    fn plan(text: &str) -> Plan {
        EffectivePlan::resolve(Some(text), |_| None).unwrap().plan
    }

    fn now() -> Timestamp {
        "2026-11-25T12:00:00Z".parse().unwrap()
    }

    fn rules(text: &str, vaults: &[VaultState]) -> Vec<(Level, &'static str)> {
        let audit = audit(&plan(text), vaults, &[], &[], now());
        audit.findings.iter().map(|finding| (finding.level, finding.rule)).collect()
    }

    fn vault(same_device: bool, backups: Result<Vec<Backup>, String>) -> Vec<VaultState> {
        let log = LogState::NotWanted;
        vec![VaultState { name: "here".to_owned(), same_device, backups, log }]
    }

    fn backup(at: &str, proof: Proof) -> Backup {
        Backup {
            id: at.to_owned(),
            taken_at: at.parse().unwrap(),
            size: 1,
            added: 1,
            took_ms: 1,
            proof,
            manifest: resurgam_backup::manifest::Manifest::default(),
            snapshot: String::new(),
        }
    }

    #[test]
    fn a_schedule_of_six_hours_cannot_keep_an_objective_of_one() {
        let text = format!("[contacts]\non-call = 'x'\n{VAULT}");
        let good = backup("2026-11-25T11:00:00Z", Proof::Verified(now()));
        let found = audit(&plan(&text), &vault(false, Ok(vec![good.clone()])), &[], &[], now());
        assert!(!found.holds());
        let broken = found.findings.first().unwrap();
        assert_eq!(broken.rule, "rpo-out-of-reach");
        assert!(
            broken.problem.contains("full-cluster") && broken.problem.contains("6h 30s"),
            "{broken:?}"
        );
        assert!(broken.remedy.contains("at least every 1h"), "{broken:?}");

        let hourly =
            format!("[contacts]\non-call = 'x'\n[backup]\nschedule = '*/30 * * * *'\n{VAULT}");
        let found = audit(&plan(&hourly), &vault(false, Ok(vec![good])), &[], &[], now());
        assert!(found.holds(), "{:?}", found.findings);
    }

    #[test]
    fn a_log_that_is_shipped_bounds_the_loss_by_seconds() {
        let text = format!(
            "[store]\nkind = 'postgres'\n[postgres]\nstandbys = 0\n[contacts]\non-call = 'x'\n{VAULT}"
        );
        let good = backup("2026-11-25T11:00:00Z", Proof::Verified(now()));
        let look = |text: &str| {
            let found = audit(&plan(text), &vault(false, Ok(vec![good.clone()])), &[], &[], now());
            let of = |scenario| {
                let reach = found.reach.iter().find(|reach| reach.scenario == scenario);
                reach.unwrap().rpo_reach
            };
            (of(Scenario::FullCluster), of(Scenario::PostgresPrimary), found.holds())
        };
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(look(&text), (seconds(3), seconds(3), true));
        let without = format!("[backup]\ncontinuous = false\n{text}");
        let day = seconds(6 * 3600 + 30);
        assert_eq!(look(&without), (day, day, false));
    }

    #[test]
    fn the_longest_gap_counts_also_over_weekends() {
        let text = format!("[backup]\nschedule = '0 9-17 * * MON-FRI'\njitter = '0s'\n{VAULT}");
        assert_eq!(
            longest_gap(&plan(&text), now()),
            Some(Duration::from_secs((24 * 2 + 16) * 3600))
        );
    }

    #[test]
    fn without_standby_or_vault_a_lost_primary_is_the_end() {
        let text = "[store]\nkind = 'postgres'\n[postgres]\nstandbys = 0\n";
        let broken: Vec<_> = audit(&plan(text), &[], &[], &[], now())
            .findings
            .into_iter()
            .filter(|finding| finding.level == Level::Broken)
            .map(|finding| finding.problem)
            .collect();
        let scenarios: Vec<_> =
            broken.iter().filter_map(|problem| problem.split(' ').next()).collect();
        let all = ["full-cluster", "postgres-primary", "postgres-restore", "database-corruption"];
        assert_eq!(scenarios, all, "{broken:?}");
        assert!(broken.iter().all(|problem| problem.contains("there is no vault")), "{broken:?}");
    }

    #[test]
    fn nothing_bounds_what_asynchronous_replication_loses() {
        let standbys: &[&str] = &["postgres-primary", "database-corruption"];
        for (synchronous, wanted) in [(true, &[][..]), (false, standbys)] {
            let text = format!(
                "[store]\nkind = 'postgres'\n[postgres]\nsynchronous = {synchronous}\n[objectives.full-cluster]\nrto = '1h'\nrpo = '24h'\n{VAULT}"
            );
            let good = backup("2026-11-25T11:00:00Z", Proof::Verified(now()));
            let found = audit(&plan(&text), &vault(false, Ok(vec![good])), &[], &[], now());
            let broken = found.findings.iter().filter(|f| f.level == Level::Broken);
            let scenarios: Vec<_> = broken.filter_map(|f| f.problem.split(' ').next()).collect();
            assert_eq!(scenarios, wanted, "{:?}", found.findings);
        }
    }

    #[test]
    fn what_is_wrong_with_vaults_is_found() {
        let text = format!(
            "[contacts]\non-call = 'x'\n[backup]\nschedule = '0 * * * *'\njitter = '0s'\n{VAULT}"
        );
        let has = |vaults: Vec<VaultState>, wanted: (Level, &'static str)| {
            let found = rules(&text, &vaults);
            assert!(found.contains(&wanted), "{wanted:?} is missing: {found:?}");
        };
        has(vault(false, Ok(Vec::new())), (Level::Broken, "no-backup"));
        has(vault(false, Err("gone".to_owned())), (Level::Broken, "vault-unreadable"));
        has(vault(true, Ok(Vec::new())), (Level::Risk, "same-failure-domain"));
        let never = backup("2026-11-25T11:59:00Z", Proof::None);
        has(vault(false, Ok(vec![never])), (Level::Risk, "never-restored"));
        let bad = backup("2026-11-25T11:59:00Z", Proof::Bad("so".to_owned()));
        has(vault(false, Ok(vec![bad])), (Level::Risk, "bad-backup"));
        let old = backup("2026-11-25T09:00:00Z", Proof::Verified(now()));
        has(vault(false, Ok(vec![old])), (Level::Risk, "old-backup"));
        let log = |log| {
            let [state] = <[VaultState; 1]>::try_from(vault(false, Ok(Vec::new()))).unwrap();
            vec![VaultState { log, ..state }]
        };
        has(log(LogState::Missing), (Level::Broken, "no-log"));
        has(log(LogState::Broken), (Level::Broken, "log-gap"));
        let at = "2026-11-25T11:50:00Z".parse().unwrap();
        has(log(LogState::WholeUntil { at, runs: true }), (Level::Broken, "log-behind"));
        let stopped = rules(&text, &log(LogState::WholeUntil { at, runs: false }));
        assert!(stopped.iter().all(|(_, rule)| !rule.contains("log")), "{stopped:?}");
    }

    fn drill(at: &str, rto: Option<u64>, rpo: u64) -> DrillReport {
        let objective = Duration::from_secs(300);
        DrillReport {
            scenario: Scenario::Api,
            severity: Severity::P1,
            deployment: "local/sqlite".to_owned(),
            fault: "kill".to_owned(),
            started_at: at.parse().unwrap(),
            detection_ms: None,
            steps: Vec::new(),
            rto: Measured::new(objective, rto.map(Duration::from_millis)),
            rpo: Measured::new(Duration::from_secs(0), Some(Duration::from_millis(rpo))),
            acknowledged: 0,
            lost: 0,
            duplicated: 0,
            split_brain: false,
            fence: Vec::new(),
            result: DrillResult::Recovered,
        }
    }

    #[test]
    fn what_drills_have_shown_is_set_beside_the_objectives() {
        let text = "[deployment]\ndrills = 'allowed'\n";
        let look = |drills: &[DrillReport]| {
            let found = audit(&plan(text), &[], drills, &[], now());
            let api = found.reach.iter().find(|r| r.scenario == Scenario::Api).unwrap().clone();
            let about = |f: &&Finding| f.problem.contains("api") || f.rule == "not-drilled";
            let rules: Vec<_> = found.findings.iter().filter(about).map(|f| f.rule).collect();
            (api.rto_measured.map(Duration::as_millis), api.drills, rules)
        };
        assert_eq!(look(&[]), (None, 0, vec!["not-drilled"]));
        let (slow, quick) = (
            drill("2026-11-20T12:00:00Z", Some(9000), 0),
            drill("2026-11-24T12:00:00Z", Some(400), 0),
        );
        assert_eq!(look(&[slow.clone(), quick.clone()]), (Some(9000), 2, vec!["not-drilled"]));
        // Only the last ones count, and of these the slowest.
        let many: Vec<_> = [slow].into_iter().chain(vec![quick.clone(); history::RECENT]).collect();
        assert_eq!(look(&many), (Some(400), history::RECENT, vec!["not-drilled"]));
        let never = drill("2026-11-25T11:00:00Z", None, 0);
        assert_eq!(look(&[quick, never]), (None, 2, vec!["rto-missed", "not-drilled"]));
        let lost = drill("2026-11-25T11:00:00Z", Some(400), 1);
        assert_eq!(look(&[lost]), (Some(400), 1, vec!["rpo-missed", "not-drilled"]));
        let old = drill("2026-10-01T12:00:00Z", Some(400), 0);
        let (.., rules) = look(&[old]);
        assert!(rules.contains(&"drill-overdue"), "{rules:?}");

        let missed = drill("2026-11-25T11:00:00Z", Some(400_000), 0);
        assert!(!audit(&plan(text), &[], &[missed], &[], now()).holds());
    }
}
