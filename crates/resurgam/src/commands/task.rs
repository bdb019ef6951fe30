//! `resurgam task`

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use resurgam_client::Client;
use resurgam_client::wire::{Ordered, TaskFilter, TaskOrder};
use resurgam_model::task::{Change, Fallback, NewTask, Task, TaskQuery, TaskState};
use resurgam_model::{AgentId, Capability, Duration, Payload, TaskId, Timestamp};

use super::api::ApiArgs;
use super::work::Label;
use crate::failure::{Failure, code};
use crate::output;

/// Hand in tasks, look at them, cancel and requeue them.
///
/// Examples:
///   resurgam task submit sha256 --payload '"hello"' --wait 10s
///   resurgam task list --state dead
///   resurgam task requeue --capability translate --state dead
///   resurgam task cancel 019a3c1e-7d2b-7c11-b6f2-1d2f3a4b5c6d --reason "not needed any more"
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// Hand in a task; it is durable when this says so.
    Submit(SubmitArgs),
    /// List tasks, oldest first.
    List(ListArgs),
    /// Show one task.
    Show(ShowArgs),
    /// Count tasks by capability and state.
    Count(CountArgs),
    /// List the running tasks that take much longer than their like. Exit code 3 when there are any.
    Stuck(StuckArgs),
    /// Take back tasks that are not over.
    Cancel(CancelArgs),
    /// Make dead or cancelled tasks ready again.
    Requeue(OrderArgs),
}

#[derive(Debug, Args)]
struct SubmitArgs {
    /// What an agent must be able to do.
    capability: Capability,
    /// The payload as JSON; `-` reads it from standard input.
    #[arg(long, default_value = "null", value_name = "JSON")]
    payload: String,
    /// The payload from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    payload_file: Option<PathBuf>,
    /// Handing in the same key again gives the first task back.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Higher goes first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i16,
    /// How long it waits before it can be claimed.
    #[arg(long, conflicts_with = "at")]
    delay: Option<Duration>,
    /// Not to be claimed before this moment, such as 2026-12-01T06:00:00Z.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// How long one try may take.
    #[arg(long)]
    timeout: Option<Duration>,
    /// How often it is tried.
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// For whom it is done: limits can hold for each key.
    #[arg(long)]
    key: Option<String>,
    /// A word to find it by. Can be given several times.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// To be done near: only by agents that are there, as LABEL=VALUE.
    #[arg(long, value_name = "LABEL=VALUE", value_parser = Label::parse)]
    near: Option<Label>,
    /// With --near: if none of them has begun it after so long, any other agent may.
    #[arg(long, value_name = "TIME", requires = "near")]
    near_for: Option<Duration>,
    /// How long it is kept once it is completed.
    #[arg(long)]
    keep: Option<Duration>,
    /// Who gets a message when it is over.
    #[arg(long, value_name = "AGENT")]
    reply_to: Option<AgentId>,
    /// Wait so long for it to be over, and show it.
    #[arg(long, value_name = "TIME")]
    wait: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Only those in this state: scheduled, ready, running, completed, dead or cancelled.
    #[arg(long)]
    state: Option<TaskState>,
    /// Only those of this capability.
    #[arg(long)]
    capability: Option<Capability>,
    /// Only those with this key.
    #[arg(long)]
    key: Option<String>,
    /// Only those with this tag.
    #[arg(long)]
    tag: Option<String>,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only those that came after this one.
    #[arg(long, value_name = "TASK")]
    after: Option<TaskId>,
    /// At most so many, up to 1000.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Which task.
    task: TaskId,
    /// Wait so long for it to be over.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    wait: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct StuckArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct CountArgs {
    /// Count also what is completed or cancelled; takes time where there is much of it.
    #[arg(long)]
    finished: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct OrderArgs {
    /// Which tasks; or choose them by --state, --capability, --key, --tag.
    tasks: Vec<TaskId>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct CancelArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Why, for people.
    #[arg(long)]
    reason: Option<String>,
}

pub(crate) async fn run(args: TaskArgs) -> Result<u8, Failure> {
    match args.command {
        TaskCommand::Submit(args) => submit(args).await,
        TaskCommand::List(args) => list(args).await,
        TaskCommand::Show(args) => show(&args).await,
        TaskCommand::Count(args) => count(&args).await,
        TaskCommand::Stuck(args) => stuck(&args).await,
        TaskCommand::Cancel(args) => {
            let reason = args.reason;
            order(args.order, "cancelled", async |client, mut wanted| {
                wanted.reason = reason.clone();
                client.cancel(&wanted).await
            })
            .await
        }
        TaskCommand::Requeue(args) => {
            order(args, "requeued", async |client, wanted| client.requeue(&wanted).await).await
        }
    }
}

async fn submit(args: SubmitArgs) -> Result<u8, Failure> {
    let json = match (&args.payload_file, args.payload.as_str()) {
        (Some(file), _) => std::fs::read_to_string(file).map_err(|error| {
            Failure::usage(format!("cannot read the payload from {}: {error}", file.display()))
        })?,
        (None, "-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| {
                Failure::usage(format!("cannot read the payload from standard input: {error}"))
            })?;
            text
        }
        (None, text) => text.to_owned(),
    };
    let payload = Payload::from_json(json).map_err(|error| {
        Failure::usage(format!(
            "the payload is no JSON: {error}; a text needs quotes, as in '\"hello\"'"
        ))
    })?;
    let mut task = NewTask::new(args.capability, payload);
    task.idempotency_key = args.idempotency_key;
    task.priority = args.priority;
    task.delay = args.delay;
    task.run_at = args.at;
    task.timeout = args.timeout;
    if let Some(attempts) = args.attempts {
        task.retry.max_attempts = attempts;
    }
    task.key = args.key;
    task.tags = args.tags;
    if let Some(Label { name, value }) = &args.near {
        let near = task.capability.near(name, value)?;
        let capability = std::mem::replace(&mut task.capability, near);
        task.fallback = args.near_for.map(|after| Fallback { capability, after });
    }
    task.keep = args.keep;
    task.reply_to = args.reply_to;
    let client = args.api.client()?;
    let submitted = client.submit(&task).await?;
    let Some(wait) = args.wait else {
        if args.json {
            output::json(&submitted)?;
        } else {
            output::data(&submitted.id.to_string());
            if !submitted.created {
                output::note("the key was known: this is the earlier task");
            }
        }
        return Ok(code::OK);
    };
    let task = over(&client, submitted.id, wait).await?;
    print_task(&task, args.json)?;
    Ok(if task.state == TaskState::Completed { code::OK } else { code::FAILED })
}

