//! Parts that go away and come back.

use std::sync::Arc;

use resurgam_bus::EmbeddedBus;
use resurgam_client::worker::Sha256;
use resurgam_model::Role;
use resurgam_model::Timestamp;
use resurgam_model::agent::AgentState;
use resurgam_model::task::TaskState;
use resurgam_platform::{ServeSettings, serve};

use crate::flaky::{Flaky, SECRET};
use crate::harness::*;
use crate::workers::Gate;

async fn state(server: &Server, id: &str) -> Option<AgentState> {
    server.client.agent(&agent(id)).await.unwrap().map(|agent| agent.state)
}

#[tokio::test]
async fn the_registry_goes_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut only_registry = settings([Role::Registry]);
    only_registry.heartbeat = terms(50, 400);
    let registry = Server::ready(only_registry.clone(), sqlite(dir.path())).await;
    let mut only_api = settings([Role::Api, Role::Supervisor]);
    only_api.registry_url = Some(registry.url());
    let api = Server::ready(only_api, sqlite(dir.path())).await;
    let _worker = Worker::start(&api, worker("w").on(capability("sha256"), Sha256));
    until("registered", || async { state(&api, "w").await == Some(AgentState::Available) }).await;

    only_registry.listen = registry.address;
    registry.kill();
    port_free(only_registry.listen).await;
    let error = api.client.heartbeat(&[]).await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(error.code(), Some("registry-unavailable"));
    // Work goes on, and what is known can be read.
    let id = api.client.submit(&task("sha256", "")).await.unwrap().id;
    reaches(&api.client, id, TaskState::Completed).await;
    // Long enough for the worker's heartbeat to be overdue when the registry looks again.
    let seen = api.client.agent(&agent("w")).await.unwrap().unwrap().seen_at;
    let overdue = || async { Timestamp::now().duration_since(seen).as_millis() > 800 };
    until("overdue", overdue).await;

    let registry = Server::ready(only_registry, sqlite(dir.path())).await;
    let seen_again = || async {
        let agent = registry.client.agent(&agent("w")).await.unwrap().unwrap();
        assert_eq!(agent.state, AgentState::Available, "its own absence made an agent gone");
        agent.seen_at > seen
    };
    until("seen again", seen_again).await;

    // Somebody takes it out all the same: it registers again by itself.
    let life = api.client.agent(&agent("w")).await.unwrap().unwrap().instance;
    sqlite(dir.path()).deregister(&agent("w"), life).await.unwrap();
    until("back", || async { state(&api, "w").await == Some(AgentState::Available) }).await;
    let id = api.client.submit(&task("sha256", "")).await.unwrap().id;
    reaches(&api.client, id, TaskState::Completed).await;
}

#[tokio::test]
async fn results_outlast_an_outage_of_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::whole(&dir).await;
    let gate = Gate::closed();
    let _worker = Worker::start(&server, worker("w").on(capability("x"), gate.clone()));
    let batch: Vec<_> = (0..4).map(|n| task("x", &n.to_string())).collect();
    let submitted = server.client.submit_batch(&batch).await.unwrap();
    gate.running(4).await;
    let mut settings = settings(SERVER);
    settings.listen = server.address;
    server.kill();
    port_free(settings.listen).await;
    gate.open();
    gate.running(0).await;
    let server = Server::ready(settings, sqlite(dir.path())).await;
    for submitted in submitted {
        let task = reaches(&server.client, submitted.id, TaskState::Completed).await;
        assert_eq!(task.attempts, 1, "the work was done twice");
    }
    // And the worker goes on by itself.
    let id = server.client.submit(&task("x", "")).await.unwrap().id;
    reaches(&server.client, id, TaskState::Completed).await;
}

#[tokio::test]
async fn a_worker_stays_known_and_keeps_its_tasks_while_the_api_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut only_registry = settings([Role::Registry, Role::Supervisor]);
    only_registry.heartbeat = terms(50, 500);
    let registry = Server::ready(only_registry, sqlite(dir.path())).await;
    let mut only_api = settings([Role::Api]);
    only_api.registry_url = Some(registry.url());
    let api = Server::ready(only_api.clone(), sqlite(dir.path())).await;
    only_api.listen = api.address;
    let gate = Gate::closed();
    let _worker = Worker::start(&api, worker("w").on(capability("x"), gate.clone()));
    let id = api.client.submit(&task("x", "")).await.unwrap().id;
    gate.running(1).await;

    api.kill();
    port_free(only_api.listen).await;
    let since = Timestamp::now();
    until("long away", || async {
        assert_eq!(state(&registry, "w").await, Some(AgentState::Available));
        Timestamp::now().duration_since(since).as_millis() > 1200
    })
    .await;
    gate.open();
    let api = Server::ready(only_api, sqlite(dir.path())).await;
    let task = reaches(&api.client, id, TaskState::Completed).await;
    assert_eq!(task.attempts, 1, "the work was done twice");
}

