//! `resurgam drill --random`

use resurgam_model::Scenario;
use resurgam_model::plan::{Plan, StoreKind};
use resurgam_recovery::drill::campaign::{Campaign, CampaignReport, RoundReport};
use resurgam_recovery::drill::load::{Load, Shape};

use super::drill::wrapped;
use super::ground::{self, Ground, Makeshift, Turn};
use super::status::word_of;
use crate::cli::DrillArgs;
use crate::failure::{Failure, code};
use crate::output::{self, Progress};
use crate::plan::Loaded;
use crate::shutdown;

/// How long faults strike when nobody says.
const LASTS: std::time::Duration = std::time::Duration::from_secs(600);

pub(crate) async fn run(args: &DrillArgs) -> Result<u8, Failure> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => u64::try_from(resurgam_model::Timestamp::now().as_second()).unwrap_or_default(),
    };
    let progress = Progress::new(args.json);
    let _turn;
    let ground = match &args.plan {
        Some(file) => {
            let loaded = Loaded::read(Some(file))?;
            promises_everything(loaded.plan())?;
            ground::allowed(file, args.copy)?;
            _turn = Some(Turn::take(&loaded)?);
            match args.copy {
                true => Ground::copy_of(file, &progress).await?,
                false => Ground::of_plan(file)?,
            }
        }
        None => {
            _turn = None;
            Ground::temporary(&temporary_plan(args)?)?
        }
    };
    progress.say(&format!("starting a deployment; the seed is {seed}"));
    let outcome = tokio::select! {
        outcome = on(&ground, args, seed, &progress) => outcome,
        () = shutdown::requested() => Err(Failure::interrupted()),
    };
    progress.clear();
    let broken = outcome.as_ref().is_ok_and(|report| !report.is_sound());
    // What found something is wanted for a look.
    ground.clear(args.keep || broken).await?;
    let report = outcome?;
    if args.json {
        output::json(&report)?;
    } else {
        print(&report);
    }
    Ok(if report.is_sound() { code::OK } else { code::MISSED })
}

/// The checker holds a deployment to it.
fn promises_everything(plan: &Plan) -> Result<(), Failure> {
    if plan.store.kind != StoreKind::Postgres {
        return Ok(());
    }
    let allowed = plan.objectives(Scenario::PostgresPrimary).rpo;
    let gap = if !plan.postgres.synchronous {
        "postgres.synchronous = false"
    } else if allowed.0 > std::time::Duration::ZERO {
        "a loss that objectives.postgres-primary.rpo allows"
    } else {
        return Ok(());
    };
    Err(Failure::refused(format!(
        "a campaign proves that nothing acknowledged is lost, which a plan with {gap} does not promise; set postgres.synchronous = true, and rpo = \"0s\" under [objectives.postgres-primary]"
    )))
}

fn temporary_plan(args: &DrillArgs) -> Result<String, Failure> {
    let makeshift = Makeshift {
        postgres: args.store.as_deref() != Some("sqlite"),
        standbys: Plan::default().postgres.standbys,
        synchronous: true,
        brokers: args.brokers,
        fills: false,
    };
    // What a failover may lose is nothing.
    let objective = "\n[objectives.postgres-primary]\nrto = \"15m\"\nrpo = \"0s\"\n";
    Ok(makeshift.plan()? + objective)
}

async fn on(
    ground: &Ground,
    args: &DrillArgs,
    seed: u64,
    progress: &Progress,
) -> Result<CampaignReport, Failure> {
    let mut subject = ground.start(false).await?;
    let load = Load::start(&subject.api(), Shape::default())?;
    let say = |text: &str| progress.say(text);
    let lasts = args.lasts.map_or(LASTS, |lasts| lasts.0);
    let mut campaign = Campaign { subject: &mut subject, load: &load, progress: &say, seed, lasts };
    let report = campaign.run().await;
    load.end().await;
    progress.say("cleaning up");
    let ended = subject.end().await;
    let report = report?;
    // One that is broken need not end in order as well.
    if report.is_sound() {
        ended?;
    }
    Ok(report)
}

fn print(report: &CampaignReport) {
    let mut table = output::table(&[
        "round",
        "seed",
        "faults",
        "incidents",
        "back after",
        "outage",
        "acknowledged",
    ]);
    for (number, round) in (1..).zip(&report.rounds) {
        table.add_row([
            format!("{number}"),
            round.seed.to_string(),
            wrapped(&round.strikes.join(", ")),
            wrapped(&incidents(round)),
            round.recovered_ms.map_or("never".to_owned(), seconds),
            seconds(round.outage_ms),
            round.acknowledged.to_string(),
        ]);
    }
    output::data(&table.to_string());
    output::data(&format!(
        "seed {}: {} rounds in {} on {}; {} tasks and {} writes were acknowledged",
        report.seed,
        report.rounds.len(),
        seconds(report.lasted_ms),
        report.deployment,
        report.acknowledged,
        report.writes,
    ));
    let violations: Vec<_> = report
        .rounds
        .iter()
        .flat_map(|round| round.violations.iter().map(|v| (round.seed, v)))
        .collect();
    if violations.is_empty() {
        output::data(
            "nothing was lost or done twice, no two primaries took writes, and everything came back",
        );
    }
    for (seed, violation) in violations {
        output::data(&format!("VIOLATION (again with --seed {seed}): {violation}"));
    }
}

fn incidents(round: &RoundReport) -> String {
    let each = round.incidents.iter().map(|incident| {
        format!("{} of {}: {}", incident.scenario, incident.component, word_of(&incident.state))
    });
    each.collect::<Vec<_>>().join(", ")
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}
