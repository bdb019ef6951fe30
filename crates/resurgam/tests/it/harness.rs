//! Folders with plans, programs that run in them, and waiting for what is to happen.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use resurgam_recovery::drill::fault::Process;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http;

/// A program that answers at once.
pub(crate) const SHORT: Duration = Duration::from_secs(30);
/// A deployment that comes up or recovers, on a machine that is busy with other tests.
pub(crate) const LONG: Duration = Duration::from_secs(90);

/// Waits until `look` finds something.
pub(crate) fn until<T>(
    what: &str,
    patience: Duration,
    place: &Place,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}\n{}", place.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder with a plan in it, and all that runs there.
pub(crate) struct Place {
    dir: TempDir,
    runs: AtomicU32,
}

impl Place {
    /// The state folder is `state` in it. PostgreSQL can be reached there as another user.
    pub(crate) fn new(plan: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("resurgam-it-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::write(dir.path().join("resurgam.toml"), plan).unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::set_permissions(dir.path().join("tmp"), fs::Permissions::from_mode(0o711)).unwrap();
        Self { dir, runs: AtomicU32::new(0) }
    }

    /// Drills are allowed; `more` follows.
    pub(crate) fn for_drills(more: &str) -> Self {
        Self::new(&format!("[deployment]\ndrills = 'allowed'\nstate_dir = 'state'\n{more}"))
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// The program, in this folder and in an environment of its own.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_resurgam"));
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    pub(crate) fn prepare(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if [
                "RESURGAM_",
                "DATABASE_",
                "PG",
                "OTEL_",
                "MESSAGE_BUS_",
                "KAFKA_P",
                "KAFKA_B",
                "RABBITMQ_",
                "AWS_",
                "AZURE_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.dir.path())
            .env("TMPDIR", self.path("tmp"))
            .env("LC_ALL", "C.UTF-8")
            .env("COLUMNS", "100");
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        self.run(self.command(arguments))
    }

    pub(crate) fn run(&self, mut command: Command) -> Running {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let out = self.path(&format!("run-{number}.out"));
        let err = self.path(&format!("run-{number}.err"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Running { child, out, err }
    }

    /// Runs it to its end.
    pub(crate) fn finish(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).end(self, SHORT)
    }

    /// All that still runs here: it has the folder in its environment or among its arguments, or
    /// works in it.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let dir = self.dir.path().canonicalize().unwrap();
        let text = dir.to_str().unwrap().as_bytes();
        let names_it = |file: PathBuf| {
            fs::read(file).is_ok_and(|all| all.windows(text.len()).any(|part| part == text))
        };
        all_processes()
            .into_iter()
            .filter(|pid| {
                let proc = PathBuf::from(format!("/proc/{pid}"));
                fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&dir))
                    || names_it(proc.join("environ"))
                    || names_it(proc.join("cmdline"))
            })
            .filter_map(Process::find)
            .filter(Process::is_alive)
            .collect()
    }

    pub(crate) fn assert_no_process(&self) {
        let left = self.processes();
        assert!(left.is_empty(), "still there: {left:?}\n{}", self.logs());
    }

    /// Neither processes nor temporary files.
    pub(crate) fn assert_nothing_left(&self) {
        let left = self.temporary_files();
        assert!(left.is_empty(), "still there: {left:?}\n{}", self.logs());
        self.assert_no_process();
    }

    pub(crate) fn temporary_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("tmp")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The ends of all logs, for a test that fails.
    pub(crate) fn logs(&self) -> String {
        let mut files = Vec::new();
        let drills = self.temporary_files().into_iter().map(|dir| dir.join("state/logs"));
        for folder in [self.path(""), self.path("state/logs")].into_iter().chain(drills) {
            files.extend(fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()));
        }
        files.sort();
        let of_interest = |file: &PathBuf| {
            let extension = file.extension().and_then(|e| e.to_str());
            matches!(extension, Some("log" | "err" | "out"))
        };
        let mut text = String::new();
        for file in files.iter().filter(|file| of_interest(file)) {
            let all = fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<&str> = all.lines().collect();
            let tail = &lines[lines.len().saturating_sub(25)..];
            text += &format!("--- {}\n{}\n", file.display(), tail.join("\n"));
        }
        text
    }
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The processes below a process.
pub(crate) fn descendants(pid: u32) -> Vec<Process> {
    let parent = |pid: &u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all: Vec<_> = all_processes().into_iter().filter_map(|p| Some((p, parent(&p)?))).collect();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let above = found[next];
        found.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        next += 1;
    }
    found[1..].iter().filter_map(|pid| Process::find(*pid)).collect()
}

