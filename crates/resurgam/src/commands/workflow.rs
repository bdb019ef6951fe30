//! `resurgam workflow …`

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration as Span;

use clap::{Args, Subcommand};
use resurgam_client::{Client, Patience};
use resurgam_model::workflow::{
    NewSignal, StartWorkflow, WorkflowDetail, WorkflowQuery, WorkflowState, WorkflowStepView,
};
use resurgam_model::{Duration, Payload, WorkflowId};
use resurgam_platform::checkpoints;
use resurgam_store::{Settings, SharedStore};
use resurgam_workflow::draw::{self, Shown};
use resurgam_workflow::{Definition, StepId};
use serde_json::{Value, json};

use super::api::ApiArgs;
use crate::failure::{Failure, code};
use crate::output;

/// Start, watch and steer workflows.
#[derive(Debug, Args)]
pub(crate) struct WorkflowArgs {
    #[command(subcommand)]
    command: WorkflowCommand,
}

#[derive(Debug, Subcommand)]
enum WorkflowCommand {
    /// Start a workflow, by the name of its definition or from a file.
    Start(StartArgs),
    /// Show a workflow: its graph, with the state of each step.
    Show(ShowArgs),
    /// List workflows.
    List(ListArgs),
    /// Have a workflow come to its end and undo what was completed.
    Cancel(CancelArgs),
    /// Leave a signal for a workflow, or answer an approval.
    Signal(SignalArgs),
    /// Let a failed or cancelled workflow go on from where it stopped.
    Retry(RetryArgs),
    /// Register a definition.
    Define(DefineArgs),
    /// Check a definition and draw it, without a server.
    Check(CheckArgs),
    /// Write workflows into files, one for each.
    Export(FilesArgs),
    /// Bring workflows back from files; those that are there are left as they are.
    Import(FilesArgs),
}

