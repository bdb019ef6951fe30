//! The one way out: data to standard output, all else to standard error.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::presets::{ASCII_FULL_CONDENSED, UTF8_FULL_CONDENSED};
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::failure::Failure;

/// Data. A reader that has gone away is no error.
pub(crate) fn data(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Data as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    data(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A word on how it goes.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// What went wrong.
pub(crate) fn error(failure: &Failure) {
    let _ = writeln!(std::io::stderr().lock(), "resurgam: {}", failure.message);
}

/// An empty table for people.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    let utf8 = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .is_none_or(|value| value.to_ascii_uppercase().contains("UTF"));
    table.load_style(if utf8 { UTF8_FULL_CONDENSED } else { ASCII_FULL_CONDENSED });
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table
}

/// Progress lines: on a terminal one that changes, elsewhere one after the other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    quiet: bool,
    open: AtomicBool,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, open: AtomicBool::new(false) }
    }

    pub(crate) fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        let mut err = std::io::stderr().lock();
        if std::io::stderr().is_terminal() {
            let _ = write!(err, "\r\x1b[2K  {text}");
            let _ = err.flush();
            self.open.store(true, Ordering::Relaxed);
        } else {
            let _ = writeln!(err, "  {text}");
        }
    }

    /// Takes the changing line away.
    pub(crate) fn clear(&self) {
        if self.open.swap(false, Ordering::Relaxed) {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        }
    }
}
