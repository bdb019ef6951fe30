//! What takes room under a state folder, and what of that can be had again or is wanted no more.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Something that takes room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Heap {
    /// Its size in bytes, first, so that heaps sort by it.
    pub(super) bytes: u64,
    /// Relative to the state folder.
    pub(super) path: PathBuf,
}

/// Logs that were moved aside when they had become large, and folders that a backup or a restore on trial
/// has left behind. Nothing is in them that is needed again.
pub(super) fn leftovers(state: &Path) -> Vec<Heap> {
    let mut found: Vec<_> = entries(state, "logs")
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "1"))
        .collect();
    // Whoever takes or tries a backup holds the lock.
    if lock(state).is_some() {
        found.extend(["backup", "scratch"].iter().flat_map(|dir| entries(state, dir)));
    }
    heaps(state, found)
}

/// What only a person may give up: what a restore has replaced, and what drills have moved aside.
pub(super) fn set_aside(state: &Path) -> Vec<Heap> {
    let mut found = entries(state, "set-aside");
    for instance in entries(state, "postgres") {
        found.extend(entries(state, &instance).into_iter().filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("data.lost-in-drill-")
        }));
    }
    heaps(state, found)
}

/// The largest of what is there, down to the second level.
pub(super) fn largest(state: &Path, count: usize) -> Vec<Heap> {
    let mut found = Vec::new();
    for path in entries(state, "") {
        let below = entries(state, &path);
        if below.is_empty() { found.push(path) } else { found.extend(below) }
    }
    let mut heaps = heaps(state, found);
    heaps.truncate(count);
    heaps
}

/// Removes heaps of the kind that `still` lists now; says what was removed. A backup does not begin meanwhile.
pub(super) fn remove(
    state: &Path,
    heaps: &[Heap],
    still: impl Fn(&Path) -> Vec<Heap>,
) -> io::Result<Vec<Heap>> {
    let now = still(state);
    let lock = lock(state);
    let mut removed = Vec::new();
    for heap in heaps.iter().filter(|heap| now.iter().any(|other| other.path == heap.path)) {
        let locked = ["backup", "scratch"].iter().any(|dir| heap.path.starts_with(dir));
        if locked && lock.is_none() {
            continue;
        }
        let path = state.join(&heap.path);
        let gone = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match gone {
            Ok(()) => removed.push(heap.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// The lock of whoever takes or tries a backup, if nobody has it.
fn lock(state: &Path) -> Option<File> {
    let path = state.join("backup.lock");
    let file = File::options().create(true).truncate(false).write(true).open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// What is in a folder below the state folder, relative to that.
fn entries(state: &Path, below: impl AsRef<Path>) -> Vec<PathBuf> {
    let below = below.as_ref();
    let Ok(found) = fs::read_dir(state.join(below)) else { return Vec::new() };
    found.flatten().map(|entry| below.join(entry.file_name())).collect()
}

/// With their sizes, the largest first. What is empty is no heap.
fn heaps(state: &Path, paths: Vec<PathBuf>) -> Vec<Heap> {
    let mut heaps: Vec<_> = paths
        .into_iter()
        .map(|path| Heap { bytes: size(&state.join(&path)), path })
        .filter(|heap| heap.bytes > 0)
        .collect();
    heaps.sort_unstable_by(|a, b| b.cmp(a));
    heaps
}

/// What it takes on the disk. What cannot be looked at counts nothing.
fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    let own = found.blocks().saturating_mul(512);
    if !found.is_dir() {
        return own;
    }
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    // A folder itself is not what somebody looks for.
    below.map(|entry| size(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(state: &Path, path: &str, bytes: usize) {
        let path = state.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![7; bytes]).unwrap();
    }

    fn names(heaps: &[Heap]) -> Vec<&str> {
        heaps.iter().map(|heap| heap.path.to_str().unwrap()).collect()
    }

    #[test]
    fn only_what_can_be_had_again_is_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        for (path, bytes) in [
            ("logs/api.log", 50_000),
            ("logs/api.log.1", 90_000),
            ("backup/point/data", 20_000),
            ("restore/point/data", 20_000),
            ("scratch/data", 10_000),
            ("set-aside/2026/data", 70_000),
            ("postgres/postgres-0/data/base", 30_000),
            ("postgres/postgres-0/data.lost-in-drill-1/base", 60_000),
            ("journal.db", 5_000),
        ] {
            write(state, path, bytes);
        }
        assert_eq!(names(&leftovers(state)), ["logs/api.log.1", "backup/point", "scratch/data"]);
        let aside = ["set-aside/2026", "postgres/postgres-0/data.lost-in-drill-1"];
        assert_eq!(names(&set_aside(state)), aside);
        assert_eq!(names(&largest(state, 2))[0], "postgres/postgres-0");

        // While a backup is taken, nothing of it is a leftover.
        let held = lock(state).unwrap();
        assert_eq!(names(&leftovers(state)), ["logs/api.log.1"]);
        drop(held);
        let all = leftovers(state);
        let removed = remove(state, &all, leftovers).unwrap();
        assert_eq!(removed, all);
        assert!(leftovers(state).is_empty());
        // What is not of that kind is not removed, whoever names it.
        let other = [Heap { bytes: 1, path: "journal.db".into() }];
        assert!(remove(state, &other, leftovers).unwrap().is_empty());
        assert!(state.join("journal.db").exists() && state.join("restore/point/data").exists());
    }
}
