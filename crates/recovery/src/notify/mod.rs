//! Telling people, and other programs, of incidents.
//!
//! Each channel follows the chain of the journal by itself, from the entry up to which it has told last,
//! which the journal remembers: what happens while nobody can be reached is told later, also by the
//! next controller, and what was told is at most told twice. A channel that cannot be reached delays no
//! other, and no recovery.

mod event;
mod mail;
mod message;
mod sender;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use resurgam_model::Timestamp;
use resurgam_model::plan::{Contacts, Notify, Plan};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use self::event::{Decision, decide, event};
pub use self::event::{Event, What};
pub use self::message::Told;
pub use self::sender::Sender;
use crate::Result;
use crate::journal::Journal;
use crate::journal::chain::Entry;

/// How often the journal is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// So many entries are read at once.
const PAGE: u32 = 200;
/// What could not be told is tried again after so long, and after ever longer up to the second.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// Of more messages than this in [`WINDOW`] the rest become one: a storm must not bury what matters.
const MOST: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// What was refused so often, by a server that answers, is given up: it must not hold up what follows.
const REFUSALS: u32 = 5;
/// What is older is no news.
const STALE_SECONDS: i64 = 86_400;

/// How a channel stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStanding {
    /// Its name.
    pub name: String,
    /// Messages told in this life of the controller.
    pub told: u64,
    /// Why the last try failed, if it did.
    pub error: Option<String>,
}

/// How all channels stand.
#[derive(Clone, Debug, Default)]
pub struct Standings(Arc<Mutex<Vec<ChannelStanding>>>);

impl Standings {
    /// At this moment.
    #[must_use]
    pub fn now(&self) -> Vec<ChannelStanding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut ChannelStanding)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(standing) = all.iter_mut().find(|standing| standing.name == name) {
            return change(standing);
        }
        let mut standing = ChannelStanding { name: name.to_owned(), told: 0, error: None };
        change(&mut standing);
        all.push(standing);
    }
}

/// Tells over all channels of the plan until it is dropped. `base` is the plan file's folder.
///
/// # Errors
/// When the journal fails.
pub async fn run(journal: Journal, plan: Plan, base: PathBuf, standings: Standings) -> Result<()> {
    let head = journal.head()?.number;
    let mut channels = JoinSet::new();
    for notify in plan.notify.clone() {
        let channel = Channel {
            sender: Sender::new(&notify, &base),
            base: base.clone(),
            journal: journal.clone(),
            deployment: plan.deployment.name.clone(),
            contacts: plan.contacts.clone(),
            standings: standings.clone(),
            notify,
        };
        // Nobody is told of what was before the channel.
        channel.journal.mark_once(&channel.mark(), head)?;
        channel.standings.with(channel.notify.name.as_str(), |_| {});
        channels.spawn(channel.run());
    }
    while let Some(ended) = channels.join_next().await {
        match ended {
            Ok(result) => result?,
            Err(error) => {
                return Err(crate::Error::Timeout(format!("a notification broke: {error}")));
            }
        }
    }
    std::future::pending().await
}

struct Channel {
    notify: Notify,
    sender: std::result::Result<Sender, String>,
    base: PathBuf,
    journal: Journal,
    deployment: String,
    contacts: Contacts,
    standings: Standings,
}

/// What there is to tell at a moment.
struct Due {
    told: Vec<Told>,
    /// The last entry that these cover.
    up_to: u64,
}

impl Channel {
    fn mark(&self) -> String {
        format!("notified/{}", self.notify.name)
    }

    async fn run(mut self) -> Result<()> {
        let mut recent: Vec<Instant> = Vec::new();
        let (mut pause, mut refusals) = (AGAIN, 0);
        loop {
            let Some(due) = self.due(Timestamp::now())? else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            recent.retain(|at| at.elapsed() < WINDOW);
            if recent.len() >= MOST && !due.told.is_empty() {
                // What comes meanwhile goes with it.
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let Some(message) = Told::together(due.told) else {
                self.journal.mark(&self.mark(), due.up_to)?;
                continue;
            };
            let sent = match &self.sender {
                Ok(sender) => sender.send(&message).await,
                Err(why) => Err(sender::Failure::Unreachable(why.clone())),
            };
            let name = self.notify.name.as_str();
            let Err(failure) = sent else {
                recent.push(Instant::now());
                (pause, refusals) = (AGAIN, 0);
                self.standings.with(name, |standing| {
                    standing.told += 1;
                    standing.error = None;
                });
                self.journal.mark(&self.mark(), due.up_to)?;
                continue;
            };
            let (refused, why) = match failure {
                sender::Failure::Refused(why) => (true, why),
                sender::Failure::Unreachable(why) => (false, why),
            };
            refusals = if refused { refusals + 1 } else { 0 };
            if refusals == 1 || pause == AGAIN {
                tracing::warn!(channel = name, why, "nobody could be told; it is tried again");
            }
            self.standings.with(name, |standing| standing.error = Some(why.clone()));
            if refusals >= REFUSALS {
                tracing::error!(channel = name, why, message = message.subject, "given up");
                self.journal.mark(&self.mark(), due.up_to)?;
                (pause, refusals) = (AGAIN, 0);
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
            // Addresses and secrets may have been mended meanwhile.
            self.sender = Sender::new(&self.notify, &self.base);
        }
    }

    /// What there is to tell; none when nothing has happened, or all of it has to wait.
    fn due(&self, now: Timestamp) -> Result<Option<Due>> {
        let after = self.journal.marked(&self.mark())?.unwrap_or(0);
        let entries = self.journal.entries(after, PAGE, None)?;
        let mut due = Due { told: Vec::new(), up_to: after };
        for entry in &entries {
            match self.told(entry, now)? {
                Decision::Wait => break,
                Decision::Tell(told) => due.told.push(told),
                Decision::Skip => {}
            }
            due.up_to = entry.number;
            if due.told.len() >= MOST {
                break;
            }
        }
        Ok((due.up_to > after).then_some(due))
    }

    fn told(&self, entry: &Entry, now: Timestamp) -> Result<Decision<Told>> {
        let Some((id, what)) = event(entry) else { return Ok(Decision::Skip) };
        if now.as_second() - entry.at.as_second() > STALE_SECONDS {
            return Ok(Decision::Skip);
        }
        let Some(incident) = self.journal.incident(id)? else { return Ok(Decision::Skip) };
        let waits = match &what {
            What::Waits { step, .. } => {
                let steps = self.journal.steps(id)?;
                let step = steps.iter().find(|record| record.name == *step);
                step.is_some_and(|s| s.status == resurgam_model::report::StepStatus::Waiting)
            }
            _ => false,
        };
        let event = Event { incident, what, at: entry.at, number: entry.number };
        Ok(match decide(&self.notify, &event, waits, now) {
            Decision::Wait => Decision::Wait,
            Decision::Skip => Decision::Skip,
            Decision::Tell(()) => {
                Decision::Tell(Told::new(&self.deployment, &event, &self.contacts))
            }
        })
    }
}
