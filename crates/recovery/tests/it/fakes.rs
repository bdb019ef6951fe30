//! A runbook whose steps note what they did in a folder, where it outlives the process.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use resurgam_model::report::StepStatus;
use resurgam_model::{ComponentName, Scenario, Timestamp};
use resurgam_recovery::journal::{Incident, Journal, NewIncident, StepRecord};
use resurgam_recovery::runbook::faults::Fault;
use resurgam_recovery::runbook::{Danger, Done, Outline, SoFar, Step, Stop, Terms, execute};
use serde_json::json;
use tempfile::TempDir;

/// The steps of [`runbook`].
pub(crate) const STEPS: [&str; 3] = ["look", "act", "verify"];
/// The step after which the service works again.
pub(crate) const RESTORES: &str = "act";

const fn outline(name: &'static str, danger: Danger) -> Outline {
    Outline { name, danger, does: "", verified: "", by_hand: &[] }
}

static OUTLINES: [Outline; 3] = [
    outline(STEPS[0], Danger::Looks),
    outline(STEPS[1], Danger::Dangerous),
    outline(STEPS[2], Danger::Acts),
];

/// What a step does when it is run.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// Brings its effect about, unless it is there.
    Works,
    /// Nothing; it does not come back in time.
    Hangs,
    /// Stops.
    Stops(Stop),
    /// Asks a question, and works once people have agreed. There is more to lose each time that it
    /// looks, of which the last stays.
    Asks(&'static [&'static str]),
}

struct Fake {
    name: &'static str,
    before: Option<&'static str>,
    does: Does,
    dir: PathBuf,
}

#[async_trait]
impl Step for Fake {
    fn outline(&self) -> &'static Outline {
        OUTLINES.iter().find(|outline| outline.name == self.name).unwrap()
    }

    fn timeout(&self) -> Duration {
        match self.does {
            Does::Hangs => Duration::from_millis(20),
            _ => Duration::from_secs(30),
        }
    }

    fn attempts(&self) -> u32 {
        2
    }

    fn restores_service(&self) -> bool {
        self.name == RESTORES
    }

    async fn run(&self, so_far: &SoFar<'_>) -> Result<Done, Stop> {
        note(&self.dir.join("runs"), self.name);
        if let Some(before) = self.before {
            // What the step before has left must have come through the journal.
            assert_eq!(so_far.output(before), Some(&json!({ "from": before })));
        }
        match &self.does {
            Does::Works => {}
            Does::Hangs => std::future::pending::<()>().await,
            Does::Stops(stop) => return Err(stop.clone()),
            Does::Asks(questions) => {
                let looks = fs::read_to_string(self.dir.join("runs")).unwrap();
                let looks = looks.lines().filter(|line| *line == self.name).count();
                let question = questions.get(looks - 1).or(questions.last()).unwrap();
                if !so_far.agreed.contains(*question) {
                    return Err(Stop::Ask((*question).to_owned()));
                }
            }
        }
        let output = json!({ "from": self.name });
        let effect = self.dir.join(format!("{}.done", self.name));
        if effect.exists() {
            return Ok(Done::skipped("it was so already").with(output));
        }
        note(&self.dir.join("effects"), self.name);
        fs::write(effect, "").unwrap();
        Ok(Done::now("did it").with(output))
    }
}

/// The steps, one of which may do something else than work.
pub(crate) fn runbook(dir: &Path, odd: Option<(&str, &Does)>) -> Vec<Box<dyn Step>> {
    let mut before = None;
    let mut steps: Vec<Box<dyn Step>> = Vec::new();
    for name in STEPS {
        let does = odd.filter(|(odd, _)| *odd == name).map_or(Does::Works, |(_, d)| d.clone());
        steps.push(Box::new(Fake { name, before, does, dir: dir.to_owned() }));
        before = Some(name);
    }
    steps
}

fn note(file: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    writeln!(file, "{line}").unwrap();
}

/// A folder with a journal and an open incident.
pub(crate) struct Scene {
    pub(crate) dir: TempDir,
    pub(crate) journal: Journal,
    pub(crate) incident: Incident,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path());
        let incident = journal.open_incident(&cause("postgres-0"), Timestamp::now()).unwrap();
        Self { dir, journal, incident }
    }

    /// Goes through the runbook.
    pub(crate) async fn execute(
        &self,
        odd: Option<(&str, &Does)>,
        fault: Option<&str>,
    ) -> resurgam_recovery::runbook::Ended {
        let fault = fault.map(|text| text.parse::<Fault>().unwrap());
        self.execute_on(odd, &Terms { fault, ..Terms::default() }).await
    }

    /// Goes through the runbook on these terms.
    pub(crate) async fn execute_on(
        &self,
        odd: Option<(&str, &Does)>,
        terms: &Terms,
    ) -> resurgam_recovery::runbook::Ended {
        let steps = runbook(self.dir.path(), odd);
        execute(&self.journal, &self.incident, &steps, terms).await.unwrap()
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The steps in the order in which they were run.
    pub(crate) fn runs(&self) -> Vec<String> {
        self.lines("runs")
    }

    /// The steps in the order in which they took effect.
    pub(crate) fn effects(&self) -> Vec<String> {
        self.lines("effects")
    }

    pub(crate) fn records(&self) -> Vec<StepRecord> {
        self.journal.steps(self.incident.id).unwrap()
    }

    /// Name, state and tries of each recorded step.
    pub(crate) fn recorded(&self) -> Vec<(String, StepStatus, u32)> {
        self.records().into_iter().map(|s| (s.name, s.status, s.attempts)).collect()
    }

    /// The incident as it is now.
    pub(crate) fn now(&self) -> Incident {
        self.journal.incident(self.incident.id).unwrap().unwrap()
    }

    /// Records a step as a controller would that died at once after it.
    pub(crate) fn record(&self, number: u32, status: StepStatus, detail: &str) {
        let name = STEPS[usize::try_from(number).unwrap()];
        let (id, now) = (self.incident.id, Timestamp::now());
        self.journal.start_step(id, number, name, now).unwrap();
        let output = json!({ "from": name });
        self.journal.end_step(id, number, name, status, detail, &output, now).unwrap();
    }
}

pub(crate) fn journal(dir: &Path) -> Journal {
    Journal::open(&dir.join("journal.db")).unwrap()
}

/// The loss of a primary of that name.
pub(crate) fn cause(component: &str) -> NewIncident {
    NewIncident {
        scenario: Scenario::PostgresPrimary,
        component: ComponentName::new(component).unwrap(),
        cause: "it does not answer".to_owned(),
        first_sign: Timestamp::now(),
    }
}
