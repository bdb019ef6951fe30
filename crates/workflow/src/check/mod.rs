//! Reading definitions and checking them, so that all that is wrong is told at once.

mod graph;
mod input;
mod raw;
mod references;

use std::fmt;

use serde_json::Value;

use crate::definition::Definition;

pub(crate) use input::input;
pub(crate) use raw::toml_to_json;

/// Everything that is wrong; at least one thing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Problems(Vec<Problem>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `step draft`, `input topic`; empty for the whole.
    pub at: String,
    /// What, and what to do about it.
    pub what: String,
}

impl Problems {
    /// A single one.
    #[must_use]
    pub fn one(at: impl Into<String>, what: impl Into<String>) -> Self {
        Self(vec![Problem { at: at.into(), what: what.into() }])
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub(crate) fn add(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.0.push(Problem { at: at.into(), what: what.into() });
    }

    pub(crate) fn none(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", self.at, self.what)
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads and checks a definition.
pub(crate) fn read(json: Value) -> Result<Definition, Problems> {
    let mut problems = Problems::default();
    let Some(parts) = raw::read(&json, &mut problems) else { return Err(problems) };
    let upstream = graph::check(&parts, &mut problems);
    references::check(&parts, &upstream, &mut problems);
    if problems.none() { Ok(Definition::assemble(parts, json)) } else { Err(problems) }
}

/// What of a list is most like the text, to suggest it.
pub(crate) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| (strsim::jaro_winkler(text, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| format!("; did you mean {name}?"))
        .unwrap_or_default()
}
