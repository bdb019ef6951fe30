//! What the plan says of drills by the calendar, and of times in which nobody drills.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::{Drills, Plan, StoreKind};
use crate::schedule::Cron;
use crate::{ComponentName, Duration, Scenario, Timestamp};

/// So many beginnings of one blackout within its own length are looked at.
const MOST: usize = 1000;

/// A drill that the controller begins by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalendarDrill {
    /// What it is called.
    pub name: ComponentName,
    /// When, as a cron expression.
    pub schedule: Cron,
    /// By the clocks of this time zone.
    #[serde(default = "utc")]
    pub timezone: String,
    /// What is drilled, one after the other; all that can be drilled there if it names none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scenarios: Vec<Scenario>,
    /// Instead of scenarios: faults strike at random for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<Duration>,
    /// Where.
    #[serde(default)]
    pub on: Place,
    /// So long after its time it may still begin; after that it counts as missed.
    #[serde(default = "six_hours")]
    pub within: Duration,
}

/// Where a drill takes place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the deployment itself, which breaks.
    #[default]
    Deployment,
    /// In a copy that is restored from the last backup, which leaves the deployment alone.
    Copy,
}

/// A time in which no drill begins: a single one, or one that comes again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    /// What it is called.
    pub name: ComponentName,
    /// From this moment on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Up to this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Or from each of these times on, as a cron expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Cron>,
    /// For so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Duration>,
    /// By the clocks of this time zone.
    #[serde(default = "utc")]
    pub timezone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn six_hours() -> Duration {
    Duration::from_secs(6 * 3600)
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}

impl CalendarDrill {
    /// The first time after `after`; none if there is none.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next_after(after, &zone(&self.timezone))
    }
}

impl Blackout {
    /// Until when it lasts, if it lasts at this moment.
    #[must_use]
    pub fn covers(&self, now: Timestamp) -> Option<Timestamp> {
        if let (Some(from), Some(until)) = (self.from, self.until) {
            return (from <= now && now < until).then_some(until);
        }
        let (schedule, lasts) = (self.schedule.as_ref()?, self.lasts?);
        let lasts = jiff::SignedDuration::try_from(lasts.0).ok()?;
        // The last that may still last began after this.
        let mut after = now.checked_sub(lasts).ok()?;
        let mut until = None;
        // One that begins ever again while it lasts need not be followed to its end.
        for _ in 0..MOST {
            match schedule.next_after(after, &zone(&self.timezone)) {
                Some(begins) if begins <= now => {
                    until = begins.checked_add(lasts).ok();
                    after = begins;
                }
                _ => break,
            }
        }
        until
    }
}

impl Plan {
    /// The blackout that lasts at this moment, and until when.
    #[must_use]
    pub fn blackout(&self, now: Timestamp) -> Option<(&Blackout, Timestamp)> {
        let lasting = self.blackouts.iter().filter_map(|b| Some((b, b.covers(now)?)));
        lasting.max_by_key(|(_, until)| *until)
    }

