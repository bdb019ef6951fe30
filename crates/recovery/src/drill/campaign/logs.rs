//! Panics in the logs of a deployment: a component that was started anew after one looks well.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// What Rust says of a panic.
const SIGN: &str = "panicked at";

/// The logs, and how far they were read.
#[derive(Debug)]
pub(super) struct Logs {
    dir: PathBuf,
    read: HashMap<PathBuf, u64>,
}

impl Logs {
    /// From now on.
    pub(super) fn new(dir: &Path) -> Self {
        let mut logs = Self { dir: dir.to_owned(), read: HashMap::new() };
        for file in logs.files() {
            let length = fs::metadata(&file).map_or(0, |metadata| metadata.len());
            logs.read.insert(file, length);
        }
        logs
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
    }

    /// The panics since the last look.
    pub(super) fn panics(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for path in self.files() {
            let from = self.read.get(&path).copied().unwrap_or_default();
            let Ok(mut file) = File::open(&path) else { continue };
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            // One that is shorter than before was begun anew.
            let from = if length < from { 0 } else { from };
            let mut text = Vec::new();
            if file.seek(SeekFrom::Start(from)).is_err() || file.read_to_end(&mut text).is_err() {
                continue;
            }
            self.read.insert(path.clone(), from + u64::try_from(text.len()).unwrap_or_default());
            let text = String::from_utf8_lossy(&text);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let panics = text.lines().filter(|line| line.contains(SIGN));
            found.extend(panics.map(|line| format!("{name}: {line}")));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_and_what_was_told_is_not_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("api-1.log");
        fs::write(&file, "thread 'main' panicked at old\n").unwrap();
        let mut logs = Logs::new(dir.path());
        assert!(logs.panics().is_empty());
        let mut text = fs::read_to_string(&file).unwrap();
        text.push_str("all is well\nthread 'main' panicked at src/new.rs\n");
        fs::write(&file, text).unwrap();
        let found = logs.panics();
        assert_eq!(found, ["api-1.log: thread 'main' panicked at src/new.rs"]);
        assert!(logs.panics().is_empty());
        fs::write(&file, "panicked at a new file\n").unwrap();
        assert_eq!(logs.panics().len(), 1);
    }
}
