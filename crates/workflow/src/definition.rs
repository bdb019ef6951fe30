//! What a workflow is made of, as its author wrote it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use resurgam_model::task::RetryPolicy;
use resurgam_model::{Capability, Duration};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::StepId;
use crate::check::{self, Problems};
use crate::expression::Expression;
use crate::template::Template;

/// The most steps of one workflow.
pub const MAX_STEPS: usize = 1000;

/// The most items over which one step fans out.
pub const MAX_ITEMS: usize = 100_000;

/// A workflow's definition, checked.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Its name, by which it is started.
    pub name: String,
    /// Its version, from 1. Name and version together never change their meaning.
    pub version: u32,
    /// For people.
    pub description: Option<String>,
    /// What it takes. `None`: anything.
    pub input: Option<BTreeMap<String, Parameter>>,
    /// Its steps, in the order in which they were written.
    pub steps: Vec<Step>,
    /// How long it may take as a whole.
    pub timeout: Option<Duration>,
    /// What it gives.
    pub output: Template,
    /// How long it is kept once it is finished.
    pub keep: Option<Duration>,
    /// The steps by their names.
    index: HashMap<StepId, usize>,
    /// For each step those that need it.
    dependants: Vec<Vec<usize>>,
    /// What it was read from.
    source: Value,
}

/// One thing that the workflow takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// What it may be.
    #[serde(default, rename = "type")]
    pub kind: Kind,
    /// Whether it must be given. By default it must unless it has a default value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// What it is if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The type of a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Any JSON.
    #[default]
    Any,
    /// A text.
    String,
    /// A number.
    Number,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A list.
    List,
    /// An object.
    Object,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub id: StepId,
    /// What it does.
    pub action: Action,
    /// The steps that must be over before.
    pub needs: Vec<StepId>,
    /// It is skipped unless this is true.
    pub when: Option<Expression>,
    /// It is done once for each element of this list.
    pub for_each: Option<Expression>,
    /// At most so many elements at once.
    pub max_parallel: Option<u32>,
    /// What its task, its sub-workflow works on.
    pub input: Template,
    /// How it is undone.
    pub compensate: Option<Compensation>,
    /// What its failure means for the workflow.
    pub on_failure: OnFailure,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Action {
    /// A task for agents with this capability.
    Task(TaskTerms),
    /// Another workflow.
    Workflow {
        /// Its name.
        name: String,
        /// Its version; the latest if none is named.
        version: Option<u32>,
        /// How long it may take.
        timeout: Option<Duration>,
    },
    /// Waiting.
    Wait(Wait),
}

/// A task, as a step or a compensation asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskTerms {
    /// What an agent must be able to do.
    pub capability: Capability,
    /// Tries and waits.
    pub retry: RetryPolicy,
    /// How long one try may take.
    pub timeout: Option<Duration>,
    /// Higher goes first.
    pub priority: i16,
    /// The key of its concurrency limit and its fair share.
    pub key: Option<Template>,
}

/// What is waited for.
#[derive(Clone, Debug)]
pub enum Wait {
    /// A signal of this name. The step's output is what the signal carries.
    Signal {
        /// Its name.
        name: String,
        /// The longest wait; after it the step has failed.
        timeout: Option<Duration>,
    },
    /// A person's yes or no; the signal has the name of the step.
    Approval {
        /// What is asked.
        prompt: String,
        /// The longest wait; after it the step has failed.
        timeout: Option<Duration>,
    },
    /// So long.
    Timer(Duration),
    /// Until the moment that this gives, as RFC 3339 text.
    Until(Template),
}

/// How a completed step is undone.
#[derive(Clone, Debug)]
pub struct Compensation {
    /// The task that does it.
    pub task: TaskTerms,
    /// What that task works on: the step's output by default.
    pub input: Option<Template>,
}

/// What a step's failure means for its workflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The workflow fails.
    #[default]
    Fail,
    /// The workflow goes on, and the step's output is `null`.
    Continue,
}

impl Definition {
    /// Reads TOML, or JSON if the text begins with `{`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_text(text: &str) -> Result<Self, Problems> {
        if text.trim_start().starts_with('{') {
            let json = serde_json::from_str(text)
                .map_err(|error| Problems::one("", format!("it is not JSON: {error}")))?;
            return Self::from_json(json);
        }
        let table: toml::Table = toml::from_str(text)
            .map_err(|error| Problems::one("", format!("it is not TOML: {error}")))?;
        Self::from_json(check::toml_to_json(toml::Value::Table(table)))
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_json(json: Value) -> Result<Self, Problems> {
        check::read(json)
    }

    pub(crate) fn assemble(parts: Parts, source: Value) -> Self {
        let index: HashMap<_, _> =
            parts.steps.iter().enumerate().map(|(n, step)| (step.id.clone(), n)).collect();
        let mut dependants = vec![Vec::new(); parts.steps.len()];
        for (n, step) in parts.steps.iter().enumerate() {
            for need in step.needs.iter().collect::<BTreeSet<_>>() {
                if let Some(list) = index.get(need).and_then(|&i| dependants.get_mut(i)) {
                    list.push(n);
                }
            }
        }
        let Parts { name, version, description, input, steps, timeout, output, keep, unread: _ } =
            parts;
        Self {
            name,
            version,
            description,
            input,
            steps,
            timeout,
            output,
            keep,
            index,
            dependants,
            source,
        }
    }

    /// The JSON that it was read from.
    #[must_use]
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// The step of that name.
    #[must_use]
    pub fn step(&self, id: &StepId) -> Option<&Step> {
        self.steps.get(*self.index.get(id)?)
    }

    /// The steps that need this one.
    pub fn dependants<'a>(&'a self, id: &StepId) -> impl Iterator<Item = &'a Step> {
        let list = self.index.get(id).and_then(|&n| self.dependants.get(n));
        list.into_iter().flatten().filter_map(|&n| self.steps.get(n))
    }

    /// The names of the signals that somebody may wait for.
    #[must_use]
    pub fn signals(&self) -> BTreeSet<&str> {
        self.steps.iter().filter_map(Step::signal).collect()
    }

    /// Checks what the workflow is started with, and puts in what has a default.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check_input(&self, input: Value) -> Result<Value, Problems> {
        check::input(self, input)
    }
}

impl Step {
    /// The signal that it waits for.
    #[must_use]
    pub fn signal(&self) -> Option<&str> {
        match &self.action {
            Action::Wait(Wait::Signal { name, .. }) => Some(name),
            Action::Wait(Wait::Approval { .. }) => Some(self.id.as_str()),
            _ => None,
        }
    }
}

/// What a definition is put together from.
pub(crate) struct Parts {
    /// Names of steps that could not be read; that they are missing is no further mistake.
    pub(crate) unread: BTreeSet<String>,
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) description: Option<String>,
    pub(crate) input: Option<BTreeMap<String, Parameter>>,
    pub(crate) steps: Vec<Step>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) output: Template,
    pub(crate) keep: Option<Duration>,
}
