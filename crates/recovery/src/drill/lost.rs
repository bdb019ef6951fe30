//! The loss of everything: only plan, vault and key are left, and nobody who could recover by
//! itself. The drill does what a person would do, by the same commands.

use std::time::Duration;

use resurgam_model::Timestamp;
use resurgam_model::report::{StepReport, StepStatus};

use super::run::{Drill, Struck};
use crate::runbook::{Danger, Outline};
use crate::{Error, Result};

/// So long the load goes on after the backup, so that there is something to lose.
const AFTER_BACKUP: Duration = Duration::from_secs(2);

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
    /// Takes a backup, loses everything some time later, and restores.
    pub(super) async fn full_cluster(&mut self) -> Result<Struck> {
        if self.subject.plan().backup.vaults.is_empty() {
            return Err(Error::Drill(
                "the plan has no vault to restore from; add one under [[backup.vaults]]".to_owned(),
            ));
        }
        self.say("taking a backup");
        self.subject.command(&["vault", "init"]).await?;
        self.subject.command(&["backup", "run"]).await?;
        tokio::time::sleep(AFTER_BACKUP).await;
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
