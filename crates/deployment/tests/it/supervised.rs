//! Components as processes of this machine.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use resurgam_deployment::local::{ComponentSpec, LocalDeployment, Router, Spawner};
use resurgam_deployment::{Component, ComponentKind, Deployment, Error, RunState};
use resurgam_model::ComponentName;
use rustix::process::Signal;

use crate::processes::{Process, dead, descendants, folder, within};
use crate::roles::{Role, told};

const FOLDER: &str = "RESURGAM_TEST_FOLDER";

struct Local {
    deployment: LocalDeployment,
    spawner: Spawner,
    folder: tempfile::TempDir,
}

fn name(text: &str) -> ComponentName {
    ComponentName::new(text).unwrap()
}

fn spec(component: &str, kind: ComponentKind, script: &str) -> ComponentSpec {
    ComponentSpec {
        name: name(component),
        kind,
        program: PathBuf::from("/bin/sh"),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: vec![("GREETING".to_owned(), "hello".to_owned())],
        address: None,
    }
}

impl Local {
    fn new() -> Self {
        let folder = folder();
        let deployment = LocalDeployment::new(folder.path().join("logs"));
        Self { deployment, spawner: Spawner::new().unwrap(), folder }
    }

    fn add(&self, component: &str, kind: ComponentKind, script: &str) {
        self.deployment.add(spec(component, kind, script), &self.spawner).unwrap();
    }

    async fn get(&self, component: &str) -> Component {
        let all = self.deployment.components().await.unwrap();
        all.into_iter().find(|found| found.name == name(component)).unwrap()
    }

    async fn running(&self, component: &str) -> (Component, Process) {
        within(10, "run", async || self.get(component).await.state == RunState::Running).await;
        let found = self.get(component).await;
        let process = Process::of(found.pid.unwrap()).expect("what runs is alive");
        (found, process)
    }

