//! The data folder of an instance, and what keeps it safe while its keeper is away.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use resurgam_model::database::Epoch;
use rustix::process::{Pid, Signal};

use super::config::{FENCED_CONF, FENCED_HBA};
use super::programs::{Programs, User};
use super::secrets::{REPLICATOR, SUPERUSER, Secrets};
use crate::{Error, Result};

/// The folders and files of one instance.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Of the instance in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where a copy of the primary is made.
    pub(super) fn incoming(&self) -> PathBuf {
        self.dir.join("data.incoming")
    }

    /// Where data that was replaced waits until its successor has proved itself.
    pub(super) fn replaced(&self) -> PathBuf {
        self.dir.join("data.replaced")
    }

    /// The keeper's `postgresql.conf`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("postgresql.conf")
    }

    pub(super) fn hba(&self) -> PathBuf {
        self.dir.join("pg_hba.conf")
    }

    pub(super) fn passfile(&self) -> PathBuf {
        self.dir.join("passfile")
    }

    /// Makes the instance's folder and the password file for PostgreSQL's own programs.
    pub(super) fn prepare(&self, programs: &Programs, secrets: &Secrets) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(Error::path("cannot create", &self.dir))?;
        super::programs::check_reachable(&self.dir, programs.user.as_ref())?;
        give(&self.dir, 0o700, programs.user.as_ref())?;
        let lines = format!(
            "*:*:*:{SUPERUSER}:{}\n*:*:*:{REPLICATOR}:{}\n",
            secrets.superuser, secrets.replicator
        );
        self.write(&self.passfile(), &lines, 0o600, programs.user.as_ref())?;
        self.write(&self.hba(), super::config::HBA, 0o600, programs.user.as_ref())
    }

    /// Writes a file: complete or not at all.
    pub(super) fn write(
        &self,
        path: &Path,
        text: &str,
        mode: u32,
        user: Option<&User>,
    ) -> Result<()> {
        let temporary = path.with_extension("new");
        let write = || {
            fs::write(&temporary, text)?;
            File::open(&temporary)?.sync_all()
        };
        write().map_err(Error::path("cannot write", &temporary))?;
        give(&temporary, mode, user)?;
        fs::rename(&temporary, path).map_err(Error::path("cannot write", path))
    }

    /// What PostgreSQL's programs say.
    pub(super) fn output(&self) -> PathBuf {
        self.dir.join("output")
    }

    fn rewinding(&self) -> PathBuf {
        self.dir.join("rewinding")
    }

    /// Notes that the data is about to be rewound: until that has ended it is no database.
    pub(super) fn begin_rewind(&self) -> Result<()> {
        self.mark(&self.rewinding())
    }

    /// Notes that the data is whole again.
    pub(super) fn end_rewind(&self) -> Result<()> {
        unmark(&self.rewinding())
    }

    fn mark(&self, mark: &Path) -> Result<()> {
        File::create(mark)
            .and_then(|file| file.sync_all())
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(Error::path("cannot write", mark))
    }

    fn branch(&self) -> PathBuf {
        self.dir.join("branch")
    }

    /// Notes that the data may have gone its own way: it must be compared with a primary's
    /// before it follows it, since what is streamed covers the traces.
    pub(super) fn begin_branch(&self) -> Result<()> {
        self.mark(&self.branch())
    }

    /// Notes that the data is part of a primary's history.
    pub(super) fn end_branch(&self) -> Result<()> {
        unmark(&self.branch())
    }

    /// Whether the data may have gone its own way.
    pub(super) fn is_branch(&self) -> bool {
        self.branch().exists()
    }

    /// Notes the reign that the instance begins.
    pub(super) fn begin_reign(&self, epoch: Epoch) -> Result<()> {
        self.begin_branch()?;
        self.write(&self.dir.join("reign"), &epoch.to_string(), 0o600, None)?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::path("cannot sync", &self.dir))
    }

    /// The last reign that the instance began, on whatever data.
    pub(super) fn last_reign(&self) -> Result<Epoch> {
        let path = self.dir.join("reign");
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Epoch)
                .map_err(|_| Error::State(format!("{} does not hold an epoch", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Epoch::default()),
            Err(error) => Err(Error::path("cannot read", path)(error)),
        }
    }

    /// Whether there is a database. Half of a rewound one is none.
    #[must_use]
    pub fn has_data(&self) -> bool {
        !self.rewinding().exists()
            && self.data().join("PG_VERSION").is_file()
            && self.data().join("global/pg_control").is_file()
    }

    /// Makes the data folder a fenced standby: whoever starts a server on it without its keeper
    /// gets one that accepts no connection, and no write in any case.
    pub(super) fn fence(&self, data: &Path, user: Option<&User>) -> Result<()> {
        self.write(&data.join("postgresql.conf"), FENCED_CONF, 0o600, user)?;
        self.write(&data.join("pg_hba.conf"), FENCED_HBA, 0o600, user)?;
        self.mark_standby(data, user)
    }

    /// Takes over data that was restored from a backup: from now on it belongs to a keeper, and
    /// whoever follows it has to compare itself with it first.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn adopt(&self, programs: &Programs) -> Result<()> {
        let user = programs.user.as_ref();
        let data = self.data();
        give(&self.dir, 0o700, user)?;
        give_all(&data, user)?;
        self.begin_branch()?;
        self.fence(&data, user)
    }

    /// Makes sure that the next start is one as a standby. PostgreSQL takes the mark away when
    /// it is promoted.
    pub(super) fn mark_standby(&self, data: &Path, user: Option<&User>) -> Result<()> {
        let signal = data.join("standby.signal");
        if signal.exists() {
            return Ok(());
        }
        File::create(&signal)
            .and_then(|file| file.sync_all())
            .map_err(Error::path("cannot write", &signal))?;
        give(&signal, 0o600, user)?;
        File::open(data).and_then(|dir| dir.sync_all()).map_err(Error::path("cannot sync", data))
    }
}

