//! Keeps one process running.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use resurgam_model::{ComponentName, Timestamp};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;
use tokio::sync::watch;

use super::Spawner;
use super::logs;
use crate::{Component, ComponentKind, RunState};

/// The pause before the first restart; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that ran for so long was healthy: the next pause is the first one again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// How long a process may take to end in order before it is killed.
const GRACE: Duration = Duration::from_secs(8);
/// How long one that is not needed any more may take to finish what it has begun. A worker hands
/// its tasks back before that.
const DRAIN_GRACE: Duration = Duration::from_secs(40);

/// What a component runs.
#[derive(Clone, Debug)]
pub struct ComponentSpec {
    /// Its name.
    pub name: ComponentName,
    /// What it is for.
    pub kind: ComponentKind,
    /// The program.
    pub program: PathBuf,
    /// Its arguments; never a secret, other users can read them.
    pub args: Vec<String>,
    /// Additional environment variables; only this user can read them.
    pub env: Vec<(String, String)>,
    /// Where it will listen, if it does.
    pub address: Option<SocketAddr>,
}

/// What is wanted of the process. Each order has a number, so that "restart" can be given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    number: u64,
    run: bool,
    /// To end without hurry.
    drain: bool,
}

/// A component and the task that keeps it running. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Supervised {
    orders: watch::Sender<Order>,
    /// The component as it is, and the number of the last order carried out.
    state: watch::Receiver<(Component, u64)>,
    kind: ComponentKind,
    task: tokio::task::AbortHandle,
}

impl Supervised {
    pub(super) fn start(
        spec: ComponentSpec,
        log: PathBuf,
        spawner: Spawner,
        changed: watch::Sender<u64>,
    ) -> Self {
        let kind = spec.kind;
        let component = Component {
            name: spec.name.clone(),
            kind,
            state: RunState::Restarting,
            pid: None,
            address: spec.address,
            started_at: None,
            restarts: 0,
            last_exit: None,
        };
        let (orders, inbox) = watch::channel(Order { number: 0, run: true, drain: false });
        let (publish, state) = watch::channel((component, 0));
        let keeper = Keeping { spec, log, spawner, orders: inbox, publish, changed };
        let task = tokio::spawn(keeper.run()).abort_handle();
        Self { orders, state, kind, task }
    }

    pub(super) fn kind(&self) -> ComponentKind {
        self.kind
    }

    pub(super) fn component(&self) -> Component {
        self.state.borrow().0.clone()
    }

    pub(super) async fn restart(&self) {
        self.carried_out(self.order(true, true)).await;
    }

    pub(super) async fn stop(&self) {
        self.carried_out(self.order(false, false)).await;
    }

    pub(super) async fn start_again(&self) {
        self.carried_out(self.order(true, false)).await;
    }

    /// Orders the process to end, without waiting; the number is for [`Self::carried_out`].
    pub(super) fn order_stop(&self) -> u64 {
        self.order(false, false)
    }

    /// Orders the process to finish what it has begun and to end, without waiting for that.
    pub(super) fn order_drain(&self) -> u64 {
        let mut number = 0;
        self.orders.send_if_modified(|order| {
            let change = order.run;
            if change {
                *order = Order { number: order.number + 1, run: false, drain: true };
            }
            number = order.number;
            change
        });
        number
    }

    /// No order came after this one, and the process has ended.
    pub(super) fn is_ended(&self, number: u64) -> bool {
        self.orders.borrow().number == number && self.state.borrow().0.state == RunState::Stopped
    }

    /// Orders the process to run, without waiting for that.
    pub(super) fn order_run(&self) {
        self.order(true, false);
    }

    /// Gives an order. An order for what is wanted already changes nothing unless it is forced.
    fn order(&self, run: bool, force: bool) -> u64 {
        let mut number = 0;
        self.orders.send_if_modified(|order| {
            // Whoever drains is hurried by an order to stop.
            let change = force || order.run != run || (!run && order.drain);
            if change {
                *order = Order { number: order.number + 1, run, drain: false };
            }
            number = order.number;
            change
        });
        number
    }

