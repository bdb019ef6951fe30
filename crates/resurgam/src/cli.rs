//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::telemetry::LogFormat;
use clap::{Args, Parser, Subcommand};

use resurgam_model::{ComponentName, Duration, Role, Scenario};
use resurgam_recovery::drill::FaultKind;

use crate::commands;

use crate::commands::access::AccessArgs;
use crate::commands::api::ApiArgs;
use crate::commands::store::StoreArgs;
use crate::commands::work::WorkArgs;

/// Run fleets of AI agents, and bring them back when something is lost.
///
/// Without a plan everything is embedded: SQLite, a bus inside it, child processes. With
/// resurgam.toml the same platform runs on PostgreSQL with standbys.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage or plan; 3 an objective was missed; 4 refused as
/// not allowed or not safe; 130 interrupted.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// How logs are written to standard error: text or json.
    #[arg(
        long,
        global = true,
        env = "RESURGAM_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    Drill(DrillArgs),
    Up(UpArgs),
    Status(StatusArgs),
    #[command(alias = "incidents")]
    Incident(commands::incident::IncidentArgs),
    Approve(commands::incident::DecideArgs),
    /// Let a step that waits for a person not be taken: the recovery is refused then.
    Reject(commands::incident::DecideArgs),
    Recover(commands::recover::RecoverArgs),
    Failback(commands::failback::FailbackArgs),
    Restart(commands::recover::RestartArgs),
    Scale(commands::recover::ScaleArgs),
    Top(commands::top::TopArgs),
    Logs(commands::recover::LogsArgs),
    Audit(commands::audit::AuditArgs),
    Report(commands::report::ReportArgs),
    Backup(commands::backup::BackupArgs),
    Restore(commands::restore::RestoreArgs),
    Vault(commands::vault::VaultArgs),
    Notify(commands::notify::NotifyArgs),
    Runbook(commands::runbook::RunbookArgs),
    Journal(commands::journal::JournalCommandArgs),
    Agents(commands::agents::AgentsArgs),
    Plan(PlanArgs),
    Task(commands::task::TaskArgs),
    Limit(commands::limit::LimitArgs),
    Message(commands::message::MessageArgs),
    Bus(commands::bus::BusArgs),
    Schedule(commands::schedule::ScheduleArgs),
    Token(commands::token::TokenArgs),
    AuditLog(commands::audit_log::AuditLogArgs),
    Serve(ServeArgs),
    Worker(WorkerArgs),
    Workflow(crate::commands::workflow::WorkflowArgs),
    #[command(hide = true)]
    Instance(InstanceArgs),
    #[command(hide = true)]
    Broker(BrokerArgs),
}

/// See it work: agents at work, everything killed, everything back, in under a minute.
///
/// Starts the embedded deployment in a temporary folder, gives it work, and kills a worker, the
/// registry, the API, and then all at once. Cleans up after itself.
///
/// Examples:
///   resurgam demo
///   resurgam demo --json | jq '.[].rto'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DemoArgs {
    /// Print the reports as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Break a deployment on purpose, and measure how it comes back.
///
/// Without --plan a deployment of its own is made in a temporary folder. With --plan the drill
/// joins the deployment that runs under that plan, or starts it; the plan must say
/// drills = "allowed". Such a drill is written to the history of that deployment, from which
/// `resurgam audit` takes how long recoveries really last.
///
/// Examples:
///   resurgam drill --list
///   resurgam drill --all --junit drills.xml
///   resurgam drill --random --seed 7 --for 10m
///   resurgam drill --history --plan resurgam.toml
///   resurgam drill postgres-primary
///   resurgam drill postgres-primary --fault freeze --json
///   resurgam drill worker-pool --store postgres
///   resurgam drill full-cluster --copy --plan resurgam.toml
///   resurgam drill --calendar --plan resurgam.toml
///   resurgam drill --abort --plan resurgam.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DrillArgs {
    /// What to lose; see --list. With --history: only the drills of this scenario.
    #[arg(required_unless_present_any = ["list", "all", "history", "random", "calendar", "abort"])]
    pub(crate) scenario: Option<Scenario>,
    /// Drill every scenario that can be drilled there, one after the other. Exit code 3 when one
    /// of them missed an objective.
    #[arg(long, conflicts_with_all = ["scenario", "list", "history", "fault", "keep"])]
    pub(crate) all: bool,
    /// Show the drills of the plan's deployment so far; ./resurgam.toml without --plan.
    #[arg(long, conflicts_with_all = ["list", "fault", "keep", "asynchronous", "store", "junit"])]
    pub(crate) history: bool,
    /// Let faults strike at random, several at a time, for as long as --for says. Each is followed by
    /// a check that nothing acknowledged was lost, nothing took effect twice, no two primaries took
    /// writes, and everything is back. Exit code 3 at the first violation.
    #[arg(long, conflicts_with_all = ["scenario", "all", "list", "history", "fault", "asynchronous", "junit"])]
    pub(crate) random: bool,
    /// From which the faults follow; one by the clock when it is left out. It is reported, for each
    /// round as well: with the seed of a round that round comes first.
    #[arg(long, value_name = "N", conflicts_with_all = ["scenario", "all", "list", "history"])]
    pub(crate) seed: Option<u64>,
    /// No round begins after so long, 10m if it is left out; at least one is done.
    #[arg(long = "for", value_name = "DURATION", conflicts_with_all = ["scenario", "all", "list", "history"])]
    pub(crate) lasts: Option<Duration>,
    /// Drill a copy of the plan's deployment, restored from its last backup into a temporary folder. The
    /// deployment itself is left alone, and need not allow drills.
    #[arg(long, requires = "plan", conflicts_with_all = ["list", "history", "keep"])]
    pub(crate) copy: bool,
    /// Show the drills that the plan's calendar has: when they were, what came of them, and when they are
    /// next.
    #[arg(long, conflicts_with_all = ["scenario", "all", "list", "history", "random", "abort", "fault", "keep", "copy", "asynchronous", "store", "junit"])]
    pub(crate) calendar: bool,
    /// End the drill that is under way on the plan's deployment, at once. What it had stopped goes on.
    #[arg(long, conflicts_with_all = ["scenario", "all", "list", "history", "random", "fault", "keep", "copy", "asynchronous", "store", "junit", "json"])]
    pub(crate) abort: bool,
    /// Give the deployment that is made Kafka and RabbitMQ as well.
    #[arg(long, conflicts_with = "plan")]
    pub(crate) brokers: bool,
    /// Also write the results as JUnit XML, for build servers.
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub(crate) junit: Option<PathBuf>,
    /// List the scenarios.
    #[arg(long, conflicts_with = "scenario")]
    pub(crate) list: bool,
    /// How to lose it: kill (SIGKILL) or freeze (SIGSTOP; postgres-primary and the brokers).
    #[arg(long, default_value = "kill")]
    pub(crate) fault: FaultKind,
    /// Let commits not wait for the standby: faster, and a lost primary may take writes with it.
    #[arg(long, conflicts_with = "plan")]
    pub(crate) asynchronous: bool,
    /// The store of the deployment that is made: sqlite or postgres.
    #[arg(long, value_parser = ["sqlite", "postgres"], conflicts_with = "plan")]
    pub(crate) store: Option<String>,
    /// The plan of the deployment to break.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Keep the temporary folder, with logs and journal.
    #[arg(long, conflicts_with = "plan")]
    pub(crate) keep: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run the platform and its recovery until stopped.
