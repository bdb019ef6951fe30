//! One log file per component.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use resurgam_model::ComponentName;

use crate::{Error, Result};

/// A log that is larger when its component is added is moved aside, over the one before.
const ROTATE_AT: u64 = 16 * 1024 * 1024;

/// How much of a file's end is looked at for its last lines.
const TAIL_WINDOW: u64 = 256 * 1024;

/// Where a component's log lies.
pub(super) fn path(dir: &Path, name: &ComponentName) -> PathBuf {
    dir.join(format!("{}.log", name.as_str().replace(['/', ':'], "-")))
}

/// Makes the folder, and moves an overlong log aside.
pub(super) fn prepare(log: &Path) -> Result<()> {
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir).map_err(Error::path("cannot create", dir))?;
    }
    if std::fs::metadata(log).is_ok_and(|meta| meta.len() > ROTATE_AT) {
        let old = log.with_extension("log.1");
        std::fs::rename(log, &old).map_err(Error::path("cannot move aside", log))?;
    }
    Ok(())
}

/// Opens a log for writing at its end.
pub(super) fn open(log: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(log)
}

/// The last lines, oldest first.
pub(super) async fn tail(log: &Path, lines: usize) -> Result<Vec<String>> {
    let path = log.to_owned();
    let read = tokio::task::spawn_blocking(move || read_tail(&path, lines)).await;
    match read {
        Ok(Ok(lines)) => Ok(lines),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Ok(Err(error)) => Err(Error::path("cannot read", log)(error)),
        Err(join) => Err(Error::path("cannot read", log)(std::io::Error::other(join))),
    }
}

fn read_tail(path: &Path, lines: usize) -> std::io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_WINDOW).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    Ok(all.iter().skip(all.len().saturating_sub(lines)).map(|line| (*line).to_owned()).collect())
}
