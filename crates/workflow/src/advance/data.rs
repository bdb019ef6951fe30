//! What expressions see, and what has to be loaded for that.

use std::borrow::Cow;
use std::collections::BTreeSet;

use resurgam_model::Payload;
use serde_json::Value;

use super::{Need, Needs, Walk};
use crate::StepId;
use crate::expression::{Expression, Part, Path, Root, Scope};
use crate::state::{Slot, StepState};
use crate::template::Template;

/// Where parsed data come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Input,
    Output(StepId),
}

/// What a single item, or a compensation, sees beside the rest.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    pub(super) item: Option<Value>,
    pub(super) index: Option<u32>,
    pub(super) output: Option<Value>,
}

struct Surroundings<'a, 'b> {
    walk: &'a Walk<'b>,
    local: Option<&'a Local>,
}

impl Scope for Surroundings<'_, '_> {
    fn root(&self, root: &Root) -> Option<Cow<'_, Value>> {
        let parsed = |source| self.walk.parsed.get(&source).map(Cow::Borrowed);
        match root {
            Root::Input => parsed(Source::Input),
            Root::Item => self.local?.item.as_ref().map(Cow::Borrowed),
            Root::Index => self.local?.index.map(|index| Cow::Owned(Value::from(index))),
            Root::Output => self.local?.output.as_ref().map(Cow::Borrowed),
            Root::Step(id, Part::Output) => parsed(Source::Output(id.clone())),
            Root::Step(id, Part::State) => {
                Some(Cow::Owned(Value::from(self.walk.state.state_of(id).as_str())))
            }
            Root::Step(id, Part::Error) => {
                let error = self.walk.state.steps.get(id)?.error.as_deref()?;
                Some(Cow::Owned(Value::from(error)))
            }
        }
    }
}

impl Walk<'_> {
    /// What a template makes of the data.
    pub(super) fn render(&mut self, template: &Template, local: Option<&Local>) -> Needs<Payload> {
        Ok(as_payload(&self.render_value(template, local)?))
    }

    /// The same as a value.
    pub(super) fn render_value(
        &mut self,
        template: &Template,
        local: Option<&Local>,
    ) -> Needs<Value> {
        let mut sources = BTreeSet::new();
        template.roots(&mut |path| sources.extend(source(path)));
        self.parse(sources)?;
        Ok(template.render(&Surroundings { walk: self, local }))
    }

    /// The value of an expression.
    pub(super) fn evaluate(&mut self, expression: &Expression) -> Needs<Value> {
        let mut sources = BTreeSet::new();
        expression.roots(&mut |path| sources.extend(source(path)));
        self.parse(sources)?;
        Ok(expression.evaluate(&Surroundings { walk: self, local: None }).into_owned())
    }

    /// Makes sure that these are parsed.
    fn parse(&mut self, sources: BTreeSet<Source>) -> Needs {
        let mut needs = BTreeSet::new();
        for source in sources {
            if self.parsed.contains_key(&source) {
                continue;
            }
            let slot = match &source {
                Source::Input => &self.state.input,
                Source::Output(id) => match self.state.steps.get(id) {
                    Some(row) if row.state == StepState::Completed || row.fan.is_some() => {
                        &row.output
                    }
                    _ => &Slot::None,
                },
            };
            let value = match slot {
                Slot::None => Value::Null,
                Slot::Loaded(payload) => as_value(payload),
                Slot::Stored => {
                    needs.insert(match source {
                        Source::Input => Need::Input,
                        Source::Output(id) => Need::Output(id),
                    });
                    continue;
                }
            };
            self.parsed.insert(source, value);
        }
        if needs.is_empty() { Ok(()) } else { Err(needs) }
    }
}

fn source(path: &Path) -> Option<Source> {
    match &path.root {
        Root::Input => Some(Source::Input),
        Root::Step(id, Part::Output) => Some(Source::Output(id.clone())),
        _ => None,
    }
}

/// Payloads were checked to be JSON when they came in.
pub(super) fn as_value(payload: &Payload) -> Value {
    serde_json::from_str(payload.json()).unwrap_or(Value::Null)
}

pub(super) fn as_payload(value: &Value) -> Payload {
    Payload::from_json(value.to_string()).unwrap_or_default()
}
