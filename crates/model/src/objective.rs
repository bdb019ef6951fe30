//! Severities and objectives.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Duration;

/// How bad an incident is. P0 sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// Critical: complete outage, no service available.
    P0,
    /// High: major functions degraded, significant impact.
    P1,
    /// Medium: part of the functions affected.
    P2,
    /// Low: minor trouble with a workaround.
    P3,
}

impl Severity {
    /// The next graver one; P0 itself has none.
    #[must_use]
    pub fn graver(self) -> Self {
        match self {
            Self::P0 | Self::P1 => Self::P0,
            Self::P2 => Self::P1,
            Self::P3 => Self::P2,
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::P0 => "P0",
            Self::P1 => "P1",
            Self::P2 => "P2",
            Self::P3 => "P3",
        })
    }
}

/// What a scenario promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objectives {
    /// Recovery time objective: from the fault (drill) or the first failed probe (incident) to
    /// the first verified success.
    pub rto: Duration,
    /// Recovery point objective: the greatest allowed age of an acknowledged write that is
    /// missing afterwards.
    pub rpo: Duration,
}
