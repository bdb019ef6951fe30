//! Schedules that hand in a task again and again.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use croner::time::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ZonedDateTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{Key, Moment};
use crate::task::NewTask;
use crate::{ScheduleName, TaskId};

/// When: five fields as in crontab (minute, hour, day of month, month, day of week), or six with
/// seconds in front, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
///
/// Where clocks are put forward, a fixed time that does not exist comes at the end of the gap;
/// where they are put back, it comes once.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Cron {
    text: String,
    parsed: Box<croner::Cron>,
}

/// Why a text is not a cron expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a cron expression: {reason}. Write minute, hour, day of month, month and day of week, such as \"0 */6 * * *\" or \"30 2 * * MON-FRI\""
)]
pub struct InvalidCron {
    text: String,
    reason: String,
}

impl Cron {
    /// `0 */6 * * *`
    ///
    /// # Panics
    /// Never: the expression is a constant, which a test parses.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a constant that a test parses")]
    pub fn every_six_hours() -> Self {
        "0 */6 * * *".parse().expect("a constant")
    }

    /// The first time after `after` by the clocks of `zone`; `None` if there is none.
    #[must_use]
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let after = Clock(after.to_zoned_datetime(zone.clone()));
        let next = self.parsed.find_next_occurrence(&after, false).ok()?;
        Some(next.0.timestamp())
    }

    /// The expression as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl FromStr for Cron {
    type Err = InvalidCron;

    fn from_str(text: &str) -> Result<Self, InvalidCron> {
        let parser =
            CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let refused =
            |reason: String| InvalidCron { text: text.chars().take(100).collect(), reason };
        let parsed = parser.parse(text.trim()).map_err(|error| refused(error.to_string()))?;
        let cron = Self { text: text.trim().to_owned(), parsed: Box::new(parsed) };
        // Such as the 30th of February.
        if cron.next_after(Timestamp::UNIX_EPOCH, &TimeZone::UTC).is_none() {
            return Err(refused("that never comes".to_owned()));
        }
        Ok(cron)
    }
}

impl TryFrom<String> for Cron {
    type Error = InvalidCron;

