//! The loss of data.
//!
//! Of everything: only plan, vault and key are left, and nobody who could recover by itself. The drill
//! does what a person would do, by the same commands. Or of the database alone, with all its standbys:
//! then the controller restores it by itself.

use std::time::{Duration, Instant};

use resurgam_model::plan::StoreKind;
use resurgam_model::report::{StepReport, StepStatus};
use resurgam_model::{Scenario, Timestamp};

use super::FaultKind;
use super::fault::{Frozen, Process, strike, working_in};
use super::run::{Drill, Struck};
use crate::runbook::{Danger, Outline};
use crate::status::Status;
use crate::{Error, Result};

/// So long the load goes on after the backup, so that there is something to lose.
const AFTER_BACKUP: Duration = Duration::from_secs(2);

/// So long the log may take to reach the vault for the first time.
const SHIPPED: Duration = Duration::from_secs(60);
/// How often to look.
const LOOK: Duration = Duration::from_millis(50);

/// What there is to do, for people.
pub static OUTLINE: [Outline; 5] = [
    Outline {
        name: "assess",
        danger: Danger::Looks,
        does: "Finds out what is left. If the data folders are there this is no loss of everything: start the deployment on them. If they are damaged, keep them: they may have more than the backup.",
        verified: "It is certain that nothing of the old deployment runs or can come back by itself.",
        by_hand: &[
            "resurgam status --plan resurgam.toml",
            "kubectl get nodes",
            "kubectl --namespace dotnetagents get pods,persistentvolumeclaims",
        ],
    },
    Outline {
        name: "fetch",
        danger: Danger::Looks,
        does: "Fetches the plan from Git and the password of the vault from escrow, and installs this program and PostgreSQL of the version that the backup names.",
        verified: "The vault opens and lists its backups.",
        by_hand: &[
            "resurgam backup list --plan resurgam.toml",
            "# Without this program:",
            "restic --repo VAULT --password-file PASSWORD snapshots --tag complete",
        ],
    },
    Outline {
        name: "restore",
        danger: Danger::Dangerous,
        does: "Restores the last backup that is not bad: database, checkpoints, passwords. It is checked before it takes its place, and what was there is moved aside. What was acknowledged after the backup is lost.",
        verified: "The database passed its own check: pg_verifybackup, or integrity_check and the checksums of all tables.",
        by_hand: &[
            "resurgam restore --latest --plan resurgam.toml",
            "# Without this program (as the user postgres, into an empty data folder):",
            "restic --repo VAULT --password-file PASSWORD restore latest --tag complete --target restored",
            "cp --archive restored/recovery-point/database/data/. \"$PGDATA\" && rm --force \"$PGDATA/standby.signal\"",
            "pg_verifybackup restored/recovery-point/database/data",
        ],
    },
    Outline {
        name: "start",
        danger: Danger::Acts,
        does: "Starts the deployment: the database first, its standbys anew from it, then registry, supervisor, API and workers.",
        verified: "Everything runs, the standbys stream, and the platform is ready down to a write in its store.",
        by_hand: &[
            "resurgam up --plan resurgam.toml",
            "# Kubernetes: secrets before what needs them.",
            "kubectl apply --filename kubernetes/manifests/secrets.yaml",
            "kubectl apply --filename kubernetes/manifests/",
            "kubectl --namespace dotnetagents wait pod --all --for condition=ready --timeout 10m",
        ],
    },
    Outline {
        name: "verify",
        danger: Danger::Looks,
        does: "Makes sure that new work is taken and done, and takes a backup at once: the old ones are of another life.",
        verified: "A task that is handed in completes, and a new backup is verified.",
        by_hand: &[
            "resurgam status --plan resurgam.toml",
            "resurgam task submit sha256 --payload '\"after the restore\"' --wait 30s",
            "resurgam backup run --verify --plan resurgam.toml",
        ],
    },
];

