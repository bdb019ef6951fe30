//! How the program ends when something went wrong.

use std::error::Error;

/// Exit codes.
pub(crate) mod code {
    /// It worked.
    pub(crate) const OK: u8 = 0;
    /// It did not work.
    pub(crate) const FAILED: u8 = 1;
    /// It was called wrongly, or the plan cannot be used.
    pub(crate) const USAGE: u8 = 2;
    /// An objective was missed, or a recovery did not succeed.
    pub(crate) const MISSED: u8 = 3;
    /// It was not done because it is not allowed, or would not have been safe.
    pub(crate) const REFUSED: u8 = 4;
    /// It was interrupted.
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// What to say, and with which code to end.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was wrong, where, and what to do about it.
    pub(crate) message: String,
    /// The exit code.
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: code::FAILED }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: code::USAGE }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: code::REFUSED }
    }

    pub(crate) fn interrupted() -> Self {
        Self { message: "interrupted; no process is left".to_owned(), code: code::INTERRUPTED }
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their cause in their own text.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        Self::new(message)
    }
}
