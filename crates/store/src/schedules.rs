//! Schedules that hand in tasks.

use async_trait::async_trait;
use resurgam_model::schedule::{Missed, NewSchedule, Schedule};
use resurgam_model::task::NewTask;
use resurgam_model::{ScheduleName, TaskId, Timestamp};

use crate::{Error, Result};

/// Schedules. Each time of a schedule hands in one task, however many processes call
/// [`Schedules::fire`] at once and whichever of them dies: moving the schedule on and handing the
/// task in is one transaction.
#[async_trait]
pub trait Schedules: Send + Sync + 'static {
    /// Makes a schedule, or changes it: it goes on with the first time after now.
    async fn put_schedule(&self, name: &ScheduleName, new: &NewSchedule) -> Result<Schedule>;

    /// Takes a schedule away. False if there is none. Tasks that it handed in stay.
    async fn remove_schedule(&self, name: &ScheduleName) -> Result<bool>;

    /// One schedule.
    async fn schedule(&self, name: &ScheduleName) -> Result<Option<Schedule>>;

    /// All schedules, in the order of the names.
    async fn schedules(&self) -> Result<Vec<Schedule>>;

    /// Hands in the tasks of all schedules whose time has come.
    async fn fire(&self) -> Result<Vec<Fired>>;
}

/// A schedule that has handed in a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// Which.
    pub name: ScheduleName,
    /// For which time.
    pub at: Timestamp,
    /// What.
    pub task: TaskId,
}

/// A time more than so much in the past was missed.
const LATE_SECONDS: i64 = 60;

/// What a schedule whose time has come is to do.
#[derive(Debug, PartialEq)]
pub(crate) struct Turn {
    /// The task to hand in, and for which time; `None` when missed times are skipped.
    pub(crate) task: Option<(Timestamp, NewTask)>,
    /// When its next time comes.
    pub(crate) next: Option<Timestamp>,
}

/// Decides what a schedule does whose time `due` has come.
pub(crate) fn turn(
    name: &ScheduleName,
    new: &NewSchedule,
    due: Timestamp,
    now: Timestamp,
) -> Result<Turn> {
    let next = next(new, now)?;
    let late = now.as_second().saturating_sub(due.as_second()) > LATE_SECONDS;
    if late && new.missed == Missed::Skip {
        return Ok(Turn { task: None, next });
    }
    let mut task = new.task.clone();
    // Would also keep a time from counting twice if two clocks disagreed.
    task.idempotency_key = Some(format!("schedule:{name}:{due}"));
    Ok(Turn { task: Some((due, task)), next })
}

/// The first time of a schedule after `now`.
pub(crate) fn next(new: &NewSchedule, now: Timestamp) -> Result<Option<Timestamp>> {
    if new.paused {
        return Ok(None);
    }
    let zone = new.zone().map_err(Error::Settings)?;
    Ok(new.cron.next_after(now, &zone))
}

#[cfg(test)]
mod tests {
    use resurgam_model::{Capability, Payload};

    use super::*;

    fn schedule(missed: Missed) -> NewSchedule {
        NewSchedule {
            cron: "0 */6 * * *".parse().unwrap(),
            time_zone: "UTC".to_owned(),
            task: NewTask::new(Capability::new("backup").unwrap(), Payload::default()),
            missed,
            paused: false,
        }
    }

    fn decide(missed: Missed, now: &str) -> (Option<String>, Option<String>) {
        let name = ScheduleName::new("db").unwrap();
        let due = "2026-11-25T06:00:00Z".parse().unwrap();
        let turn = turn(&name, &schedule(missed), due, now.parse().unwrap()).unwrap();
        let key = turn.task.and_then(|(_, task)| task.idempotency_key);
        (key, turn.next.map(|next| next.to_string()))
    }

    #[test]
    fn a_time_hands_in_one_task_and_the_schedule_goes_on() {
        let (key, next) = decide(Missed::Skip, "2026-11-25T06:00:01Z");
        assert_eq!(key.unwrap(), "schedule:db:2026-11-25T06:00:00Z");
        assert_eq!(next.unwrap(), "2026-11-25T12:00:00Z");
    }

    #[test]
    fn missed_times_are_made_up_for_once_or_not_at_all() {
        let (key, next) = decide(Missed::Once, "2026-11-26T07:00:00Z");
        assert!(key.is_some());
        assert_eq!(next.unwrap(), "2026-11-26T12:00:00Z");
        assert_eq!(decide(Missed::Skip, "2026-11-26T07:00:00Z").0, None);
    }
}