fn unmark(mark: &Path) -> Result<()> {
    match fs::remove_file(mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::path("cannot remove", mark)(error))
        }
        _ => Ok(()),
    }
}

/// Gives a folder with all that is in it to the user of the server, readable by nobody else.
///
/// # Errors
/// When something in it cannot be given away.
pub fn give_all(dir: &Path, user: Option<&User>) -> Result<()> {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        give(&folder, 0o700, user)?;
        for entry in fs::read_dir(&folder).map_err(Error::path("cannot read", &folder))? {
            let entry = entry.map_err(Error::path("cannot read", &folder))?;
            let kind = entry.file_type().map_err(Error::path("cannot read", entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                give(&entry.path(), 0o600, user)?;
            }
        }
    }
    Ok(())
}

/// Sets mode and owner.
///
/// # Errors
/// When they cannot be set.
pub fn give(path: &Path, mode: u32, user: Option<&User>) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::path("cannot set the mode of", path))?;
    if let Some(user) = user {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
            .map_err(Error::path("cannot give away", path))?;
    }
    Ok(())
}

/// Kills every process that works on the data folder: a server that somebody else started, or
/// what is left of one. PostgreSQL's processes have the data folder as their working folder.
///
/// # Errors
/// When one does not die, so that the folder cannot be used safely.
pub(super) async fn evict(data: &Path) -> Result<u32> {
    kill_all(data, || working_in(data)).await
}

/// Kills what is left of a program that was told to work on the folder.
///
/// # Errors
/// As [`evict`].
pub(super) async fn evict_users(dir: &Path) -> Result<u32> {
    kill_all(dir, || told_of(dir)).await
}

async fn kill_all(data: &Path, find: impl Fn() -> Vec<Pid>) -> Result<u32> {
    let mut evicted = 0;
    for _ in 0..200 {
        let squatters = find();
        if squatters.is_empty() {
            return Ok(evicted);
        }
        for pid in squatters {
            evicted += 1;
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Error::State(format!(
        "processes that cannot be killed work in {}: see them with lsof, end them, and the keeper goes on",
        data.display()
    )))
}

/// The processes whose working folder is `dir`.
fn working_in(dir: &Path) -> Vec<Pid> {
    let Ok(wanted) = fs::metadata(dir) else { return Vec::new() };
    processes(|process| {
        fs::metadata(process.join("cwd"))
            .is_ok_and(|cwd| cwd.dev() == wanted.dev() && cwd.ino() == wanted.ino())
    })
}

/// The processes that have `dir` among their arguments.
fn told_of(dir: &Path) -> Vec<Pid> {
    let wanted = dir.as_os_str().as_bytes();
    processes(|process| {
        fs::read(process.join("cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|argument| argument == wanted))
    })
}

fn processes(wanted: impl Fn(&Path) -> bool) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            wanted(&entry.path()).then(|| Pid::from_raw(pid))?
        })
        .collect()
}
