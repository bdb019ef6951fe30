//! Drills by the calendar of the plan: begun by the controller when their time has come and nothing speaks
//! against it, and remembered, also those that were missed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use resurgam_deployment::local::Spawner;
use resurgam_model::plan::{CalendarDrill, Place, Plan};
use resurgam_model::{ComponentName, Timestamp};
use resurgam_recovery::controller::Controller;
use resurgam_recovery::drill::lines;
use resurgam_recovery::status::Status;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::Child;
use tokio::sync::Mutex;

use crate::commands::guard::FOUND;
use crate::failure::{Failure, code};
use crate::plan::Loaded;

/// How often the calendar is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// So long a drill may take to clean up behind itself when the controller ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many missed times in a row are counted.
const MOST: u32 = 10_000;

/// What came of one time in the calendar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Of which drill.
    pub(crate) name: ComponentName,
    /// Which time.
    pub(crate) due: Timestamp,
    /// When that was written down.
    pub(crate) at: Timestamp,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// More about it, for people.
    pub(crate) detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The controller has seen it in the calendar for the first time; `due` is that moment.
    Planned,
    /// It has begun. Written first, so that a drill in which the controller is lost is not begun again by
    /// the next one.
    Begun,
    /// Every objective was met.
    Passed,
    /// An objective was missed, or it could not be done.
    Failed,
    /// An operator, or the end of the controller, broke it off.
    BrokenOff,
    /// It was not begun in time.
    Missed,
}

/// Where the entries of a deployment are.
fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("calendar.jsonl")
}

/// The entries of a deployment, the oldest first.
pub(crate) fn entries(state_dir: &Path) -> Result<Vec<Entry>, Failure> {
    let path = file(state_dir);
    let (entries, unreadable) = lines::read(&path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
    for line in unreadable {
        tracing::warn!(line, path = %path.display(), "a line of the calendar cannot be read");
    }
    Ok(entries)
}

/// The last entry of a drill.
pub(crate) fn last<'a>(entries: &'a [Entry], name: &ComponentName) -> Option<&'a Entry> {
    entries.iter().rev().find(|entry| entry.name == *name)
}

/// What is to be done about a drill.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    /// It was never seen before.
    Begins,
    /// Its time is yet to come, if it ever does.
    Waits,
    /// It is to begin.
    Due(Timestamp),
    /// Its time has passed: the last one, and how many there were.
    Missed(Timestamp, u32),
}

/// Decides. Without I/O.
fn turn(drill: &CalendarDrill, last: Option<&Entry>, now: Timestamp) -> Turn {
    let Some(last) = last else { return Turn::Begins };
    let late = |due: Timestamp| {
        Duration::try_from(now.duration_since(due)).is_ok_and(|late| late > drill.within.0)
    };
    let mut missed = None;
    let mut after = last.due;
    for count in 1..=MOST {
        match drill.next_after(after) {
            Some(due) if due > now => break,
            Some(due) if late(due) => missed = Some((due, count)),
            // Those before it are made up for by this one.
            Some(due) => return Turn::Due(due),
            None => break,
        }
        after = missed.map_or(after, |(due, _)| due);
    }
    missed.map_or(Turn::Waits, |(due, count)| Turn::Missed(due, count))
}

/// What speaks against a drill at this moment.
fn hindrance(plan: &Plan, status: &Status, now: Timestamp) -> Option<String> {
    if let Some((blackout, until)) = plan.blackout(now) {
        return Some(format!("the blackout {} lasts until {until}", blackout.name));
    }
    if let Some(open) = status.incidents.first() {
        return Some(format!("the incident {} ({}) was open", open.id, open.scenario));
    }
    (!status.ready).then(|| "the deployment was not ready".to_owned())
}

/// The calendar of a deployment that runs.
pub(crate) struct Calendar {
    plan: Plan,
    plan_file: Option<PathBuf>,
    state_dir: PathBuf,
    controller: Arc<Controller>,
    spawner: Spawner,
    running: Mutex<Option<Child>>,
}