/// The task once it is over, or as it stands when the wait is.
async fn over(client: &Client, id: TaskId, wait: Duration) -> Result<Task, Failure> {
    let until = std::time::Instant::now() + wait.0;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let once = Duration(left).min(Duration::from_secs(30));
        let task = client.wait_for(id, once).await?;
        let task = task.ok_or_else(|| Failure::new(format!("there is no task {id}")))?;
        if task.state.is_final() || left.is_zero() {
            return Ok(task);
        }
    }
}

async fn list(args: ListArgs) -> Result<u8, Failure> {
    let FilterArgs { state, capability, key, tag } = args.filter;
    let query = TaskQuery { state, capability, key, tag, after: args.after, limit: args.limit };
    let tasks = args.api.client()?.tasks(&query).await?;
    if args.json {
        output::json(&tasks)?;
        return Ok(code::OK);
    }
    let mut table =
        output::table(&["task", "capability", "state", "priority", "tries", "holder", "error"]);
    for task in &tasks {
        table.add_row([
            task.id.to_string(),
            task.capability.to_string(),
            task.state.as_str().to_owned(),
            task.priority.to_string(),
            format!("{}/{}", task.attempts, task.retry.max_attempts),
            task.held_by.as_ref().map(ToString::to_string).unwrap_or_default(),
            short(task.error.as_deref().unwrap_or_default()),
        ]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

/// The first line of a text, cut to what fits a table.
fn short(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= MOST {
        return line.to_owned();
    }
    line.chars().take(MOST - 1).chain(['…']).collect()
}

async fn show(args: &ShowArgs) -> Result<u8, Failure> {
    let task = over(&args.api.client()?, args.task, args.wait).await?;
    print_task(&task, args.json)?;
    Ok(code::OK)
}

fn print_task(task: &Task, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(task);
    }
    let mut table = output::table(&["task", &task.id.to_string()]);
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            table.add_row([name.to_owned(), value]);
        }
    };
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    row("capability", Some(task.capability.to_string()));
    row("state", Some(task.state.as_str().to_owned()));
    row("payload", Some(task.payload.json().to_owned()));
    row("result", task.result.as_ref().map(|result| result.json().to_owned()));
    row("error", task.error.clone());
    row("tries", Some(format!("{} of {}", task.attempts, task.retry.max_attempts)));
    row("priority", Some(task.priority.to_string()));
    row("key", task.key.clone());
    row("tags", (!task.tags.is_empty()).then(|| task.tags.join(", ")));
    row("holder", task.held_by.as_ref().map(ToString::to_string));
    row("lease until", time(task.lease_until));
    row("not before", Some(task.run_at.to_string()));
    row("handed in", Some(task.created_at.to_string()));
    row("last try began", time(task.started_at));
    row("over", time(task.finished_at));
    row("kept until", time(task.expires_at));
    output::data(&table.to_string());
    Ok(())
}

