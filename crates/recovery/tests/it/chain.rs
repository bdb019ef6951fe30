//! Whatever is changed in a journal afterwards, is found.

use std::path::{Path, PathBuf};

use resurgam_model::report::StepStatus;
use resurgam_model::{ComponentName, Timestamp};
use resurgam_recovery::journal::chain::Head;
use resurgam_recovery::journal::cluster::ClusterState;
use resurgam_recovery::journal::{IncidentState, Journal};
use rusqlite::Connection;

use crate::fakes::{Scene, journal};

/// A journal with something of everything.
async fn full() -> Scene {
    let scene = Scene::new();
    let (journal, id, now) = (&scene.journal, scene.incident.id, Timestamp::now());
    assert!(journal.begin_run().unwrap());
    journal.add_evidence(id, "what was seen", now).unwrap();
    journal.add_evidence(id, "and something else", now).unwrap();
    journal.note(id, "ada", "the rack lost power", now).unwrap();
    let name = ComponentName::new("postgres-1").unwrap();
    let state = ClusterState { version: 7, primary: Some(name), ..ClusterState::default() };
    journal.set_cluster(&state).unwrap();
    assert_eq!(scene.execute(None, None).await.state, IncidentState::Recovered);
    journal.end_run().unwrap();
    scene
}

fn findings(file: &Path) -> Vec<String> {
    Journal::open(file).unwrap().verify(None).unwrap().findings
}

/// A copy with a change of which no entry speaks.
fn with(scene: &Scene, sql: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal.db");
    let source = Connection::open(scene.dir.path().join("journal.db")).unwrap();
    source.execute("VACUUM INTO ?1", [file.to_str().unwrap()]).unwrap();
    let copy = Connection::open(&file).unwrap();
    assert!(copy.execute(sql, []).unwrap() > 0, "{sql}");
    drop(copy);
    (dir, file)
}

#[tokio::test]
async fn a_journal_that_nobody_touched_is_whole() {
    let scene = full().await;
    let found = scene.journal.verify(None).unwrap();
    assert_eq!(found.findings, Vec::<String>::new());
    assert_eq!(found.head, scene.journal.head().unwrap().to_string());
    let all = scene.journal.entries(0, 1000, None).unwrap();
    assert_eq!(u64::try_from(all.len()).unwrap(), found.entries);
    assert!(all.iter().zip(1..).all(|(entry, number)| entry.number == number));
}

