//! `resurgam plan`

use crate::cli::{PlanArgs, PlanCommand};
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

pub(crate) fn run(args: &PlanArgs) -> Result<u8, Failure> {
    let PlanCommand::Show(show) = &args.command;
    let loaded = Loaded::read(show.plan.as_deref())?;
    if show.json {
        output::json(&loaded.effective.settings)?;
        return Ok(code::OK);
    }
    let mut table = output::table(&["key", "value", "from"]);
    for setting in &loaded.effective.settings {
        table.add_row([&setting.key, &setting.value, &setting.origin.to_string()]);
    }
    output::data(&table.to_string());
    Ok(code::OK)
}
