//! What is checked of a request beyond its shape.

use std::fmt::Display;
use std::time::Duration as StdDuration;

pub(super) use resurgam_client::wire::MAX_ITEMS;
use resurgam_client::wire::{MAX_CLAIM, TaskFilter};
pub(super) use resurgam_model::agent::MAX_TRAITS;
use resurgam_model::agent::{Heartbeat, HeartbeatTerms, Registration};
use resurgam_model::message::NewMessage;
use resurgam_model::schedule::NewSchedule;
use resurgam_model::schema::MAX_TEXT;
use resurgam_model::task::{Claim, Completion, Failure, NewTask, TaskQuery};
use resurgam_model::{Duration, Payload};

use crate::problem::Problem;
use crate::serve::Limits;

type Checked = Result<(), Problem>;

const SHORTEST_LEASE: Duration = Duration::from_millis(100);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);
/// The most tags of a task.
const MAX_TAGS: usize = 32;
/// Who wants to keep things longer keeps them elsewhere.
const LONGEST_KEEP: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
/// Longer delays and waits between tries are mistakes.
const LONGEST_DELAY: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) fn count(field: &str, items: usize) -> Checked {
    if items <= MAX_ITEMS {
        return Ok(());
    }
    Err(Problem::invalid_field(format!(
        "{field}: {items} items in one request; at most {MAX_ITEMS} are taken"
    )))
}

pub(super) fn payload(field: impl Display, payload: &Payload, limits: &Limits) -> Checked {
    size(field, payload.len(), limits)
}

pub(super) fn size(field: impl Display, bytes: usize, limits: &Limits) -> Checked {
    let limit = limits.max_payload_bytes;
    if bytes <= limit {
        return Ok(());
    }
    Err(Problem::too_large(format!(
        "{field} has {bytes} bytes; at most {limit} are taken. Store large data elsewhere and \
         hand in where it is"
    )))
}

pub(crate) fn text(field: impl Display, text: &str) -> Checked {
    if text.chars().count() <= MAX_TEXT && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Problem::invalid_field(format!(
        "{field}: use at most {MAX_TEXT} characters without control characters"
    )))
}

/// A short text that is not empty.
pub(super) fn key(field: &str, key: &str) -> Checked {
    if key.is_empty() {
        return Err(Problem::invalid_field(format!("{field} must not be empty")));
    }
    text(field, key)
}

fn not_longer_than(field: impl Display, value: Duration, longest: Duration) -> Checked {
    if value <= longest {
        return Ok(());
    }
    Err(Problem::invalid_field(format!("{field} is {value}; at most {longest} is taken")))
}

pub(super) fn task(field: &str, task: &NewTask, limits: &Limits) -> Checked {
    payload(format_args!("{field}payload"), &task.payload, limits)?;
    if let Some(key) = &task.idempotency_key {
        if key.is_empty() {
            let detail = format!("{field}idempotency_key must not be empty; leave it out");
            return Err(Problem::invalid_field(detail));
        }
        text(format_args!("{field}idempotency_key"), key)?;
    }
    if task.retry.max_attempts == 0 {
        let detail = format!("{field}retry.max_attempts must be at least 1");
        return Err(Problem::invalid_field(detail));
    }
    if task.retry.jitter > 100 {
        let detail = format!("{field}retry.jitter is a share in per cent; use 0 to 100");
        return Err(Problem::invalid_field(detail));
    }
    if task.delay.is_some() && task.run_at.is_some() {
        let detail = format!("{field}delay and run_at say two things; give one of them");
        return Err(Problem::invalid_field(detail));
    }
    if let Some(key) = &task.key {
        not_empty(format_args!("{field}key"), key)?;
    }
    if let Some(fallback) = &task.fallback {
        if fallback.capability == task.capability {
            let detail = format!("{field}fallback.capability is the task's own; name another one");
            return Err(Problem::invalid_field(detail));
        }
        not_longer_than(format_args!("{field}fallback.after"), fallback.after, LONGEST_DELAY)?;
    }
    if task.tags.len() > MAX_TAGS {
        return Err(Problem::invalid_field(format!("{field}tags: at most {MAX_TAGS}")));
    }
    for tag in &task.tags {
        not_empty(format_args!("{field}tags"), tag)?;
    }
    if task.timeout.is_some_and(|timeout| timeout < SHORTEST_LEASE) {
        let detail = format!("{field}timeout must be at least {SHORTEST_LEASE}");
        return Err(Problem::invalid_field(detail));
    }
    not_longer_than(
        format_args!("{field}timeout"),
        task.timeout.unwrap_or_default(),
        LONGEST_DELAY,
    )?;
    not_longer_than(format_args!("{field}keep"), task.keep.unwrap_or_default(), LONGEST_KEEP)?;
    let delay = task.delay.unwrap_or_default();
    not_longer_than(format_args!("{field}delay"), delay, LONGEST_DELAY)?;
    not_longer_than(format_args!("{field}retry.backoff"), task.retry.backoff, LONGEST_DELAY)?;
    let max_backoff = task.retry.max_backoff;
    not_longer_than(format_args!("{field}retry.max_backoff"), max_backoff, LONGEST_DELAY)
}

