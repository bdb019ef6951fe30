//! From JSON to the parts of a definition; each step by itself, so that one that cannot be read
//! does not hide what is wrong with the others.

use std::collections::{BTreeMap, BTreeSet};

use resurgam_model::task::RetryPolicy;
use resurgam_model::{Capability, Duration};
use serde::Deserialize;
use serde_json::Value;

use super::Problems;
use crate::StepId;
use crate::definition::{
    Action, Compensation, Kind, MAX_STEPS, OnFailure, Parameter, Parts, Step, TaskTerms, Wait,
};
use crate::expression::Expression;
use crate::template::{Template, parse_expression};

/// Longer time-outs, timers and waits are mistakes.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDefinition {
    name: String,
    #[serde(default = "one")]
    version: u32,
    description: Option<String>,
    input: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    steps: Vec<Value>,
    timeout: Option<Duration>,
    output: Option<Value>,
    keep: Option<Duration>,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    id: String,
    capability: Option<Capability>,
    workflow: Option<String>,
    wait: Option<RawWait>,
    #[serde(default)]
    needs: Vec<String>,
    when: Option<String>,
    for_each: Option<Value>,
    max_parallel: Option<u32>,
    input: Option<Value>,
    retry: Option<RetryPolicy>,
    timeout: Option<Duration>,
    priority: Option<i16>,
    key: Option<String>,
    compensate: Option<RawCompensation>,
    #[serde(default)]
    on_failure: OnFailure,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWait {
    signal: Option<String>,
    approval: Option<String>,
    timer: Option<Duration>,
    until: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCompensation {
    capability: Capability,
    input: Option<Value>,
    retry: Option<RetryPolicy>,
    timeout: Option<Duration>,
    #[serde(default)]
    priority: i16,
}

/// TOML as JSON; its dates become texts.
pub(crate) fn toml_to_json(toml: toml::Value) -> Value {
    match toml {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(truth) => Value::Bool(truth),
        toml::Value::Datetime(moment) => Value::String(moment.to_string()),
        toml::Value::Array(list) => list.into_iter().map(toml_to_json).collect(),
        toml::Value::Table(table) => {
            table.into_iter().map(|(key, value)| (key, toml_to_json(value))).collect()
        }
    }
}

/// What can be read. `None` when there is nothing to check further.
pub(super) fn read(json: &Value, problems: &mut Problems) -> Option<Parts> {
    let raw: RawDefinition = match Deserialize::deserialize(json) {
        Ok(raw) => raw,
        Err(error) => {
            problems.add("", format!("{error}"));
            return None;
        }
    };
    if let Err(error) = Capability::new(raw.name.as_str()) {
        let why = error.to_string().replace("capability", "the workflow's name");
        problems.add("", why);
    }
    if raw.version == 0 {
        problems.add("", "version must be at least 1");
    }
    for (name, value) in [("timeout", raw.timeout), ("keep", raw.keep)] {
        bounded("", name, value, problems);
    }
    if raw.steps.is_empty() {
        problems.add("", "there are no steps; write at least one [[steps]]");
    }
    if raw.steps.len() > MAX_STEPS {
        problems.add("", format!("{} steps; at most {MAX_STEPS} are taken", raw.steps.len()));
    }
    let input = raw.input.map(|input| {
        input
            .into_iter()
            .filter_map(|(name, value)| Some((name.clone(), parameter(&name, value, problems)?)))
            .collect()
    });
    let output = raw.output.unwrap_or_default();
    let output = template("output", "", &output, problems);
    let mut steps = Vec::with_capacity(raw.steps.len());
    let (mut names, mut unread) = (BTreeSet::new(), BTreeSet::new());
    for (n, value) in raw.steps.into_iter().enumerate() {
        let name = value.get("id").and_then(Value::as_str).map(str::to_owned);
        let at = name
            .as_ref()
            .map_or_else(|| format!("step number {}", n + 1), |name| format!("step {name}"));
        if let Some(name) = &name
            && !names.insert(name.clone())
        {
            problems.add(&at, "there are two steps of this name; give one of them another");
        }
        match (step(&at, value, problems), name) {
            (Some(step), _) => steps.push(step),
            (None, Some(name)) => drop(unread.insert(name)),
            (None, None) => {}
        }
    }
    Some(Parts {
        name: raw.name,
        version: raw.version,
        description: raw.description,
        input,
        steps,
        timeout: raw.timeout,
        output,
        keep: raw.keep,
        unread,
    })
}

fn parameter(name: &str, value: Value, problems: &mut Problems) -> Option<Parameter> {
    let at = format!("input {name}");
    // `topic = "string"` is short for `topic = { type = "string" }`.
    let value = match value {
        Value::String(kind) => serde_json::json!({ "type": kind }),
        other => other,
    };
    match serde_json::from_value::<Parameter>(value) {
        Ok(parameter) => {
            match &parameter.default {
                Some(default) if !parameter.kind.takes(default) => problems.add(
                    &at,
                    format!("the default value is not {}", parameter.kind.with_article()),
                ),
                Some(_) if parameter.required == Some(true) => {
                    problems.add(&at, "it is required, so its default is never used; drop one");
                }
                _ => {}
            }
            Some(parameter)
        }
        Err(error) => {
            problems.add(at, error.to_string());
            None
        }
    }
}

impl Kind {
    /// Whether a value is of this type.
    pub(crate) fn takes(self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::String => value.is_string(),
            Self::Number => value.is_number(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Boolean => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
        }
    }

    pub(crate) fn with_article(self) -> &'static str {
        match self {
            Self::Any => "any JSON",
            Self::String => "a string",
            Self::Number => "a number",
            Self::Integer => "an integer",
            Self::Boolean => "a boolean",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }
}

fn template(name: &str, at: &str, value: &Value, problems: &mut Problems) -> Template {
    Template::parse(value).unwrap_or_else(|error| {
        problems.add(at, format!("{name}: {error}"));
        Template::default()
    })
}

fn bounded(at: &str, name: &str, value: Option<Duration>, problems: &mut Problems) {
    if let Some(value) = value
        && value > LONGEST
    {
        problems.add(at, format!("{name} is {value}; at most {LONGEST} is taken"));
    }
}

fn retry(at: &str, retry: Option<RetryPolicy>, problems: &mut Problems) -> RetryPolicy {
    let retry = retry.unwrap_or_default();
    if retry.max_attempts == 0 {
        problems.add(at, "retry.max_attempts must be at least 1");
    }
    bounded(at, "retry.backoff", Some(retry.backoff), problems);
    bounded(at, "retry.max_backoff", Some(retry.max_backoff), problems);
    retry
}

fn step(at: &str, value: Value, problems: &mut Problems) -> Option<Step> {
    let raw: RawStep = match serde_json::from_value(value) {
        Ok(raw) => raw,
        Err(error) => {
            problems.add(at, error.to_string());
            return None;
        }
    };
    let id = match StepId::new(&raw.id) {
        Ok(id) => id,
        Err(error) => {
            problems.add(at, error.to_string());
            return None;
        }
    };
    bounded(at, "timeout", raw.timeout, problems);
    if raw.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        problems.add(at, "timeout must be longer than nothing");
    }
    let needs = raw.needs.iter().filter_map(|need| match StepId::new(need) {
        Ok(id) => Some(id),
        Err(error) => {
            problems.add(at, format!("needs: {error}"));
            None
        }
    });
    let needs = needs.collect();
    let when = raw.when.as_deref().and_then(|when| expression("when", at, when, problems));
    let for_each = raw.for_each.as_ref().and_then(|list| match list {
        Value::String(text) => expression("for_each", at, text, problems),
        Value::Array(_) => Some(Expression::Literal(list.clone())),
        _ => {
            problems.add(at, "for_each takes an expression that gives a list, or a list");
            None
        }
    });
    if raw.max_parallel == Some(0) {
        problems.add(at, "max_parallel must be at least 1");
    }
    if raw.max_parallel.is_some() && raw.for_each.is_none() {
        problems.add(at, "max_parallel means nothing without for_each; drop it or add for_each");
    }
    let input = raw.input.as_ref().map(|input| template("input", at, input, problems));
    let compensate = raw.compensate.as_ref().map(|raw| Compensation {
        task: TaskTerms {
            capability: raw.capability.clone(),
            retry: retry(at, raw.retry, problems),
            timeout: raw.timeout,
            priority: raw.priority,
            key: None,
        },
        input: raw.input.as_ref().map(|input| template("compensate.input", at, input, problems)),
    });
    let action = action(at, &raw, problems)?;
    Some(Step {
        id,
        action,
        needs,
        when,
        for_each,
        max_parallel: raw.max_parallel,
        input: input.unwrap_or_default(),
        compensate,
        on_failure: raw.on_failure,
    })
}

