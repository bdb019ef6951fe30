//! The steps when the disk fills.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resurgam_model::Timestamp;

use super::reclaim::{Heap, largest, leftovers, remove, set_aside};
use super::{MEGABYTE, Space, account};
use crate::health::Readiness;
use crate::journal::Journal;
use crate::runbook::{Danger, Done, Outline, SoFar, Step, Stop};

const CONFIRM: usize = 0;
const EVIDENCE: usize = 1;
const RECLAIM: usize = 2;
const VERIFY: usize = 3;

/// So many of the largest are kept as evidence.
const LARGEST: usize = 10;
/// So long the file system may take to give room back.
const GIVEN_BACK: Duration = Duration::from_secs(10);
/// How often to look while something is waited for.
const LOOK: Duration = Duration::from_millis(250);

/// In order.
pub static OUTLINE: [Outline; 4] = [
    Outline {
        name: "confirm",
        danger: Danger::Looks,
        does: "Asks the file system of the state folder how much is free.",
        verified: "The figures are in the journal.",
        by_hand: &[
            "df --human-readable resurgam-data",
            "df --inodes resurgam-data",
            "# Kubernetes:",
            "kubectl --namespace dotnetagents exec postgres-0 -- df --human-readable /var/lib/postgresql/data",
        ],
    },
    Outline {
        name: "evidence",
        danger: Danger::Looks,
        does: "Keeps what takes most of the room below the state folder.",
        verified: "The list is in the journal.",
        by_hand: &[
            "du --human-readable --max-depth 2 resurgam-data | sort --human-numeric-sort | tail --lines 20",
        ],
    },
    Outline {
        name: "reclaim",
        danger: Danger::Acts,
        does: "Removes what can be had again: logs that were moved aside, and what an ended backup or restore on trial has left behind. If that is not enough, a person is asked about what restores and drills have moved aside; without any of that it is refused, with the list of the largest.",
        verified: "As much is free as the plan wants.",
        by_hand: &[
            "rm resurgam-data/logs/*.log.1",
            "# What a restore has replaced, once all is well:",
            "ls -l resurgam-data/set-aside",
            "# A replication slot of a standby that is gone for good holds the log back:",
            "psql --command \"SELECT slot_name, active, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) FROM pg_replication_slots\"",
            "# Never remove files from pg_wal by hand.",
        ],
    },
    Outline {
        name: "verify",
        danger: Danger::Looks,
        does: "Makes sure that as much is free as the plan wants, and asks the platform for its readiness down to the store.",
        verified: "It is, and the platform is ready.",
        by_hand: &["df --human-readable resurgam-data", "resurgam status"],
    },
];

/// What the steps work on.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) state: PathBuf,
    pub(crate) min_free_mb: u64,
    pub(crate) journal: Journal,
    pub(crate) platform: Readiness,
}

/// The steps.
pub(crate) fn steps(disk: &Disk) -> Vec<Box<dyn Step>> {
    vec![
        Box::new(Confirm(disk.clone())),
        Box::new(Evidence(disk.clone())),
        Box::new(Reclaim(disk.clone())),
        Box::new(Verify(disk.clone())),
    ]
}

#[allow(clippy::indexing_slicing, reason = "the places are constants of this module")]
fn step(place: usize) -> &'static Outline {
    &OUTLINE[place]
}

impl Disk {
    fn space(&self) -> Result<Space, Stop> {
        Space::of(&self.state, self.min_free_mb).map_err(|error| {
            Stop::Retry(format!(
                "how much is free at {} is not known: {error}",
                self.state.display()
            ))
        })
    }

    /// Looks through folders, which may take a while.
    async fn list(
        &self,
        of: impl FnOnce(&Path) -> Vec<Heap> + Send + 'static,
    ) -> Result<Vec<Heap>, Stop> {
        let state = self.state.clone();
        Ok(tokio::task::spawn_blocking(move || of(&state)).await?)
    }

