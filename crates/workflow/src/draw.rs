//! Drawings of the graph: for terminals and for Mermaid.
//!
//! The drawing for terminals has one line for each step, in an order in which they could run,
//! with lines from a step to those that need it, as `git log --graph` draws commits.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::StepId;
use crate::definition::{Action, Definition, Step, Wait};
use crate::state::{Fan, StepState};

/// What is shown of a step's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// Where it stands.
    pub state: StepState,
    /// How its items stand.
    pub fan: Option<Fan>,
    /// Said behind it: how long it took, why it failed.
    pub note: Option<String>,
}

/// The symbol of a state.
#[must_use]
pub fn symbol(state: StepState) -> char {
    match state {
        StepState::Pending => '○',
        StepState::Running => '▶',
        StepState::Waiting => '◷',
        StepState::Completed => '✔',
        StepState::Failed => '✘',
        StepState::Skipped => '◌',
        StepState::Cancelled => '⊘',
        StepState::Compensating => '↺',
        StepState::Compensated => '↩',
        StepState::CompensationFailed => '‼',
    }
}

/// The colour of a state, as the number that a terminal knows it by.
fn colour(state: StepState) -> u8 {
    match state {
        StepState::Completed => 32,
        StepState::Failed | StepState::CompensationFailed => 31,
        StepState::Running => 36,
        StepState::Waiting => 33,
        StepState::Compensating | StepState::Compensated => 35,
        StepState::Pending | StepState::Skipped | StepState::Cancelled => 90,
    }
}

/// Draws the graph for a terminal, one line for each step and some between them.
#[must_use]
pub fn text(definition: &Definition, states: &BTreeMap<StepId, Shown>, coloured: bool) -> String {
    let order = order(definition);
    let place: HashMap<&StepId, usize> =
        order.iter().enumerate().map(|(n, step)| (&step.id, n)).collect();
    // For each step the last line to which it has a line.
    let mut last: Vec<usize> = (0..order.len()).collect();
    for (n, step) in order.iter().enumerate() {
        for need in &step.needs {
            if let Some(end) = place.get(need).and_then(|&at| last.get_mut(at)) {
                *end = (*end).max(n);
            }
        }
    }
    // A lane holds the step whose line runs down it.
    let mut lanes: Vec<Option<usize>> = Vec::new();
    let mut rows: Vec<(String, usize, Option<&Step>)> = Vec::new();
    for (n, step) in order.iter().enumerate() {
        let needs: Vec<usize> =
            step.needs.iter().filter_map(|need| place.get(need).copied()).collect();
        let from: Vec<usize> = lanes
            .iter()
            .enumerate()
            .filter(|(_, lane)| lane.is_some_and(|at| needs.contains(&at)))
            .map(|(at, _)| at)
            .collect();
        // Lines that end here, and whose lanes are free from here on.
        let ends =
            |lane: Option<usize>| lane.is_some_and(|at| last.get(at).is_none_or(|&end| end <= n));
        // The step goes below the first of them that ends here, else into a free lane.
        let own = from
            .iter()
            .copied()
            .find(|&at| ends(lanes.get(at).copied().flatten()))
            .or_else(|| lanes.iter().position(Option::is_none))
            .unwrap_or(lanes.len());
        if own == lanes.len() {
            lanes.push(None);
        }
        let others: Vec<usize> = from.iter().copied().filter(|&at| at != own).collect();
        if !others.is_empty() {
            rows.push((join_line(&lanes, own, &others, &ends), lanes.len(), None));
        }
        for lane in &mut lanes {
            if ends(*lane) {
                *lane = None;
            }
        }
        let state = states.get(&step.id).map_or(StepState::Pending, |shown| shown.state);
        let mark = if coloured {
            format!("\u{1b}[{}m{}\u{1b}[0m", colour(state), symbol(state))
        } else {
            symbol(state).to_string()
        };
        let mut line = String::new();
        for (at, lane) in lanes.iter().enumerate() {
            if at == own {
                line.push_str(&mark);
            } else {
                line.push(if lane.is_some() { '│' } else { ' ' });
            }
            line.push(' ');
        }
        let width = lanes.len();
        if let Some(lane) = lanes.get_mut(own) {
            *lane = last.get(n).is_some_and(|&end| end > n).then_some(n);
        }
        rows.push((line, width, Some(step)));
        while lanes.last().is_some_and(Option::is_none) {
            lanes.pop();
        }
    }
    let widest = rows.iter().map(|(_, width, _)| *width).max().unwrap_or(0);
    let name = order.iter().map(|step| step.id.as_str().len()).max().unwrap_or(0);
    let state = order
        .iter()
        .map(|step| states.get(&step.id).map_or("pending".len(), |shown| in_words(shown).len()))
        .max()
        .unwrap_or(0);
    let mut drawing = String::new();
    for (line, width, step) in rows {
        let Some(step) = step else {
            let _ = writeln!(drawing, "{}", line.trim_end());
            continue;
        };
        let shown = states.get(&step.id).cloned().unwrap_or_default();
        let gap = "  ".repeat(widest.saturating_sub(width));
        let what = describe(step);
        let state = painted(&shown, state, coloured);
        let note = shown.note.map(|note| format!("  {note}")).unwrap_or_default();
        let _ = writeln!(drawing, "{line}{gap} {:name$}  {state}  {what}{note}", step.id);
    }
    drawing
}

