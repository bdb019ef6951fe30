//! `resurgam runbook`: the runbooks on paper.

use std::path::PathBuf;

use clap::Args;
use resurgam_model::Scenario;
use resurgam_recovery::paper;

use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// Print the runbook of a scenario as Markdown: symptoms, objectives, steps, and what a person
/// would type in their place.
///
/// Print it while all is well: it is for the day on which this program is not there either. With a
/// plan it has that plan's objectives and contacts.
///
/// Examples:
///   resurgam runbook postgres-primary
///   resurgam runbook --output-dir runbooks
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RunbookArgs {
    /// Which; all of them, one after the other, if none is named.
    scenario: Option<Scenario>,
    /// Write each into a file of its own in this folder instead; existing ones are replaced.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// The plan; ./resurgam.toml if there is one.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

pub(crate) fn run(args: &RunbookArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    let scenarios = args.scenario.map_or(Scenario::ALL.to_vec(), |scenario| vec![scenario]);
    let Some(dir) = &args.output_dir else {
        let pages: Vec<_> =
            scenarios.iter().map(|scenario| paper::page(*scenario, loaded.plan())).collect();
        output::data(pages.join("\n---\n\n").trim_end());
        return Ok(code::OK);
    };
    let failed = |error: std::io::Error| {
        Failure::new(format!("the runbooks were not written to {}: {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    for scenario in scenarios {
        let file = dir.join(format!("{scenario}.md"));
        std::fs::write(file, paper::page(scenario, loaded.plan())).map_err(failed)?;
    }
    output::note(&format!("written to {}", dir.display()));
    Ok(code::OK)
}
