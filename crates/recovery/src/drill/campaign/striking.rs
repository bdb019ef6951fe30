//! Faults that overlap, and the end of each.

use std::time::Duration;

use resurgam_deployment::ComponentKind;
use resurgam_model::ComponentName;
use tokio::task::JoinSet;

use super::dice::{How, Strike, Target};
use crate::Result;
use crate::drill::FaultKind;
use crate::drill::fault::{Frozen, Process, strike, working_in};
use crate::drill::subject::Subject;
use crate::status::Status;

/// How long the controller may take to say who is who. One that is frozen says nothing: then what it
/// said last must do.
const ASK: Duration = Duration::from_secs(1);

/// Who was who when the controller said so last. Its processes cannot be mistaken for later ones.
#[derive(Clone, Debug, Default)]
struct Cast {
    components: Vec<(ComponentName, ComponentKind, Process)>,
    primary: Option<ComponentName>,
    instances: Vec<ComponentName>,
}

impl Cast {
    fn new(status: &Status) -> Self {
        let components = status.components.iter().filter_map(|health| {
            let component = &health.component;
            let process = Process::find(component.pid?)?;
            Some((component.name.clone(), component.kind, process))
        });
        let postgres = status.postgres.as_ref();
        Self {
            components: components.collect(),
            primary: postgres.and_then(|postgres| postgres.primary.clone()),
            instances: postgres
                .map(|postgres| postgres.instances.iter().map(|i| i.name.clone()).collect())
                .unwrap_or_default(),
        }
    }

    fn all_of(&self, kind: ComponentKind) -> Vec<(ComponentName, Process)> {
        let of = self.components.iter().filter(|(_, k, _)| *k == kind);
        of.map(|(name, _, process)| (name.clone(), *process)).collect()
    }
}

/// The faults of a round.
#[derive(Debug)]
pub(super) struct Striking<'a> {
    subject: &'a mut Subject,
    cast: Cast,
    frozen: JoinSet<()>,
}

impl<'a> Striking<'a> {
    pub(super) fn new(subject: &'a mut Subject) -> Self {
        Self { subject, cast: Cast::default(), frozen: JoinSet::new() }
    }

    /// Makes a fault, and says what it was. That there is nothing to strike at this moment is no
    /// error: it may be down from the strike before.
    pub(super) async fn strike(&mut self, planned: &Strike) -> Result<String> {
        if planned.target == Target::Everything {
            self.over().await;
            self.subject.kill_all().await?;
            self.subject.start_again().await?;
            return Ok("kill everything".to_owned());
        }
        if let Ok(Ok(status)) = tokio::time::timeout(ASK, self.subject.status()).await {
            self.cast = Cast::new(&status);
        }
        let (name, victims) = self.victims(planned);
        let alive: Vec<_> = victims.into_iter().filter(Process::is_alive).collect();
        let kind = match planned.how {
            How::Kill => FaultKind::Kill,
            How::Freeze(_) => FaultKind::Freeze,
        };
        let what = format!("{} {name}", kind.as_str());
        if alive.is_empty() {
            return Ok(format!("{what}: does not run"));
        }
        let guard = Frozen(alive);
        strike(&guard.0, kind).await?;
        match planned.how {
            How::Kill => Ok(what),
            How::Freeze(time) => {
                self.frozen.spawn(async move {
                    tokio::time::sleep(time).await;
                    drop(guard);
                });
                Ok(format!("{what} for {} ms", time.as_millis()))
            }
        }
    }

    /// Waits until nothing is frozen any more.
    pub(super) async fn over(&mut self) {
        while self.frozen.join_next().await.is_some() {}
    }

    /// What the strike is about, and its processes.
    fn victims(&self, planned: &Strike) -> (String, Vec<Process>) {
        let word = planned.target.as_str().to_owned();
        let server = |name: &ComponentName| {
            let folder = self.subject.state_dir().join("postgres").join(name.as_str());
            working_in(&folder.join("data"))
        };
        let keeper = |name: &ComponentName| {
            let found = self.cast.components.iter().find(|(n, _, _)| n == name);
            found.map(|(_, _, process)| *process)
        };
        // The keeper first: it must not see what happens to its server.
        let node = |name: &ComponentName| keeper(name).into_iter().chain(server(name)).collect();
        let primary = self.cast.primary.as_ref();
        let named = |name: &ComponentName| format!("{word} {name}");
        let one_of = |kind| {
            let all = self.cast.all_of(kind);
            match pick(&all, planned.pick) {
                Some((name, process)) => (named(name), vec![*process]),
                None => (word.clone(), Vec::new()),
            }
        };
        let of_primary = |processes: &dyn Fn(&ComponentName) -> Vec<Process>| match primary {
            Some(name) => (named(name), processes(name)),
            None => (word.clone(), Vec::new()),
        };
        match planned.target {
            Target::Api => one_of(ComponentKind::Api),
            Target::Supervisor => one_of(ComponentKind::Supervisor),
            Target::Registry => one_of(ComponentKind::Registry),
            Target::Worker => one_of(ComponentKind::Worker),
            Target::KafkaBroker => one_of(ComponentKind::Kafka),
            Target::RabbitMq => one_of(ComponentKind::RabbitMq),
            Target::KafkaCluster => {
                let all = self.cast.all_of(ComponentKind::Kafka);
                (word, all.into_iter().map(|(_, process)| process).collect())
            }
            Target::Primary => of_primary(&server),
            Target::PrimaryKeeper => of_primary(&|name| keeper(name).into_iter().collect()),
            Target::PrimaryNode => of_primary(&node),
            Target::StandbyNode => {
                let standbys: Vec<_> =
                    self.cast.instances.iter().filter(|name| Some(*name) != primary).collect();
                match pick(&standbys, planned.pick) {
                    Some(name) => (named(name), node(name)),
                    None => (word, Vec::new()),
                }
            }
            Target::Controller => (word, self.subject.controller().into_iter().collect()),
            // Struck by the subject itself.
            Target::Everything => (word, Vec::new()),
        }
    }
}

fn pick<T>(all: &[T], number: u64) -> Option<&T> {
    let count = u64::try_from(all.len()).ok().filter(|count| *count > 0)?;
    all.get(usize::try_from(number % count).ok()?)
}
