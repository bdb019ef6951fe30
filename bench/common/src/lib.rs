//! How a measured program talks with `bench/queue/run`.
//!
//! It is started with one argument, the [`Order`] as JSON. It prepares, says that it is ready, waits
//! for the word to begin on standard input, does what is measured, and prints one line of JSON with
//! what it found. All else goes to standard error.

use std::io::{BufRead as _, Write as _};
use std::time::Instant;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Any error: a measurement that goes wrong ends at once.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is to be measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order<Settings> {
    /// `submit`, `execute`, `end-to-end`, `pickup` or `large`.
    pub mode: String,
    /// Where the database is: a URL, or a file for SQLite.
    pub database: String,
    /// Jobs to submit, to execute, or both; for `pickup` samples.
    pub jobs: u64,
    /// Jobs that wait already; only for `large`.
    #[serde(default)]
    pub waiting: u64,
    /// Jobs that were completed already, as far as they are kept; only for `large`.
    #[serde(default)]
    pub completed: u64,
    /// For `pickup`: pause between samples, in milliseconds.
    #[serde(default)]
    pub pause_ms: u64,
    /// What can be chosen about the program that is measured.
    pub settings: Settings,
}

impl<Settings: DeserializeOwned> Order<Settings> {
    /// The order in the first argument.
    pub fn from_arguments() -> Result<Self, Failure> {
        let text = std::env::args().nth(1).ok_or("give the order as JSON")?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// Says that everything is prepared, and waits for the word to begin.
pub fn wait_for_go() -> Result<(), Failure> {
    say(&json!({"ready": true}))?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim() == "go" { Ok(()) } else { Err("was not told to go".into()) }
}

/// Says what was found, waits until it was taken note of, and ends the process. Until then
/// nothing may end that used the processor: it is still to be counted.
pub fn done(found: &Value) -> Result<(), Failure> {
    say(&json!({"done": found}))?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    std::process::exit(0)
}

fn say(what: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}")?;
    out.flush()?;
    Ok(())
}

/// One sample of the way from a caller to a handler.
#[derive(Clone, Copy, Debug)]
pub struct Pickup {
    /// When the call to submit began.
    pub called: Instant,
    /// When it returned.
    pub returned: Instant,
    /// When the handler began.
    pub handled: Instant,
}

/// Milliseconds of all samples: from the call, and from its return. A handler may begin before
/// the caller knows that the job was taken: that is negative.
pub fn pickups(samples: &[Pickup]) -> Value {
    let signed = |from: Instant, to: Instant| match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64() * 1e3,
        None => -(from.duration_since(to).as_secs_f64() * 1e3),
    };
    json!({
        "executed": samples.len(),
        "from_call_ms": samples.iter().map(|s| signed(s.called, s.handled)).collect::<Vec<_>>(),
        "from_return_ms": samples.iter().map(|s| signed(s.returned, s.handled)).collect::<Vec<_>>(),
    })
}
