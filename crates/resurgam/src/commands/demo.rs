//! `resurgam demo`

use std::time::Instant;

use resurgam_model::Scenario;
use resurgam_model::report::{DrillReport, DrillResult};
use resurgam_recovery::drill::load::{Load, Shape};
use resurgam_recovery::drill::{Drill, FaultKind};

use super::drill::summary_table;
use super::ground::Ground;
use crate::cli::DemoArgs;
use crate::failure::{Failure, code};
use crate::output::{self, Progress};
use crate::shutdown;

/// What is broken, one after the other.
const SCENARIOS: [Scenario; 4] =
    [Scenario::WorkerPool, Scenario::AgentRegistry, Scenario::Api, Scenario::FullStop];

const PLAN: &str =
    "[deployment]\ndrills = \"allowed\"\nstate_dir = \"state\"\n[disk]\nmin_free_mb = 0\n";

pub(crate) async fn run(args: DemoArgs) -> Result<u8, Failure> {
    let shutdown = shutdown::requested();
    let started = Instant::now();
    let ground = Ground::temporary(PLAN)?;
    let progress = Progress::new(args.json);
    progress.say("starting api, supervisor, registry and three workers over SQLite");
    let outcome = tokio::select! {
        outcome = all(&ground, &progress) => outcome,
        () = shutdown => Err(Failure::interrupted()),
    };
    progress.clear();
    ground.clear(false).await?;
    let reports = outcome?;
    if args.json {
        output::json(&reports)?;
    } else {
        output::data(&summary_table(&reports).to_string());
        let tasks: u64 = reports.iter().map(|report| report.acknowledged).sum();
        output::data(&format!(
            "{tasks} tasks were acknowledged while this happened; took {} s, everything is cleaned up",
            started.elapsed().as_secs()
        ));
    }
    let met = reports.iter().all(|report| report.result == DrillResult::Recovered);
    Ok(if met { code::OK } else { code::MISSED })
}

async fn all(ground: &Ground, progress: &Progress) -> Result<Vec<DrillReport>, Failure> {
    let mut subject = ground.start(false).await?;
    let load = Load::start(&subject.api(), Shape::default())?;
    let mut reports = Vec::new();
    for scenario in SCENARIOS {
        let say = |text: &str| progress.say(&format!("{scenario}: {text}"));
        let mut drill = Drill { subject: &mut subject, load: &load, progress: &say };
        reports.push(drill.run(scenario, FaultKind::Kill).await?);
    }
    load.end().await;
    progress.say("cleaning up");
    subject.end().await?;
    Ok(reports)
}
