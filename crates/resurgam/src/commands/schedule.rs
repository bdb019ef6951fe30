//! `resurgam schedule`

use clap::{Args, Subcommand, ValueEnum};
use resurgam_model::schedule::{Cron, Missed, NewSchedule, Schedule};
use resurgam_model::task::NewTask;
use resurgam_model::{Capability, Payload, ScheduleName};

use super::api::ApiArgs;
use crate::failure::{Failure, code};
use crate::output;

/// Hand in tasks again and again, by the clock.
///
/// Examples:
///   resurgam schedule set nightly --cron "30 2 * * *" --time-zone Europe/Zurich --capability report
///   resurgam schedule list
///   resurgam schedule pause nightly
///   resurgam schedule remove nightly
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ScheduleArgs {
    #[command(subcommand)]
    command: ScheduleCommand,
}

#[derive(Debug, Subcommand)]
enum ScheduleCommand {
    /// Make a schedule, or change it.
    Set(SetArgs),
    /// List all schedules.
    List(ListArgs),
    /// Let a schedule rest.
    Pause(NameArgs),
    /// Let a schedule go on with the first time after now.
    Resume(NameArgs),
    /// Take a schedule away; tasks that it handed in stay.
    Remove(NameArgs),
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Its name.
    name: ScheduleName,
    /// Minute, hour, day of month, month, day of week; or @hourly, @daily and so on.
    #[arg(long)]
    cron: Cron,
    /// By which clocks.
    #[arg(long, default_value = "UTC")]
    time_zone: String,
    /// What an agent must be able to do.
    #[arg(long)]
    capability: Capability,
    /// The payload as JSON.
    #[arg(long, default_value = "null", value_name = "JSON")]
    payload: String,
    /// The whole task as JSON instead, for all that a task can have.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["payload"])]
    task: Option<String>,
    /// What is done when times were missed: once for all of them, or skip them.
    #[arg(long, value_enum, default_value_t = MissedArg::Once)]
    missed: MissedArg,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MissedArg {
    Once,
    Skip,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
struct NameArgs {
    /// Which schedule.
    name: ScheduleName,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: ScheduleArgs) -> Result<u8, Failure> {
    match args.command {
        ScheduleCommand::Set(args) => set(args).await,
        ScheduleCommand::List(args) => {
            let schedules = args.api.client()?.schedules().await?;
            if args.json {
                output::json(&schedules)?;
            } else {
                print(&schedules);
            }
            Ok(code::OK)
        }
        ScheduleCommand::Pause(args) => pause(args, true).await,
        ScheduleCommand::Resume(args) => pause(args, false).await,
        ScheduleCommand::Remove(args) => {
            if !args.api.client()?.remove_schedule(&args.name).await? {
                return Err(missing(&args.name));
            }
            Ok(code::OK)
        }
    }
}

fn missing(name: &ScheduleName) -> Failure {
    Failure::new(format!("there is no schedule {name}; see `resurgam schedule list`"))
}

async fn set(args: SetArgs) -> Result<u8, Failure> {
    let task = match &args.task {
        Some(json) => {
            let mut task: NewTask = serde_json::from_str(json)
                .map_err(|error| Failure::usage(format!("--task is no task: {error}")))?;
            task.capability = args.capability;
            task
        }
        None => {
            let payload = Payload::from_json(args.payload)
                .map_err(|error| Failure::usage(format!("the payload is no JSON: {error}")))?;
            NewTask::new(args.capability, payload)
        }
    };
    let missed = match args.missed {
        MissedArg::Once => Missed::Once,
        MissedArg::Skip => Missed::Skip,
    };
    let new =
        NewSchedule { cron: args.cron, time_zone: args.time_zone, task, missed, paused: false };
    let schedule = args.api.client()?.put_schedule(&args.name, &new).await?;
    print(&[schedule]);
    Ok(code::OK)
}

async fn pause(args: NameArgs, paused: bool) -> Result<u8, Failure> {
    let client = args.api.client()?;
    let Some(schedule) = client.schedule(&args.name).await? else {
        return Err(missing(&args.name));
    };
    let new = NewSchedule { paused, ..schedule.new };
    print(&[client.put_schedule(&args.name, &new).await?]);
    Ok(code::OK)
}

fn print(schedules: &[Schedule]) {
    let mut table = output::table(&[
        "schedule",
        "cron",
        "time zone",
        "capability",
        "next",
        "last",
        "last task",
    ]);
    for one in schedules {
        table.add_row([
            one.name.to_string(),
            one.new.cron.to_string(),
            one.new.time_zone.clone(),
            one.new.task.capability.to_string(),
            one.next_at.map_or_else(|| "paused".to_owned(), |at| at.to_string()),
            one.last_at.map(|at| at.to_string()).unwrap_or_default(),
            one.last_task.map(|task| task.to_string()).unwrap_or_default(),
        ]);
    }
    output::data(&table.to_string());
}
