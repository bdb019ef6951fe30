//! Whether the steps make a graph without cycles that can be walked to its end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Problems, nearest};
use crate::StepId;
use crate::definition::{Parts, Step};

/// For each step all that are over before it begins.
pub(super) type Upstream = HashMap<StepId, BTreeSet<StepId>>;

pub(super) fn check(parts: &Parts, problems: &mut Problems) -> Upstream {
    let steps = &parts.steps;
    let known: BTreeMap<&StepId, &Step> = steps.iter().map(|step| (&step.id, step)).collect();
    for step in steps {
        let at = format!("step {}", step.id);
        for need in &step.needs {
            if need == &step.id {
                problems.add(&at, "it needs itself; take it out of its needs");
            } else if !known.contains_key(need) && !parts.unread.contains(need.as_str()) {
                let hint = nearest(need.as_str(), known.keys().map(|id| id.as_str()));
                problems.add(&at, format!("it needs {need}, but there is no such step{hint}"));
            }
        }
    }
    let mut upstream = Upstream::new();
    let mut left: Vec<&Step> = steps.iter().collect();
    // In rounds: whoever has all its known needs resolved is resolved.
    loop {
        let before = left.len();
        left.retain(|step| {
            let needs = || step.needs.iter().filter(|need| known.contains_key(need));
            if needs().any(|need| need == &step.id || !upstream.contains_key(need)) {
                return true;
            }
            let mut all = BTreeSet::new();
            for need in needs() {
                all.insert(need.clone());
                all.extend(upstream.get(need).into_iter().flatten().cloned());
            }
            upstream.insert(step.id.clone(), all);
            false
        });
        if left.len() == before {
            break;
        }
    }
    let stuck: BTreeSet<&StepId> = left.iter().map(|step| &step.id).collect();
    if let Some(cycle) = cycle(&left, &stuck) {
        let names: Vec<_> = cycle.iter().map(|id| id.as_str()).collect();
        if names.len() > 1 {
            let names = names.join(" needs ");
            let what = format!("the steps wait for each other in a circle: {names}; break it");
            problems.add("", what);
        }
        let within: BTreeSet<_> = cycle.iter().collect();
        for step in &left {
            if !within.contains(&&step.id) && !step.needs.contains(&step.id) {
                let what = "it can never be reached: what it needs waits for itself";
                problems.add(format!("step {}", step.id), what);
            }
        }
    }
    upstream
}

/// One circle among the steps that could not be resolved, the first name repeated at the end.
fn cycle<'a>(left: &[&'a Step], stuck: &BTreeSet<&StepId>) -> Option<Vec<&'a StepId>> {
    let steps: BTreeMap<&StepId, &'a Step> = left.iter().map(|step| (&step.id, *step)).collect();
    let mut path: Vec<&'a StepId> = vec![&left.first()?.id];
    loop {
        let last = *path.last()?;
        let next = steps.get(last)?.needs.iter().find(|need| stuck.contains(need))?;
        if let Some(at) = path.iter().position(|id| *id == next) {
            path.push(next);
            return Some(path.split_off(at));
        }
        path.push(next);
    }
}
