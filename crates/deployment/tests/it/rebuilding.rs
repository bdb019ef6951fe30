//! A primary that lost its reign becomes a standby again, whatever it had written.

use std::time::{Duration, Instant};

use resurgam_deployment::postgres::wire::ServerState;
use rustix::process::Signal;

use crate::instances::{LONG_LEASE, Pair};
use crate::processes::within;

/// Both have rows 1 and 2; then the primary has more, which the standby never gets.
async fn diverged() -> Pair {
    let mut pair = Pair::streaming().await;
    pair.a.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)").await;
    pair.b.holds(&[1, 2]).await;
    pair.b.kill().await;
    pair.a.run("INSERT INTO t VALUES (100)").await;
    // More than a page or two, so that there is something to take back.
    pair.a
        .run("CREATE TABLE lost AS SELECT n, repeat('x', 200) FROM generate_series(1, 20000) n")
        .await;
    pair
}

/// Promotes the standby, which then has row 3.
async fn promote(pair: &mut Pair, epoch: i64) {
    pair.b.be_primary(epoch, LONG_LEASE, false, false);
    pair.b.start().await;
    pair.b.reigns(epoch).await;
    pair.b.run("INSERT INTO t VALUES (3)").await;
}

async fn is_whole(pair: &Pair) {
    pair.a.streams_from(&pair.b).await;
    pair.a.holds(&[1, 2, 3]).await;
    pair.b.run("INSERT INTO t VALUES (4)").await;
    pair.a.holds(&[1, 2, 3, 4]).await;
    let client = pair.a.connect("platform").await.unwrap();
    let lost = client.query_one("SELECT to_regclass('lost') IS NULL", &[]).await.unwrap();
    assert!(lost.get::<_, bool>(0));
    within(20, "forget what was replaced", async || !pair.a.dir.join("data.replaced").exists())
        .await;
    assert!(!pair.a.dir.join("rewinding").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_told_to_follow_is_killed_and_rewound() {
    let mut pair = diverged().await;
    let server = pair.a.server();
    let ordered = Instant::now();
    let number = pair.a.follow(&pair.b, 2);
    within(5, "kill it", async || !server.is_alive()).await;
    assert!(ordered.elapsed() < Duration::from_secs(2), "{:?}", ordered.elapsed());
    pair.a
        .says("it is harmless", |said| {
            said.carried_out >= number && said.observed.state.is_harmless()
        })
        .await;
    promote(&mut pair, 2).await;
    is_whole(&pair).await;
    assert_eq!(pair.controller.did(pair.a.name)[1..], ["rewinding to postgres-1"]);
    pair.a.end().await;
    pair.b.end().await;
}

/// The former primary was started anew in between, so that both have begun a timeline of the
/// same number, from the same position on.
#[tokio::test(flavor = "multi_thread")]
async fn timelines_of_the_same_number_are_told_apart() {
    let mut pair = Pair::streaming().await;
    pair.a.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)").await;
    pair.b.holds(&[1, 2]).await;
    pair.b.kill().await;
    pair.a.server().signal(Signal::KILL);
    pair.a.says("it is down", |said| said.observed.state == ServerState::Stopped).await;
    pair.a.be_primary(2, LONG_LEASE, false, false);
    pair.a.reigns(2).await;
    pair.a.run("INSERT INTO t VALUES (100)").await;
    pair.a
        .run("CREATE TABLE lost AS SELECT n, repeat('x', 200) FROM generate_series(1, 20000) n")
        .await;
    pair.a.follow(&pair.b, 3);
    pair.a.says("it is harmless", |said| said.observed.state.is_harmless()).await;
    promote(&mut pair, 3).await;
    is_whole(&pair).await;
    // Rewinding would have taken them for one, and left a mixture behind.
    assert_eq!(pair.controller.did(pair.a.name)[1..], ["base backup from postgres-1"]);
    pair.a.end().await;
    pair.b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_data_is_damaged_is_copied_anew() {
    let mut pair = Pair::streaming().await;
    pair.a.run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    pair.b.kill().await;
    let control = pair.b.layout.data().join("global/pg_control");
    let length = std::fs::metadata(&control).unwrap().len();
    std::fs::write(&control, vec![0; usize::try_from(length).unwrap()]).unwrap();
    pair.b.start().await;
    pair.b.says("it copies", |said| said.observed.doing.is_some()).await;
    pair.b.streams_from(&pair.a).await;
    pair.b.holds(&[1]).await;
    pair.a.end().await;
    pair.b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_cut_short_again_and_again_ends_well() {
    let mut pair = diverged().await;
    pair.a.follow(&pair.b, 2);
    promote(&mut pair, 2).await;
    let mut cut = Vec::new();
    for round in 0_u64..8 {
        let doing = || {
            let said = pair.controller.said(pair.a.name);
            said.and_then(|said| said.observed.doing)
        };
        let streams = || match pair.a.state() {
            ServerState::Standby(it) => it.streaming_from == Some(pair.b.address.port()),
            _ => false,
        };
        within(60, "rebuild", async || doing().is_some() || streams()).await;
        if streams() {
            break;
        }
        cut.push(doing());
        // Anywhere in it: at its beginning, in the middle, just after.
        tokio::time::sleep(Duration::from_millis(round * 67 % 400)).await;
        pair.a.kill().await;
        pair.a.start().await;
    }
    assert!(cut.len() > 2, "{cut:?}");
    is_whole(&pair).await;
    pair.a.end().await;
    pair.b.end().await;
}
