//! Files of one JSON document on each line, to which lines are only ever added.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Adds a line, durably.
///
/// # Errors
/// When the file cannot be written. A part of the line may be there then; it is passed over when the
/// file is read, and the next one begins a line of its own.
pub fn append(path: &Path, document: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(document)?;
    line.push('\n');
    let torn = fs::read(path).is_ok_and(|text| text.last().is_some_and(|last| *last != b'\n'));
    if torn {
        line.insert(0, '\n');
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    // One call, so that two that write at once do not mix their lines.
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

/// Reads all lines, and the numbers, from 1 on, of those that cannot be read: torn by a crash, changed by
/// hand, or written by a later version of the program. That there is no file yet is no line.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<(Vec<T>, Vec<usize>)> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let (mut documents, mut unreadable) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(document) => documents.push(document),
            Err(_) => unreadable.push(number),
        }
    }
    Ok((documents, unreadable))
}
