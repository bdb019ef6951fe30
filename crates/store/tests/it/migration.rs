//! Databases that the first version made go on with all that is in them.

use resurgam_model::task::{Change, Completion, Failure, LeaseRef, Outcome, TaskState, Token};
use resurgam_model::{Payload, TaskId};
use resurgam_store::{Settings, open};
use resurgam_testing::ScratchPostgres;

use crate::fixture::{HOUR, agent, capability, postgres_settings, raw, register, task, wanted};

/// The times are the only thing in which the two databases differ.
struct Dialect {
    schema: &'static str,
    versions: &'static str,
    long_ago: &'static str,
    far_ahead: &'static str,
    uuid: fn(&str) -> String,
}

const SQLITE: Dialect = Dialect {
    schema: include_str!("../../migrations/sqlite/0001_initial.sql"),
    versions: "CREATE TABLE schema_versions (
             version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL) STRICT;
         INSERT INTO schema_versions VALUES (1, 1)",
    long_ago: "1700000000000000",
    far_ahead: "4000000000000000",
    uuid: |id| format!("x'{}'", id.replace('-', "")),
};

const POSTGRES: Dialect = Dialect {
    schema: include_str!("../../migrations/postgres/0001_initial.sql"),
    versions: "CREATE TABLE schema_versions (
             version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
         INSERT INTO schema_versions (version) VALUES (1)",
    long_ago: "to_timestamp(1700000000)",
    far_ahead: "to_timestamp(4000000000)",
    uuid: |id| format!("'{id}'"),
};

const LIFE: &str = "01900000-0000-7000-8000-0000000000aa";

fn id(n: u32) -> String {
    format!("01900000-0000-7000-8000-{n:012}")
}

fn task_id(n: u32) -> TaskId {
    id(n).parse().unwrap()
}

