//! One drill at a time on a deployment, and the end of one by the operator's word.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resurgam_recovery::drill::fault::Process;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::commands::up::make_dir;
use crate::failure::{Failure, code};
use crate::output;
use crate::plan::Loaded;

/// So long a drill may take to clean up behind itself.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often to look.
const LOOK: Duration = Duration::from_millis(50);

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("drill.lock")
}

/// Held while a drill takes place on a deployment, or on a copy of it. It goes with the process.
pub(crate) struct Turn(#[expect(dead_code, reason = "the lock is held as long as the file")] File);

impl Turn {
    /// Takes the turn.
    pub(crate) fn take(loaded: &Loaded) -> Result<Self, Failure> {
        let state = loaded.state_dir();
        make_dir(&state, 0o711)?;
        let path = file(&state);
        let mut lock = File::options().create(true).truncate(false).write(true).open(&path)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Failure::refused(
                    "another drill is under way there; wait for it, or end it with: resurgam drill --abort",
                ));
            }
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        lock.set_len(0)?;
        write!(lock, "{}", std::process::id())?;
        Ok(Self(lock))
    }
}

/// Ends the drill that is under way, and waits until it has cleaned up.
pub(crate) async fn abort(loaded: &Loaded) -> Result<u8, Failure> {
    let path = file(&loaded.state_dir());
    let held = || match File::options().write(true).open(&path) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(_) => false,
    };
    if !held() {
        output::data("no drill is under way there");
        return Ok(code::OK);
    }
    let text = std::fs::read_to_string(&path)?;
    let process = text.trim().parse().ok().and_then(Process::find).ok_or_else(|| {
        Failure::new(format!("which process drills is not known: {} says {text:?}", path.display()))
    })?;
    process.signal(Signal::TERM);
    let until = Instant::now() + PATIENCE;
    while held() {
        if Instant::now() > until {
            return Err(Failure::new(format!(
                "the drill (process {}) was told to end, and has not within {} s",
                text.trim(),
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
    output::data("the drill was broken off; what it had stopped goes on. See: resurgam status");
    Ok(code::OK)
}
