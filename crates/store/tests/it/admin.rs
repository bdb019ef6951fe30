//! The contract of the store's own care.

use resurgam_store::{Counted, Error, Settings, open};
use resurgam_testing::ScratchPostgres;

use crate::fixture::{self, Fixture, task};

crate::on_both! {
    the_check_tells_where_it_wrote
    migrating_again_keeps_what_is_there
    many_may_migrate_a_new_database_at_once
    a_store_without_a_schema_says_so
}

async fn the_check_tells_where_it_wrote(store: Fixture) {
    let first = store.check().await.unwrap();
    let second = store.check().await.unwrap();
    assert!(second.at > first.at);
    match &store.settings {
        Settings::Sqlite { path } => assert_eq!(first.location, path.display().to_string()),
        Settings::Postgres(_) => {
            assert!(first.location.starts_with("127.0.0.1:"), "{}", first.location);
        }
    }
}

async fn migrating_again_keeps_what_is_there(store: Fixture) {
    let id = store.submit(&[task("x")]).await.unwrap()[0].id;
    store.migrate().await.unwrap();
    let other = open(&store.settings).unwrap();
    other.migrate().await.unwrap();
    assert!(other.task(id).await.unwrap().is_some());
}

async fn many_may_migrate_a_new_database_at_once(store: Fixture) {
    let settings = match &store.settings {
        Settings::Sqlite { path } => Settings::Sqlite { path: path.with_extension("new") },
        Settings::Postgres(_) => {
            let server = ScratchPostgres::shared().unwrap();
            let database = server.create_database().await.unwrap();
            fixture::postgres_settings(server.url(&database))
        }
    };
    let migrations: Vec<_> = (0..8)
        .map(|_| {
            let settings = settings.clone();
            tokio::spawn(async move {
                let store = open(&settings).unwrap();
                store.migrate().await.unwrap();
                store.submit(&[task("x")]).await.unwrap();
            })
        })
        .collect();
    for migration in migrations {
        migration.await.unwrap();
    }
    assert_eq!(open(&settings).unwrap().task_counts(Counted::All).await.unwrap()[0].1.ready, 8);
}

async fn a_store_without_a_schema_says_so(store: Fixture) {
    let settings = match &store.settings {
        Settings::Sqlite { path } => Settings::Sqlite { path: path.with_extension("empty") },
        Settings::Postgres(_) => {
            let server = ScratchPostgres::shared().unwrap();
            fixture::postgres_settings(server.url(&server.create_database().await.unwrap()))
        }
    };
    let error = open(&settings).unwrap().submit(&[task("x")]).await.unwrap_err();
    assert!(!error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn a_newer_schema_of_sqlite_is_left_alone() {
    let store = fixture::sqlite().await;
    let Settings::Sqlite { path } = &store.settings else { panic!("not SQLite") };
    let raw = rusqlite::Connection::open(path).unwrap();
    raw.execute("INSERT INTO schema_versions VALUES (99, 0)", []).unwrap();
    let error = store.migrate().await.unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 99, .. }), "{error:?}");
}

#[tokio::test]
async fn a_newer_schema_of_postgresql_is_left_alone() {
    let server = ScratchPostgres::shared().unwrap();
    let database = server.create_database().await.unwrap();
    let store = open(&fixture::postgres_settings(server.url(&database))).unwrap();
    store.migrate().await.unwrap();
    server.execute(&database, "INSERT INTO schema_versions VALUES (99)").await.unwrap();
    let error = store.migrate().await.unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 99, .. }), "{error:?}");
}