fn rows(dialect: &Dialect) -> String {
    let Dialect { schema, versions, long_ago, far_ahead, uuid } = dialect;
    let life = uuid(LIFE);
    let task = |n: u32, columns: &str, values: &str| {
        let id = uuid(&id(n));
        format!(
            "INSERT INTO tasks (seq, id, capability, payload, priority, backoff_ms, max_backoff_ms,
                 created_at, reply_to, {columns})
             VALUES ({n}, {id}, 'x', '{{ \"n\":{n} }}', {n}, 7, 70, {long_ago}, 'boss', {values});"
        )
    };
    let all = "state, run_at, token, attempts, max_attempts, failed_token, error, held_by, \
               held_instance, lease_until, result, finished_at, idempotency_key";
    [
        format!("{schema}; {versions};"),
        task(1, all, &format!("'ready', {long_ago}, 0, 0, 4294967295, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'one'")),
        task(2, all, &format!("'ready', {far_ahead}, 3, 3, 9, 3, 'broke', NULL, NULL, NULL, NULL, NULL, NULL")),
        task(3, all, &format!("'running', {long_ago}, 4, 2, 9, 1, 'broke', 'old', {life}, {far_ahead}, NULL, NULL, 'three'")),
        task(4, all, &format!("'running', {long_ago}, 1, 1, 9, NULL, NULL, 'old', {life}, {long_ago}, NULL, NULL, NULL")),
        task(5, all, &format!("'completed', {long_ago}, 2, 2, 9, 1, 'broke', NULL, NULL, NULL, '[ 5 ]', {long_ago}, 'five'")),
        task(6, all, &format!("'dead', {long_ago}, 9, 9, 9, 9, 'broke', NULL, NULL, NULL, NULL, {long_ago}, 'six'")),
        format!(
            "INSERT INTO agents (id, instance, state, capabilities, capacity, labels, registered_at, seen_at)
             VALUES ('old', {life}, 'available', '[\"x\"]', 2, '{{\"zone\":\"a\"}}', {long_ago}, {far_ahead});
             INSERT INTO messages (id, topic, recipient, kind, body, created_at)
             VALUES ({}, 'agent-messages', 'boss', 'note', '\"hello\"', {long_ago});",
            uuid(&id(99))
        ),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite() {
    let folder = tempfile::tempdir().unwrap();
    everything_goes_on(Settings::Sqlite { path: folder.path().join("store.db") }, &SQLITE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    everything_goes_on(postgres_settings(server.url(&database)), &POSTGRES).await;
}

async fn everything_goes_on(settings: Settings, dialect: &Dialect) {
    raw(&settings, &rows(dialect)).await;
    let store = open(&settings).unwrap();
    store.migrate().await.unwrap();
    store.migrate().await.unwrap();

    let mut found = Vec::new();
    for n in 1..=6 {
        let task = store.task(task_id(n)).await.unwrap().unwrap();
        assert_eq!(task.payload.json(), format!("{{ \"n\":{n} }}"));
        assert_eq!(
            (task.priority, &task.capability),
            (i16::try_from(n).unwrap(), &capability("x"))
        );
        assert_eq!(task.reply_to, Some(agent("boss")));
        assert_eq!((task.retry.backoff.as_millis(), task.retry.max_backoff.as_millis()), (7, 70));
        assert_eq!(task.created_at.as_second(), 1_700_000_000);
        assert_eq!((task.key.as_ref(), task.timeout, task.tags.len()), (None, None, 0));
        found.push(task);
    }
    let states: Vec<_> = found.iter().map(|task| task.state).collect();
    use TaskState::{Completed, Dead, Ready, Running, Scheduled};
    assert_eq!(states, [Ready, Scheduled, Running, Running, Completed, Dead]);
    let counts: Vec<_> = found.iter().map(|task| (task.token.0, task.attempts)).collect();
    assert_eq!(counts, [(0, 0), (3, 3), (4, 2), (1, 1), (2, 2), (9, 9)]);
    assert!(found[0].retry.max_attempts >= 2_147_483_647);
    assert_eq!(found[1].retry.max_attempts, 9);
    let keys: Vec<_> = found.iter().map(|task| task.idempotency_key.as_deref()).collect();
    assert_eq!(keys, [Some("one"), None, Some("three"), None, Some("five"), Some("six")]);
    assert_eq!(found[1].run_at.as_second(), 4_000_000_000);
    assert_eq!(found[1].error.as_deref(), Some("broke"));
    assert_eq!(found[2].held_by, Some(agent("old")));
    assert_eq!(found[2].lease_until.unwrap().as_second(), 4_000_000_000);
    assert_eq!(found[4].result.as_ref().unwrap().json(), "[ 5 ]");
    assert_eq!(found[4].finished_at.unwrap().as_second(), 1_700_000_000);
    // Results are kept from now on, not from when they were made.
    assert!(found[4].expires_at.unwrap() > resurgam_model::Timestamp::now());
    assert_eq!((found[5].error.as_deref(), found[5].expires_at), (Some("broke"), None));
    assert_eq!(store.purge(9).await.unwrap(), 0);

    // Words that were on their way.
    let lease = |n, token| LeaseRef { task: task_id(n), token: Token(token) };
    let done = |n, token| Completion { lease: lease(n, token), result: Payload::from_text("r") };
    let words = [done(3, 3), done(3, 4), done(5, 2), done(5, 1), done(6, 9)];
    let outcomes = store.complete(&words).await.unwrap();
    use Outcome::{Accepted, Stale};
    assert_eq!(outcomes, [Stale, Accepted, Accepted, Stale, Stale]);
    let failed = |n, token| Failure { lease: lease(n, token), error: "e".to_owned(), retry: true };
    let outcomes = store.fail(&[failed(6, 9), failed(2, 3), failed(1, 1)]).await.unwrap();
    assert_eq!(outcomes, [Accepted, Accepted, Stale]);

    // What goes on by itself.
    assert_eq!(store.return_expired(9).await.unwrap(), 1);
    assert_eq!(
        store.requeue(&[task_id(6), task_id(5)]).await.unwrap(),
        [Change::Changed, Change::Unchanged]
    );
    assert_eq!(store.promote(9).await.unwrap().next.unwrap().as_second(), 4_000_000_000);
    let instance = register(&store, "new").await;
    let leases = store.claim(&wanted("new", instance, 9, HOUR)).await.unwrap();
    let taken: Vec<_> = leases.iter().map(|lease| (lease.task, lease.token.0)).collect();
    assert_eq!(taken, [(task_id(6), 10), (task_id(4), 2), (task_id(1), 1)]);
    for (key, n) in [("one", 1), ("three", 3), ("five", 5), ("six", 6)] {
        let mut new = task("x");
        new.idempotency_key = Some(key.to_owned());
        let known = store.submit(&[new]).await.unwrap();
        assert_eq!((known[0].id, known[0].created), (task_id(n), false));
    }
    // New tasks come after the old ones.
    let new = store.submit(&[task("x")]).await.unwrap()[0].id;
    let listed = store.tasks(&resurgam_model::task::TaskQuery::default()).await.unwrap();
    assert_eq!(listed.last().unwrap().id, new);
    let letters = store.receive(&agent("boss"), None, 9).await.unwrap();
    assert_eq!((letters[0].sequence, letters[0].body.json()), (1, "\"hello\""));
    assert_eq!(letters[1].kind, "task.completed");
}