#[tokio::test]
async fn the_process_comes_up_before_its_database() {
    let dir = tempfile::tempdir().unwrap();
    let flaky = Flaky::new(sqlite(dir.path()), true);
    let server = Server::start(settings(SERVER), flaky.clone()).await;
    let health = server.client.health().await.unwrap();
    assert_eq!((&*health.status, health.roles.len()), ("ok", 3));
    assert!(!server.client.ready().await.unwrap().is_ready());
    let error = server.client.submit(&task("x", "")).await.unwrap_err();
    assert_eq!((error.is_transient(), error.code()), (true, Some("unavailable")));
    flaky.set_away(false);
    until("ready", || async { server.client.ready().await.unwrap().is_ready() }).await;
    server.client.submit(&task("x", "")).await.unwrap();
}

#[tokio::test]
async fn a_database_that_was_away_makes_no_agent_gone() {
    let dir = tempfile::tempdir().unwrap();
    let flaky = Flaky::new(sqlite(dir.path()), false);
    let mut settings = settings(SERVER);
    settings.heartbeat = terms(50, 400);
    let server = Server::ready(settings, flaky.clone()).await;
    let _worker = Worker::start(&server, worker("w").on(capability("sha256"), Sha256));
    until("registered", || async { state(&server, "w").await == Some(AgentState::Available) })
        .await;
    let before = server.client.agent(&agent("w")).await.unwrap().unwrap();

    flaky.set_away(true);
    assert_eq!(server.client.health().await.unwrap().status, "ok");
    let readiness = server.client.ready().await.unwrap();
    assert!(!readiness.is_ready() && !readiness.checks["store"].ok && !readiness.checks["bus"].ok);
    assert!(!format!("{readiness:?}").contains(SECRET));
    let error = server.client.pending().await.unwrap_err();
    assert_eq!((error.is_transient(), error.code()), (true, Some("unavailable")));
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    let overdue = || async { Timestamp::now().duration_since(before.seen_at).as_millis() > 1000 };
    until("overdue", overdue).await;
    flaky.set_away(false);

    until("seen again", || async {
        let agent = server.client.agent(&agent("w")).await.unwrap().unwrap();
        assert_eq!(agent.state, AgentState::Available);
        agent.seen_at > before.seen_at
    })
    .await;
    let id = server.client.submit(&task("sha256", "")).await.unwrap().id;
    reaches(&server.client, id, TaskState::Completed).await;
}

#[tokio::test]
async fn what_cannot_be_served_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let with = |change: &dyn Fn(&mut ServeSettings)| {
        let mut settings = settings(SERVER);
        change(&mut settings);
        let bus = Arc::new(EmbeddedBus::new(Arc::clone(&store)));
        let store = Arc::clone(&store);
        async move {
            let forever = std::future::pending();
            serve(settings, store, bus, |_| panic!("it is not ready"), forever)
                .await
                .unwrap_err()
                .to_string()
        }
    };
    let address = taken.local_addr().unwrap();
    let error = with(&|settings| settings.listen = address).await;
    assert!(error.starts_with(&format!("{address} is in use by another process; end")), "{error}");
    let error = with(&|settings| settings.listen.set_ip([0, 0, 0, 0].into())).await;
    insta::assert_snapshot!(error, @"0.0.0.0:0 can be reached from other machines, and access is open; control it with --access tokens, or listen on a loopback address such as 127.0.0.1 or [::1]");
    let error = with(&|settings| settings.roles = [Role::Api].into()).await;
    insta::assert_snapshot!(error, @"the role api needs the role registry in the same process, or the registry's URL");
    let error = with(&|settings| settings.roles.clear()).await;
    insta::assert_snapshot!(error, @"the process has no role; give it api, registry or supervisor");
}