    fn try_from(text: String) -> Result<Self, InvalidCron> {
        text.parse()
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> Self {
        cron.text
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// A time of our calendar crate, as the cron crate wants to see it.
#[derive(Clone)]
struct Clock(ZonedDateTime);

impl CronDateTime for Clock {
    fn to_civil(&self) -> CivilDateTime {
        let at = self.0.datetime();
        let part = |value: i8| u32::from(value.unsigned_abs());
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(i32::from(at.year()), part(at.month()), part(at.day())),
            CivilTime::from_parts_unchecked(part(at.hour()), part(at.minute()), part(at.second())),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        let day = self.0.weekday().to_sunday_zero_offset();
        Weekday::from_days_from_sunday(u32::from(day.unsigned_abs()))
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let part = |value: u32| i8::try_from(value).map_err(|_| CronError::InvalidTime);
        let at = DateTime::new(
            i16::try_from(civil.year()).map_err(|_| CronError::InvalidDate)?,
            part(civil.month())?,
            part(civil.day())?,
            part(civil.hour())?,
            part(civil.minute())?,
            part(civil.second())?,
            0,
        )
        .map_err(|_| CronError::InvalidDate)?;
        let found = self.0.time_zone().to_ambiguous_zoned_datetime(at);
        let clock = |zoned: Result<ZonedDateTime, jiff::Error>| {
            zoned.map(Self).map_err(|_| CronError::InvalidTime)
        };
        Ok(match found.offset() {
            AmbiguousOffset::Unambiguous { .. } => Resolution::Single(clock(found.unambiguous())?),
            AmbiguousOffset::Fold { .. } => {
                Resolution::Ambiguous(clock(found.clone().earlier())?, clock(found.later())?)
            }
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(SignedDuration::from_secs(seconds)).ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.timestamp().cmp(&other.0.timestamp())
    }
}

/// What is done when times were missed because nothing ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Missed {
    /// One task for all of them.
    #[default]
    Once,
    /// Nothing: it goes on with the next time.
    Skip,
}

/// A schedule as it is handed in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSchedule {
    /// When.
    pub cron: Cron,
    /// By which clocks: a name such as `Europe/Zurich`; UTC if not given.
    #[serde(default = "utc")]
    #[schemars(with = "Key")]
    pub time_zone: String,
    /// What is handed in each time. Its `idempotency_key`, `delay` and `run_at` must not be set.
    pub task: NewTask,
    /// What is done when times were missed.
    #[serde(default)]
    pub missed: Missed,
    /// Whether it rests.
    #[serde(default)]
    pub paused: bool,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl NewSchedule {
    /// The time zone.
    ///
    /// # Errors
    /// When there is no zone of that name.
    pub fn zone(&self) -> Result<TimeZone, String> {
        TimeZone::get(&self.time_zone).map_err(|_| {
            format!(
                "there is no time zone {:?}; use a name such as \"UTC\" or \"Europe/Zurich\"",
                self.time_zone
            )
        })
    }
}

/// How a schedule is read: all fields beside each other. Reading one type inside of another would
/// first read everything into values, which payloads, kept as the text that they came in, refuse.
#[derive(Deserialize, JsonSchema)]
struct Flat {
    name: ScheduleName,
    cron: Cron,
    #[serde(default = "utc")]
    #[schemars(with = "Key")]
    time_zone: String,
    task: NewTask,
    #[serde(default)]
    missed: Missed,
    #[serde(default)]
    paused: bool,
    #[schemars(with = "Option<Moment>")]
    next_at: Option<Timestamp>,
    #[schemars(with = "Option<Moment>")]
    last_at: Option<Timestamp>,
    last_task: Option<TaskId>,
}

impl From<Flat> for Schedule {
    fn from(flat: Flat) -> Self {
        let Flat { name, cron, time_zone, task, missed, paused, next_at, last_at, last_task } =
            flat;
        let new = NewSchedule { cron, time_zone, task, missed, paused };
        Self { name, new, next_at, last_at, last_task }
    }
}

/// A schedule as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Flat")]
pub struct Schedule {
    /// Its name.
    pub name: ScheduleName,
    /// What it says.
    #[serde(flatten)]
    pub new: NewSchedule,
    /// When it hands in the next task; `None` while it is paused.
    #[schemars(with = "Option<Moment>")]
    pub next_at: Option<Timestamp>,
    /// For which time it handed in the last one.
    #[schemars(with = "Option<Moment>")]
    pub last_at: Option<Timestamp>,
    /// The last task.
    pub last_task: Option<TaskId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let (cron, zone): (Cron, _) = (cron.parse().unwrap(), TimeZone::get(zone).unwrap());
        let mut at: Timestamp = from.parse().unwrap();
        std::iter::repeat_with(|| {
            at = cron.next_after(at, &zone).unwrap();
            at.to_string()
        })
        .take(count)
        .collect()
    }

    #[test]
    fn every_six_hours() {
        assert_eq!(
            times("0 */6 * * *", "UTC", "2026-11-25T05:59:59Z", 2),
            ["2026-11-25T06:00:00Z", "2026-11-25T12:00:00Z"]
        );
    }

    #[test]
    fn sunday_is_0_and_7_as_in_crontab() {
        for day in ["0", "7", "SUN"] {
            let cron = format!("30 2 * * {day}");
            assert_eq!(times(&cron, "UTC", "2026-11-25T00:00:00Z", 1), ["2026-11-29T02:30:00Z"]);
        }
    }

    #[test]
    fn clocks_put_forward_or_back_neither_skip_nor_double_a_daily_time() {
        // 02:30 does not exist on 29 March 2026 and comes twice on 25 October.
        assert_eq!(
            times("30 2 * * *", "Europe/Zurich", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
        assert_eq!(
            times("30 2 * * *", "Europe/Zurich", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn what_is_no_cron_expression_is_refused_with_the_reason() {
        for bad in ["", "* * * *", "61 * * * *", "0 0 30 2 *", "every day", "0 0 * * * * 2027"] {
            let error = bad.parse::<Cron>().unwrap_err().to_string();
            assert!(error.contains("cron expression"), "{error}");
        }
    }
}
