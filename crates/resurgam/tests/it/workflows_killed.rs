//! Workflows while servers and workers are killed at random, and then the books are checked:
//! every workflow is where it should be, and each effect was that of one task.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use resurgam_testing::ScratchPostgres;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{LONG, Place, Running, SHORT, until};
use crate::http;

const DEFINITION: &str = r#"
name = "chaos"
output = "${steps.join.output}"
[input]
name = "string"
end = "string"

[[steps]]
id = "first"
capability = "step"
input = "${input.name}/first"
[[steps]]
id = "each"
needs = ["first"]
capability = "step"
for_each = [0, 1, 2, 3]
max_parallel = 3
input = "${input.name}/each/${item}"
compensate = { capability = "step", input = "${input.name}/undo/${item}" }
[[steps]]
id = "join"
needs = ["each"]
capability = "step"
input = "${input.name}/join/${length(steps.each.output)}"
[[steps]]
id = "go"
needs = ["first"]
wait = { signal = "go" }
[[steps]]
id = "last"
needs = ["join", "go"]
capability = "step"
input = "${input.name}/${input.end}"
"#;

/// Notes its effect before anything else, so that a death after it is a repetition.
const WORK: &str = r#"#!/bin/sh
read -r what
printf '%s %s\n' "$what" "$RESURGAM_TASK_ID" >> ledger
sleep 0.2
case "$what" in */breaks) exit 100;; esac
printf done
"#;

/// Workflows in all; every third one fails at its end.
const WORKFLOWS: usize = 20;
const KILLS: u32 = 20;

#[test]
fn on_sqlite() {
    killed_at_random(|_| (vec!["--sqlite=platform.db".to_owned()], None));
}

#[test]
fn on_postgres() {
    let server = ScratchPostgres::shared().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let database = runtime.block_on(server.create_database()).unwrap();
    let url = server.url(&database);
    killed_at_random(|_| (Vec::new(), Some(url.clone())));
}

/// Chance that is the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % most
    }
}

struct Platform<'p> {
    place: &'p Place,
    port: u16,
    store: Vec<String>,
    url: Option<String>,
    server: Option<Running>,
    workers: Vec<Running>,
}

impl Platform<'_> {
    fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn start_server(&mut self) {
        let mut command = self.place.command(&["serve", "--role=api", "--role=registry"]);
        command.args(["--role=supervisor", "--checkpoints=checkpoints"]);
        command.arg(format!("--listen=127.0.0.1:{}", self.port)).args(&self.store);
        if let Some(url) = &self.url {
            command.env("DATABASE_URL", url);
        }
        self.server = Some(self.place.run(command));
    }

    fn start_worker(&mut self, number: usize) -> Running {
        let api = format!("--api={}", self.api());
        let name = format!("--name=worker-{number}");
        self.place.start(&["worker", &api, &name, "--capability=step", "--exec=./work"])
    }

    fn kill_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal(Signal::KILL);
            server.end(self.place, SHORT);
        }
        self.start_server();
    }

    fn kill_worker(&mut self, number: usize) {
        let fresh = self.start_worker(number);
        let old = std::mem::replace(&mut self.workers[number], fresh);
        old.signal(Signal::KILL);
        old.end(self.place, SHORT);
    }

    /// Says it until it is heard.
    fn post(&self, path: &str, body: &Value) -> Value {
        until("a request is answered", LONG, self.place, || {
            let answer = http::post(&format!("{}{path}", self.api()), body).ok()?;
            (answer.status < 300).then_some(answer.body)
        })
    }
}

