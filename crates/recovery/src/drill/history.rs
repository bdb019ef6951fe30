//! What drills have shown: one report on each line of a file beside the journal.

use std::io;
use std::path::{Path, PathBuf};

use resurgam_model::report::DrillReport;
use resurgam_model::{Duration, Scenario};

use super::lines;

/// The file within the state folder.
const FILE: &str = "drills.jsonl";

/// The drills of a deployment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The oldest first.
    pub reports: Vec<DrillReport>,
    /// The numbers of lines that cannot be read, from 1 on: torn by a crash, changed by hand, or
    /// written by a later version of the program.
    pub unreadable: Vec<usize>,
}

/// Where the history of a deployment is.
#[must_use]
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Adds a report, durably.
///
/// # Errors
/// When the file cannot be written. A part of the line may be there then; it is passed over when
/// the history is read, and the next report begins a line of its own.
pub fn append(state_dir: &Path, report: &DrillReport) -> io::Result<()> {
    lines::append(&file(state_dir), report)
}

/// Reads all reports. That there is no file yet is an empty history.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(state_dir: &Path) -> io::Result<History> {
    let (reports, unreadable) = lines::read(&file(state_dir))?;
    Ok(History { reports, unreadable })
}

/// The slowest of so many drills is what is to be expected.
pub const RECENT: usize = 10;

/// The last drills of a scenario, the newest first.
pub fn recent(drills: &[DrillReport], scenario: Scenario) -> impl Iterator<Item = &DrillReport> {
    drills.iter().rev().filter(move |report| report.scenario == scenario).take(RECENT)
}

/// How long a recovery is to be expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slowest {
    /// So long the slowest of them took; none when there were none, or one never ended.
    pub took: Option<Duration>,
    /// How many there were.
    pub drills: usize,
}

/// The slowest of the last drills of a scenario.
#[must_use]
pub fn slowest(drills: &[DrillReport], scenario: Scenario) -> Slowest {
    let took = recent(drills, scenario)
        .map(|report| report.rto.measured_ms)
        .try_fold(None, |longest, ms| ms.map(|ms| longest.max(Some(ms))))
        .flatten();
    Slowest { took: took.map(Duration::from_millis), drills: recent(drills, scenario).count() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use resurgam_model::Severity;
    use resurgam_model::report::{DrillResult, Measured};

    use super::*;

    fn report(rto_ms: u64) -> DrillReport {
        let objective = Duration::from_secs(60);
        DrillReport {
            scenario: Scenario::Api,
            severity: Severity::P1,
            deployment: "local/sqlite".to_owned(),
            fault: "kill".to_owned(),
            started_at: "2026-11-25T12:00:00Z".parse().unwrap(),
            detection_ms: Some(1),
            steps: Vec::new(),
            rto: Measured::new(objective, Some(Duration::from_millis(rto_ms))),
            rpo: Measured::new(objective, Some(Duration::from_millis(0))),
            acknowledged: 1,
            lost: 0,
            duplicated: 0,
            split_brain: false,
            fence: Vec::new(),
            result: DrillResult::Recovered,
        }
    }

    #[test]
    fn a_torn_line_costs_no_other_report() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), History::default());
        append(dir.path(), &report(1)).unwrap();
        append(dir.path(), &report(2)).unwrap();
        let whole = fs::read(file(dir.path())).unwrap();
        // Wherever a crash may have torn the second one.
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in [first + 1, first + 40, whole.len() - 2] {
            fs::write(file(dir.path()), &whole[..length]).unwrap();
            append(dir.path(), &report(3)).unwrap();
            let history = read(dir.path()).unwrap();
            assert_eq!(history.reports, [report(1), report(3)], "{length}");
            assert_eq!(history.unreadable, [2], "{length}");
        }
        // Only its end of line is missing.
        fs::write(file(dir.path()), &whole[..whole.len() - 1]).unwrap();
        append(dir.path(), &report(3)).unwrap();
        assert_eq!(read(dir.path()).unwrap().reports, [report(1), report(2), report(3)]);
    }
}
