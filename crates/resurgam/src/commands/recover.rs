//! `resurgam recover`, `restart`, `scale`: orders to the controller that runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use resurgam_model::plan::Ask;
use resurgam_model::{ComponentName, IncidentId, Scenario, Timestamp};
use resurgam_recovery::account;
use resurgam_recovery::journal::IncidentState;
use resurgam_recovery::journal::orders::{Order, Ordered};
use resurgam_recovery::planning;
use resurgam_recovery::scaling::POOL;

use super::incident::outcome;
use super::journal::{JournalArgs, Opened, who};
use super::status;
use crate::failure::{Failure, code};
use crate::output;

/// How often the journal is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// So long the controller may take to take an order.
const TAKEN: Duration = Duration::from_secs(10);
/// Among so many incidents the one that an order is about is looked for.
const RECENT: u32 = 50;
/// Entries of the journal that are read at once.
const PAGE: u32 = 500;

/// Go through the runbook of a scenario now, whether or not a failure was noticed.
///
/// The controller (`resurgam up`) does it; this command orders it, and follows it to its end. With
/// --dry-run it says what would be done now, and why, and does nothing.
///
/// Exit code 0 when it has recovered, 3 when it failed, 4 when it was refused.
///
/// Examples:
///   resurgam recover postgres-primary --dry-run
///   resurgam recover agent-registry
///   resurgam recover postgres-primary --approve dangerous
///   resurgam recover --resume 0199a2…
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RecoverArgs {
    /// What to recover from; see resurgam drill --list.
    #[arg(required_unless_present = "resume")]
    scenario: Option<Scenario>,
    /// The component that it is about, if not the scenario's usual one.
    #[arg(long, requires = "scenario")]
    component: Option<ComponentName>,
    /// Say what would be done, and do nothing.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// When people are asked: never, dangerous (before steps that take something away), always.
    /// Otherwise as the plan says.
    #[arg(long, value_name = "WHEN", conflicts_with = "resume")]
    approve: Option<Ask>,
    /// Begin the recovery of this incident anew: one that failed or was refused.
    #[arg(long, value_name = "INCIDENT", conflicts_with = "scenario")]
    resume: Option<IncidentId>,
    /// Give the order and do not wait for what comes of it.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    journal: JournalArgs,
    /// With --dry-run: print JSON.
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// Start components again, one after the other, each when the one before serves.
///
/// Without names everything but the databases: registry, supervisor, API, workers.
///
/// Examples:
///   resurgam restart --all
///   resurgam restart dotnetagents-api worker-pool-0
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RestartArgs {
    /// Which; names as in resurgam status.
    #[arg(required_unless_present = "all")]
    components: Vec<ComponentName>,
    /// Everything but the databases.
    #[arg(long, conflicts_with = "components")]
    all: bool,
    #[command(flatten)]
    journal: JournalArgs,
}

/// Bring a pool to a size.
///
/// It holds until the deployment is started anew. A pool that follows the work (workers.min and
/// workers.max) gets no smaller than ordered, and may still grow.
///
/// Example:
///   resurgam scale worker-pool 5
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ScaleArgs {
    /// Which pool: worker-pool.
    pool: ComponentName,
    /// How many.
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    size: u16,
    #[command(flatten)]
    journal: JournalArgs,
}

pub(crate) async fn run(args: RecoverArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let seen = status::ask(&opened.loaded).await?;
    let order = match (args.resume, args.scenario) {
        (Some(incident), _) => resumed(&opened, incident)?,
        (None, Some(scenario)) => {
            let planned = planning::plan(scenario, &seen, opened.loaded.plan());
            if args.dry_run {
                if args.json {
                    output::json(&planned)?;
                } else {
                    print(&planned);
                }
                return Ok(if planned.possible { code::OK } else { code::REFUSED });
            }
            if !planned.possible {
                return Err(Failure::refused(planned.summary));
            }
            Order::Recover { scenario, component: args.component, ask: args.approve }
        }
        (None, None) => return Err(Failure::usage("name a scenario, or --resume INCIDENT")),
    };
    let number = give(&opened, order).await?;
    if args.no_wait {
        return Ok(code::OK);
    }
    let id = match (args.resume, args.scenario) {
        (Some(incident), _) => incident,
        (None, Some(scenario)) => opened_by(&opened, number, scenario)?,
        (None, None) => return Err(Failure::usage("name a scenario, or --resume INCIDENT")),
    };
    follow(&opened, number, id).await
}

/// The incident that an order to recover has opened, or that was open before.
pub(super) fn opened_by(
    opened: &Opened,
    number: u64,
    scenario: Scenario,
) -> Result<IncidentId, Failure> {
    let last = opened.journal.incidents(RECENT)?;
    let last = last.into_iter().find(|incident| incident.scenario == scenario);
    // One that was over before is not what the order is about.
    let heard = opened.journal.entries(number.saturating_sub(1), 1, None)?;
    let since = heard.first().map(|entry| entry.at);
    last.filter(|last| last.closed_at.is_none_or(|at| since.is_none_or(|since| at >= since)))
        .map(|last| last.id)
        .ok_or_else(|| {
            Failure::refused(
                "the order was taken, but not begun: another recovery is under way; see: resurgam incident list --open",
            )
        })
}

fn resumed(opened: &Opened, id: IncidentId) -> Result<Order, Failure> {
    let known = opened.journal.incident(id)?.ok_or_else(|| {
        Failure::new(format!("there is no incident {id}; list them with: resurgam incident list"))
    })?;
    if !matches!(known.state, IncidentState::Failed | IncidentState::Refused) {
        return Err(Failure::new(format!(
            "incident {id} is {}; only one that failed or was refused can be begun anew",
            known.state.as_str()
        )));
    }
    let open = opened.journal.open_incidents()?;
    let other = open
        .iter()
        .find(|open| open.scenario == known.scenario && open.component == known.component);
    if let Some(other) = other {
        return Err(Failure::new(format!(
            "the same cause has another incident that is open; follow it with: resurgam incident watch {}",
            other.id
        )));
    }
    Ok(Order::Resume { incident: id })
}

/// Writes the order down, and waits until the controller has taken it.
pub(super) async fn give(opened: &Opened, order: Order) -> Result<u64, Failure> {
    let number = opened.journal.order(&Ordered { by: who(), order }, Timestamp::now())?;
    let until = tokio::time::Instant::now() + TAKEN;
    while opened.journal.open_orders()?.iter().any(|(open, _)| *open <= number) {
        if tokio::time::Instant::now() > until {
            return Err(Failure::new(
                "the order is in the journal, but the controller has not taken it; see: resurgam status",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(number)
}

/// Prints what happens from an order on, until the incident that it is about is closed.
pub(super) async fn follow(opened: &Opened, number: u64, id: IncidentId) -> Result<u8, Failure> {
    let about = id.to_string();
    let mut after = number;
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        // Before the entries, so that none is missed when it is closed in between.
        let state = opened.journal.incident(id)?.map(|incident| incident.state);
        for entry in opened.journal.entries(after, PAGE, Some(&about))? {
            after = entry.number;
            if let Some(line) = account::line(&entry) {
                output::data(&format!("{} {line}", entry.at));
            }
        }
        match state {
            Some(IncidentState::Open) => {}
            Some(state) => return Ok(outcome(state)),
            None => return Err(Failure::new(format!("incident {id} is not in the journal"))),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = &mut stop => {
                output::note("no longer followed; the recovery goes on. See: resurgam incident watch");
                return Ok(code::INTERRUPTED);
            }
        }
    }
}

pub(super) fn print(planned: &planning::Planned) {
    output::data(&planned.summary);
    let mut table = output::table(&["step", "danger", "what would be done now"]);
    for step in &planned.steps {
        table.add_row([
            step.name.clone(),
            status::word_of(&step.danger),
            super::drill::wrapped(&step.would),
        ]);
    }
    if !planned.steps.is_empty() {
        output::data(&table.to_string());
    }
    output::data(&format!("expected loss: {}", planned.loss));
    output::data(&format!("people are asked: {}", planned.asks));
}

pub(crate) async fn restart(args: RestartArgs) -> Result<u8, Failure> {
    let opened = args.journal.open()?;
    let status = status::ask(&opened.loaded).await?;
    for name in &args.components {
        let known = status.components.iter().find(|health| health.component.name == *name);
        let Some(health) = known else {
            let names: Vec<_> =
                status.components.iter().map(|h| h.component.name.to_string()).collect();
            return Err(Failure::usage(format!(
                "there is no component {name}; there are {}",
                names.join(", ")
            )));
        };
        if health.component.kind == resurgam_deployment::ComponentKind::Postgres {
            return Err(Failure::refused(format!(
                "{name} is a database: its end could be a failover. To have another one reign: resurgam recover postgres-primary"
            )));
        }
    }
    let before: Vec<_> = status.components.iter().map(|h| h.component.clone()).collect();
    give(&opened, Order::Restart { components: args.components.clone() }).await?;
    let progress = output::Progress::new(false);
    let mut wanted: Vec<_> = before
        .into_iter()
        .filter(|component| match args.components.as_slice() {
            [] => !component.kind.keeps_data(),
            named => named.contains(&component.name),
        })
        .collect();
    let until = tokio::time::Instant::now()
        + Duration::from_secs(60) * u32::try_from(wanted.len()).unwrap_or(1).max(1);
    while !wanted.is_empty() {
        if tokio::time::Instant::now() > until {
            let names: Vec<_> = wanted.iter().map(|c| c.name.to_string()).collect();
            return Err(Failure::new(format!(
                "not started again in time: {}; see: resurgam status",
                names.join(", ")
            )));
        }
        tokio::time::sleep(LOOK).await;
        // The API may be the one that is being started; the controller answers all the same.
        let Ok(status) = status::ask(&opened.loaded).await else { continue };
        wanted.retain(|old| {
            let now = status.components.iter().find(|h| h.component.name == old.name);
            now.is_some_and(|now| now.component.pid == old.pid || now.answers == Some(false))
        });
        let names: Vec<_> = wanted.iter().map(|c| c.name.to_string()).collect();
        progress.say(&format!("to be started again: {}", names.join(", ")));
    }
    progress.clear();
    output::data("all of them were started again");
    Ok(code::OK)
}

pub(crate) async fn scale(args: ScaleArgs) -> Result<u8, Failure> {
    if args.pool.as_str() != POOL {
        return Err(Failure::usage(format!("there is no pool {}; there is {POOL}", args.pool)));
    }
    let opened = args.journal.open()?;
    status::ask(&opened.loaded).await?;
    give(&opened, Order::Scale { pool: args.pool.clone(), size: args.size }).await?;
    output::note(&format!("{} gets {}; see: resurgam status", args.pool, args.size));
    Ok(code::OK)
}

/// The last lines that a component logged.
///
/// Examples:
///   resurgam logs dotnetagents-api
///   resurgam logs postgres-0 --lines 200
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct LogsArgs {
    /// Which; names as in resurgam status.
    component: ComponentName,
    /// How many lines.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    lines: usize,
    /// The plan of the deployment.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

/// Reads the file, so that it works also while nothing runs.
pub(crate) fn logs(args: &LogsArgs) -> Result<u8, Failure> {
    let loaded = crate::plan::Loaded::read(args.plan.as_deref())?;
    let folder = loaded.state_dir().join("logs");
    let read = |name: &str| std::fs::read(folder.join(name)).ok();
    let name = format!("{}.log", args.component);
    let Some(present) = read(&name) else {
        let known = std::fs::read_dir(&folder).into_iter().flatten().filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix(".log")?.to_owned())
        });
        let mut known: Vec<_> = known.collect();
        known.sort();
        return Err(Failure::new(format!(
            "there is no log of {} in {}; there are {}",
            args.component,
            folder.display(),
            if known.is_empty() { "none at all".to_owned() } else { known.join(", ") }
        )));
    };
    let mut bytes = read(&format!("{name}.1")).unwrap_or_default();
    bytes.extend(present);
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(args.lines)) {
        output::data(line);
    }
    Ok(code::OK)
}
