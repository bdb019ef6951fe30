//! Looking at processes from outside.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// One process, told apart from a later one of the same number by when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pid: u32,
    began: u64,
}

struct Stat {
    state: char,
    parent: u32,
    began: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program may hold anything; what follows it does not.
    let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        began: fields.get(19)?.parse().ok()?,
    })
}

impl Process {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let began = stat(pid)?.began;
        Some(Self { pid, began }).filter(|process| process.is_alive())
    }

    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    fn state(self) -> Option<char> {
        stat(self.pid).filter(|stat| stat.began == self.began).map(|stat| stat.state)
    }

    /// A zombie is dead.
    pub(crate) fn is_alive(self) -> bool {
        self.state().is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    pub(crate) fn is_stopped(self) -> bool {
        self.state() == Some('T')
    }

    /// Nothing happens when it is dead.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive() {
            let pid = Pid::from_raw(i32::try_from(self.pid).unwrap()).unwrap();
            let _ = kill_process(pid, signal);
        }
    }
}

/// All that descend from a process, without itself.
pub(crate) fn descendants(root: u32) -> Vec<Process> {
    let mut children: HashMap<u32, Vec<Process>> = HashMap::new();
    for pid in all() {
        if let Some(stat) = stat(pid)
            && !matches!(stat.state, 'Z' | 'X')
        {
            children.entry(stat.parent).or_default().push(Process { pid, began: stat.began });
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(child);
            next.push(child.pid);
        }
    }
    found
}

fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Stops a process and all that descend from it, also those that are made meanwhile.
pub(crate) async fn freeze(root: Process) -> Vec<Process> {
    let mut stopped = HashSet::new();
    within(5, "stop every process", async || {
        let family: HashSet<_> = descendants(root.pid).into_iter().chain([root]).collect();
        let new: Vec<_> = family.difference(&stopped).copied().collect();
        new.iter().for_each(|process| process.signal(Signal::STOP));
        stopped.extend(&new);
        new.is_empty() && family.iter().all(|process| process.is_stopped())
    })
    .await;
    stopped.into_iter().collect()
}

/// Waits until something is so, and fails when it takes longer than `seconds`.
pub(crate) async fn within(seconds: u64, what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !so().await {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until all are dead.
pub(crate) async fn dead(seconds: u64, what: &str, processes: &[Process]) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let alive: Vec<_> = processes.iter().filter(|process| process.is_alive()).collect();
        if alive.is_empty() {
            return;
        }
        let command = |pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let alive = || alive.iter().map(|it| command(it.pid).replace('\0', " "));
        assert!(Instant::now() < deadline, "{what}: {:?} live", alive().collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long the file is; nothing when it does not exist.
pub(crate) fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |meta| meta.len())
}

/// A folder that the user of the server can reach too.
pub(crate) fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::Builder::new().prefix("resurgam-deployment-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    folder
}
