//! Names of steps, and of what is done for them.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name of a step in bytes.
const MAX_STEP: usize = 64;

/// The name of a step within its workflow: a letter, then letters, digits, `_` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StepId(Arc<str>);

/// A text names no step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a step: use 1 to {MAX_STEP} of the characters a-z, A-Z, 0-9, '_' and '-', \
     the first of them a letter"
)]
pub struct InvalidStepId(String);

impl StepId {
    /// Checks the name.
    ///
    /// # Errors
    /// When it is empty, too long, or could not be written in an expression.
    pub fn new(text: &str) -> Result<Self, InvalidStepId> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if first && rest && text.len() <= MAX_STEP {
            return Ok(Self(text.into()));
        }
        Err(InvalidStepId(text.chars().take(MAX_STEP).collect()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Borrow<str> for StepId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for StepId {
    type Err = InvalidStepId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for StepId {
    type Error = InvalidStepId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<StepId> for String {
    fn from(id: StepId) -> Self {
        id.0.as_ref().to_owned()
    }
}

/// A step, or one item of a step that fans out: `draft`, `draft[17]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The step.
    pub step: StepId,
    /// Which item of its list, from 0.
    pub item: Option<u32>,
}

impl Place {
    /// The step itself.
    #[must_use]
    pub fn step(step: &StepId) -> Self {
        Self { step: step.clone(), item: None }
    }

    /// One of its items.
    #[must_use]
    pub fn item(step: &StepId, item: u32) -> Self {
        Self { step: step.clone(), item: Some(item) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            None => write!(f, "{}", self.step),
            Some(item) => write!(f, "{}[{item}]", self.step),
        }
    }
}

/// What one task or one sub-workflow does for a workflow: the step or item, whether it does or
/// undoes it, and in which run of the workflow (retries count up from 1). Written `draft`,
/// `draft[17]`, `draft[17]!undo#2`; the same key never stands for two tasks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkKey {
    /// For what.
    pub place: Place,
    /// True for a compensation.
    pub undo: bool,
    /// In which run of the workflow.
    pub run: u32,
}

/// A text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name the work of a step, such as draft, draft[17] or draft!undo#2")]
pub struct InvalidWorkKey(String);

impl fmt::Display for WorkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if self.undo {
            f.write_str("!undo")?;
        }
        if self.run > 1 {
            write!(f, "#{}", self.run)?;
        }
        Ok(())
    }
}

impl FromStr for WorkKey {
    type Err = InvalidWorkKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (rest, run) = match text.split_once('#') {
                Some((rest, run)) => (rest, run.parse().ok()?),
                None => (text, 1),
            };
            let (rest, undo) = match rest.strip_suffix("!undo") {
                Some(rest) => (rest, true),
                None => (rest, false),
            };
            let (step, item) = match rest.strip_suffix(']') {
                Some(rest) => {
                    let (step, item) = rest.split_once('[')?;
                    (step, Some(item.parse().ok()?))
                }
                None => (rest, None),
            };
            Some(Self { place: Place { step: StepId::new(step).ok()?, item }, undo, run })
        };
        parse().ok_or_else(|| InvalidWorkKey(text.chars().take(100).collect()))
    }
}

impl TryFrom<String> for WorkKey {
    type Error = InvalidWorkKey;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WorkKey> for String {
    fn from(key: WorkKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_they_are_written() {
        for text in ["draft", "draft[17]", "draft!undo", "a-b_c[0]!undo#12", "draft#3"] {
            assert_eq!(text.parse::<WorkKey>().unwrap().to_string(), text);
        }
        for bad in ["", "1x", "draft[", "draft[x]", "draft#", "draft!redo", "a b", "draft]"] {
            assert!(bad.parse::<WorkKey>().is_err(), "{bad}");
        }
    }
}