    async fn log(&self, component: &str) -> Vec<String> {
        self.deployment.logs(&name(component), 100).await.unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_is_started_again_with_growing_pauses() {
    let local = Local::new();
    let began = Instant::now();
    local.add("worker-0", ComponentKind::Worker, "echo \"life of $$\"; exit 3");
    within(20, "four lives", async || local.get("worker-0").await.restarts >= 3).await;
    let pauses = Duration::from_millis(50 + 100 + 200);
    assert!(began.elapsed() >= pauses, "only {:?}", began.elapsed());
    let found = local.get("worker-0").await;
    assert_eq!(found.last_exit.as_deref(), Some("exit code 3"));
    let log = local.log("worker-0").await;
    assert!(log.len() >= 3 && log.iter().all(|line| line.starts_with("life of ")), "{log:?}");
    local.deployment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_it_ended_is_told_and_a_restart_does_not_wait_out_the_pause() {
    let local = Local::new();
    local.add("worker-0", ComponentKind::Worker, "exec sleep 1000");
    let (_, process) = local.running("worker-0").await;
    process.signal(Signal::KILL);
    within(10, "be killed", async || local.get("worker-0").await.restarts == 1).await;
    let exit = local.get("worker-0").await.last_exit;
    assert_eq!(exit.as_deref(), Some("killed by signal 9"));

    let (before, process) = local.running("worker-0").await;
    local.deployment.restart(&name("worker-0")).await.unwrap();
    let (after, _) = local.running("worker-0").await;
    assert!(!process.is_alive());
    assert_eq!(after.restarts, before.restarts + 1);
    assert!(after.started_at > before.started_at);
    local.deployment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_missing_is_tried_again_and_can_be_stopped() {
    let local = Local::new();
    let program = local.file("program");
    let spec = ComponentSpec { program: program.clone(), ..spec("api-0", ComponentKind::Api, "") };
    local.deployment.add(spec, &local.spawner).unwrap();
    let no_start = |found: Component| found.last_exit.is_some_and(|it| it.starts_with("no start"));
    within(10, "be tried", async || no_start(local.get("api-0").await)).await;
    assert_eq!(local.get("api-0").await.state, RunState::Restarting);
    local.deployment.stop(&name("api-0")).await.unwrap();
    assert_eq!(local.get("api-0").await.state, RunState::Stopped);
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    local.deployment.start(&name("api-0")).await.unwrap();
    within(10, "end well", async || {
        local.get("api-0").await.last_exit.as_deref() == Some("exit code 0")
    })
    .await;
    local.deployment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_idempotent() {
    let local = Local::new();
    local.add("worker-0", ComponentKind::Worker, "echo $GREETING; exec sleep 1000");
    let (first, process) = local.running("worker-0").await;
    local.deployment.start(&name("worker-0")).await.unwrap();
    assert_eq!(local.get("worker-0").await, first, "what runs is left alone");

    for _ in 0..2 {
        local.deployment.stop(&name("worker-0")).await.unwrap();
        let found = local.get("worker-0").await;
        assert_eq!((found.state, found.pid), (RunState::Stopped, None));
        assert!(!process.is_alive());
    }
    for _ in 0..2 {
        local.deployment.start(&name("worker-0")).await.unwrap();
    }
    let (again, _) = local.running("worker-0").await;
    assert_ne!(again.pid, first.pid);

    // A storm of orders ends as the last one says.
    let orders = (0..10).map(|n| async move { n });
    for order in orders {
        let worker = name("worker-0");
        let patience = Duration::from_millis(order.await);
        let _ = tokio::time::timeout(patience, local.deployment.stop(&worker)).await;
        let _ = tokio::time::timeout(patience, local.deployment.start(&worker)).await;
        let _ = tokio::time::timeout(patience, local.deployment.restart(&worker)).await;
    }
    local.deployment.stop(&name("worker-0")).await.unwrap();
    assert_eq!(local.get("worker-0").await.state, RunState::Stopped);
    assert_eq!(descendants_in(&local), 0);
    let log = local.log("worker-0").await;
    assert!(!log.is_empty() && log.iter().all(|line| line == "hello"), "{log:?}");
}

/// Processes that write to this deployment's logs.
fn descendants_in(local: &Local) -> usize {
    let log = local.file("logs").join("worker-0.log");
    let writes = |process: &Process| {
        fs::read_link(format!("/proc/{}/fd/1", process.pid())).is_ok_and(|open| open == log)
    };
    descendants(std::process::id()).iter().filter(|process| writes(process)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_component_has_a_log_of_its_own() {
    let local = Local::new();
    for component in ["worker-0", "worker-1"] {
        let script = format!("for n in 1 2 3 4; do echo {component} $n; done; exec sleep 1000");
        local.add(component, ComponentKind::Worker, &script);
    }
    for component in ["worker-0", "worker-1"] {
        within(10, "log", async || local.log(component).await.len() == 4).await;
        let tail = local.deployment.logs(&name(component), 2).await.unwrap();
        assert_eq!(tail, [format!("{component} 3"), format!("{component} 4")]);
    }
    let unknown = local.deployment.logs(&name("worker-2"), 2).await;
    assert!(matches!(unknown, Err(Error::UnknownComponent(_))), "{unknown:?}");
    local.deployment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_children_go_with_it_however_it_goes() {
    let local = Local::new();
    local.add("worker-0", ComponentKind::Worker, "sleep 1000 & sleep 1000 & echo up; wait");
    let mut lives = 0;
    let mut family = async || {
        lives += 1;
        within(10, "have children", async || local.log("worker-0").await.len() == lives).await;
        let (_, process) = local.running("worker-0").await;
        let children = descendants(process.pid());
        assert_eq!(children.len(), 2);
        (process, children)
    };
    let (process, children) = family().await;
    process.signal(Signal::KILL);
    dead(5, "the children of one that was killed", &children).await;
    let (_, children) = family().await;
    local.deployment.stop(&name("worker-0")).await.unwrap();
    dead(5, "the children of one that was stopped", &children).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ignores_the_request_to_end_is_killed_after_a_grace() {
    let local = Local::new();
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    local.add("worker-0", ComponentKind::Worker, script);
    within(10, "ignore", async || !local.log("worker-0").await.is_empty()).await;
    let began = Instant::now();
    local.deployment.stop(&name("worker-0")).await.unwrap();
    assert!((7..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(local.get("worker-0").await.last_exit.as_deref(), Some("killed by signal 9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_end_last() {
    let local = Local::new();
    let order = local.file("order");
    for (component, kind) in [
        ("postgres-0", ComponentKind::Postgres),
        ("worker-0", ComponentKind::Worker),
        ("api-0", ComponentKind::Api),
    ] {
        let script = format!(
            "trap 'sleep 0.1; echo {component} >> {}; exit' TERM; echo up; while :; do sleep 0.02; done",
            order.display()
        );
        local.add(component, kind, &script);
        within(10, "be up", async || !local.log(component).await.is_empty()).await;
    }
    local.deployment.shutdown().await;
    let order = fs::read_to_string(order).unwrap();
    let lines: Vec<_> = order.lines().collect();
    assert_eq!((lines.len(), lines.last()), (3, Some(&"postgres-0")), "{order}");
    let all = local.deployment.components().await.unwrap();
    assert!(all.iter().all(|component| component.state == RunState::Stopped), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_grows_and_shrinks_and_who_leaves_finishes_first() {
    let local = Local::new();
    let (script, finish) = (local.file("member.sh"), local.file("finish"));
    let text = format!(
        "echo \"$1\"; trap 'while [ ! -e {} ]; do sleep 0.02; done; echo done; exit 0' TERM\n\
         while :; do sleep 0.02; done\n",
        finish.display()
    );
    fs::write(&script, text).unwrap();
    let mut pool = spec("pool", ComponentKind::Worker, "");
    pool.args = vec![script.display().to_string()];
    local.deployment.add_pool(pool, 1, &local.spawner).unwrap();
    let scale = async |size| local.deployment.scale(&name("pool"), size).await.unwrap();
    let states = async || {
        let all = local.deployment.components().await.unwrap();
        let states: Vec<_> = all.iter().map(|c| (c.name.to_string(), c.state)).collect();
        states
    };
    let member = |number: u16, state| (format!("pool-{number}"), state);
    scale(3).await;
    for number in 0..3 {
        let member = format!("pool-{number}");
        within(10, "be told its name", async || local.log(&member).await.len() == 1).await;
        assert_eq!(local.log(&member).await, [format!("--name={member}")]);
    }
    let (_, leaving) = local.running("pool-2").await;
    scale(1).await;
    let expected = [
        member(0, RunState::Running),
        member(1, RunState::Draining),
        member(2, RunState::Draining),
    ];
    within(10, "drain", async || states().await == expected).await;
    assert!(leaving.is_alive());
    // One that is wanted again comes back once it has finished.
    scale(2).await;
    fs::write(&finish, "").unwrap();
    let expected = [member(0, RunState::Running), member(1, RunState::Running)];
    within(10, "leave", async || states().await == expected).await;
    dead(5, "end", &[leaving]).await;
    assert_eq!(local.get("pool-1").await.last_exit.as_deref(), Some("exit code 0"));
    let began = async || local.log("pool-1").await.iter().filter(|line| line.contains('=')).count();
    within(10, "begin again", async || began().await == 2).await;
    let unknown = local.deployment.scale(&name("other"), 1).await;
    assert!(matches!(unknown, Err(Error::UnknownComponent(_))), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_routed_by_their_name() {
    let local = Local::new();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    local.deployment.add_service("database", Router::listen(any).await.unwrap());
    local.deployment.route("database", Some(any)).await.unwrap();
    let unknown = local.deployment.route("queue", None).await;
    assert!(matches!(unknown, Err(Error::UnknownService(_))), "{unknown:?}");
}

/// The role: a deployment that runs until it is killed.
pub(crate) async fn parent() {
    let folder = told(FOLDER);
    let deployment = LocalDeployment::new(Path::new(&folder).join("logs"));
    let spawner = Spawner::new().unwrap();
    for component in ["worker-0", "worker-1"] {
        let spec = spec(component, ComponentKind::Worker, "exec sleep 1000");
        deployment.add(spec, &spawner).unwrap();
    }
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_the_deployment() {
    let folder = folder();
    let told = [(FOLDER, folder.path().display().to_string())];
    let role = Role::start("parent", &folder.path().join("log"), &told).await;
    let process = role.process();
    within(10, "have components", async || descendants(process.pid()).len() == 2).await;
    let components = descendants(process.pid());
    process.signal(Signal::KILL);
    dead(5, "the components die with it", &components).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_is_dropped_takes_its_processes_along() {
    let local = Local::new();
    local.add("worker-0", ComponentKind::Worker, "exec sleep 1000");
    let (_, process) = local.running("worker-0").await;
    drop(local.deployment);
    dead(5, "be dropped", &[process]).await;
}