/// A program that runs. Its end is the end of all that it started.
pub(crate) struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self, place: &Place, patience: Duration) -> Finished {
        let child = &mut self.child;
        let status = until("the program ends", patience, place, || child.try_wait().unwrap());
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        Finished { status, out: read(&self.out), err: read(&self.err) }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it as an orchestrator does, and checks that nothing stays.
    pub(crate) fn stop(self, place: &Place) {
        self.signal(Signal::TERM);
        let ended = self.end(place, SHORT);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}\n{}", place.logs());
        place.assert_no_process();
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Exit code and all that was said, with the folder's name taken out.
    pub(crate) fn told(&self, place: &Place) -> String {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, signal) => format!("signal {signal:?}"),
        };
        let text = format!("{how}\n{}{}", self.out, self.err);
        text.replace(place.dir.path().to_str().unwrap(), "[dir]").trim_end().to_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A deployment under `resurgam up`.
pub(crate) struct Up {
    pub(crate) process: Running,
}

impl Up {
    pub(crate) fn start(place: &Place) -> Self {
        Self { process: place.start(&["up"]) }
    }

    /// Starts it and waits until it is well.
    pub(crate) fn ready(place: &Place) -> Self {
        let mut up = Self::start(place);
        up.wait_ready(place);
        up
    }

    /// Where its controller is. None while another process, or none, is named there.
    pub(crate) fn controller(&self, place: &Place) -> Option<String> {
        let text = fs::read_to_string(place.path("state/controller.json")).ok()?;
        let address: Value = serde_json::from_str(&text).ok()?;
        (address["pid"] == self.process.id()).then(|| address["url"].as_str().unwrap().to_owned())
    }

    pub(crate) fn get(&self, place: &Place, path: &str) -> Option<Value> {
        let answer = http::get(&format!("{}{path}", self.controller(place)?)).ok()?;
        (answer.status == 200).then_some(answer.body)
    }

    pub(crate) fn status(&self, place: &Place) -> Option<Value> {
        self.get(place, "/v1/status")
    }

    pub(crate) fn wait_ready(&mut self, place: &Place) -> Value {
        let mut last = None;
        let deadline = Instant::now() + LONG;
        loop {
            assert!(!self.process.has_ended(), "it has ended\n{}", place.logs());
            last = self.status(place).or(last);
            match &last {
                Some(status) if status["ready"] == true => return status.clone(),
                _ => assert!(
                    Instant::now() < deadline,
                    "not ready within {LONG:?}: {last:#?}\n{}",
                    place.logs()
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until incidents of a scenario that are not among `known` are there and closed; the
    /// oldest comes first.
    pub(crate) fn closed_incidents(
        &self,
        place: &Place,
        scenario: &str,
        known: &[String],
    ) -> Vec<Value> {
        until(&format!("closed incidents of {scenario}"), LONG, place, || {
            let all = self.get(place, "/v1/incidents")?;
            let new = all.as_array()?.iter().rev().filter(|incident| {
                incident["scenario"] == scenario && !known.iter().any(|id| incident["id"] == *id)
            });
            let new: Vec<_> = new.cloned().collect();
            let closed = new.iter().all(|incident| incident["state"] != "open");
            (closed && !new.is_empty()).then_some(new)
        })
    }
}

/// Hands in a task; the answer is its id, once it is acknowledged.
pub(crate) fn submit(api: &str, text: &str) -> io::Result<String> {
    let task = json!({ "capability": "sha256", "payload": text, "idempotency_key": text });
    let answer = http::post(&format!("{api}/tasks"), &task)?;
    match answer.status {
        200 | 201 => Ok(answer.body["id"].as_str().unwrap().to_owned()),
        _ => Err(io::Error::other(format!("{answer:?}"))),
    }
}

/// Waits until each of the tasks is completed.
pub(crate) fn all_complete(api: &str, tasks: &[String], place: &Place) {
    for task in tasks {
        let mut last = None;
        until(&format!("task {task} is completed"), LONG, place, || {
            let answer = http::get(&format!("{api}/tasks/{task}")).ok()?;
            assert_ne!(answer.status, 404, "task {task} was acknowledged and is gone");
            let done = answer.body["state"] == "completed";
            last = Some(answer);
            done.then_some(())
        });
    }
}
