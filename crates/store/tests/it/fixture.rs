//! Empty stores, and short ways to say what the tests are about.

use std::ops::Deref;
use std::time::Duration as Span;

use resurgam_model::agent::Registration;
use resurgam_model::task::{Claim, Completion, Failure, Lease, LeaseRef, NewTask, Token};
use resurgam_model::{AgentId, Capability, Duration, InstanceId, Payload, TaskId};
use resurgam_store::{Settings, SharedStore, open, postgres};
use resurgam_testing::ScratchPostgres;
use tempfile::TempDir;

/// A store, and how to open it once more.
pub(crate) struct Fixture {
    pub(crate) store: SharedStore,
    pub(crate) settings: Settings,
    _folder: Option<TempDir>,
}

impl Deref for Fixture {
    type Target = SharedStore;

    fn deref(&self) -> &SharedStore {
        &self.store
    }
}

/// A new file.
pub(crate) async fn sqlite() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::Sqlite { path: folder.path().join("store.db") };
    opened(settings, Some(folder)).await
}

/// A new database on the shared server.
pub(crate) async fn postgres() -> Fixture {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    opened(postgres_settings(server.url(&database)), None).await
}

pub(crate) fn postgres_settings(url: String) -> Settings {
    Settings::Postgres(postgres::Settings {
        url,
        max_pool_size: 8,
        application_name: "store-tests".to_owned(),
        timeout: Span::from_secs(20),
    })
}

async fn opened(settings: Settings, folder: Option<TempDir>) -> Fixture {
    let store = open(&settings).unwrap();
    store.migrate().await.unwrap();
    Fixture { store, settings, _folder: folder }
}

/// Runs statements behind the store's back.
pub(crate) async fn raw(settings: &Settings, sql: &str) {
    match settings {
        Settings::Sqlite { path } => {
            let raw = rusqlite::Connection::open(path).unwrap();
            raw.busy_timeout(Span::from_secs(20)).unwrap();
            raw.execute_batch(sql).unwrap();
        }
        Settings::Postgres(settings) => {
            let no_tls = tokio_postgres::NoTls;
            let (raw, connection) = tokio_postgres::connect(&settings.url, no_tls).await.unwrap();
            let connection = tokio::spawn(connection);
            raw.batch_execute(sql).await.unwrap();
            drop(raw);
            connection.await.unwrap().unwrap();
        }
    }
}

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const NOTHING: Duration = Duration::from_secs(0);

pub(crate) fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

pub(crate) fn capability(name: &str) -> Capability {
    Capability::new(name).unwrap()
}

/// A task that is tried again without a wait.
pub(crate) fn task(kind: &str) -> NewTask {
    let mut task = NewTask::new(capability(kind), Payload::from_json("{ \"n\":1.0 }").unwrap());
    task.retry.backoff = NOTHING;
    task.retry.jitter = 0;
    task
}

pub(crate) fn registration(name: &str, instance: InstanceId) -> Registration {
    Registration {
        id: agent(name),
        instance,
        capabilities: vec![capability("x")],
        capacity: 3,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        version: Some("1.2".to_owned()),
        heartbeat: None,
    }
}

/// Registers a life of an agent.
pub(crate) async fn register(store: &SharedStore, name: &str) -> InstanceId {
    let instance = InstanceId::new();
    store.register(&registration(name, instance)).await.unwrap();
    instance
}

pub(crate) fn wanted(name: &str, instance: InstanceId, max: u32, lease: Duration) -> Claim {
    let capabilities = vec![capability("x")];
    Claim { agent: agent(name), instance, capabilities, max, lease, id: None, again: false }
}

/// Registers an agent, hands in a task for it, and claims it.
pub(crate) async fn claimed(store: &SharedStore, new: NewTask, lease: Duration) -> Lease {
    let instance = register(store, "holder").await;
    store.submit(&[new]).await.unwrap();
    let mut leases = store.claim(&wanted("holder", instance, 1, lease)).await.unwrap();
    assert_eq!(leases.len(), 1);
    leases.remove(0)
}

pub(crate) fn lease_ref(lease: &Lease) -> LeaseRef {
    LeaseRef { task: lease.task, token: lease.token }
}

pub(crate) fn completion(lease: LeaseRef) -> Completion {
    Completion { lease, result: Payload::from_json("[1,  2.50]").unwrap() }
}

pub(crate) fn failure(lease: LeaseRef, retry: bool) -> Failure {
    Failure { lease, error: "it \"broke\"\n".to_owned(), retry }
}

/// A lease on a task that there never was.
pub(crate) fn no_lease() -> LeaseRef {
    LeaseRef { task: TaskId::new(), token: Token(1) }
}
