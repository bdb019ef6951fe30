//! Accounts of incidents for people: the time line, and the post-mortem.
//!
//! Both are made of what the journal has, and of nothing else.

use std::fmt::Write as _;

use resurgam_model::plan::Plan;
use resurgam_model::report::StepStatus;
use resurgam_model::{Duration, IncidentId, Timestamp};

use crate::Result;
use crate::journal::chain::{Entry, Kind};
use crate::journal::orders::{Order, Ordered};
use crate::journal::{Incident, IncidentState, Journal, Note, StepRecord};

/// Entries of one incident that are read at once.
const PAGE: u32 = 1000;

/// An entry as a line of a time line, without its moment; none for what people need not see.
#[must_use]
pub fn line(entry: &Entry) -> Option<String> {
    let content = &entry.content;
    match entry.kind {
        Kind::Incident => {
            let incident: Incident = serde_json::from_value(content.clone()).ok()?;
            let about =
                format!("{} {} on {}", incident.severity, incident.scenario, incident.component);
            Some(match (incident.state, incident.restored_at) {
                (IncidentState::Open, Some(_)) if incident.closed_at.is_none() => {
                    format!("{about}: the service works again")
                }
                (IncidentState::Open, _) if incident.is_raised() => {
                    format!("{about}: graver than it was")
                }
                (IncidentState::Open, _) if incident.round > 0 => {
                    format!(
                        "{about}: the recovery is begun anew, for the {}. time",
                        incident.round + 1
                    )
                }
                (IncidentState::Open, _) => format!("{about}: opened: {}", incident.cause),
                (state, _) => format!("{about}: closed: {}", state.as_str()),
            })
        }
        Kind::Step => {
            let (name, status) = (content.get("name")?.as_str()?, content.get("status")?);
            let status: StepStatus = serde_json::from_value(status.clone()).ok()?;
            let detail = content.get("detail").and_then(|d| d.as_str()).unwrap_or_default();
            let tries = content.get("attempts").and_then(serde_json::Value::as_u64).unwrap_or(1);
            Some(match status {
                StepStatus::Started if tries > 1 => format!("  {name}: begun, try {tries}"),
                StepStatus::Started => format!("  {name}: begun"),
                StepStatus::Waiting => format!("  {name}: WAITS FOR A PERSON: {detail}"),
                StepStatus::Done => format!("  {name}: done: {detail}"),
                StepStatus::Skipped => format!("  {name}: not needed: {detail}"),
                StepStatus::Failed => format!("  {name}: FAILED: {detail}"),
                StepStatus::Refused => format!("  {name}: REFUSED: {detail}"),
            })
        }
        Kind::Evidence => {
            let text = content.as_str()?;
            let first = text.lines().next().unwrap_or_default();
            let more = text.lines().count().saturating_sub(1);
            let rest = if more > 0 { format!(" (and {more} lines more)") } else { String::new() };
            Some(format!("  evidence: {}{rest}", first.chars().take(160).collect::<String>()))
        }
        Kind::Note => {
            let note: Note = serde_json::from_value(content.clone()).ok()?;
            Some(format!("  {}: {}", note.by, note.text))
        }
        Kind::Act => {
            let act: Note = serde_json::from_value(content.clone()).ok()?;
            Some(format!("{} {}", act.by, act.text))
        }
        Kind::Order => {
            let ordered: Ordered = serde_json::from_value(content.clone()).ok()?;
            let by = &ordered.by;
            Some(match ordered.order {
                Order::Recover { scenario, .. } => format!("{by} orders to recover {scenario}"),
                Order::Report { scenario, finding, .. } => {
                    format!("{by} reports {scenario}: {finding}")
                }
                Order::Resume { .. } => format!("  {by} orders to begin anew"),
                Order::Approve { step, .. } => format!("  {by} approves {step}"),
                Order::Reject { step, .. } => format!("  {by} rejects {step}"),
                Order::Restart { components } if components.is_empty() => {
                    format!("{by} orders to start everything again")
                }
                Order::Restart { components } => {
                    let names: Vec<_> = components.iter().map(ToString::to_string).collect();
                    format!("{by} orders to start {} again", names.join(", "))
                }
                Order::Scale { pool, size } => format!("{by} orders {size} of {pool}"),
            })
        }
        Kind::Cluster => {
            let primary = content.get("primary").and_then(|p| p.as_str()).unwrap_or("nobody");
            let epoch = content.get("epoch").map(ToString::to_string).unwrap_or_default();
            Some(format!("  the reign: {primary}, epoch {epoch}"))
        }
        Kind::Run => {
            let began = content.as_str() == Some("yes");
            Some(if began {
                "the controller begins".into()
            } else {
                "the controller ends in order".into()
            })
        }
        Kind::Adopted => None,
    }
}

