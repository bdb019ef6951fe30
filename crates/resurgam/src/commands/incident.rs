//! `resurgam incident`, `approve`, `reject`: what happened, and a person's word on it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use resurgam_model::report::StepStatus;
use resurgam_model::{IncidentId, Timestamp};
use resurgam_recovery::account;
use resurgam_recovery::journal::orders::{Order, Ordered};
use resurgam_recovery::journal::{Incident, IncidentState};
use resurgam_recovery::status::IncidentDetail;

use super::journal::{JournalArgs, Opened, who};
use super::status::word_of;
use crate::failure::{Failure, code};
use crate::output;

/// How many are listed.
const LISTED: u32 = 50;
/// Entries of the journal that are read at once.
const PAGE: u32 = 500;
/// How often the journal is looked at while one watches.
const LOOK: Duration = Duration::from_millis(200);

/// See what happened and what is being done, and have a word in it.
///
/// All of it reads and writes the journal, so that it works also while nothing runs.
///
/// Examples:
///   resurgam incident list
///   resurgam incident show 0199a2…
///   resurgam incident watch
///   resurgam incident note 0199a2… "the rack lost power at 03:12"
///   resurgam incident report 0199a2… --output post-mortem.md
///   resurgam incident resolve 0199a2… "replaced the disk by hand"
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct IncidentArgs {
    #[command(subcommand)]
    command: IncidentCommand,
}

