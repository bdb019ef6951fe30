//! How fast it is, with a million completed tasks behind it. Run by hand:
//! `cargo test --release -p resurgam-store -- --ignored --nocapture throughput`

use std::sync::Arc;
use std::time::Instant;

use resurgam_store::{Counted, Settings, SharedStore};
use resurgam_testing::ScratchPostgres;
use tokio::task::JoinSet;

use crate::fixture::{self, HOUR, completion, lease_ref, register, task, wanted};

const OLD: u32 = 1_000_000;
const WORKERS: usize = 32;
const EACH: usize = 100;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes a while"]
async fn of_sqlite() {
    let store = fixture::sqlite().await;
    let Settings::Sqlite { path } = &store.settings else { panic!("not SQLite") };
    let raw = rusqlite::Connection::open(path).unwrap();
    raw.execute_batch(&format!(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {OLD})
         INSERT INTO tasks (id, capability, state, payload, result, priority, attempts,
             max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter, token, run_at,
             created_at, finished_at)
         SELECT randomblob(16), 'x', 'completed', 'null', 'null', 0, 1, 3, 0, 0, 0, 0, 1, 0, 0, 0
         FROM n"
    ))
    .unwrap();
    measure(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes a while"]
async fn of_postgresql() {
    let store = fixture::postgres().await;
    let Settings::Postgres(settings) = &store.settings else { panic!("not PostgreSQL") };
    let database = settings.url.rsplit('/').next().unwrap();
    let sql = format!(
        "INSERT INTO tasks_done (id, capability, state, payload, result, priority, attempts,
             max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter, token, run_at,
             created_at, finished_at, expires_at)
         SELECT gen_random_uuid(), 'x', 'completed', 'null', 'null', 0, 1, 3, false, 0, 0, 0, 1,
             now(), now(), now(), now() + interval '7 days'
         FROM generate_series(1, {OLD});
         VACUUM ANALYZE tasks_done;"
    );
    ScratchPostgres::shared().unwrap().execute(database, &sql).await.unwrap();
    measure(&store).await;
}

async fn measure(store: &SharedStore) {
    for batch in [1_usize, 20, 250] {
        let began = Instant::now();
        let mut workers = JoinSet::new();
        for n in 0..WORKERS {
            let store = Arc::clone(store);
            workers.spawn(async move {
                let name = format!("w{n}");
                let instance = register(&store, &name).await;
                let claim = wanted(&name, instance, batch.try_into().unwrap(), HOUR);
                for _ in 0..EACH {
                    store.submit(&vec![task("x"); batch]).await.unwrap();
                    let leases = store.claim(&claim).await.unwrap();
                    let words: Vec<_> = leases.iter().map(|l| completion(lease_ref(l))).collect();
                    store.complete(&words).await.unwrap();
                }
            });
        }
        workers.join_all().await;
        let tasks = WORKERS * EACH * batch;
        let rate = tasks as f64 / began.elapsed().as_secs_f64();
        println!(
            "{} in batches of {batch}: {rate:.0} tasks/s handed in, claimed, completed",
            store.kind()
        );
    }
    let began = Instant::now();
    store.task_counts(Counted::All).await.unwrap();
    println!("{} counted in {:?}", store.kind(), began.elapsed());
}