impl Drill<'_> {
    /// Takes a backup, and some time later kills every instance of PostgreSQL and takes its data away.
    pub(super) async fn postgres_restore(&mut self, status: &Status) -> Result<Struck> {
        self.back_up().await?;
        let postgres = status.postgres.as_ref().ok_or_else(|| {
            Error::Drill("this deployment runs no PostgreSQL of its own".to_owned())
        })?;
        let mut victims = Vec::new();
        let mut folders = Vec::new();
        for instance in &postgres.instances {
            let keeper = status.components.iter().find(|h| h.component.name == instance.name);
            // The keepers first: they must not see what happens to their servers.
            let keeper = keeper.and_then(|health| Process::find(health.component.pid?));
            victims.splice(0..0, keeper);
            let data =
                self.subject.state_dir().join("postgres").join(instance.name.as_str()).join("data");
            victims.extend(working_in(&data));
            folders.push(data);
        }
        self.say(&format!("killing {} instances, and taking their data away", folders.len()));
        let since = Timestamp::now();
        let _frozen = Frozen::by(FaultKind::Freeze, &victims);
        strike(&victims, FaultKind::Freeze).await?;
        let stamp = since.strftime("%Y%m%dT%H%M%SZ");
        for data in folders {
            // Beside it, not removed: a drill in somebody's own deployment destroys nothing.
            let lost = data.with_file_name(format!("data.lost-in-drill-{stamp}"));
            std::fs::rename(&data, lost).map_err(Error::path("cannot move", data))?;
        }
        strike(&victims, FaultKind::Kill).await?;
        let at = Timestamp::now();
        let incident = self.recovery(Scenario::PostgresPrimary, since).await?;
        Ok(Struck { at, incident, ..Struck::default() })
    }

    /// Takes a backup, and lets the load go on for a while.
    pub(super) async fn back_up(&self) -> Result<()> {
        if self.subject.plan().backup.vaults.is_empty() {
            return Err(Error::Drill(
                "the plan has no vault to restore from; add one under [[backup.vaults]]".to_owned(),
            ));
        }
        self.say("taking a backup");
        self.subject.command(&["vault", "init"]).await?;
        // The log before the backup, which is of use only with all the log after it.
        self.log_is_shipped().await?;
        self.subject.command(&["backup", "run"]).await?;
        self.log_is_shipped().await?;
        // Not in step with what is shipped every so often: that would always meet the same moment of it.
        let every = self.subject.plan().backup.ship_every.0;
        let nanos = Timestamp::now().subsec_nanosecond().unsigned_abs();
        let share = f64::from(nanos) / 1e9;
        tokio::time::sleep(AFTER_BACKUP + every.mul_f64(share)).await;
        Ok(())
    }

    /// Where the log of the database goes to the vaults, waits until it has come as far as the backup:
    /// the vault may have been made just now, and what is drilled is how things usually are.
    async fn log_is_shipped(&self) -> Result<()> {
        let plan = self.subject.plan();
        if !plan.backup.continuous || plan.store.kind != StoreKind::Postgres {
            return Ok(());
        }
        let begun = Timestamp::now();
        let deadline = Instant::now() + SHIPPED;
        loop {
            let log = self.subject.status().await.map(|status| status.log).unwrap_or_default();
            if !log.is_empty() && log.iter().all(|log| log.until.is_some_and(|at| at > begun)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let why = log.into_iter().filter_map(|log| log.error).collect::<Vec<_>>();
                return Err(Error::Timeout(format!(
                    "the log of the database does not reach the vault: {}",
                    why.join("; ")
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes a backup, loses everything some time later, and restores.
    pub(super) async fn full_cluster(&mut self) -> Result<Struck> {
        self.back_up().await?;
        self.say("killing every process, and taking all data away");
        self.subject.kill_all().await?;
        let at = Timestamp::now();
        self.subject.lose_data()?;
        let mut steps = Vec::new();
        self.say("restoring the last backup");
        let told = self.subject.command(&["restore", "--latest", "--yes"]).await?;
        steps.push(step("restore", at, told.lines().last().unwrap_or_default()));
        self.say("starting everything on it");
        let started_at = Timestamp::now();
        self.subject.start_again().await?;
        let status = self.subject.ready().await?;
        let back = Timestamp::now();
        let names: Vec<_> =
            status.components.iter().map(|health| health.component.name.to_string()).collect();
        steps.push(step(
            "start",
            started_at,
            &format!("{} are up, and the platform is ready", names.join(", ")),
        ));
        Ok(Struck { at, back: Some(back), steps, ..Struck::default() })
    }
}

fn step(name: &str, started_at: Timestamp, detail: &str) -> StepReport {
    let took = Timestamp::now().as_millisecond().saturating_sub(started_at.as_millisecond());
    StepReport {
        name: name.to_owned(),
        status: StepStatus::Done,
        started_at,
        duration_ms: u64::try_from(took).unwrap_or_default(),
        attempts: 1,
        detail: detail.to_owned(),
    }
}