/// A short text that says something.
fn not_empty(field: impl Display, value: &str) -> Checked {
    if value.is_empty() {
        return Err(Problem::invalid_field(format!("{field} must not be empty; leave it out")));
    }
    text(field, value)
}

/// A short text behind the `?`.
pub(super) fn parameter(name: &str, value: Option<&str>) -> Checked {
    let checked = value.map_or(Ok(()), |value| not_empty(name, value));
    checked.map_err(|problem| Problem::invalid_parameter(problem.detail.clone()))
}

pub(super) fn task_query(query: &TaskQuery) -> Checked {
    parameter("key", query.key.as_deref())?;
    parameter("tag", query.tag.as_deref())
}

pub(super) fn filter(filter: &TaskFilter) -> Checked {
    for (name, value) in [("filter.key", &filter.key), ("filter.tag", &filter.tag)] {
        if let Some(value) = value {
            not_empty(name, value)?;
        }
    }
    Ok(())
}

pub(super) fn schedule(schedule: &NewSchedule, limits: &Limits) -> Checked {
    schedule.zone().map_err(|error| Problem::invalid_field(format!("time_zone: {error}")))?;
    let task = &schedule.task;
    if task.idempotency_key.is_some() || task.delay.is_some() || task.run_at.is_some() {
        return Err(Problem::invalid_field(
            "task: a schedule sets idempotency_key and time itself; leave out idempotency_key, \
             delay and run_at",
        ));
    }
    self::task("task.", task, limits)
}

pub(super) fn claim(claim: &Claim) -> Checked {
    if claim.capabilities.is_empty() {
        return Err(Problem::invalid_field("capabilities must name at least one"));
    }
    if claim.capabilities.len() > MAX_TRAITS {
        return Err(Problem::invalid_field(format!("capabilities: at most {MAX_TRAITS}")));
    }
    if !(1..=MAX_CLAIM).contains(&claim.max) {
        let detail = format!("max is {}; use 1 to {MAX_CLAIM}", claim.max);
        return Err(Problem::invalid_field(detail));
    }
    lease(claim.lease)
}

pub(super) fn lease(lease: Duration) -> Checked {
    if (SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
        return Ok(());
    }
    Err(Problem::invalid_field(format!(
        "lease is {lease}; use {SHORTEST_LEASE} to {LONGEST_LEASE}"
    )))
}

pub(crate) fn completions(completions: &[Completion], limits: &Limits) -> Checked {
    count("completions", completions.len())?;
    completions.iter().enumerate().try_for_each(|(index, completion)| {
        payload(format_args!("completions[{index}].result"), &completion.result, limits)
    })
}

/// Failures carry what a program wrote, so that what a database cannot keep is replaced.
pub(crate) fn failures(failures: &mut [Failure], limits: &Limits) -> Checked {
    count("failures", failures.len())?;
    failures.iter_mut().enumerate().try_for_each(|(index, failure)| {
        if failure.error.contains('\0') {
            failure.error = failure.error.replace('\0', "\u{FFFD}");
        }
        size(format_args!("failures[{index}].error"), failure.error.len(), limits)
    })
}

pub(super) fn messages(messages: &[NewMessage], limits: &Limits) -> Checked {
    count("messages", messages.len())?;
    messages.iter().enumerate().try_for_each(|(index, message)| {
        for (name, value) in [("topic", &message.topic), ("kind", &message.kind)] {
            if value.is_empty() {
                let detail = format!("messages[{index}].{name} must not be empty");
                return Err(Problem::invalid_field(detail));
            }
            text(format_args!("messages[{index}].{name}"), value)?;
        }
        payload(format_args!("messages[{index}].body"), &message.body, limits)
    })
}

pub(crate) fn registration(registration: &Registration) -> Checked {
    for (name, count) in
        [("capabilities", registration.capabilities.len()), ("labels", registration.labels.len())]
    {
        if count > MAX_TRAITS {
            return Err(Problem::invalid_field(format!("{name}: at most {MAX_TRAITS}")));
        }
    }
    registration.version.iter().try_for_each(|version| text("version", version))?;
    let every = registration.heartbeat.unwrap_or_default();
    not_longer_than("heartbeat", every, HeartbeatTerms::LONGEST)?;
    registration.labels.iter().try_for_each(|(name, value)| {
        text(format_args!("the name of a label"), name)?;
        text("the value of a label", value)
    })
}

pub(super) fn heartbeats(beats: &[Heartbeat]) -> Checked {
    count("agents", beats.len())?;
    beats.iter().enumerate().try_for_each(|(index, beat)| match &beat.reason {
        Some(reason) => text(format_args!("agents[{index}].reason"), reason),
        None => Ok(()),
    })
}

/// The wait that applies.
pub(super) fn wait(wait: Duration) -> StdDuration {
    if wait.0 > StdDuration::ZERO {
        super::observe::this_request_waits();
    }
    wait.min(resurgam_client::wire::MAX_WAIT).0
}