fn killed_at_random(store: impl Fn(&Place) -> (Vec<String>, Option<String>)) {
    let place = Place::new("");
    fs::write(place.path("work"), WORK).unwrap();
    fs::set_permissions(place.path("work"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place.path("ledger"), "").unwrap();
    fs::write(place.path("chaos.toml"), DEFINITION).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (store, url) = store(&place);
    let mut platform =
        Platform { place: &place, port, store, url, server: None, workers: Vec::new() };
    platform.start_server();
    until("the server is ready", LONG, &place, || {
        let answer = http::get(&format!("{}/health/ready", platform.api())).ok()?;
        (answer.status == 200).then_some(())
    });
    let api = format!("--api={}", platform.api());
    let defined = place.finish(&["workflow", "define", "chaos.toml", &api]);
    assert_eq!(defined.told(&place), "exit 0\nchaos@1");
    for number in 0..3 {
        let worker = platform.start_worker(number);
        platform.workers.push(worker);
    }
    let mut ids = Vec::new();
    for n in 0..WORKFLOWS {
        let end = if n % 3 == 0 { "breaks" } else { "last" };
        let start = json!({
            "name": "chaos", "idempotency_key": format!("w{n}"),
            "input": { "name": format!("w{n}"), "end": end },
        });
        let id = platform.post("/workflows", &start)["id"].as_str().unwrap().to_owned();
        ids.push(id);
    }

    let seed = std::process::id().into();
    eprintln!("seed {seed}");
    let mut chance = Chance(seed);
    for kill in 0..KILLS {
        // Not timed by anything that happens in there.
        std::thread::sleep(Duration::from_millis(chance.below(700)));
        match chance.below(3) {
            0 => platform.kill_server(),
            _ => {
                let number = usize::try_from(chance.below(3)).unwrap();
                platform.kill_worker(number);
            }
        }
        if let Some(id) = ids.get(usize::try_from(kill).unwrap()) {
            let signal = json!({ "name": "go", "id": "once" });
            platform.post(&format!("/workflows/{id}/signal"), &signal);
        }
    }

    let deadline = Instant::now() + Duration::from_secs(150);
    for (n, id) in ids.iter().enumerate() {
        let path = format!("{}/workflows/{id}", platform.api());
        loop {
            let state = http::get(&path).ok().map(|answer| answer.body["state"].clone());
            let wanted = if n % 3 == 0 { "failed" } else { "completed" };
            if state.as_ref().is_some_and(|state| state == wanted) {
                break;
            }
            let other = state.as_ref().and_then(Value::as_str).unwrap_or("");
            assert!(!["failed", "completed", "cancelled"].contains(&other), "w{n} is {other}");
            assert!(Instant::now() < deadline, "w{n} is {state:?}\n{}", place.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    // Each effect is that of one task, however often that task was tried.
    let ledger = fs::read_to_string(place.path("ledger")).unwrap();
    let mut tasks = BTreeMap::<&str, BTreeSet<&str>>::new();
    for line in ledger.lines() {
        let (what, task) = line.split_once(' ').unwrap();
        tasks.entry(what).or_default().insert(task);
    }
    let mut expected = BTreeSet::new();
    for n in 0..WORKFLOWS {
        expected.extend([format!("w{n}/first"), format!("w{n}/join/4")]);
        expected.extend((0..4).map(|item| format!("w{n}/each/{item}")));
        if n % 3 == 0 {
            expected.insert(format!("w{n}/breaks"));
            expected.extend((0..4).map(|item| format!("w{n}/undo/{item}")));
        } else {
            expected.insert(format!("w{n}/last"));
        }
    }
    let done: BTreeSet<String> = tasks.keys().map(|what| (*what).to_owned()).collect();
    assert_eq!(done, expected);
    for (what, tasks) in tasks {
        assert_eq!(tasks.len(), 1, "{what} was done for {tasks:?}");
    }
    // What the supervisor exported is all of them, too.
    until("all are exported", LONG, &place, || {
        let files = fs::read_dir(place.path("checkpoints")).ok()?.flatten();
        let files = files.filter(|file| file.path().extension().is_some_and(|e| e == "json"));
        (files.count() == WORKFLOWS).then_some(())
    });

    let shown = place.finish(&["workflow", "show", &ids[0], &api]);
    assert!(shown.out.contains("✘    last"), "{shown:?}");
    for worker in platform.workers.drain(..) {
        worker.signal(Signal::KILL);
        worker.end(&place, SHORT);
    }
    if let Some(server) = platform.server.take() {
        server.stop(&place);
    }
}
