//! A keeper with a real server: when the server may accept writes, and when it cannot.

use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::Programs;
use resurgam_deployment::postgres::wire::ServerState;
use rustix::process::Signal;

use crate::instances::{LONG_LEASE, Node, Pair};
use crate::processes::{Process, freeze, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_is_made_and_commits_wait_for_the_standby() {
    let mut pair = Pair::streaming().await;
    assert!(pair.a.layout.data().join("standby.signal").exists(), "a primary is fenced at rest");
    let client = pair.a.connect("postgres").await.unwrap();
    let roles = "SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1";
    let roles = client.query(roles, &[]).await.unwrap();
    let roles: Vec<String> = roles.iter().map(|row| row.get(0)).collect();
    assert_eq!(roles, ["platform", "postgres", "replicator", "resurgam_probe"]);

    pair.a.be_primary(1, LONG_LEASE, false, true);
    pair.a
        .says("the standby is synchronous", |said| {
            Node::primary(said).is_some_and(|it| {
                it.synchronous == Some(pair.b.component())
                    && it.standbys.iter().any(|standby| standby.synchronous && standby.streaming)
            })
        })
        .await;
    pair.a.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    pair.b.holds(&[1]).await;

    // Without the standby no commit is confirmed, until the controller says so.
    pair.b.kill().await;
    let client = pair.a.connect("platform").await.unwrap();
    let insert = tokio::spawn(async move { client.execute("INSERT INTO t VALUES (2)", &[]).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let superuser = pair.a.connect("postgres").await.unwrap();
    within(10, "wait for the standby", async || {
        superuser.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    assert!(!insert.is_finished());
    pair.a.be_primary(1, LONG_LEASE, false, false);
    let inserted = tokio::time::timeout(Duration::from_secs(10), insert).await;
    assert_eq!(inserted.expect("go on without it").unwrap().unwrap(), 1);

    // The standby has it when it comes back.
    pair.b.start().await;
    pair.b.streams_from(&pair.a).await;
    pair.b.holds(&[1, 2]).await;
    pair.b.end().await;
    pair.a.end().await;
}

/// A server that somebody starts who is not its keeper.
struct Stray(Child);

impl Stray {
    fn start(node: &Node, args: &[String]) -> Self {
        let log = std::fs::File::create(node.dir.with_extension("stray")).unwrap();
        let programs = Programs::find(None).unwrap();
        let mut command = Command::new(programs.path("postgres"));
        if let Some(user) = &programs.user {
            command.uid(user.uid).gid(user.gid);
        }
        command.arg("-D").arg(node.layout.data()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_its_keeper_is_a_standby_that_lets_nobody_in() {
    let mut pair = Pair::alone(LONG_LEASE).await;
    pair.a.run("CREATE TABLE t (n int)").await;
    pair.a.kill().await;

    // It has nowhere to listen, so PostgreSQL does not even start.
    let mut stray = Stray::start(&pair.a, &[]);
    within(20, "end", async || stray.0.try_wait().unwrap().is_some()).await;
    assert!(TcpStream::connect(pair.a.address).is_err());
    drop(stray);

    // Where somebody tells it to listen, and how large it was, nobody is let in.
    let port = format!("port={}", pair.a.address.port());
    let settings =
        ["listen_addresses=127.0.0.1", &port, "max_connections=120", "max_wal_senders=16"];
    let stray = Stray::start(&pair.a, &settings.map(|setting| format!("-c{setting}")));
    within(20, "refuse", async || {
        let refused = pair.a.connect("platform").await.err();
        refused.is_some_and(|error| format!("{error:?}").contains("pg_hba.conf"))
    })
    .await;
    assert!(pair.a.connect("postgres").await.is_err());
    drop(stray);

    // With the keeper's configuration one gets in, and cannot write.
    let config = format!("-cconfig_file={}", pair.a.layout.config().display());
    let stray = Stray::start(&pair.a, &[config]);
    within(20, "let in", async || pair.a.connect("platform").await.is_ok()).await;
    let client = pair.a.connect("platform").await.unwrap();
    let written = client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap_err();
    let code = written.code().map(|code| code.code().to_owned());
    assert_eq!(code.as_deref(), Some("25006"), "{written:?}");

    // The keeper that comes back throws the stray server out.
    let stray_server = Process::of(stray.0.id()).unwrap();
    pair.a.be_primary(2, LONG_LEASE, false, false);
    pair.a.start().await;
    pair.a.reigns(2).await;
    assert!(!stray_server.is_alive(), "two servers on one data folder");
    pair.a.run("INSERT INTO t VALUES (1)").await;
}

const SHORT_LEASE: Duration = Duration::from_secs(2);

/// Watches on a thread of its own, so that busy tests cannot delay it. Answers when the last
/// process was dead.
fn death_of(family: Vec<Process>) -> std::thread::JoinHandle<Instant> {
    std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        while family.iter().any(|process| process.is_alive()) {
            assert!(Instant::now() < deadline, "it outlives its lease by far");
            std::thread::sleep(Duration::from_millis(2));
        }
        Instant::now()
    })
}

async fn dies_with_its_lease(pair: &mut Pair, frozen: bool) {
    assert!(pair.a.is_strong(), "no PID namespaces are allowed here");
    pair.controller.be_silent(true);
    let (family, last) = if frozen {
        let family = freeze(pair.a.keeper()).await;
        (family, pair.controller.last_answered(pair.a.name))
    } else {
        let family = pair.a.family();
        // What it asked before it is dead is not answered any more.
        (family, pair.controller.last_answered(pair.a.name))
    };
    assert!(family.len() > 5, "{family:?}");
    let watching = death_of(family);
    let died = tokio::task::spawn_blocking(|| watching.join().unwrap()).await.unwrap();
    let after = died.duration_since(last);
    assert!(after <= SHORT_LEASE + Duration::from_millis(200), "{after:?} after the last answer");
    assert!(TcpStream::connect(pair.a.address).is_err());
    pair.a.bury();
    pair.controller.be_silent(false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_is_dead_when_its_lease_is_over() {
    let mut pair = Pair::alone(SHORT_LEASE).await;
    pair.a.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    dies_with_its_lease(&mut pair, false).await;

    pair.a.be_primary(2, SHORT_LEASE, false, false);
    pair.a.start().await;
    pair.a.reigns(2).await;
    dies_with_its_lease(&mut pair, true).await;

    pair.a.be_primary(3, LONG_LEASE, false, false);
    pair.a.start().await;
    pair.a.reigns(3).await;
    pair.a.holds(&[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_controller_is_gone_dies_while_it_is_written_to() {
    let mut pair = Pair::alone(SHORT_LEASE).await;
    pair.a.run("CREATE TABLE t (n int)").await;
    let client = pair.a.connect("platform").await.unwrap();
    let writing = tokio::spawn(async move {
        let mut last = Instant::now();
        while client.execute("INSERT INTO t VALUES (1)", &[]).await.is_ok() {
            last = Instant::now();
        }
        last
    });
    dies_with_its_lease(&mut pair, false).await;
    let last_write = writing.await.unwrap();
    let granted = pair.controller.last_answered(pair.a.name) + SHORT_LEASE;
    assert!(last_write <= granted + Duration::from_millis(50), "written after the lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_epoch_has_two_reigns() {
    let mut pair = Pair::alone(LONG_LEASE).await;
    pair.a.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    let stays_down = async |pair: &Pair| {
        let said = pair
            .a
            .says("it waits", |said| {
                said.observed.state == ServerState::Stopped && said.observed.problem.is_some()
            })
            .await;
        let problem = said.observed.problem.unwrap();
        assert!(problem.contains("ended during this reign"), "{problem}");
    };
    pair.a.server().signal(Signal::KILL);
    stays_down(&pair).await;
    let said = pair.controller.said(pair.a.name).unwrap();
    assert!(said.observed.last_exit.is_some_and(|exit| exit.contains('9')));

    // Nor for another keeper, nor on a later directive of the same epoch, nor by way of another
    // order in between.
    pair.a.kill().await;
    pair.a.start().await;
    stays_down(&pair).await;
    let number = pair.a.be_primary(1, LONG_LEASE, true, false);
    pair.a.says("it has heard", |said| said.carried_out >= number).await;
    stays_down(&pair).await;
    pair.a.follow(&pair.b, 1);
    pair.a
        .says("it is a standby", |said| matches!(said.observed.state, ServerState::Standby(_)))
        .await;
    pair.a.be_primary(1, LONG_LEASE, false, false);
    let said = pair.a.says("it complains", |said| said.observed.problem.is_some()).await;
    assert!(matches!(said.observed.state, ServerState::Standby(_)), "{said:?}");
    let client = pair.a.connect("platform").await.unwrap();
    assert!(client.batch_execute("INSERT INTO t VALUES (9)").await.is_err());

    pair.a.be_primary(2, LONG_LEASE, false, false);
    pair.a.reigns(2).await;
    pair.a.says("no problem is left", |said| said.observed.problem.is_none()).await;
    assert_eq!(pair.a.rows().await, [1]);

    // A later epoch goes on without an interruption.
    let server = pair.a.server();
    pair.a.be_primary(3, LONG_LEASE, false, false);
    pair.a.reigns(3).await;
    assert_eq!(pair.a.server(), server);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_to_stop_kills_a_primary_at_once_and_ends_a_standby() {
    let mut pair = Pair::streaming().await;
    let (primary, standby) = (pair.a.server(), pair.b.server());
    let number = pair.a.stop(2);
    pair.b.stop(2);
    within(5, "kill the primary", async || !primary.is_alive()).await;
    within(10, "end the standby", async || !standby.is_alive()).await;
    for node in [&pair.a, &pair.b] {
        node.says("it is stopped", |said| {
            said.carried_out >= number && said.observed.state == ServerState::Stopped
        })
        .await;
    }
    // The fuse is out: nothing dies when the controller is silent.
    let keeper = pair.a.keeper();
    pair.controller.be_silent(true);
    tokio::time::sleep(Duration::from_millis(200)).await;
    pair.controller.be_silent(false);
    assert!(keeper.is_alive());
    pair.a.end().await;
    pair.b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_promoted_behind_its_keepers_back_is_killed() {
    let mut pair = Pair::streaming().await;
    pair.a.run("CREATE TABLE t (n int)").await;
    pair.b.holds(&[]).await;
    let server = pair.b.server();
    let writer = pair.b.connect("platform").await.unwrap();
    let superuser = pair.b.connect("postgres").await.unwrap();
    let promoting = tokio::spawn(async move {
        let _ = superuser.query("SELECT pg_promote(false)", &[]).await;
    });
    // Until it is dead it confirms nothing.
    while !writer.is_closed() {
        assert!(writer.batch_execute("INSERT INTO t VALUES (9)").await.is_err());
    }
    within(20, "kill it", async || !server.is_alive()).await;
    promoting.await.unwrap();
    // It has begun a timeline of its own, and finds back.
    pair.a.run("INSERT INTO t VALUES (1)").await;
    pair.b.streams_from(&pair.a).await;
    pair.b.holds(&[1]).await;
    pair.b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_without_data_does_not_begin_a_new_database_unasked() {
    let mut pair = Pair::new().await;
    pair.a.be_primary(5, LONG_LEASE, false, false);
    pair.a.start().await;
    let said = pair.a.says("it complains", |said| said.observed.problem.is_some()).await;
    assert_eq!(said.observed.state, ServerState::Absent);
    assert!(!pair.a.layout.data().exists());
    pair.a.end().await;
}
