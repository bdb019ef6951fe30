//! Durations as people write them.

use std::fmt;
use std::str::FromStr;

use jiff::fmt::friendly::{Designator, SpanParser, SpanPrinter};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// A length of time: `250ms`, `15m`, `1h 30m`. Never negative.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend(
    "format" = schema::DURATION,
    "pattern" = schema::DURATION_PATTERN,
    "minLength" = 2,
    "examples" = ["250ms", "1s 500ms"],
))]
pub struct Duration(pub std::time::Duration);

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: write a number and a unit, such as \"250ms\", \"15m\" or \"1h 30m\""
)]
pub struct InvalidDuration(String);

impl Duration {
    /// So many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// So many seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(std::time::Duration::from_secs(secs))
    }

    /// Whole milliseconds, at most `u64::MAX`.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printer = SpanPrinter::new().designator(Designator::Compact);
        f.pad(&printer.unsigned_duration_to_string(&self.0))
    }
}

impl fmt::Debug for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        SpanParser::new()
            .parse_unsigned_duration(text.trim())
            .map(Self)
            .map_err(|_| InvalidDuration(text.chars().take(60).collect()))
    }
}

impl TryFrom<String> for Duration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_what_people_write() {
        for (text, millis, printed) in [
            ("250ms", 250, "250ms"),
            ("15m", 900_000, "15m"),
            ("1h 30m", 5_400_000, "1h30m"),
            (" 3s ", 3_000, "3s"),
            ("1.5s", 1_500, "1s500ms"),
        ] {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!(parsed.as_millis(), millis, "{text}");
            assert_eq!(parsed.to_string().replace(' ', ""), printed, "{text}");
            assert_eq!(parsed.to_string().parse::<Duration>().unwrap(), parsed);
        }
    }

    #[test]
    fn refuses_the_rest_with_an_example() {
        for bad in ["", "15", "-3s", "soon", "3 fortnights"] {
            let error = bad.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains("15m"), "{error}");
        }
    }
}
