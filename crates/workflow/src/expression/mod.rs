//! The language of references and conditions.
//!
//! ```text
//! input.topic                      steps.draft.output.pages[0].url
//! steps.review.state == 'failed'   length(input.urls) > 3 and not exists(input.draft)
//! item.language in ['de', 'fr']    coalesce(input.title, 'untitled')
//! ```
//!
//! It is total: every expression has a value whatever the data are. What is not there is `null`,
//! and to compare what cannot be compared is `false`. There are no loops and no functions of
//! one's own. It is our own and small, because a workflow must know before it starts which steps
//! each expression refers to: that is what is checked, and what is loaded.

mod evaluate;
mod parse;

use std::fmt;

use serde_json::Value;

use crate::StepId;

pub use evaluate::{Scope, is_true};

/// An expression, checked for its form.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// A value.
    Literal(Value),
    /// What is found along a path.
    Path(Path),
    /// A list of values.
    List(Vec<Expression>),
    /// `not x`
    Not(Box<Expression>),
    /// `x and y`
    And(Box<Expression>, Box<Expression>),
    /// `x or y`
    Or(Box<Expression>, Box<Expression>),
    /// `x == y` and the like.
    Compare(Comparison, Box<Expression>, Box<Expression>),
    /// `length(x)` and the like.
    Call(Function, Vec<Expression>),
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// `<`, of two numbers or two texts.
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `x in y`: y is a list with x in it, a text with the text x in it, or an object with that key.
    In,
}

/// What can be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Whether there is something at the path, if only `null`.
    Exists,
    /// How many elements, keys or characters; 0 of anything else.
    Length,
    /// The first of the values that is not `null`.
    Coalesce,
}

/// A way into the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where it begins.
    pub root: Root,
    /// Further steps inward.
    pub segments: Vec<Segment>,
}

/// Where a path begins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Root {
    /// `input`: what the workflow was started with.
    Input,
    /// `item`: the element of the list, in a step that fans out.
    Item,
    /// `index`: its place in the list, from 0.
    Index,
    /// `output`: in a compensation, what the step gave.
    Output,
    /// `steps.NAME.output`, `.state`, `.error`.
    Step(StepId, Part),
}

/// What can be known of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What it gave; `null` unless it is completed.
    Output,
    /// Where it stands.
    State,
    /// Why it failed; `null` if it did not.
    Error,
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// `.name` or `['name']`
    Key(String),
    /// `[3]`; a negative number counts from the end.
    Index(i64),
}

/// A text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {what} at character {at}")]
pub struct SyntaxError {
    /// The expression, shortened.
    text: String,
    /// What is wrong.
    what: String,
    /// Where, from 1.
    at: usize,
}

impl SyntaxError {
    /// An expression in a text without an end.
    pub(crate) fn unclosed(text: &str) -> Self {
        Self {
            text: text.chars().take(120).collect(),
            what: "the closing } is missing".to_owned(),
            at: text.chars().count() + 1,
        }
    }
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// When it is none: what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        parse::parse(text)
    }

    /// Calls `found` with each root that the value may depend on.
    pub fn roots<'a>(&'a self, found: &mut dyn FnMut(&'a Path)) {
        match self {
            Self::Literal(_) => {}
            Self::Path(path) => found(path),
            Self::List(parts) | Self::Call(_, parts) => {
                for part in parts {
                    part.roots(found);
                }
            }
            Self::Not(part) => part.roots(found),
            Self::And(a, b) | Self::Or(a, b) | Self::Compare(_, a, b) => {
                a.roots(found);
                b.roots(found);
            }
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input => f.write_str("input"),
            Self::Item => f.write_str("item"),
            Self::Index => f.write_str("index"),
            Self::Output => f.write_str("output"),
            Self::Step(id, part) => write!(f, "steps.{id}.{}", part.as_str()),
        }
    }
}

impl Part {
    /// The name in an expression.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::State => "state",
            Self::Error => "error",
        }
    }
}
