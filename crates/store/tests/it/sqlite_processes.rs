//! Several processes on one file, and processes that are killed.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use resurgam_model::TaskId;
use resurgam_model::task::{Outcome, TaskState};
use resurgam_store::{Counted, Settings, SharedStore, open};
use tokio::task::JoinSet;

use crate::fixture::{HOUR, completion, lease_ref, register, task, wanted};

const FILE: &str = "RESURGAM_STORE_TEST_FILE";
const ROUNDS: &str = "RESURGAM_STORE_TEST_ROUNDS";

/// Starts this program again as a process that works on the file.
fn work_on(file: &Path, rounds: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite_processes::worker_process", "--nocapture", "--quiet"])
        .env(FILE, file)
        .env(ROUNDS, rounds.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Not a test by itself: what the processes do that the tests start. Tells each task on a line,
/// once it is known to be completed.
#[tokio::test(flavor = "multi_thread")]
async fn worker_process() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let rounds: usize = std::env::var(ROUNDS).unwrap().parse().unwrap();
    let store = open(&Settings::Sqlite { path: file.into() }).unwrap();
    store.migrate().await.unwrap();
    let mut workers = JoinSet::new();
    for n in 0..4 {
        let store = Arc::clone(&store);
        workers.spawn(async move {
            let name = format!("w-{}-{n}", std::process::id());
            let instance = register(&store, &name).await;
            for _ in 0..rounds {
                store.submit(&[task("x"), task("x")]).await.unwrap();
                let leases = store.claim(&wanted(&name, instance, 2, HOUR)).await.unwrap();
                let words: Vec<_> = leases.iter().map(|l| completion(lease_ref(l))).collect();
                let outcomes = store.complete(&words).await.unwrap();
                let mut lines = String::new();
                for (lease, outcome) in leases.iter().zip(outcomes) {
                    assert_eq!(outcome, Outcome::Accepted);
                    lines.push_str(&format!("done {}\n", lease.task));
                }
                std::io::stdout().lock().write_all(lines.as_bytes()).unwrap();
            }
        });
    }
    workers.join_all().await;
}

fn told(line: &str) -> Option<TaskId> {
    line.strip_prefix("done ")?.parse().ok()
}

fn reopened(file: &Path) -> SharedStore {
    open(&Settings::Sqlite { path: file.to_owned() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let mut done = Vec::new();
    for _ in 0..3 {
        let mut child = work_on(&file, usize::MAX);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // In the middle of it; what was told until the pipe ran dry counts too.
        for (n, line) in lines.enumerate() {
            done.extend(told(&line.unwrap()));
            if n == 60 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
    }
    assert!(done.len() >= 150, "{}", done.len());
    let store = reopened(&file);
    for id in &done {
        let found = store.task(*id).await.unwrap().expect("an acknowledged task is gone");
        assert_eq!(found.state, TaskState::Completed);
    }
    store.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let children: Vec<_> = (0..4).map(|_| work_on(&file, 25)).collect();
    let mut done = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        done.extend(text.lines().filter_map(told));
    }
    let all: HashSet<_> = done.iter().copied().collect();
    assert_eq!(all.len(), done.len(), "a task was completed twice");
    let counts = reopened(&file).task_counts(Counted::All).await.unwrap()[0].1;
    // 4 processes, 4 workers each, 25 rounds, 2 tasks.
    assert_eq!(counts.completed, u64::try_from(done.len()).unwrap());
    assert_eq!(counts.ready + counts.running + counts.completed, 4 * 4 * 25 * 2);
    assert_eq!(counts.running, 0);
}
