//! Journals that are no journals (any more): a clear error, and never a panic.

use std::error::Error as _;
use std::fs;

use resurgam_model::Timestamp;
use resurgam_recovery::Error;
use resurgam_recovery::journal::Journal;
use resurgam_recovery::runbook::{Terms, execute};

use crate::fakes::{Scene, cause, journal, runbook};

/// The error with its causes, as people read it.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn a_file_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal.db");
    let content = "this is no database, and long enough to be sure of it\n".repeat(100);
    fs::write(&file, &content).unwrap();
    let error = Journal::open(&file).unwrap_err();
    let expected =
        format!("the recovery journal {} cannot be opened: file is not a database", file.display());
    assert!(told(&error).starts_with(&expected), "{}", told(&error));
    assert_eq!(fs::read_to_string(&file).unwrap(), content, "it is left as it was");
}

#[test]
fn a_folder_or_a_missing_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("none/journal.db")] {
        let error = Journal::open(&path).unwrap_err();
        assert!(told(&error).contains("unable to open database file"), "{}", told(&error));
    }
}

/// Every page but the first is overwritten, then cut off.
#[tokio::test]
async fn damaged_pages_are_noticed_and_nothing_goes_on() {
    let scene = Scene::new();
    for number in 0..50 {
        let text = format!("{number} {}", "x".repeat(2000));
        scene.journal.add_evidence(scene.incident.id, &text, Timestamp::now()).unwrap();
    }
    let Scene { dir, journal: handle, incident } = scene;
    drop(handle);
    let file = dir.path().join("journal.db");
    let sound = fs::read(&file).unwrap();
    assert!(sound.len() > 20 * 4096, "closing must have moved everything into the file");
    let mut scribbled = sound.clone();
    scribbled[4096..].fill(0x5a);
    for content in [scribbled, sound[..4096].to_vec(), sound[..5000].to_vec()] {
        fs::write(&file, content).unwrap();
        let result = match Journal::open(&file) {
            Ok(journal) => {
                execute(&journal, &incident, &runbook(dir.path(), None), &Terms::default())
                    .await
                    .map(|ended| panic!("{ended:?} on a damaged journal"))
            }
            Err(error) => Err(error),
        };
        let error = result.unwrap_err();
        let about_it = matches!(error, Error::Journal { .. } | Error::OpenJournal { .. });
        assert!(about_it, "{error:?}");
        assert!(told(&error).contains("malformed"), "{}", told(&error));
    }
    assert!(!dir.path().join("runs").exists(), "no step may have been run");
    // With the file as it was, all is well again.
    fs::write(&file, sound).unwrap();
    assert_eq!(journal(dir.path()).evidence(incident.id).unwrap().len(), 50);
}

#[test]
fn words_of_another_program_are_refused() {
    let scene = Scene::new();
    let connection = rusqlite::Connection::open(scene.dir.path().join("journal.db")).unwrap();
    connection.execute("UPDATE incidents SET scenario = 'meteorite'", []).unwrap();
    let error = scene.journal.open_incidents().unwrap_err();
    assert!(told(&error).contains("meteorite"), "{}", told(&error));
    // Another cause is not held up by it.
    scene.journal.open_incident(&cause("postgres-1"), Timestamp::now()).unwrap();

    connection
        .execute("INSERT INTO meta VALUES ('cluster', '{\"version\": 1, \"king\": true}')", [])
        .unwrap();
    let error = scene.journal.cluster().unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error:?}");
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    assert!(error.to_string().contains("king"), "{error}");
}