#[derive(Debug, Subcommand)]
enum IncidentCommand {
    /// List the last incidents, the newest first.
    List(ListArgs),
    /// Show one incident: its steps, evidence and time line.
    Show(ShowArgs),
    /// Follow what happens, line by line, until the incident is closed.
    Watch(WatchArgs),
    /// Add a note to an incident.
    Note(NoteArgs),
    /// Say that an incident is over. A recovery that runs ends before its next step.
    Resolve(NoteArgs),
    /// Write the post-mortem of an incident as Markdown.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    journal: JournalArgs,
    /// Only those that are open or need a person.
    #[arg(long)]
    open: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Which.
    id: IncidentId,
    #[command(flatten)]
    journal: JournalArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct WatchArgs {
    /// Which; everything, until interrupted, if none is named.
    id: Option<IncidentId>,
    #[command(flatten)]
    journal: JournalArgs,
}

#[derive(Debug, Args)]
struct NoteArgs {
    /// Which.
    id: IncidentId,
    /// What there is to say.
    text: String,
    #[command(flatten)]
    journal: JournalArgs,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// Which.
    id: IncidentId,
    /// The file; standard output if none is named. One that exists is not overwritten.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    journal: JournalArgs,
}

/// Let a step that waits for a person go on.
///
/// `resurgam incident show` has the question. Where the plan asks for several people, each gives
/// the word under their own name.
///
/// Examples:
///   resurgam approve 0199a2…
///   resurgam approve 0199a2… --step promote
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DecideArgs {
    /// Which incident.
    incident: IncidentId,
    /// Which step; the one that waits if none is named.
    #[arg(long)]
    step: Option<String>,
    #[command(flatten)]
    journal: JournalArgs,
}

pub(crate) async fn run(args: IncidentArgs) -> Result<u8, Failure> {
    match args.command {
        IncidentCommand::List(args) => list(&args),
        IncidentCommand::Show(args) => show(&args),
        IncidentCommand::Watch(args) => watch(&args).await,
        IncidentCommand::Note(args) => note(&args),
        IncidentCommand::Resolve(args) => resolve(&args),
        IncidentCommand::Report(args) => report(&args),
    }
}

fn known(opened: &Opened, id: IncidentId) -> Result<Incident, Failure> {
    opened.journal.incident(id)?.ok_or_else(|| {
        Failure::new(format!("there is no incident {id}; list them with: resurgam incident list"))
    })
}

fn list(args: &ListArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let mut incidents = opened.journal.incidents(LISTED)?;
    if args.open {
        incidents.retain(|incident| {
            use IncidentState::{Failed, Open, Refused};
            matches!(incident.state, Open | Failed | Refused)
        });
    }
    if args.json {
        output::json(&incidents)?;
        return Ok(code::OK);
    }
    let mut table = output::table(&[
        "incident",
        "scenario",
        "severity",
        "component",
        "opened",
        "state",
        "restored after",
    ]);
    for incident in &incidents {
        let restored = incident.restored_at.map(|at| {
            let ms = at.as_millisecond().saturating_sub(incident.first_sign.as_millisecond());
            format!("{ms} ms")
        });
        table.add_row([
            incident.id.to_string(),
            incident.scenario.to_string(),
            incident.severity.to_string(),
            incident.component.to_string(),
            incident.opened_at.to_string(),
            word_of(&incident.state),
            restored.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

fn show(args: &ShowArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let journal = &opened.journal;
    let incident = known(&opened, args.id)?;
    let now = Timestamp::now();
    let steps = journal.all_steps(args.id)?.iter().map(|step| step.report(now)).collect();
    let evidence = journal.evidence(args.id)?;
    let evidence = evidence.into_iter().map(|(at, text)| format!("{at} {text}")).collect();
    let detail = IncidentDetail { incident, steps, evidence };
    if args.json {
        output::json(&detail)?;
        return Ok(code::OK);
    }
    output::data(&format!(
        "{} {} on {}: {}\nopened {}: {}",
        detail.incident.severity,
        detail.incident.scenario,
        detail.incident.component,
        detail.incident.state.as_str(),
        detail.incident.opened_at,
        detail.incident.cause
    ));
    output::data(&super::drill::steps_table(&detail.steps).to_string());
    for (at, line) in account::timeline(journal, args.id)? {
        output::data(&format!("{at} {line}"));
    }
    for text in &detail.evidence {
        output::data(text);
    }
    let waits = detail.steps.iter().rfind(|step| step.status == StepStatus::Waiting);
    if let Some(step) = waits.filter(|_| detail.incident.state == IncidentState::Open) {
        output::note(&format!(
            "the step {} waits for a person: {}\n  resurgam approve {id}   or   resurgam reject {id}",
            step.name,
            step.detail,
            id = args.id
        ));
    }
    Ok(code::OK)
}

async fn watch(args: &WatchArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let journal = &opened.journal;
    let about = args.id.map(|id| id.to_string());
    if let Some(id) = args.id {
        known(&opened, id)?;
    }
    // Of one incident everything, of all of them only what is new.
    let mut after = if args.id.is_some() { 0 } else { journal.head()?.number };
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let entries = journal.entries(after, PAGE, about.as_deref())?;
        for entry in &entries {
            after = entry.number;
            if let Some(line) = account::line(entry) {
                output::data(&format!("{} {line}", entry.at));
            }
        }
        if entries.is_empty()
            && let Some(id) = args.id
        {
            let state = known(&opened, id)?.state;
            if state != IncidentState::Open {
                return Ok(outcome(state));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = &mut stop => return Ok(code::INTERRUPTED),
        }
    }
}

/// The exit code that goes with the end of an incident.
pub(crate) fn outcome(state: IncidentState) -> u8 {
    match state {
        IncidentState::Recovered
        | IncidentState::FalseAlarm
        | IncidentState::Resolved
        | IncidentState::Open => code::OK,
        IncidentState::Failed => code::MISSED,
        IncidentState::Refused => code::REFUSED,
    }
}

fn note(args: &NoteArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    known(&opened, args.id)?;
    opened.journal.note(args.id, &who(), &args.text, Timestamp::now())?;
    Ok(code::OK)
}

fn resolve(args: &NoteArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let incident = known(&opened, args.id)?;
    if opened.journal.resolve_incident(args.id, &who(), &args.text, Timestamp::now())? {
        output::note("resolved; should the cause still be there, a new incident will be opened");
        return Ok(code::OK);
    }
    let state = incident.state.as_str();
    output::note(&format!("nothing to do: it is {state} already"));
    Ok(code::OK)
}

fn report(args: &ReportArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    known(&opened, args.id)?;
    let text = account::post_mortem(&opened.journal, opened.loaded.plan(), args.id)?;
    let text = text.unwrap_or_default();
    let Some(file) = &args.output else {
        output::data(&text);
        return Ok(code::OK);
    };
    let written = std::fs::File::create_new(file)
        .and_then(|mut created| std::io::Write::write_all(&mut created, text.as_bytes()));
    written.map_err(|error| {
        Failure::new(format!("{} was not written: {error}; name another file", file.display()))
    })?;
    output::note(&format!("written to {}", file.display()));
    Ok(code::OK)
}

/// `resurgam approve` and `resurgam reject`.
pub(crate) fn decide(args: &DecideArgs, yes: bool) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let incident = known(&opened, args.incident)?;
    if incident.state != IncidentState::Open {
        return Err(Failure::new(format!(
            "incident {} is {}; there is nothing to decide. To begin its recovery anew: resurgam recover --resume {}",
            args.incident,
            incident.state.as_str(),
            args.incident
        )));
    }
    let steps = opened.journal.steps(args.incident)?;
    let waiting = steps.iter().find(|step| step.status == StepStatus::Waiting);
    let step = match (&args.step, waiting) {
        (Some(named), _) => named.clone(),
        (None, Some(step)) => step.name.clone(),
        (None, None) => {
            return Err(Failure::new(format!(
                "no step of incident {} waits for anybody; --step names one in advance",
                args.incident
            )));
        }
    };
    let id = args.incident;
    // The word is on what was asked, and on nothing else.
    let question = waiting.filter(|waiting| waiting.name == step).map(|step| step.detail.clone());
    let order = match yes {
        true => Order::Approve { incident: id, step: step.clone(), question: question.clone() },
        false => Order::Reject { incident: id, step: step.clone() },
    };
    opened.journal.order(&Ordered { by: who(), order }, Timestamp::now())?;
    let required = opened.loaded.plan().approval(incident.scenario).required;
    let decisions = opened.journal.decisions(id, &step)?;
    let given = match &question {
        Some(question) => decisions.in_favour_of_taking(question),
        None => decisions.in_favour_of_taking(""),
    };
    let word = if yes { "approved" } else { "rejected" };
    let count =
        if yes && required > 1 { format!(" by {given} of {required}") } else { String::new() };
    if let (true, Some(question)) = (yes, &question) {
        output::note(&format!("asked was: {question}"));
    }
    output::note(&format!("{step} is {word}{count}; follow it with: resurgam incident watch {id}"));
    Ok(code::OK)
}