///
/// Examples:
///   resurgam up
///   resurgam up --plan resurgam.toml
///   resurgam up --guard --plan resurgam.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct UpArgs {
    /// Watch over it from a process that does nothing else, and start it again when it is killed or hangs.
    #[arg(long)]
    pub(crate) guard: bool,
    /// The plan; ./resurgam.toml if there is one, else everything is embedded.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
}

/// Show components, roles, replication and open incidents of a running deployment.
///
/// Exit code 0 when everything is well, 3 when it is not, 1 when nothing runs.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The plan of the deployment.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Look at the plan.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    pub(crate) command: PlanCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Print the plan in force, and where each value comes from.
    Show(PlanShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PlanShowArgs {
    /// The plan; ./resurgam.toml if there is one, else everything is embedded.
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Serve roles of the platform in this process.
///
/// The database is DATABASE_URL (PostgreSQL; several hosts may be named, the writable one is
/// followed) or the file given with --sqlite.
///
/// Examples:
///   resurgam serve --role api --role registry --role supervisor --sqlite agents.db
///   DATABASE_URL=postgresql://me@a,b/dotnetagents resurgam serve --role api --registry http://127.0.0.1:7071
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ServeArgs {
    /// A role: api, registry, supervisor or worker. Can be given several times.
    #[arg(long = "role", required = true)]
    pub(crate) roles: Vec<Role>,
    /// Where to listen; port 0 takes a free one. What is no loopback address needs --access
    /// tokens and TLS.
    #[arg(long, default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// Where the registry is, for an api that is not the registry as well.
    #[arg(long, value_name = "URL")]
    pub(crate) registry: Option<String>,
    #[command(flatten)]
    pub(crate) database: StoreArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// The largest payload in bytes.
    #[arg(long, default_value_t = 1024 * 1024)]
    pub(crate) max_payload: usize,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    /// Keep each workflow as a file in this folder; for a supervisor.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoints: Option<PathBuf>,
}

/// Work on tasks.
///
/// The program given with --exec gets the payload on standard input. What it prints is the
/// result; exit code 0 means success, 100 that another try cannot help, anything else that the
/// task is to be tried again. Without a program, sha256 is built in.
///
/// With --store or --sqlite it works on the database directly, which is faster; a registry and a
/// supervisor must run on that database all the same.
///
/// Examples:
///   resurgam worker --capability sha256
///   resurgam worker --api http://127.0.0.1:7070 --capability translate --exec ./translate --fast
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Work on the database that DATABASE_URL names, instead of by way of the API. So does
    /// --sqlite with a file.
    #[arg(long)]
    pub(crate) store: bool,
    #[command(flatten)]
    pub(crate) database: StoreArgs,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
}

/// Keep one PostgreSQL server; started by `up`.
#[derive(Debug, Args)]
pub(crate) struct InstanceArgs {
    #[arg(long)]
    pub(crate) name: ComponentName,
    #[arg(long)]
    pub(crate) dir: PathBuf,
    #[arg(long)]
    pub(crate) address: SocketAddr,
    #[arg(long)]
    pub(crate) controller: String,
    #[arg(long)]
    pub(crate) database: String,
    #[arg(long)]
    pub(crate) secrets: PathBuf,
    #[arg(long)]
    pub(crate) bin_dir: PathBuf,
    /// A setting as name=value.
    #[arg(long = "setting")]
    pub(crate) settings: Vec<String>,
}

/// Run one node of Kafka or RabbitMQ; started by `up`.
#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// The file that describes it.
    #[arg(long)]
    pub(crate) node: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// Options of the same name in one command, and other mistakes that clap finds only when the
    /// command is used.
    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