#[tokio::test]
async fn each_change_is_found() {
    let scene = full().await;
    for (sql, word) in [
        (
            "UPDATE entries SET content = replace(content, 'rack', 'disk') WHERE kind = 'note'",
            "is not what was written",
        ),
        ("UPDATE entries SET at = at + 1 WHERE number = 3", "is not what was written"),
        ("UPDATE entries SET about = 'other' WHERE number = 2", "is not what was written"),
        ("DELETE FROM entries WHERE number = 4", "something is missing"),
        ("DELETE FROM entries WHERE number = 1", "something is missing"),
        ("UPDATE incidents SET state = 'false-alarm'", "is not as its last entry says"),
        ("UPDATE incidents SET first_sign = first_sign + 1000", "is not as its last entry says"),
        (
            "UPDATE steps SET detail = 'did nothing' WHERE number = 1",
            "is not as its last entry says",
        ),
        ("DELETE FROM steps WHERE number = 2", "is missing"),
        ("UPDATE evidence SET text = 'nothing was seen'", "was changed or put in"),
        ("DELETE FROM evidence WHERE text = 'what was seen'", "is missing"),
        (
            "INSERT INTO evidence SELECT incident, at, 'made up' FROM evidence LIMIT 1",
            "was changed or put in",
        ),
        (
            "UPDATE meta SET value = replace(value, 'postgres-1', 'postgres-0') WHERE key = 'cluster'",
            "is not as its last entry says",
        ),
        ("UPDATE meta SET value = 'yes' WHERE key = 'running'", "is not as its last entry says"),
    ] {
        let (_dir, file) = with(&scene, sql);
        let found = findings(&file);
        assert!(found.iter().any(|finding| finding.contains(word)), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn a_head_from_before_tells_that_the_end_was_cut_off() {
    let scene = full().await;
    let head = scene.journal.head().unwrap();
    assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
    scene.journal.note(scene.incident.id, "ada", "one more", Timestamp::now()).unwrap();
    assert!(scene.journal.verify(Some(&head)).unwrap().findings.is_empty(), "it has grown");

    let sql = format!("DELETE FROM entries WHERE number >= {}", head.number);
    let (_dir, file) = with(&scene, &sql);
    let found = Journal::open(&file).unwrap().verify(Some(&head)).unwrap().findings;
    assert!(found.iter().any(|finding| finding.contains("its end was cut off")), "{found:?}");
}

/// An attacker who writes the chain anew, with sound hashes: the head from before shows it.
#[tokio::test]
async fn a_head_from_before_tells_that_all_was_written_anew() {
    let (one, other) = (full().await, full().await);
    let head = one.journal.head().unwrap();
    assert!(other.journal.verify(None).unwrap().findings.is_empty());
    assert_eq!(other.journal.verify(Some(&head)).unwrap().findings.len(), 1);
}

#[test]
fn texts_that_are_no_head_are_refused() {
    for text in ["", "7", "7:", "x:00", "7:0000", &format!("7:{}", "g".repeat(64))] {
        let error = text.parse::<Head>().unwrap_err().to_string();
        assert!(error.contains("is no head of a journal"), "{error}");
    }
}

/// Journals of the first layout had no chain, no rounds, and fewer states.
#[test]
fn a_journal_of_an_earlier_version_is_adopted_with_all_that_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal.db");
    let old = Connection::open(&file).unwrap();
    old.execute_batch(include_str!("first_layout.sql")).unwrap();
    drop(old);

    let journal = journal(dir.path());
    assert!(journal.verify(None).unwrap().findings.is_empty());
    let incident = journal.incidents(10).unwrap().remove(0);
    assert_eq!((incident.state, incident.round), (IncidentState::Failed, 0));
    let steps = journal.steps(incident.id).unwrap();
    let known: Vec<_> = steps.iter().map(|s| (s.name.as_str(), s.status)).collect();
    assert_eq!(known, [("confirm", StepStatus::Done), ("fence", StepStatus::Failed)]);
    assert_eq!(journal.evidence(incident.id).unwrap().len(), 1);
    assert_eq!(journal.cluster().unwrap().version, 7);

    // And lives on: with states that the first layout would have refused.
    assert!(journal.reopen_incident(incident.id, None, Timestamp::now()).unwrap());
    journal.start_step(incident.id, 0, "confirm", Timestamp::now()).unwrap();
    journal.step_waits(incident.id, 0, "confirm", "well?", Timestamp::now()).unwrap();
    assert!(journal.resolve_incident(incident.id, "ada", "done", Timestamp::now()).unwrap());
    drop(journal);
    assert!(findings(&file).is_empty());
}

#[test]
fn a_journal_of_the_second_layout_gets_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal.db");
    let journal = journal(dir.path());
    journal.begin_run().unwrap();
    drop(journal);
    let second = Connection::open(&file).unwrap();
    second.execute_batch("DROP INDEX entries_orders; PRAGMA user_version = 1").unwrap();
    drop(second);
    assert!(findings(&file).is_empty());
    let plan: String = Connection::open(&file)
        .unwrap()
        .query_row(
            "EXPLAIN QUERY PLAN SELECT content FROM entries WHERE number > 1 AND kind = 'order' ORDER BY number",
            [],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("entries_orders"), "{plan}");
}

#[test]
fn a_journal_of_a_later_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal.db");
    drop(journal(dir.path()));
    let later = Connection::open(&file).unwrap();
    later.pragma_update(None, "user_version", 99).unwrap();
    drop(later);
    let error = Journal::open(&file).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("written by a later version of this program"), "{cause}");
}