    /// What cannot be used of the calendar: the key, and what is wrong with it.
    pub(super) fn check_calendar(&self) -> Result<(), (String, String)> {
        let mut names = BTreeSet::new();
        for drill in &self.drills {
            let no = |key: &str, problem: &str| {
                Err((format!("drills.{}{key}", drill.name), problem.to_owned()))
            };
            if !names.insert(&drill.name) {
                return no("", "is there twice");
            }
            if TimeZone::get(&drill.timezone).is_err() {
                return no(
                    ".timezone",
                    "is no time zone that is known here, such as \"Europe/Zurich\"",
                );
            }
            if drill.random.is_some() && !drill.scenarios.is_empty() {
                return no(
                    ".random",
                    "cannot be with scenarios: faults at random choose by themselves",
                );
            }
            if drill.within < Duration::from_secs(60)
                || drill.within > Duration::from_secs(14 * 86_400)
            {
                return no(".within", "must be from 1m to 336h");
            }
            match drill.on {
                Place::Deployment => {
                    if self.deployment.drills != Drills::Allowed {
                        return no(
                            "",
                            "breaks this deployment, which is not allowed: set deployment.drills = \"allowed\", or on = \"copy\"",
                        );
                    }
                    let ends = [Scenario::FullStop, Scenario::Controller, Scenario::FullCluster];
                    if let Some(scenario) = drill.scenarios.iter().find(|s| ends.contains(s)) {
                        return no(
                            ".scenarios",
                            &format!(
                                "has {scenario}, which ends the controller that is to begin it: set on = \"copy\""
                            ),
                        );
                    }
                }
                Place::Copy if self.store.kind == StoreKind::External => {
                    return no(
                        ".on",
                        "is \"copy\", but an external database is not backed up from here",
                    );
                }
                Place::Copy if self.backup.vaults.is_empty() => {
                    return no(
                        ".on",
                        "is \"copy\", but there is no vault to make it from: add one under [[backup.vaults]]",
                    );
                }
                Place::Copy => {}
            }
        }
        let mut names = BTreeSet::new();
        for blackout in &self.blackouts {
            let no = |key: &str, problem: &str| {
                Err((format!("blackouts.{}{key}", blackout.name), problem.to_owned()))
            };
            if !names.insert(&blackout.name) {
                return no("", "is there twice");
            }
            if TimeZone::get(&blackout.timezone).is_err() {
                return no(
                    ".timezone",
                    "is no time zone that is known here, such as \"Europe/Zurich\"",
                );
            }
            match (blackout.from, blackout.until, &blackout.schedule, blackout.lasts) {
                (Some(from), Some(until), None, None) if from < until => {}
                (Some(_), Some(_), None, None) => return no(".until", "must be after from"),
                (None, None, Some(_), Some(lasts))
                    if lasts >= Duration::from_secs(60)
                        && lasts <= Duration::from_secs(31 * 86_400) => {}
                (None, None, Some(_), Some(_)) => return no(".lasts", "must be from 1m to 744h"),
                _ => return no("", "needs either from and until, or schedule and lasts"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::EffectivePlan;

    fn plan(text: &str) -> Result<super::Plan, String> {
        let resolved = EffectivePlan::resolve(Some(text), |_| None);
        resolved.map(|effective| effective.plan).map_err(|error| error.to_string())
    }

    const ALLOWED: &str = "[deployment]\ndrills = 'allowed'\n";

    #[test]
    fn a_blackout_lasts_from_each_of_its_times_on() {
        let text = "[[blackouts]]\nname = 'office'\nschedule = '0 8 * * MON-FRI'\nlasts = '10h'\ntimezone = 'Europe/Zurich'\n[[blackouts]]\nname = 'year'\nfrom = '2026-12-20T00:00:00Z'\nuntil = '2027-01-03T00:00:00Z'\n";
        let plan = plan(text).unwrap();
        let at = |moment: &str| {
            let found = plan.blackout(moment.parse().unwrap());
            found.map(|(blackout, until)| (blackout.name.to_string(), until.to_string()))
        };
        // A Monday, in winter: 8 h there is 7 h UTC.
        assert_eq!(at("2026-11-30T06:59:59Z"), None);
        let office = Some(("office".to_owned(), "2026-11-30T17:00:00Z".to_owned()));
        assert_eq!(at("2026-11-30T07:00:00Z"), office);
        assert_eq!(at("2026-11-30T16:59:59Z"), office);
        assert_eq!(at("2026-11-30T17:00:00Z"), None);
        assert_eq!(at("2026-12-05T10:00:00Z"), None, "a Saturday");
        let year = Some(("year".to_owned(), "2027-01-03T00:00:00Z".to_owned()));
        assert_eq!(at("2026-12-21T10:00:00Z"), year, "the longer of both counts");
        assert_eq!(at("2027-01-03T00:00:00Z"), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_remedy() {
        let weekly = "[[drills]]\nname = 'weekly'\nschedule = '0 3 * * SUN'\n";
        for (text, expected) in [
            (weekly.to_owned(), "deployment.drills = \"allowed\""),
            (format!("{ALLOWED}{weekly}scenarios = ['full-cluster']\n"), "on = \"copy\""),
            (format!("{ALLOWED}{weekly}on = 'copy'\n"), "[[backup.vaults]]"),
            (format!("{ALLOWED}{weekly}scenarios = ['api']\nrandom = '10m'\n"), "cannot be with scenarios"),
            (format!("{ALLOWED}{weekly}timezone = 'Mars'\n"), "no time zone"),
            (format!("{ALLOWED}{weekly}within = '1s'\n"), "from 1m"),
            (format!("{ALLOWED}{weekly}{weekly}"), "twice"),
            (format!("{ALLOWED}{weekly}wann = 'now'\n"), "wann"),
            ("[[blackouts]]\nname = 'x'\nlasts = '1h'\n".to_owned(), "either from and until"),
            ("[[blackouts]]\nname = 'x'\nfrom = '2026-12-20T00:00:00Z'\nuntil = '2026-12-20T00:00:00Z'\n".to_owned(), "after from"),
        ] {
            let error = plan(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let plan = plan(&format!("{ALLOWED}{weekly}scenarios = ['postgres-primary']\n")).unwrap();
        let drill = &plan.drills[0];
        let next = drill.next_after("2026-11-30T00:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(next.to_string(), "2026-12-06T03:00:00Z");
    }
}