fn expression(name: &str, at: &str, text: &str, problems: &mut Problems) -> Option<Expression> {
    match parse_expression(text) {
        Ok(expression) => Some(expression),
        Err(error) => {
            problems.add(at, format!("{name}: {error}"));
            None
        }
    }
}

fn action(at: &str, raw: &RawStep, problems: &mut Problems) -> Option<Action> {
    let only_for_tasks = |what: &str, problems: &mut Problems| {
        for (name, there) in [
            ("retry", raw.retry.is_some()),
            ("priority", raw.priority.is_some()),
            ("key", raw.key.is_some()),
        ] {
            if there {
                problems.add(at, format!("{name} is for steps with a capability, not for {what}"));
            }
        }
    };
    match (&raw.capability, &raw.workflow, &raw.wait) {
        (Some(capability), None, None) => Some(Action::Task(TaskTerms {
            capability: capability.clone(),
            retry: retry(at, raw.retry, problems),
            timeout: raw.timeout,
            priority: raw.priority.unwrap_or(0),
            key: raw
                .key
                .as_ref()
                .map(|key| template("key", at, &Value::from(key.as_str()), problems)),
        })),
        (None, Some(workflow), None) => {
            only_for_tasks("a sub-workflow", problems);
            let (name, version) = match workflow.split_once('@') {
                None => (workflow.as_str(), None),
                Some((name, version)) => match version.parse::<u32>() {
                    Ok(version) if version > 0 => (name, Some(version)),
                    _ => {
                        problems.add(at, format!("{version:?} is no version; write name@2"));
                        return None;
                    }
                },
            };
            if let Err(error) = Capability::new(name) {
                problems.add(at, error.to_string().replace("capability", "the workflow's name"));
                return None;
            }
            Some(Action::Workflow { name: name.to_owned(), version, timeout: raw.timeout })
        }
        (None, None, Some(wait)) => {
            only_for_tasks("a wait", problems);
            for (name, there) in [
                ("for_each", raw.for_each.is_some()),
                ("compensate", raw.compensate.is_some()),
                ("input", raw.input.is_some()),
            ] {
                if there {
                    problems.add(at, format!("a wait takes no {name}"));
                }
            }
            self::wait(at, wait, raw.timeout, problems).map(Action::Wait)
        }
        (None, None, None) => {
            problems.add(at, "it does nothing; give it one of capability, workflow and wait");
            None
        }
        _ => {
            problems.add(at, "it has more than one of capability, workflow and wait; keep one");
            None
        }
    }
}

fn wait(
    at: &str,
    raw: &RawWait,
    timeout: Option<Duration>,
    problems: &mut Problems,
) -> Option<Wait> {
    let wait = match (&raw.signal, &raw.approval, raw.timer, &raw.until) {
        (Some(name), None, None, None) => {
            if let Err(error) = Capability::new(name.as_str()) {
                problems.add(at, error.to_string().replace("capability", "the signal's name"));
            }
            return Some(Wait::Signal { name: name.clone(), timeout });
        }
        (None, Some(prompt), None, None) => {
            return Some(Wait::Approval { prompt: prompt.clone(), timeout });
        }
        (None, None, Some(timer), None) => {
            bounded(at, "wait.timer", Some(timer), problems);
            Wait::Timer(timer)
        }
        (None, None, None, Some(until)) => {
            Wait::Until(template("wait.until", at, &Value::from(until.as_str()), problems))
        }
        _ => {
            problems.add(at, "wait takes exactly one of signal, approval, timer and until");
            return None;
        }
    };
    if timeout.is_some() {
        problems.add(at, "a timer ends by itself; drop the timeout");
    }
    Some(wait)
}
