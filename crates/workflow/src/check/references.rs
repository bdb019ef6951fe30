//! Whether what is referred to is there when it is referred to.

use std::collections::BTreeSet;

use super::graph::Upstream;
use super::{Problems, nearest};
use crate::StepId;
use crate::definition::{Action, Parts, Step, Wait};
use crate::expression::{Expression, Path, Root, Segment, is_true};
use crate::template::Template;

/// What an expression may refer to.
#[derive(Clone, Copy)]
struct Allowed<'a> {
    /// Steps that are over by then; `None` stands for all.
    steps: Option<&'a BTreeSet<StepId>>,
    /// The step itself, in its compensation.
    itself: Option<&'a StepId>,
    /// Whether there is an item.
    item: bool,
    /// Whether there is an output.
    output: bool,
}

pub(super) fn check(parts: &Parts, upstream: &Upstream, problems: &mut Problems) {
    let checker = Checker { parts };
    let end = Allowed { steps: None, itself: None, item: false, output: false };
    checker.template("", "output", &parts.output, end, problems);
    for step in &parts.steps {
        checker.step(step, upstream, problems);
    }
}

struct Checker<'a> {
    parts: &'a Parts,
}

impl Checker<'_> {
    fn step(&self, step: &Step, upstream: &Upstream, problems: &mut Problems) {
        let at = format!("step {}", step.id);
        // Without knowing what comes before, the graph itself is wrong, and that has been said.
        let Some(before) = upstream.get(&step.id) else { return };
        let fans_out = step.for_each.is_some();
        let start = Allowed { steps: Some(before), itself: None, item: false, output: false };
        let work = Allowed { item: fans_out, ..start };
        if let Some(when) = &step.when {
            self.expression(&at, "when", when, start, problems);
            let mut depends = false;
            when.roots(&mut |_| depends = true);
            if !depends && !is_true(&when.evaluate(&Nothing)) {
                problems.add(&at, "it can never run: its `when` is always false");
            }
        }
        if let Some(for_each) = &step.for_each {
            self.expression(&at, "for_each", for_each, start, problems);
        }
        self.template(&at, "input", &step.input, work, problems);
        match &step.action {
            Action::Task(terms) => {
                if let Some(key) = &terms.key {
                    self.template(&at, "key", key, work, problems);
                }
            }
            Action::Wait(Wait::Until(until)) => {
                self.template(&at, "wait.until", until, start, problems);
            }
            Action::Workflow { .. } | Action::Wait(_) => {}
        }
        if let Some(input) = step.compensate.as_ref().and_then(|undo| undo.input.as_ref()) {
            let undo = Allowed { itself: Some(&step.id), output: true, ..work };
            self.template(&at, "compensate.input", input, undo, problems);
        }
    }

    fn template(
        &self,
        at: &str,
        name: &str,
        template: &Template,
        allowed: Allowed<'_>,
        problems: &mut Problems,
    ) {
        template.roots(&mut |path| self.path(at, name, path, allowed, problems));
    }

    fn expression(
        &self,
        at: &str,
        name: &str,
        expression: &Expression,
        allowed: Allowed<'_>,
        problems: &mut Problems,
    ) {
        expression.roots(&mut |path| self.path(at, name, path, allowed, problems));
    }

    fn path(
        &self,
        at: &str,
        name: &str,
        path: &Path,
        allowed: Allowed<'_>,
        problems: &mut Problems,
    ) {
        let what = match &path.root {
            Root::Input => {
                let (Some(input), Some(Segment::Key(key))) =
                    (&self.parts.input, path.segments.first())
                else {
                    return;
                };
                if input.contains_key(key) {
                    return;
                }
                let hint = nearest(key, input.keys().map(String::as_str));
                format!("input.{key} is not among the inputs of the workflow{hint}")
            }
            Root::Item | Root::Index if allowed.item => return,
            Root::Item | Root::Index => {
                format!("{} is known only in the input of a step with for_each", path.root)
            }
            Root::Output if allowed.output => return,
            Root::Output => "output is known only in compensate.input; for the output of another \
                             step write steps.NAME.output"
                .to_owned(),
            Root::Step(id, _) => {
                let known = |id: &StepId| self.parts.steps.iter().any(|step| &step.id == id);
                if self.parts.unread.contains(id.as_str()) {
                    return;
                } else if !known(id) {
                    let names = self.parts.steps.iter().map(|step| step.id.as_str());
                    format!("there is no step {id}{}", nearest(id.as_str(), names))
                } else if allowed.itself == Some(id)
                    || allowed.steps.is_none_or(|steps| steps.contains(id))
                {
                    return;
                } else {
                    format!("step {id} need not be over by then; add it to the needs")
                }
            }
        };
        problems.add(at, format!("{name}: {what}"));
    }
}

/// Surroundings in which there is nothing.
struct Nothing;

impl crate::expression::Scope for Nothing {
    fn root(&self, _: &Root) -> Option<std::borrow::Cow<'_, serde_json::Value>> {
        None
    }
}