    /// Waits until an order is carried out.
    pub(super) fn carried_out(&self, number: u64) -> impl Future<Output = ()> + 'static + use<> {
        let mut state = self.state.clone();
        async move {
            // An error means that the task is gone, and the process with it.
            let _ = state.wait_for(|(_, done)| *done >= number).await;
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeping {
    spec: ComponentSpec,
    log: PathBuf,
    spawner: Spawner,
    orders: watch::Receiver<Order>,
    publish: watch::Sender<(Component, u64)>,
    changed: watch::Sender<u64>,
}

impl Keeping {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut first = true;
        loop {
            let order = *self.orders.borrow_and_update();
            if !order.run {
                self.update(order.number, |c| c.state = RunState::Stopped);
                if self.orders.changed().await.is_err() {
                    return;
                }
                first = false;
                continue;
            }
            let started = Instant::now();
            // Taken before the process can do anything: whatever it does is later than this.
            let started_at = Timestamp::now();
            match self.spawn().await {
                Ok(mut child) => {
                    let pid = child.id();
                    let restarted = !std::mem::take(&mut first);
                    self.update(order.number, |c| {
                        c.state = RunState::Running;
                        c.pid = pid;
                        c.started_at = Some(started_at);
                        c.restarts += u32::from(restarted);
                    });
                    let exit = tokio::select! {
                        exit = child.wait() => exit,
                        _ = self.orders.changed() => self.end(&mut child).await,
                    };
                    // Whatever the process left in its group goes with it.
                    signal(pid, Signal::KILL);
                    let how = exit.map_or_else(|error| error.to_string(), describe);
                    tracing::info!(component = %self.spec.name, exit = how, "process ended");
                    let wanted = self.orders.borrow().run;
                    self.update(0, |c| {
                        c.state = if wanted { RunState::Restarting } else { RunState::Stopped };
                        c.pid = None;
                        c.last_exit = Some(how);
                    });
                }
                Err(error) => {
                    tracing::error!(component = %self.spec.name, %error, "start a process");
                    self.update(order.number, |c| c.last_exit = Some(format!("no start: {error}")));
                }
            }
            if self.orders.borrow().number != order.number {
                pause = FIRST_PAUSE;
                continue;
            }
            if started.elapsed() > HEALTHY_AFTER {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pause = FIRST_PAUSE;
                }
            }
        }
    }

    /// Ends a process in order, then by force. One that drains has more time, until it is ordered
    /// to stop.
    async fn end(&mut self, child: &mut Child) -> std::io::Result<ExitStatus> {
        signal(child.id(), Signal::TERM);
        if self.orders.borrow_and_update().drain {
            self.update(0, |c| c.state = RunState::Draining);
            let mut patience = std::pin::pin!(tokio::time::sleep(DRAIN_GRACE));
            loop {
                tokio::select! {
                    exit = child.wait() => return exit,
                    () = &mut patience => break,
                    changed = self.orders.changed() => {
                        let order = *self.orders.borrow();
                        if changed.is_err() || !(order.run || order.drain) {
                            break;
                        }
                    }
                }
            }
        }
        // One that is stopped will never hear of it.
        let grace = if child.id().is_some_and(is_stopped) { Duration::ZERO } else { GRACE };
        match tokio::time::timeout(grace, child.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                signal(child.id(), Signal::KILL);
                child.wait().await
            }
        }
    }

    async fn spawn(&self) -> std::io::Result<Child> {
        let log = logs::open(&self.log)?;
        let mut command = std::process::Command::new(&self.spec.program);
        command
            .args(&self.spec.args)
            .envs(self.spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.spawner.spawn(command).await
    }

    fn update(&self, done: u64, change: impl FnOnce(&mut Component)) {
        self.publish.send_modify(|(component, last)| {
            change(component);
            *last = done.max(*last);
        });
        self.changed.send_modify(|count| *count += 1);
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

fn signal(pid: Option<u32>, signal: Signal) {
    let group = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(group) = group {
        // No such group: all of it has ended.
        let _ = kill_process_group(group, signal);
    }
}

fn describe(exit: ExitStatus) -> String {
    match (exit.code(), exit.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