async fn stuck(args: &StuckArgs) -> Result<u8, Failure> {
    let tasks = args.api.client()?.stuck().await?;
    let exit = if tasks.is_empty() { code::OK } else { code::MISSED };
    if args.json {
        output::json(&tasks)?;
        return Ok(exit);
    }
    if tasks.is_empty() {
        output::data("no task takes much longer than its like");
        return Ok(exit);
    }
    let header = ["task", "capability", "held by", "try", "running for", "stuck after", "usual"];
    let mut table = output::table(&header);
    for stuck in &tasks {
        let task = &stuck.task;
        table.add_row([
            task.task.to_string(),
            task.capability.to_string(),
            task.held_by.as_ref().map_or("-".to_owned(), ToString::to_string),
            task.attempt.to_string(),
            task.running_for.to_string(),
            stuck.threshold.to_string(),
            stuck.usual.map_or("not known".to_owned(), |usual| usual.to_string()),
        ]);
    }
    output::data(&table.to_string());
    Ok(exit)
}

async fn count(args: &CountArgs) -> Result<u8, Failure> {
    let counts = args.api.client()?.counts(args.finished).await?;
    if args.json {
        output::json(&counts)?;
        return Ok(code::OK);
    }
    let mut header = vec!["capability", "scheduled", "ready", "running", "dead"];
    if args.finished {
        header.extend(["completed", "cancelled"]);
    }
    let mut table = output::table(&header);
    for (capability, counts) in &counts.capabilities {
        let mut row = vec![capability.to_string()];
        row.extend(
            [counts.scheduled, counts.ready, counts.running, counts.dead].map(|n| n.to_string()),
        );
        if args.finished {
            row.extend([counts.completed, counts.cancelled].map(|n| n.to_string()));
        }
        table.add_row(row);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}

async fn order(
    args: OrderArgs,
    done: &str,
    call: impl AsyncFn(&Client, TaskOrder) -> resurgam_client::Result<Ordered>,
) -> Result<u8, Failure> {
    let FilterArgs { state, capability, key, tag } = args.filter;
    let filter = TaskFilter { state, capability, key, tag };
    let by_filter = filter != TaskFilter::default();
    if args.tasks.is_empty() != by_filter {
        return Err(Failure::usage(
            "name the tasks, or choose them by --state, --capability, --key or --tag; one of both",
        ));
    }
    let client = args.api.client()?;
    let mut all = Vec::new();
    if by_filter {
        let wanted = TaskOrder { filter: Some(filter), ..TaskOrder::default() };
        loop {
            let ordered = call(&client, wanted.clone()).await?;
            // What cannot be changed would be chosen again and again.
            let any = ordered.tasks.iter().any(|one| one.change == Change::Changed);
            all.extend(ordered.tasks);
            if !(ordered.more && any) {
                break;
            }
        }
    } else {
        for part in args.tasks.chunks(1000) {
            let wanted = TaskOrder { tasks: part.to_vec(), ..TaskOrder::default() };
            all.extend(call(&client, wanted).await?.tasks);
        }
    }
    let changed = all.iter().filter(|one| one.change == Change::Changed).count();
    if args.json {
        output::json(&all)?;
    } else {
        for one in all.iter().filter(|one| one.change != Change::Changed) {
            let why = match one.change {
                Change::Unknown => "there is no such task",
                _ => "is in a state in which this cannot be done",
            };
            output::note(&format!("{} {why}", one.task));
        }
        output::data(&format!("{changed} {done}"));
    }
    Ok(if by_filter || changed == all.len() { code::OK } else { code::FAILED })
}