impl Calendar {
    pub(crate) fn new(
        loaded: &Loaded,
        controller: Arc<Controller>,
        spawner: Spawner,
    ) -> Result<Self, Failure> {
        let absolute = |file: &PathBuf| std::path::absolute(file);
        Ok(Self {
            plan: loaded.plan().clone(),
            plan_file: loaded.file.as_ref().map(absolute).transpose()?,
            state_dir: loaded.state_dir(),
            controller,
            spawner,
            running: Mutex::new(None),
        })
    }

    /// Begins drills when their time has come, for as long as it is waited for.
    pub(crate) async fn run(&self) {
        let Some(plan_file) = self.plan_file.as_deref().filter(|_| !self.plan.drills.is_empty())
        else {
            return std::future::pending().await;
        };
        if let Err(failure) = self.close() {
            tracing::error!(error = failure.message, "the calendar");
        }
        let mut hindered: BTreeMap<&ComponentName, String> = BTreeMap::new();
        loop {
            for drill in &self.plan.drills {
                if let Err(failure) = self.look(drill, plan_file, &mut hindered).await {
                    tracing::error!(drill = %drill.name, error = failure.message, "the calendar");
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the controller before this one has begun, and did not live to see the end of.
    fn close(&self) -> Result<(), Failure> {
        let known = entries(&self.state_dir)?;
        for drill in &self.plan.drills {
            if let Some(begun) = last(&known, &drill.name).filter(|l| l.outcome == Outcome::Begun) {
                let detail = "the controller ended meanwhile".to_owned();
                self.note(drill, begun.due, Outcome::BrokenOff, detail)?;
            }
        }
        Ok(())
    }

    async fn look<'a>(
        &self,
        drill: &'a CalendarDrill,
        plan_file: &Path,
        hindered: &mut BTreeMap<&'a ComponentName, String>,
    ) -> Result<(), Failure> {
        let now = Timestamp::now();
        let known = entries(&self.state_dir)?;
        match turn(drill, last(&known, &drill.name), now) {
            Turn::Waits => Ok(()),
            Turn::Begins => self.note(drill, now, Outcome::Planned, String::new()),
            Turn::Missed(due, count) => {
                let why = hindered.remove(&drill.name);
                let why = why.unwrap_or_else(|| "the controller did not run".to_owned());
                let times = match count {
                    1 => String::new(),
                    count => format!("{count} times in a row: "),
                };
                self.note(drill, due, Outcome::Missed, format!("{times}{why}"))
            }
            Turn::Due(due) => {
                let status = self.controller.status().await?;
                if let Some(why) = hindrance(&self.plan, &status, now) {
                    if hindered.get(&drill.name) != Some(&why) {
                        tracing::warn!(drill = %drill.name, %due, why, "a drill of the calendar has to wait");
                    }
                    hindered.insert(&drill.name, why);
                    return Ok(());
                }
                hindered.remove(&drill.name);
                self.note(drill, due, Outcome::Begun, String::new())?;
                let came = self.drill(drill, plan_file).await;
                let (outcome, detail) =
                    came.unwrap_or_else(|failure| (Outcome::Failed, failure.message));
                self.note(drill, due, outcome, detail)
            }
        }
    }

    fn note(
        &self,
        drill: &CalendarDrill,
        due: Timestamp,
        outcome: Outcome,
        detail: String,
    ) -> Result<(), Failure> {
        match outcome {
            Outcome::Planned | Outcome::Begun | Outcome::Passed => {
                tracing::info!(drill = %drill.name, %due, ?outcome, "calendar");
            }
            Outcome::Failed | Outcome::BrokenOff | Outcome::Missed => {
                tracing::warn!(drill = %drill.name, %due, ?outcome, detail, "calendar");
            }
        }
        let at = Timestamp::now();
        let entry = Entry { name: drill.name.clone(), due, at, outcome, detail };
        let path = file(&self.state_dir);
        lines::append(&path, &entry)
            .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
    }

    /// One after the other, by the command that people use; the first that does not pass is the last.
    async fn drill(
        &self,
        drill: &CalendarDrill,
        plan_file: &Path,
    ) -> Result<(Outcome, String), Failure> {
        let log_path = self.state_dir.join("logs").join(format!("drill-{}.log", drill.name));
        let log = File::create(&log_path)?;
        for what in commands(drill) {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command
                .arg("drill")
                .args(&what)
                .args((drill.on == Place::Copy).then_some("--copy"))
                .arg("--plan")
                .arg(plan_file)
                // What a guard has found is about this controller, and not about one of a copy.
                .env_remove(FOUND)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log.try_clone()?);
            let child = self.spawner.spawn(command).await?;
            let mut running = self.running.lock().await;
            let exit = match running.insert(child).wait().await {
                Ok(exit) => exit,
                Err(error) => return Err(error.into()),
            };
            *running = None;
            let told = std::fs::read_to_string(&log_path).unwrap_or_default();
            let said = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            let about = format!("{}: {said}; see {}", what.join(" "), log_path.display());
            match exit.code().map(u8::try_from) {
                Some(Ok(code::OK)) => {}
                Some(Ok(code::INTERRUPTED)) => return Ok((Outcome::BrokenOff, about)),
                _ => return Ok((Outcome::Failed, about)),
            }
        }
        Ok((Outcome::Passed, String::new()))
    }

    /// Ends the drill that is under way, when the controller ends.
    pub(crate) async fn end(&self) {
        let mut running = self.running.lock().await;
        let Some(child) = running.as_mut() else { return };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        // One that does not end by itself is killed when the handle is dropped.
        let _ = tokio::time::timeout(PATIENCE, child.wait()).await;
    }
}

/// What is drilled, in words of the command line.
fn commands(drill: &CalendarDrill) -> Vec<Vec<String>> {
    if let Some(lasts) = drill.random {
        return vec![vec!["--random".to_owned(), "--for".to_owned(), lasts.to_string()]];
    }
    if drill.scenarios.is_empty() {
        return vec![vec!["--all".to_owned()]];
    }
    drill.scenarios.iter().map(|scenario| vec![scenario.to_string()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill(schedule: &str) -> CalendarDrill {
        let text = format!("name = 'weekly'\nschedule = '{schedule}'\nwithin = '2h'\n");
        toml::from_str(&text).unwrap()
    }

    fn entry(due: &str) -> Entry {
        Entry {
            name: ComponentName::new("weekly").unwrap(),
            due: due.parse().unwrap(),
            at: due.parse().unwrap(),
            outcome: Outcome::Passed,
            detail: String::new(),
        }
    }

    #[test]
    fn each_time_comes_once_and_what_is_too_late_is_missed() {
        let weekly = drill("0 3 * * SUN");
        let at = |last: Option<&str>, now: &str| {
            turn(&weekly, last.map(entry).as_ref(), now.parse().unwrap())
        };
        let moment = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(at(None, "2026-11-30T12:00:00Z"), Turn::Begins);
        // What was due before it was ever seen is nobody's fault.
        let seen = Some("2026-11-30T12:00:00Z");
        assert_eq!(at(seen, "2026-12-06T02:59:59Z"), Turn::Waits);
        let due = moment("2026-12-06T03:00:00Z");
        assert_eq!(at(seen, "2026-12-06T03:00:00Z"), Turn::Due(due));
        assert_eq!(at(seen, "2026-12-06T05:00:00Z"), Turn::Due(due), "it may still begin");
        assert_eq!(at(seen, "2026-12-06T05:00:01Z"), Turn::Missed(due, 1));
        let done = Some("2026-12-06T03:00:00Z");
        assert_eq!(at(done, "2026-12-06T03:00:01Z"), Turn::Waits, "only once");
        let third = moment("2026-12-27T03:00:00Z");
        assert_eq!(at(done, "2026-12-28T00:00:00Z"), Turn::Missed(third, 3));
        assert_eq!(at(done, "2026-12-27T03:10:00Z"), Turn::Due(third), "it makes up for them");
        assert_eq!(at(done, "2020-01-01T00:00:00Z"), Turn::Waits, "a clock that was put back");
    }

    #[test]
    fn the_commands_are_those_of_people() {
        let mut weekly = drill("0 3 * * SUN");
        assert_eq!(commands(&weekly), [["--all"]]);
        weekly.random = Some(resurgam_model::Duration::from_secs(600));
        assert_eq!(commands(&weekly), [["--random", "--for", "10m"]]);
        weekly.random = None;
        weekly.scenarios = vec![resurgam_model::Scenario::Api];
        assert_eq!(commands(&weekly), [["api"]]);
    }
}