    /// Removes what is still of that kind. What is about to be removed is in the journal first.
    async fn remove(
        &self,
        so_far: &SoFar<'_>,
        heaps: Vec<Heap>,
        still: fn(&Path) -> Vec<Heap>,
    ) -> Result<u64, Stop> {
        let text = format!("to be removed:\n{}", lines(&heaps));
        self.journal.add_evidence(so_far.incident.id, &text, Timestamp::now())?;
        let state = self.state.clone();
        let removed = tokio::task::spawn_blocking(move || remove(&state, &heaps, still)).await??;
        Ok(removed.iter().map(|heap| heap.bytes).sum())
    }

    /// Waits until as much is free as it should be: some file systems take a moment.
    async fn is_relieved(&self) -> Result<Option<Space>, Stop> {
        let deadline = Instant::now() + GIVEN_BACK;
        loop {
            let space = self.space()?;
            if !space.is_low() {
                return Ok(Some(space));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn lines(heaps: &[Heap]) -> String {
    let line = |heap: &Heap| format!("{:>10} MB  {}", heap.bytes / MEGABYTE, heap.path.display());
    heaps.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Is it low?
struct Confirm(Disk);

#[async_trait]
impl Step for Confirm {
    fn outline(&self) -> &'static Outline {
        step(CONFIRM)
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let space = self.0.space()?;
        if space.is_low() {
            return Ok(Done::now(account(&space)));
        }
        Err(Stop::FalseAlarm(account(&space)))
    }
}

/// Keeps what takes the room.
struct Evidence(Disk);

#[async_trait]
impl Step for Evidence {
    fn outline(&self) -> &'static Outline {
        step(EVIDENCE)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(120)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let heaps = self.0.list(|state| largest(state, LARGEST)).await?;
        let text = format!("the largest below {}:\n{}", self.0.state.display(), lines(&heaps));
        self.0.journal.add_evidence(so_far.incident.id, &text, Timestamp::now())?;
        Ok(Done::now(format!("the {} largest are kept", heaps.len())))
    }
}

/// Makes room.
struct Reclaim(Disk);

#[async_trait]
impl Step for Reclaim {
    fn outline(&self) -> &'static Outline {
        step(RECLAIM)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(300)
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        let disk = &self.0;
        if !disk.space()?.is_low() {
            return Ok(Done::skipped("enough is free again"));
        }
        let mut gained = 0;
        let heaps = disk.list(leftovers).await?;
        if !heaps.is_empty() {
            gained += disk.remove(so_far, heaps, leftovers).await?;
            if disk.is_relieved().await?.is_some() {
                return Ok(Done::now(format!("{} MB were removed", gained / MEGABYTE)));
            }
        }
        let heaps = disk.list(set_aside).await?;
        if heaps.is_empty() {
            let largest = disk.list(|state| largest(state, LARGEST)).await?;
            return Err(Stop::Refuse(format!(
                "{} MB were removed, and that is not enough: {}. Add room, or remove what is not needed; the largest are:\n{}",
                gained / MEGABYTE,
                account(&disk.space()?),
                lines(&largest)
            )));
        }
        let question = format!(
            "{} MB were removed, which is not enough. What restores and drills have moved aside can be given up for good. Shall it?\n{}",
            gained / MEGABYTE,
            lines(&heaps)
        );
        if !so_far.agreed.contains(&question) {
            return Err(Stop::Ask(question));
        }
        gained += disk.remove(so_far, heaps, set_aside).await?;
        match disk.is_relieved().await? {
            Some(_) => Ok(Done::now(format!("{} MB were removed", gained / MEGABYTE))),
            None => Err(Stop::Refuse(format!(
                "{} MB were removed, and that is not enough: {}. Add room",
                gained / MEGABYTE,
                account(&disk.space()?)
            ))),
        }
    }
}

/// Is enough free, and does everything work?
struct Verify(Disk);

#[async_trait]
impl Step for Verify {
    fn outline(&self) -> &'static Outline {
        step(VERIFY)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn restores_service(&self) -> bool {
        true
    }

    async fn run(&self, _: &SoFar<'_>) -> Result<Done, Stop> {
        let space = self.0.space()?;
        if space.is_low() {
            return Err(Stop::Retry(account(&space)));
        }
        self.0.platform.wait().await;
        Ok(Done::now(format!("{}; the platform is ready", account(&space))))
    }
}
