//! The controller is killed before and after each step, and another one goes on.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use resurgam_model::report::StepStatus;
use resurgam_recovery::journal::IncidentState;
use resurgam_recovery::runbook::{Terms, execute};

use crate::fakes::{STEPS, Scene, journal, runbook};

const DIR: &str = "RESURGAM_ENGINE_TEST_DIR";
const FAULT: &str = "RESURGAM_ENGINE_TEST_FAULT";
const SIGKILL: i32 = 9;

/// Starts this program again as a controller that dies.
fn one_life(dir: &Path, fault: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::controller_process", "--nocapture", "--quiet"])
        .env(DIR, dir)
        .env(FAULT, fault)
        .output()
        .unwrap()
}

/// Not a test by itself: a controller in a process of its own.
#[tokio::test]
async fn controller_process() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let fault = Some(std::env::var(FAULT).unwrap().parse().unwrap());
    let terms = Terms { fault, ..Terms::default() };
    let journal = journal(&dir);
    let incident = journal.open_incidents().unwrap().remove(0);
    execute(&journal, &incident, &runbook(&dir, None), &terms).await.unwrap();
}

fn die(scene: &Scene, fault: &str) {
    let output = one_life(scene.dir.path(), fault);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(SIGKILL), "{fault}: {said}");
}

#[tokio::test]
async fn a_step_that_was_cut_off_is_run_again_and_no_other() {
    for (place, step) in STEPS.iter().enumerate() {
        for (fault, done_before_death) in [("die-before", false), ("die-after", true)] {
            let scene = Scene::new();
            die(&scene, &format!("{fault}:{step}"));

            // What was begun is on record; what was done is not yet recorded as done.
            let recorded = scene.recorded();
            assert_eq!(recorded.len(), place + 1, "{fault}:{step}");
            assert_eq!(recorded[place], ((*step).to_owned(), StepStatus::Started, 1));
            assert!(recorded[..place].iter().all(|(_, status, _)| *status == StepStatus::Done));
            assert_eq!(scene.now().state, IncidentState::Open);

            let ended = scene.execute(None, None).await;
            assert_eq!(ended.state, IncidentState::Recovered, "{fault}:{step}");
            assert_eq!(scene.now().state, IncidentState::Recovered);
            assert_eq!(scene.effects(), STEPS, "each effect once, in order");
            let runs = STEPS.len() + usize::from(done_before_death);
            assert_eq!(scene.runs().len(), runs, "{fault}:{step}: {:?}", scene.runs());
            for (number, (name, status, attempts)) in scene.recorded().into_iter().enumerate() {
                let cut_off = number == place;
                assert_eq!(name, STEPS[number]);
                assert_eq!(attempts, 1 + u32::from(cut_off));
                let again = cut_off && done_before_death;
                let expected = if again { StepStatus::Skipped } else { StepStatus::Done };
                assert_eq!(status, expected, "{fault}:{step}: {name}");
            }
        }
    }
}

#[tokio::test]
async fn every_life_may_be_cut_off() {
    let scene = Scene::new();
    for step in STEPS {
        die(&scene, &format!("die-before:{step}"));
        die(&scene, &format!("die-after:{step}"));
    }
    let ended = scene.execute(None, None).await;
    assert_eq!(ended.state, IncidentState::Recovered);
    assert_eq!(scene.effects(), STEPS);
    // Begun in the lives before and after its own fault as well: the last one only twice.
    let attempts: Vec<u32> = scene.recorded().iter().map(|(_, _, attempts)| *attempts).collect();
    assert_eq!(attempts, [3, 3, 3]);
}