#[derive(Debug, Args)]
struct StartArgs {
    /// The name of a registered definition, as name or name@version, or a file (.toml, .json).
    what: String,
    /// What it works on, as JSON; @FILE reads a file, - standard input.
    #[arg(long, default_value = "null")]
    input: String,
    /// Starting with the same key again gives the first workflow back.
    #[arg(long, value_name = "TEXT")]
    idempotency_key: Option<String>,
    /// Follow it until it ends; exit code 1 unless it is completed.
    #[arg(long)]
    watch: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The workflow.
    id: WorkflowId,
    /// Follow it until it ends; exit code 1 unless it is completed.
    #[arg(long, conflicts_with_all = ["json", "mermaid"])]
    watch: bool,
    /// Print the graph as a Mermaid flowchart.
    #[arg(long, conflicts_with = "json")]
    mermaid: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only those that stand there.
    #[arg(long)]
    state: Option<WorkflowState>,
    /// Only those of definitions of this name.
    #[arg(long)]
    name: Option<String>,
    /// Only those that were started after this one.
    #[arg(long, value_name = "ID")]
    after: Option<WorkflowId>,
    /// At most so many.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct CancelArgs {
    /// The workflow.
    id: WorkflowId,
    /// Why, for people.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct SignalArgs {
    /// The workflow.
    id: WorkflowId,
    /// The signal; for an approval the name of the step.
    name: String,
    /// What it carries, as JSON; @FILE reads a file, - standard input.
    #[arg(long, default_value = "null", conflicts_with_all = ["approve", "reject"])]
    payload: String,
    /// Answer an approval with yes.
    #[arg(long, conflicts_with = "reject")]
    approve: bool,
    /// Answer an approval with no.
    #[arg(long)]
    reject: bool,
    /// Who answers.
    #[arg(long)]
    by: Option<String>,
    /// A word to the answer.
    #[arg(long)]
    comment: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct RetryArgs {
    /// The workflow.
    id: WorkflowId,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct DefineArgs {
    /// The file (.toml, .json).
    file: PathBuf,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The file (.toml, .json).
    file: PathBuf,
    /// Print the graph as a Mermaid flowchart.
    #[arg(long)]
    mermaid: bool,
}

/// The store is that of DATABASE_URL, or the file that --sqlite names.
#[derive(Debug, Args)]
struct FilesArgs {
    /// The folder with the files.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A SQLite file.
    #[arg(long, value_name = "FILE")]
    sqlite: Option<PathBuf>,
}

pub(crate) async fn run(args: WorkflowArgs) -> Result<u8, Failure> {
    match args.command {
        WorkflowCommand::Start(args) => start(args).await,
        WorkflowCommand::Show(args) => show(&args).await,
        WorkflowCommand::List(args) => list(args).await,
        WorkflowCommand::Cancel(args) => {
            args.api.client()?.cancel_workflow(args.id, args.reason.as_deref()).await?;
            output::note("it was told; `resurgam workflow show` says how it goes");
            Ok(code::OK)
        }
        WorkflowCommand::Signal(args) => signal(args).await,
        WorkflowCommand::Retry(args) => {
            args.api.client()?.retry_workflow(args.id).await?;
            output::note("it goes on; `resurgam workflow show` says how it goes");
            Ok(code::OK)
        }
        WorkflowCommand::Define(args) => {
            let definition = read(&args.file)?;
            let client = args.api.client()?;
            let info = client.define_workflow(&definition.name, definition.source()).await?;
            output::data(&format!("{}@{}", info.name, info.version));
            Ok(code::OK)
        }
        WorkflowCommand::Check(args) => check(&args),
        WorkflowCommand::Export(args) => {
            let store = store(&args)?;
            store.migrate().await?;
            let done = checkpoints::export(&store, &args.dir).await?;
            let (written, removed) = (done.written, done.removed);
            output::note(&format!("{written} files were written, {removed} removed"));
            Ok(code::OK)
        }
        WorkflowCommand::Import(args) => {
            let store = store(&args)?;
            store.migrate().await?;
            let done = checkpoints::import(&store, &args.dir).await?;
            let (restored, kept) = (done.restored, done.kept);
            output::note(&format!("{restored} workflows are back, {kept} were there already"));
            Ok(code::OK)
        }
    }
}

fn read(file: &Path) -> Result<Definition, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", file.display())))?;
    Definition::from_text(&text)
        .map_err(|problems| Failure::usage(format!("{}:\n{problems}", file.display())))
}

/// JSON from the command line, from a file, or from standard input.
fn payload(option: &str, text: &str) -> Result<Payload, Failure> {
    let text = match text.strip_prefix('@') {
        Some(file) => fs::read_to_string(file)
            .map_err(|error| Failure::usage(format!("{option} {file} cannot be read: {error}")))?,
        None if text == "-" => {
            let mut read = String::new();
            std::io::stdin().read_to_string(&mut read)?;
            read
        }
        None => text.to_owned(),
    };
    Payload::from_json(text.trim().to_owned()).map_err(|error| {
        Failure::usage(format!("{option} is not JSON: {error}; put texts in quotes: '\"text\"'"))
    })
}

async fn start(args: StartArgs) -> Result<u8, Failure> {
    let input = payload("--input", &args.input)?;
    let is_file = [".toml", ".json"].iter().any(|ending| args.what.ends_with(ending));
    let mut start =
        StartWorkflow { input, idempotency_key: args.idempotency_key, ..StartWorkflow::default() };
    if is_file {
        start.definition = Some(read(Path::new(&args.what))?.source().clone());
    } else {
        let (name, version) = match args.what.split_once('@') {
            Some((name, version)) => {
                let version = version.parse().map_err(|_| {
                    Failure::usage(format!("{version:?} is no version; write name@2"))
                })?;
                (name, Some(version))
            }
            None => (args.what.as_str(), None),
        };
        start.name = Some(name.to_owned());
        start.version = version;
    }
    let client = args.api.client()?;
    let started = client.start_workflow(&start).await?;
    if args.json {
        output::json(&started)?;
    } else {
        output::data(&started.id.to_string());
    }
    if args.watch { watch(&client, started.id).await } else { Ok(code::OK) }
}

async fn get(client: &Client, id: WorkflowId) -> Result<WorkflowDetail, Failure> {
    let patience = Patience { total: Some(Duration::from_secs(30)), ..Patience::endless() };
    let detail = client.patiently(&patience, |client| async move { client.workflow(id).await });
    detail.await?.ok_or_else(|| Failure::new(format!("there is no workflow {id}")))
}

async fn show(args: &ShowArgs) -> Result<u8, Failure> {
    let client = args.api.client()?;
    if args.watch {
        return watch(&client, args.id).await;
    }
    let detail = get(&client, args.id).await?;
    if args.json {
        output::json(&detail)?;
    } else if args.mermaid {
        output::data(draw::mermaid(&definition(&detail)?, &shown(&detail)).trim_end());
    } else {
        output::data(&picture(&detail, std::io::stdout().is_terminal())?);
    }
    Ok(code::OK)
}

/// Draws the workflow anew whenever something changed, until it ends.
async fn watch(client: &Client, id: WorkflowId) -> Result<u8, Failure> {
    let terminal = std::io::stdout().is_terminal();
    let mut seen = -1;
    let mut lines = 0;
    loop {
        let detail = get(client, id).await?;
        if detail.workflow.revision != seen {
            seen = detail.workflow.revision;
            let picture = picture(&detail, terminal)?;
            // On a terminal the last picture is drawn over.
            let over =
                if terminal && lines > 0 { format!("\x1b[{lines}A\x1b[J") } else { String::new() };
            lines = picture.lines().count();
            output::data(&format!("{over}{picture}"));
        }
        if detail.workflow.state.is_final() {
            let completed = detail.workflow.state == WorkflowState::Completed;
            return Ok(if completed { code::OK } else { code::FAILED });
        }
        tokio::time::sleep(Span::from_millis(300)).await;
    }
}

fn definition(detail: &WorkflowDetail) -> Result<Definition, Failure> {
    Definition::from_text(detail.definition.json())
        .map_err(|problems| Failure::new(format!("its definition cannot be read: {problems}")))
}

/// The workflow for people: what it is, how it stands, and its graph.
fn picture(detail: &WorkflowDetail, coloured: bool) -> Result<String, Failure> {
    let workflow = &detail.workflow;
    let mut text =
        format!("{}@{}  {}  {}", workflow.name, workflow.version, workflow.id, workflow.state);
    if workflow.run > 1 {
        text.push_str(&format!("  (run {})", workflow.run));
    }
    if let Some(error) = &workflow.error {
        text.push_str(&format!("\n{error}"));
    }
    text.push_str("\n\n");
    text.push_str(draw::text(&definition(detail)?, &shown(detail), coloured).trim_end());
    if let Some(output) = &detail.output {
        text.push_str(&format!("\n\noutput: {}", short(output.json(), 500)));
    }
    Ok(text)
}

fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{} …", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// What is drawn of each step.
fn shown(detail: &WorkflowDetail) -> BTreeMap<StepId, Shown> {
    let shown = |step: &WorkflowStepView| {
        let took = step.started_at.zip(step.finished_at).map(|(from, to)| {
            Duration::from_millis(u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0))
        });
        let note = match (&step.error, step.wake_at, took) {
            (Some(error), _, _) => Some(short(&error.replace('\n', " "), 100)),
            (None, Some(at), None) => Some(format!("until {at:.0}")),
            (None, _, Some(took)) if took.as_millis() > 0 => Some(took.to_string()),
            _ => None,
        };
        Shown { state: step.state, fan: step.items, note }
    };
    let steps = detail.steps.iter();
    steps.filter_map(|step| Some((StepId::new(&step.step).ok()?, shown(step)))).collect()
}

