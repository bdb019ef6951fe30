//! `resurgam drill --calendar`

use std::path::Path;

use resurgam_model::Timestamp;
use serde_json::json;

use super::drill::wrapped;
use super::status::word_of;
use crate::calendar::{Entry, Outcome, entries, last};
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// The drills that the plan has in its calendar. Exit code 3 when the last of one was missed or failed.
pub(crate) fn show(plan: Option<&Path>, json: bool) -> Result<u8, Failure> {
    let loaded = Loaded::read(plan)?;
    let entries = entries(&loaded.state_dir())?;
    let now = Timestamp::now();
    let planned = &loaded.plan().drills;
    let rows = planned.iter().map(|drill| (drill, last(&entries, &drill.name)));
    let bad = |last: &Entry| matches!(last.outcome, Outcome::Failed | Outcome::Missed);
    let exit = match rows.clone().any(|(_, last)| last.is_some_and(bad)) {
        true => code::MISSED,
        false => code::OK,
    };
    if json {
        let all: Vec<_> = rows
            .map(|(drill, last)| json!({ "drill": drill, "next": drill.next_after(now), "last": last }))
            .collect();
        output::json(&all)?;
        return Ok(exit);
    }
    if planned.is_empty() {
        output::data("the plan has no drills in its calendar; add some under [[drills]]");
        return Ok(exit);
    }
    let mut table = output::table(&["drill", "what", "on", "next", "last", "came of it", "detail"]);
    for (drill, last) in rows {
        let what = match (&drill.random, drill.scenarios.as_slice()) {
            (Some(lasts), _) => format!("faults at random for {lasts}"),
            (None, []) => "everything that can be drilled".to_owned(),
            (None, some) => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        // Before anything was due, there is nothing to tell.
        let last = last.filter(|last| last.outcome != Outcome::Planned);
        table.add_row([
            drill.name.to_string(),
            what,
            word_of(&drill.on),
            drill.next_after(now).map_or("never".to_owned(), |at| at.to_string()),
            last.map(|last| last.due.to_string()).unwrap_or_default(),
            last.map(|last| word_of(&last.outcome)).unwrap_or_default(),
            last.map(|last| wrapped(&last.detail)).unwrap_or_default(),
        ]);
    }
    output::data(&table.to_string());
    if let Some((blackout, until)) = loaded.plan().blackout(now) {
        output::data(&format!("no drill begins before {until}: blackout {}", blackout.name));
    }
    Ok(exit)
}