/// The line between two steps on which lines from the side come in.
fn join_line(
    lanes: &[Option<usize>],
    own: usize,
    others: &[usize],
    ends: &dyn Fn(Option<usize>) -> bool,
) -> String {
    let low = others.iter().copied().min().unwrap_or(own).min(own);
    let high = others.iter().copied().max().unwrap_or(own).max(own);
    let mut line = String::new();
    for at in 0..lanes.len() {
        let lane = lanes.get(at).copied().flatten();
        let within = at > low && at < high;
        let joins = others.contains(&at);
        line.push(if at == own {
            let above = lane.is_some();
            match (at > low, at < high) {
                (true, true) if above => '┼',
                (true, true) => '┬',
                (true, false) if above => '┤',
                (true, false) => '┐',
                (false, true) if above => '├',
                _ => '┌',
            }
        } else if joins {
            let goes_on = !ends(lane);
            match (at > low, at < high) {
                (true, true) if goes_on => '┼',
                (true, true) => '┴',
                (true, false) if goes_on => '┤',
                (true, false) => '┘',
                (false, _) if goes_on => '├',
                (false, _) => '└',
            }
        } else if lane.is_some() {
            // Crosses without touching.
            '│'
        } else if within {
            '─'
        } else {
            ' '
        });
        line.push(if at >= low && at < high { '─' } else { ' ' });
    }
    line
}

/// Where a step stands, in words.
fn in_words(shown: &Shown) -> String {
    let mut text = shown.state.to_string();
    if let Some(fan) = shown.fan {
        let _ = write!(text, " {}/{}", fan.completed, fan.total);
        for (number, what) in [
            (fan.running, "running"),
            (fan.failed, "failed"),
            (fan.undone, "undone"),
            (fan.undo_failed, "not undone"),
        ] {
            if number > 0 {
                let _ = write!(text, ", {number} {what}");
            }
        }
    }
    text
}

/// The same in its colour, so many characters wide.
fn painted(shown: &Shown, width: usize, coloured: bool) -> String {
    let padded = format!("{:width$}", in_words(shown));
    if coloured { format!("\u{1b}[{}m{padded}\u{1b}[0m", colour(shown.state)) } else { padded }
}

/// What a step does, in a few words.
#[must_use]
pub fn describe(step: &Step) -> String {
    let mut text = match &step.action {
        Action::Task(terms) => format!("task {}", terms.capability),
        Action::Workflow { name, version: None, .. } => format!("workflow {name}"),
        Action::Workflow { name, version: Some(version), .. } => {
            format!("workflow {name}@{version}")
        }
        Action::Wait(Wait::Signal { name, .. }) => format!("wait for signal {name}"),
        Action::Wait(Wait::Approval { prompt, .. }) => format!("wait for approval: {prompt}"),
        Action::Wait(Wait::Timer(timer)) => format!("wait {timer}"),
        Action::Wait(Wait::Until(_)) => "wait until a moment".to_owned(),
    };
    if step.for_each.is_some() {
        text.push_str(", for each");
    }
    if step.when.is_some() {
        text.push_str(", if");
    }
    if let Some(undo) = &step.compensate {
        let _ = write!(text, ", undone by {}", undo.task.capability);
    }
    text
}

/// The steps in an order in which they could run, as near to the written order as possible.
fn order(definition: &Definition) -> Vec<&Step> {
    let mut left: Vec<&Step> = definition.steps.iter().collect();
    let mut order: Vec<&Step> = Vec::with_capacity(left.len());
    let mut placed: std::collections::HashSet<&StepId> = std::collections::HashSet::new();
    while !left.is_empty() {
        let at = left
            .iter()
            .position(|step| step.needs.iter().all(|need| placed.contains(need)))
            .unwrap_or(0);
        let step = left.remove(at);
        placed.insert(&step.id);
        order.push(step);
    }
    order
}

/// Draws the graph as a Mermaid flowchart.
#[must_use]
pub fn mermaid(definition: &Definition, states: &BTreeMap<StepId, Shown>) -> String {
    let mut drawing = String::from("flowchart TD\n");
    // Names of steps such as `end` mean something to Mermaid, so that its own are numbers.
    let number: HashMap<&StepId, usize> =
        definition.steps.iter().enumerate().map(|(n, step)| (&step.id, n)).collect();
    let mut classes: BTreeMap<StepState, Vec<usize>> = BTreeMap::new();
    for (n, step) in definition.steps.iter().enumerate() {
        let what = format!("{}<br/>{}", step.id, quoted(&describe(step)));
        let (open, close) = match &step.action {
            Action::Task(_) if step.for_each.is_some() => ("[[\"", "\"]]"),
            Action::Task(_) => ("[\"", "\"]"),
            Action::Workflow { .. } => ("[/\"", "\"/]"),
            Action::Wait(_) => ("([\"", "\"])"),
        };
        let state = states.get(&step.id);
        let mark = state.map(|shown| format!("{} ", symbol(shown.state))).unwrap_or_default();
        let _ = writeln!(drawing, "    s{n}{open}{mark}{what}{close}");
        if let Some(shown) = state {
            classes.entry(shown.state).or_default().push(n);
        }
    }
    for (n, step) in definition.steps.iter().enumerate() {
        for need in step.needs.iter().filter_map(|need| number.get(need)) {
            let _ = writeln!(drawing, "    s{need} --> s{n}");
        }
    }
    for (state, steps) in classes {
        let fill = match colour(state) {
            31 => "#f8d7da",
            32 => "#d4edda",
            33 => "#fff3cd",
            35 => "#e2d9f3",
            36 => "#d1ecf1",
            _ => "#eeeeee",
        };
        let name = state.as_str().replace('-', "_");
        let steps: Vec<_> = steps.iter().map(|n| format!("s{n}")).collect();
        let _ = writeln!(drawing, "    classDef {name} fill:{fill},color:#000");
        let _ = writeln!(drawing, "    class {} {name}", steps.join(","));
    }
    drawing
}

/// A text inside quotes of Mermaid.
fn quoted(text: &str) -> String {
    text.replace('&', "#amp;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;")
}