async fn list(args: ListArgs) -> Result<u8, Failure> {
    let query =
        WorkflowQuery { state: args.state, name: args.name, after: args.after, limit: args.limit };
    let all = args.api.client()?.workflows(&query).await?;
    if args.json {
        output::json(&all)?;
        return Ok(code::OK);
    }
    let mut table = output::table(&["id", "workflow", "state", "run", "started", "error"]);
    for workflow in all {
        table.add_row([
            workflow.id.to_string(),
            format!("{}@{}", workflow.name, workflow.version),
            workflow.state.to_string(),
            workflow.run.to_string(),
            format!("{:.0}", workflow.created_at),
            short(&workflow.error.unwrap_or_default().replace('\n', " "), 60),
        ]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

async fn signal(args: SignalArgs) -> Result<u8, Failure> {
    let payload = if args.approve || args.reject {
        let mut answer = json!({ "approved": args.approve });
        for (name, value) in [("by", args.by), ("comment", args.comment)] {
            if let (Some(value), Value::Object(answer)) = (value, &mut answer) {
                answer.insert(name.to_owned(), Value::from(value));
            }
        }
        Payload::from_json(answer.to_string())?
    } else if args.by.is_some() || args.comment.is_some() {
        return Err(Failure::usage("--by and --comment go with --approve or --reject"));
    } else {
        payload("--payload", &args.payload)?
    };
    // An id of its own, so that a repetition after a lost answer does not count twice.
    let id = Some(uuid::Uuid::new_v4().to_string());
    let signal = NewSignal { name: args.name, payload, id };
    let client = args.api.client()?;
    let patience = Patience { total: Some(Duration::from_secs(30)), ..Patience::endless() };
    let signal = &signal;
    client
        .patiently(&patience, |client| async move { client.signal_workflow(args.id, signal).await })
        .await?;
    Ok(code::OK)
}

fn check(args: &CheckArgs) -> Result<u8, Failure> {
    let definition = read(&args.file)?;
    let states = BTreeMap::new();
    if args.mermaid {
        output::data(draw::mermaid(&definition, &states).trim_end());
        return Ok(code::OK);
    }
    let steps = definition.steps.len();
    output::note(&format!("{}@{} is well: {steps} steps", definition.name, definition.version));
    let coloured = std::io::stdout().is_terminal();
    output::data(draw::text(&definition, &states, coloured).trim_end());
    Ok(code::OK)
}

fn store(args: &FilesArgs) -> Result<SharedStore, Failure> {
    let url = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    let settings = match (&args.sqlite, url) {
        (Some(path), _) => Settings::Sqlite { path: path.clone() },
        (None, Some(url)) => Settings::Postgres(resurgam_store::postgres::Settings {
            url,
            max_pool_size: 2,
            application_name: "resurgam workflow".to_owned(),
            timeout: Span::from_secs(60),
        }),
        (None, None) => {
            return Err(Failure::usage(
                "no database was named: set DATABASE_URL, or give --sqlite FILE",
            ));
        }
    };
    Ok(resurgam_store::open(&settings)?)
}
