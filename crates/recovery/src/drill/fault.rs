//! Faults as fate makes them: signals to processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use resurgam_model::Scenario;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How processes are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// SIGKILL: they are gone at once.
    Kill,
    /// SIGSTOP: they are there, keep their connections, and do nothing.
    Freeze,
}

impl FaultKind {
    /// The name on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
        }
    }

    /// What it is called in a scenario: where data is damaged or connections leak, nothing is
    /// killed.
    #[must_use]
    pub fn word(self, scenario: Scenario) -> &'static str {
        match scenario {
            Scenario::DatabaseCorruption => "damage",
            Scenario::PoolExhaustion => "leak",
            Scenario::Failback => "order",
            Scenario::DiskFilling => "fill",
            Scenario::StuckTasks => "hang",
            _ => self.as_str(),
        }
    }

    /// Whether a scenario can be drilled with it. A frozen broker is started anew by its runbook,
    /// so nothing frozen is left behind.
    #[must_use]
    pub fn fits(self, scenario: Scenario) -> bool {
        match self {
            Self::Kill => true,
            Self::Freeze => matches!(
                scenario,
                Scenario::PostgresPrimary
                    | Scenario::PostgresStandby
                    | Scenario::Controller
                    | Scenario::KafkaBroker
                    | Scenario::KafkaCluster
                    | Scenario::RabbitMq
            ),
        }
    }
}

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "kill" => Ok(Self::Kill),
            "freeze" => Ok(Self::Freeze),
            other => Err(format!("there is no fault {other:?}; use kill or freeze")),
        }
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: Pid,
    started: u64,
}

impl Process {
    /// The process with this number, if there is one.
    #[must_use]
    pub fn find(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let (started, _) = stat(pid)?;
        Some(Self { pid, started })
    }

    /// Sends a signal, if it still is the same process.
    pub fn signal(&self, signal: Signal) {
        if stat(self.pid).is_some_and(|(started, _)| started == self.started) {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Whether it can still do something: not dead, not a zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid)
            .is_some_and(|(started, state)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// Whether it is stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|(started, state)| started == self.started && state == 'T')
    }
}

/// Processes that are, or are about to be, stopped. They go on when this is dropped, also because the
/// drill was broken off; the last one first: a server before its keeper, which is the worst order.
#[derive(Debug)]
pub(crate) struct Frozen(pub(crate) Vec<Process>);

impl Frozen {
    /// Of a fault, if it stops anything.
    pub(crate) fn by(kind: FaultKind, victims: &[Process]) -> Self {
        match kind {
            FaultKind::Freeze => Self(victims.to_vec()),
            FaultKind::Kill => Self(Vec::new()),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for process in self.0.iter().rev() {
            process.signal(Signal::CONT);
        }
    }
}

/// When the process began, in clock ticks since boot, and its state.
fn stat(pid: Pid) -> Option<(u64, char)> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name, in brackets, may hold anything.
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((started, state))
}

/// The processes whose working folder is `dir`: those of a PostgreSQL server on that data.
#[must_use]
pub fn working_in(dir: &Path) -> Vec<Process> {
    let Ok(wanted) = fs::metadata(dir) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::metadata(entry.path().join("cwd")).ok()?;
            (cwd.dev() == wanted.dev() && cwd.ino() == wanted.ino())
                .then(|| Process::find(pid))
                .flatten()
        })
        .collect()
}

/// The processes that work in `dir` or below, or have a file of it open. Only those that we may
/// look into are found.
#[must_use]
pub fn using(dir: &Path) -> Vec<Process> {
    let Ok(dir) = dir.canonicalize() else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    processes
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok().filter(|pid| *pid != own)?;
            let below = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(&dir));
            let works = below(&entry.path().join("cwd"));
            let files = || fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            (works || files().any(|file| below(&file.path()))).then(|| Process::find(pid))?
        })
        .collect()
}

/// Kills whatever still uses `dir`, until nothing does.
///
/// # Errors
/// When something cannot be killed.
pub async fn clear(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = using(dir);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Drill(format!(
                "{} processes that use {} cannot be ended",
                left.len(),
                dir.display()
            )));
        }
        for process in left {
            process.signal(Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Makes the fault, and returns once it has taken hold of all of them.
///
/// # Errors
/// When it does not.
pub async fn strike(processes: &[Process], kind: FaultKind) -> Result<()> {
    if processes.is_empty() {
        return Err(Error::Drill("there is no process to strike".to_owned()));
    }
    let signal = match kind {
        FaultKind::Kill => Signal::KILL,
        FaultKind::Freeze => Signal::STOP,
    };
    for process in processes {
        process.signal(signal);
    }
    let struck = |process: &Process| match kind {
        FaultKind::Kill => !process.is_alive(),
        FaultKind::Freeze => process.is_stopped() || !process.is_alive(),
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes.iter().all(struck) {
        if Instant::now() > deadline {
            return Err(Error::Drill("a signal had no effect within 5 s".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
