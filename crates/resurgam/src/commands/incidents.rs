//! `resurgam incidents`

use resurgam_model::{IncidentId, Timestamp};
use resurgam_recovery::journal::Journal;
use resurgam_recovery::status::IncidentDetail;

use super::status::word_of;
use crate::cli::IncidentsArgs;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// How many are listed.
const LISTED: u32 = 50;

pub(crate) async fn run(args: &IncidentsArgs) -> Result<u8, Failure> {
    let loaded = Loaded::read(args.plan.as_deref())?;
    let path = loaded.state_dir().join("journal.db");
    if !path.exists() {
        return Err(Failure::new(format!(
            "there is no journal at {}; nothing has run there yet",
            path.display()
        )));
    }
    let journal = Journal::open(&path)?;
    match args.id {
        Some(id) => show(&journal, id, args.json),
        None => list(&journal, args.json),
    }
}

fn list(journal: &Journal, json: bool) -> Result<u8, Failure> {
    let incidents = journal.incidents(LISTED)?;
    if json {
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

fn show(journal: &Journal, id: IncidentId, json: bool) -> Result<u8, Failure> {
    let incident = journal.incident(id)?;
    let incident = incident.ok_or_else(|| {
        Failure::new(format!("there is no incident {id}; list them with: resurgam incidents"))
    })?;
    let now = Timestamp::now();
    let steps = journal.steps(id)?.iter().map(|step| step.report(now)).collect();
    let evidence = journal.evidence(id)?;
    let evidence = evidence.into_iter().map(|(at, text)| format!("{at} {text}")).collect();
    let detail = IncidentDetail { incident, steps, evidence };
    if json {
        output::json(&detail)?;
        return Ok(code::OK);
    }
    output::data(&format!(
        "{} {} on {}: {}\nopened {}: {}",
        detail.incident.severity,
        detail.incident.scenario,
        detail.incident.component,
        word_of(&detail.incident.state),
        detail.incident.opened_at,
        detail.incident.cause
    ));
    output::data(&super::drill::steps_table(&detail.steps).to_string());
    for text in &detail.evidence {
        output::data(text);
    }
    Ok(code::OK)
}
