//! `resurgam up --guard`: starts the controller, and starts it again when it is lost.
//!
//! The guard does nothing else, so that there is nothing in it that could be lost. Everything dies with the
//! controller, and the next one recovers the whole; so the guard must be sure. It takes the controller for hung
//! only when it has not answered for long, by a clock that does not run on while the guard itself is held up.

use std::path::Path;
use std::time::Duration;

use resurgam_deployment::local::Spawner;
use resurgam_recovery::drill::subject::Address;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::Instant;

use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// Tells the next controller how the one before was lost.
pub(crate) const FOUND: &str = "RESURGAM_GUARD_FOUND";

/// How often the controller is asked.
const LOOK: Duration = Duration::from_millis(250);
/// So long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// A controller that has not answered for so long hangs. A primary has lost its lease long before; so
/// nothing that works is taken away, but where SQLite holds the state.
const SILENT: Duration = Duration::from_secs(10);
/// Whoever has lived for so long begins with short pauses again.
const STEADY: Duration = Duration::from_secs(600);
/// The longest pause before the next start.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So long an orderly end may take.
const GRACE: Duration = Duration::from_secs(60);

/// How a life of the controller ended.
enum End {
    /// By itself or by a signal: its exit code if it had one, and in words.
    Exited(Option<i32>, String),
    /// It was ended because it hung.
    Hung,
    /// The guard was asked to end, and the controller with it.
    Asked(u8),
}

/// How long the controller has been silent. Time in which the guard itself did not run does not count.
#[derive(Debug)]
struct Silence {
    heard: bool,
    silent: Duration,
    looked: Instant,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { heard: false, silent: Duration::ZERO, looked: now }
    }

    /// Notes whether it has answered. True when it hangs: until it has answered once it is coming up.
    fn note(&mut self, answered: bool, now: Instant) -> bool {
        let passed = (now - self.looked).min(LOOK + ANSWER);
        self.looked = now;
        if answered {
            self.heard = true;
            self.silent = Duration::ZERO;
        } else if self.heard {
            self.silent += passed;
        }
        self.silent >= SILENT
    }
}

pub(crate) async fn run(plan: Option<&Path>) -> Result<u8, Failure> {
    let mut shutdown = std::pin::pin!(crate::shutdown::requested());
    let loaded = Loaded::read(plan)?;
    let state_dir = loaded.state_dir();
    let spawner = Spawner::new()?;
    let mut found: Option<String> = None;
    let mut pause = Duration::ZERO;
    loop {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.arg("up");
        if let Some(plan) = plan {
            command.arg("--plan").arg(plan);
        }
        match &found {
            Some(found) => command.env(FOUND, found),
            None => command.env_remove(FOUND),
        };
        let begun = Instant::now();
        let child = spawner.spawn(command).await?;
        let end = live(child, &state_dir, shutdown.as_mut()).await?;
        let why = match end {
            End::Asked(code) => return Ok(code),
            End::Exited(Some(exit), _) if exit == i32::from(code::OK) => return Ok(code::OK),
            // What cannot be started at all is not started again and again.
            End::Exited(Some(exit), how) if begun.elapsed() < SILENT && found.is_none() => {
                output::note(&format!("the controller did not come up: {how}"));
                return Ok(u8::try_from(exit).unwrap_or(code::FAILED));
            }
            End::Exited(_, how) => how,
            End::Hung => format!("it did not answer for {} s, and was ended", SILENT.as_secs()),
        };
        if begun.elapsed() > STEADY {
            pause = Duration::ZERO;
        }
        output::note(&format!(
            "the controller is lost: {why}; it is started again{}",
            if pause.is_zero() { String::new() } else { format!(" in {} s", pause.as_secs()) }
        ));
        found = Some(why);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.as_mut() => return Ok(code::OK),
        }
        pause = (pause * 2).clamp(Duration::from_secs(1), LONGEST_PAUSE);
    }
}

/// One life of the controller.
async fn live(
    mut child: Child,
    state_dir: &Path,
    mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Result<End, Failure> {
    let http = reqwest::Client::builder().timeout(ANSWER).no_proxy().build()?;
    let mut silence = Silence::new(Instant::now());
    loop {
        let look = async {
            tokio::time::sleep(LOOK).await;
            let address =
                Address::read(state_dir).filter(|address| Some(address.pid) == child.id());
            let Some(address) = address else { return false };
            let answer = http.get(format!("{}/health", address.url)).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        let answered = tokio::select! {
            answered = look => answered,
            () = shutdown.as_mut() => {
                signal(&child, Signal::TERM);
                let ended = tokio::time::timeout(GRACE, child.wait()).await;
                let exit = ended.ok().and_then(Result::ok).and_then(|exit| exit.code());
                return Ok(End::Asked(exit.and_then(|c| u8::try_from(c).ok()).unwrap_or(code::FAILED)));
            }
        };
        if let Some(exit) = child.try_wait()? {
            return Ok(End::Exited(exit.code(), format!("it ended with {exit}")));
        }
        if silence.note(answered, Instant::now()) {
            child.start_kill()?;
            child.wait().await?;
            return Ok(End::Hung);
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_has_answered_before_can_hang_and_time_that_the_guard_missed_does_not_count() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let mut at = |ms: u64, answered| silence.note(answered, start + Duration::from_millis(ms));
        assert!(!at(60_000, false), "it is coming up");
        assert!(!at(60_250, true));
        for look in 1..5 {
            assert!(!at(60_250 + look * 2250, false), "{look}");
        }
        assert!(at(60_250 + 5 * 2250, false));
        assert!(!at(80_000, true), "it was only slow");
        assert!(!at(180_000, false), "the machine slept");
        assert!(!at(182_000, false));
    }
}
