//! Runbooks: lists of steps, and the engine that goes through them.

mod engine;
pub mod faults;
mod outline;

pub use engine::{Ended, Terms, execute};
pub use outline::{Outline, outline};

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use resurgam_model::report::StepStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::journal::{Incident, StepRecord};

/// One step of a runbook.
///
/// Steps are idempotent: the engine may run one again after it was interrupted anywhere, or
/// even after it was done. A step therefore looks first and does only what is missing.
#[async_trait]
pub trait Step: Send + Sync {
    /// What it is, for people.
    fn outline(&self) -> &'static Outline;

    /// Its name in the journal and the report.
    fn name(&self) -> &'static str {
        self.outline().name
    }

    /// How long one try may take.
    fn timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// How many tries one life of the controller makes.
    fn attempts(&self) -> u32 {
        3
    }

    /// Whether the service works again once this step is done; what follows is redundancy.
    fn restores_service(&self) -> bool {
        false
    }

    /// What it may do to what still works.
    fn danger(&self) -> Danger {
        self.outline().danger
    }

    /// Does it, and verifies that it is done.
    ///
    /// # Errors
    /// Says whether another try can help.
    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop>;
}

/// What a step may do to what still works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Danger {
    /// Nothing: it only looks.
    Looks,
    /// It acts on what is broken, or adds to what works.
    Acts,
    /// It takes something away that may still be needed: power, connections, data.
    Dangerous,
}

/// What a step can look back on.
#[derive(Debug)]
pub struct SoFar<'a> {
    /// The incident.
    pub incident: &'a Incident,
    /// The steps before, as recorded.
    pub steps: &'a [StepRecord],
    /// The step has waited for people: what the steps before found may no longer hold.
    pub waited: bool,
    /// The questions of this step to which enough people have agreed.
    pub agreed: &'a BTreeSet<String>,
}

impl SoFar<'_> {
    /// What the step of that name left for later ones.
    #[must_use]
    pub fn output(&self, step: &str) -> Option<&Value> {
        self.steps.iter().find(|record| record.name == step).map(|record| &record.output)
    }
}

/// A step that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// [`StepStatus::Done`] or [`StepStatus::Skipped`].
    pub status: StepStatus,
    /// What was found or done, for people.
    pub detail: String,
    /// What later steps need to know.
    pub output: Value,
}

impl Done {
    /// It was done.
    pub fn now(detail: impl Into<String>) -> Self {
        Self { status: StepStatus::Done, detail: detail.into(), output: Value::Null }
    }

    /// It was not needed.
    pub fn skipped(detail: impl Into<String>) -> Self {
        Self { status: StepStatus::Skipped, detail: detail.into(), output: Value::Null }
    }

    /// With something for later steps.
    #[must_use]
    pub fn with(mut self, output: Value) -> Self {
        self.output = output;
        self
    }
}

/// A step that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It failed; another try may help.
    Retry(String),
    /// To go on would not be safe.
    Refuse(String),
    /// A person has to decide: the question, with all that the answer depends on. Once people have
    /// agreed the step is run again, and finds it in [`SoFar::agreed`].
    Ask(String),
    /// There is nothing to recover from.
    FalseAlarm(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self::Retry(text)
    }
}
