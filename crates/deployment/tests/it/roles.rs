//! Processes of their own: this program again, in another role.

use std::path::Path;
use std::process::{Command, Stdio};

use resurgam_deployment::local::Spawner;
use tokio::process::Child;

use crate::processes::Process;

const ROLE: &str = "RESURGAM_TEST_ROLE";

/// A process in a role. It dies when this is dropped, and when the tests die.
pub(crate) struct Role {
    pub(crate) child: Child,
    _spawner: Spawner,
}

impl Role {
    /// Starts this program again. What it prints goes to a file.
    pub(crate) async fn start(role: &str, log: &Path, told: &[(&str, String)]) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "roles::role", "--nocapture", "--quiet"])
            .env(ROLE, role)
            .envs(told.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let spawner = Spawner::new().unwrap();
        let child = spawner.spawn(command).await.unwrap();
        Self { child, _spawner: spawner }
    }

    pub(crate) fn process(&self) -> Process {
        Process::of(self.child.id().expect("it has not ended")).expect("it has not ended")
    }
}

/// What a role was told.
pub(crate) fn told(key: &str) -> String {
    std::env::var(key).unwrap_or_else(|_| panic!("the role was not told {key}"))
}

/// Not a test by itself: what the processes do that the tests start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.as_str() {
        "fuse" => crate::contained::fuse().await,
        "first" => crate::contained::first(),
        "put off" => crate::contained::put_off().await,
        "parent" => crate::supervised::parent().await,
        "keeper" => crate::instances::keep().await,
        other => panic!("no such role: {other}"),
    }
}
