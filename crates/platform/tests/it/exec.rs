//! Programs as handlers.

use std::path::Path;
use std::time::{Duration as StdDuration, Instant};

use resurgam_client::worker::{Exec, Handler, HandlerError, Job};
use resurgam_model::task::{Lease, TaskState, Token};
use resurgam_model::{Payload, TaskId, Timestamp};

use crate::harness::*;

fn job(text: &str) -> Job {
    Job::new(Lease {
        task: TaskId::new(),
        token: Token(7),
        capability: capability("shell"),
        payload: Payload::from_text(text),
        attempt: 2,
        until: Timestamp::now(),
        timeout_at: None,
    })
}

fn sh(script: &str) -> Exec {
    Exec::new(&["sh", "-c", script].map(str::to_owned)).unwrap()
}

async fn run(script: &str, text: &str) -> Result<String, HandlerError> {
    let result = sh(script).handle(job(text)).await;
    result.map(|payload| payload.text().into_owned())
}

#[tokio::test]
async fn a_script_works_end_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let script = dir.path().join("upper.sh");
    std::fs::write(&script, "[ \"$RESURGAM_TASK_ATTEMPT\" = 1 ] || exit 100\ntr a-z A-Z\n")
        .unwrap();
    let exec = Exec::new(&["sh".to_owned(), script.display().to_string()]).unwrap();
    let worker = Worker::start(&server, worker("w").on(capability("upper"), exec));
    let id = server.client.submit(&task("upper", "loud\n")).await.unwrap().id;
    let done = reaches(&server.client, id, TaskState::Completed).await;
    assert_eq!(done.result.unwrap().text(), "LOUD\n");
    worker.stop().await;
}

#[tokio::test]
async fn a_failing_script_is_tried_again_unless_it_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let script = "read word; echo \"$word is bad\" >&2; [ $word = never ] && exit 100; \
                  [ $RESURGAM_TASK_ATTEMPT = 2 ]";
    let _worker = Worker::start(&server, worker("w").on(capability("x"), sh(script)));
    let mut later = task("x", "later\n");
    later.retry.backoff = resurgam_model::Duration::from_millis(1);
    let ids = server.client.submit_batch(&[task("x", "never\n"), later]).await.unwrap();
    let dead = reaches(&server.client, ids[0].id, TaskState::Dead).await;
    assert_eq!(
        (dead.attempts, dead.error.as_deref()),
        (1, Some("sh: exit code 100: never is bad"))
    );
    let done = reaches(&server.client, ids[1].id, TaskState::Completed).await;
    assert_eq!(done.attempts, 2);
}

#[tokio::test]
async fn input_environment_and_output_are_as_documented() {
    assert_eq!(run("cat", "ä \"quoted\"\n").await.unwrap(), "ä \"quoted\"\n");
    let told = "echo $RESURGAM_TASK_ATTEMPT $RESURGAM_TASK_TOKEN $RESURGAM_CAPABILITY";
    assert_eq!(run(told, "").await.unwrap(), "2 7 shell\n");
    let error = run("printf '\\377'", "").await.unwrap_err();
    assert!(error.message.contains("not UTF-8"), "{error}");
    let error = run("kill -9 $$", "").await.unwrap_err();
    assert!(error.retry && error.message.contains("signal 9"), "{error}");
    let exec = Exec::new(&["/no/such/program".to_owned()]).unwrap();
    let error = exec.handle(job("")).await.unwrap_err();
    assert!(error.message.contains("/no/such/program: cannot be started"), "{error}");
}

#[tokio::test]
async fn only_the_end_of_long_complaints_is_kept() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo complaint $i >&2; i=$((i+1)); done; exit 1";
    let error = run(script, "").await.unwrap_err().message;
    assert!(error.ends_with("complaint 2999") && error.len() < 5000, "{}", error.len());
}

#[tokio::test]
async fn a_program_need_not_read_its_input() {
    let large = "x".repeat(4 * 1024 * 1024);
    assert_eq!(run("echo no", &large).await.unwrap(), "no\n");
    assert_eq!(run("exec <&-; sleep 0.1; echo closed", &large).await.unwrap(), "closed\n");
    assert_eq!(run("head -c 3", &large).await.unwrap(), "xxx");
}

#[tokio::test]
async fn output_without_end_is_cut_off() {
    let start = Instant::now();
    let exec = sh("yes").with_max_output(100_000);
    let error = exec.handle(job("")).await.unwrap_err();
    assert!(!error.retry && error.message.contains("100000 bytes"), "{error}");
    assert!(start.elapsed() < StdDuration::from_secs(20));
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; echo done", pid.display());
    assert_eq!(run(&script, "").await.unwrap(), "done\n");
    ends(read_pid(&pid).await).await;
}

#[tokio::test]
async fn the_whole_group_is_killed_when_the_work_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (pid, child) = (dir.path().join("pid"), dir.path().join("child"));
    let script =
        format!("echo $$ > {}; sleep 1000 & echo $! > {}; wait", pid.display(), child.display());
    let work = tokio::spawn(async move { run(&script, "").await });
    let pids = (read_pid(&pid).await, read_pid(&child).await);
    work.abort();
    ends(pids.0).await;
    ends(pids.1).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_takes_its_programs_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let pid = dir.path().join("pid");
    let script = format!("echo $$ > {}; sleep 1000", pid.display());
    let worker = Worker::start(&server, worker("w").on(capability("x"), sh(&script)));
    server.client.submit(&task("x", "")).await.unwrap();
    let running = read_pid(&pid).await;
    worker.kill().await;
    ends(running).await;
}

/// Runs in a process of its own, which the next test kills.
#[tokio::test]
#[ignore = "a helper of the next test"]
async fn a_process_with_a_program() {
    let Ok(pid) = std::env::var("RESURGAM_TEST_PID_FILE") else { return };
    let _ = run(&format!("echo $$ > {pid}; exec sleep 1000"), "").await;
}

#[tokio::test]
async fn a_process_that_is_killed_takes_its_programs_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let mut process = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "exec::a_process_with_a_program"])
        .env("RESURGAM_TEST_PID_FILE", &pid)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let program = read_pid(&pid).await;
    process.kill().await.unwrap();
    ends(program).await;
}

/// The number that a script wrote, as soon as it has.
async fn read_pid(path: &Path) -> String {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    until("written", || async { read().ends_with('\n') }).await;
    read().trim().to_owned()
}

/// Waits until no such process runs; one that is dead but not yet collected does not.
async fn ends(pid: String) {
    until("ended", || async {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    })
    .await;
}
