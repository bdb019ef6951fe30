//! Faults in the recovery itself, for tests: the engine can be made to die before or after any
//! step, to fail a step once, and to run a step twice.
//!
//! They are read from `RESURGAM_RECOVERY_FAULT`, such as `die-before:promote`, and only for a
//! deployment on which drills are allowed.

use std::str::FromStr;

/// The variable.
pub const VARIABLE: &str = "RESURGAM_RECOVERY_FAULT";

/// What to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Die after the step is recorded as started and before it acts.
    DieBefore,
    /// Die after the step has acted and before it is recorded as done.
    DieAfter,
    /// Let the first try fail.
    FailOnce,
    /// Run the step a second time after it succeeded.
    Repeat,
}

/// A fault at a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Where.
    pub step: String,
}

/// A text names no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE}={0:?} names no fault; write die-before, die-after, fail-once or repeat, a colon, and a step"
)]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownFault(text.to_owned());
        let (kind, step) = text.split_once(':').ok_or_else(unknown)?;
        let kind = match kind {
            "die-before" => Kind::DieBefore,
            "die-after" => Kind::DieAfter,
            "fail-once" => Kind::FailOnce,
            "repeat" => Kind::Repeat,
            _ => return Err(unknown()),
        };
        Ok(Self { kind, step: step.to_owned() })
    }
}

impl Fault {
    /// Dies, if that is what is to be done wrong before this step.
    pub fn die_before(&self, step: &str) {
        if self.is(Kind::DieBefore, step) {
            die();
        }
    }

    /// Whether it is this one.
    pub(super) fn is(&self, kind: Kind, step: &str) -> bool {
        self.kind == kind && self.step == step
    }
}

/// Dies as by `kill -9`: nothing is flushed, nothing is said.
pub(super) fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal cannot be caught; this line is for the compiler.
    std::process::abort()
}
