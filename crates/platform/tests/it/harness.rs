//! Servers and workers that can be killed, and waiting for what is to happen.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration as StdDuration, Instant};

use resurgam_bus::EmbeddedBus;
use resurgam_client::worker::{self, Queue, Remote};
use resurgam_client::{Client, Patience};
use resurgam_model::Role;
use resurgam_model::agent::{HeartbeatTerms, Registration};
use resurgam_model::task::{Claim, NewTask, Task, TaskState};
use resurgam_model::{AgentId, Capability, Duration, InstanceId, Payload, TaskId};
use resurgam_platform::{ServeSettings, serve};
use resurgam_store::SharedStore;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// A process of the platform: a runtime of its own, so that killing it leaves nothing behind.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) async fn start(settings: ServeSettings, store: SharedStore) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (ready, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = runtime.spawn(async move {
            let bus = Arc::new(EmbeddedBus::new(Arc::clone(&store)));
            let ready = move |address| ready.send(address).unwrap();
            let shutdown = async move { drop(stopped.await) };
            serve(settings, store, bus, ready, shutdown).await.unwrap();
        });
        let address = address.await.expect("the server must come up");
        let client = Client::new(&format!("http://{address}")).unwrap();
        Self { address, client, runtime: Some(runtime), stop: Some(stop), ended: Some(ended) }
    }

    /// Starts it and waits until it can work.
    pub(crate) async fn ready(settings: ServeSettings, store: SharedStore) -> Self {
        let server = Self::start(settings, store).await;
        until("ready", || async { server.client.ready().await.is_ok_and(|r| r.is_ready()) }).await;
        server
    }

    /// All roles, over a new file.
    pub(crate) async fn whole(dir: &TempDir) -> Self {
        Self::ready(settings(SERVER), sqlite(dir.path())).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// At once, like a process that is killed.
    pub(crate) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// In order.
    pub(crate) async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.ended.take().unwrap().await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The parts of a server that is the whole platform but for its workers.
pub(crate) const SERVER: [Role; 3] = [Role::Api, Role::Registry, Role::Supervisor];

/// Waits until nobody listens there any more, so that the port can be taken again.
pub(crate) async fn port_free(address: SocketAddr) {
    until("port free", || async move { tokio::net::TcpListener::bind(address).await.is_ok() })
        .await;
}

pub(crate) fn settings(roles: impl IntoIterator<Item = Role>) -> ServeSettings {
    let mut settings = ServeSettings::new(roles, SocketAddr::from(([127, 0, 0, 1], 0)));
    settings.recheck = Duration::from_millis(50);
    settings.sweep = Duration::from_millis(50);
    // Nobody is declared gone unless a test is about that.
    settings.heartbeat = terms(100, 60_000);
    settings
}

pub(crate) fn terms(every: u64, expire_after: u64) -> HeartbeatTerms {
    HeartbeatTerms {
        every: Duration::from_millis(every),
        expire_after: Duration::from_millis(expire_after),
    }
}

pub(crate) fn sqlite(dir: &Path) -> SharedStore {
    let path = dir.join("store.sqlite");
    resurgam_store::open(&resurgam_store::Settings::Sqlite { path }).unwrap()
}

/// A worker in this process; dropping it is like killing one.
pub(crate) struct Worker {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<Result<(), worker::Error>>>,
}

impl Worker {
    pub(crate) fn start(server: &Server, worker: worker::Worker) -> Self {
        Self::over(Remote::new(server.client.clone()), worker)
    }

    pub(crate) fn over(queue: impl Queue, worker: worker::Worker) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let shutdown = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let task = tokio::spawn(worker.run(queue, shutdown));
        Self { stop, task: Some(task) }
    }

    pub(crate) async fn kill(mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn stop(mut self) {
        self.stop.send(true).unwrap();
        self.task.take().unwrap().await.unwrap().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A worker that does not lose its leases by itself.
pub(crate) fn worker(id: &str) -> worker::Worker {
    worker::Worker::new(agent(id)).lease(Duration::from_secs(60))
}

pub(crate) fn agent(id: &str) -> AgentId {
    AgentId::new(id).unwrap()
}

pub(crate) fn capability(name: &str) -> Capability {
    Capability::new(name).unwrap()
}

pub(crate) fn task(can: &str, text: &str) -> NewTask {
    NewTask::new(capability(can), Payload::from_text(text))
}

pub(crate) fn claim(id: &str, instance: InstanceId, can: &str) -> Claim {
    Claim {
        agent: agent(id),
        instance,
        capabilities: vec![capability(can)],
        max: 1,
        lease: Duration::from_secs(60),
        id: None,
        again: false,
    }
}

pub(crate) async fn register(client: &Client, id: &str, can: &str) -> InstanceId {
    let instance = InstanceId::new();
    let registration = Registration::new(agent(id), instance, [capability(can)]);
    client.register(&registration).await.unwrap();
    instance
}

/// Waits until the task is there, also over outages.
pub(crate) async fn reaches(client: &Client, id: TaskId, state: TaskState) -> Task {
    let start = Instant::now();
    loop {
        let task = client
            .patiently(&Patience::default(), |client| async move { client.task(id).await })
            .await
            .unwrap()
            .unwrap();
        if task.state == state {
            return task;
        }
        assert!(start.elapsed() < LONG, "{task:?} never became {state:?}");
        tokio::time::sleep(StdDuration::from_millis(10)).await;
    }
}

/// What takes longer has failed.
const LONG: StdDuration = StdDuration::from_secs(30);

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < LONG, "never {what}");
        tokio::time::sleep(StdDuration::from_millis(10)).await;
    }
}