/// Everything that the journal has about an incident, the oldest first.
///
/// # Errors
/// When the journal fails.
pub fn timeline(journal: &Journal, id: IncidentId) -> Result<Vec<(Timestamp, String)>> {
    let about = id.to_string();
    let mut lines = Vec::new();
    let mut after = 0;
    loop {
        let entries = journal.entries(after, PAGE, Some(&about))?;
        let Some(last) = entries.last() else { return Ok(lines) };
        after = last.number;
        lines.extend(entries.iter().filter_map(|entry| Some((entry.at, line(entry)?))));
    }
}

/// The post-mortem of an incident as Markdown: what is known, with places for what only people
/// know. None if there is no such incident.
///
/// # Errors
/// When the journal fails.
pub fn post_mortem(journal: &Journal, plan: &Plan, id: IncidentId) -> Result<Option<String>> {
    let Some(incident) = journal.incident(id)? else { return Ok(None) };
    let steps = journal.all_steps(id)?;
    let lines = timeline(journal, id)?;
    let evidence = journal.evidence(id)?;
    let head = journal.head()?;
    let mut text = summary(&incident, plan);
    let _ = write!(text, "\n## What was done\n\n");
    table(&mut text, &steps);
    let _ = write!(text, "\n## Time line\n\nTimes are UTC.\n\n```text\n");
    for (at, line) in &lines {
        let _ = writeln!(text, "{} {line}", clock(*at));
    }
    let _ = write!(text, "```\n\n## Evidence\n\n");
    if evidence.is_empty() {
        let _ = writeln!(text, "None was kept.");
    }
    for (at, seen) in &evidence {
        // A fence longer than any in the text, so that the text cannot end it.
        let longest = seen.lines().map(ticks).max().unwrap_or_default().max(2);
        let fence = "`".repeat(longest + 1);
        let _ = write!(text, "{}\n\n{fence}text\n{seen}\n{fence}\n\n", clock(*at));
    }
    let _ = write!(
        text,
        "## Lessons\n\nWhat went well:\n\n- \n\nWhat did not:\n\n- \n\nWhat is to be done, by whom, until when:\n\n- \n\n---\n\n\
         Made from the recovery journal up to its entry {head}. Whether that is still a part of the journal, \
         `resurgam journal verify --expect {head}` tells.\n"
    );
    Ok(Some(text))
}

fn ticks(line: &str) -> usize {
    line.split(|c| c != '`').map(str::len).max().unwrap_or_default()
}

fn summary(incident: &Incident, plan: &Plan) -> String {
    let objectives = plan.objectives(incident.scenario);
    let mut text = String::new();
    let _ = write!(
        text,
        "# {}: {} on {}\n\n{}\n\n",
        incident.severity,
        incident.scenario,
        incident.component,
        sentence(incident.scenario.summary())
    );
    let mut row = |what: &str, value: String| {
        let _ = writeln!(text, "| {what} | {} |", value.replace('|', "\\|").replace('\n', " "));
    };
    row("", String::new());
    row("---", "---".to_owned());
    row("Incident", incident.id.to_string());
    row("State", incident.state.as_str().to_owned());
    row("Believed because", incident.cause.clone());
    row("First sign", incident.first_sign.to_string());
    row("Opened", since(incident.opened_at, incident.first_sign));
    let restored = incident.restored_at.map(|at| between(incident.first_sign, at));
    row(
        "Service restored",
        match (incident.restored_at, restored) {
            (Some(at), Some(after)) => {
                let met = if after <= objectives.rto { "met" } else { "MISSED" };
                format!(
                    "{at}: {after} after the first sign; the objective of {} was {met}",
                    objectives.rto
                )
            }
            _ => format!("not verified; the objective is {}", objectives.rto),
        },
    );
    row(
        "Closed",
        incident.closed_at.map_or("not yet".to_owned(), |at| since(at, incident.first_sign)),
    );
    if incident.round > 0 {
        row("Recoveries", format!("{}: the first did not succeed", incident.round + 1));
    }
    text
}

/// A summary as a sentence.
pub(crate) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

fn since(at: Timestamp, first: Timestamp) -> String {
    format!("{at}: {} after the first sign", between(first, at))
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    let ms = to.as_millisecond().saturating_sub(from.as_millisecond());
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// The time of the day, to the millisecond.
fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

fn table(text: &mut String, steps: &[StepRecord]) {
    if steps.is_empty() {
        let _ = writeln!(text, "No step was begun.");
        return;
    }
    let _ = write!(
        text,
        "| recovery | step | state | took | tries | what was found or done |\n|---:|---|---|---:|---:|---|\n"
    );
    for step in steps {
        let took =
            step.ended_at.map_or("-".to_owned(), |end| between(step.started_at, end).to_string());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {took} | {} | {} |",
            step.round + 1,
            step.name,
            step.status.as_str(),
            step.attempts,
            step.detail.replace('|', "\\|").replace('\n', " ")
        );
    }
}
