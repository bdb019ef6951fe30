//! Tasks that hang in the hands of somebody who shows itself all the while: noticed by how long their like
//! usually take, and taken back.

mod runbook;

use std::time::Duration;

use resurgam_client::Client;
use resurgam_model::stuck::StuckTask;
use resurgam_model::{AgentId, Timestamp};
use tokio::sync::watch;

pub use runbook::OUTLINE;
pub(crate) use runbook::{Hung, steps};

/// How often the API is asked. A task is stuck after a minute at the earliest.
const EVERY: Duration = Duration::from_secs(3);
/// An answer that comes later is of no use any more.
const PATIENCE: resurgam_model::Duration = resurgam_model::Duration::from_secs(3);
/// Whoever is seen with them in so many looks one after the other has them: after an outage everything that
/// runs has been running for long, until it is reported.
const LOOKS: u32 = 3;

/// Who holds tasks that hang.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holder {
    pub(crate) agent: AgentId,
    pub(crate) tasks: Vec<StuckTask>,
    /// When it was first seen.
    pub(crate) since: Timestamp,
    looks: u32,
}

impl Holder {
    /// Whether it was seen for long enough.
    pub(crate) fn is_sure(&self) -> bool {
        self.looks >= LOOKS
    }
}

/// In words.
pub(crate) fn account(holder: &Holder) -> String {
    let longest = holder.tasks.iter().max_by_key(|task| task.task.running_for);
    let longest = longest.map_or(String::new(), |stuck| {
        let usual = match stuck.usual {
            Some(usual) => format!("its like take {usual}"),
            None => "nobody knows how long its like take".to_owned(),
        };
        format!(", the longest for {}, where {usual}", stuck.task.running_for)
    });
    format!("{} holds {} tasks that hang{longest}", holder.agent, holder.tasks.len())
}

/// Those that hang now, by who holds them. Pure.
fn holders(before: &[Holder], stuck: Vec<StuckTask>, now: Timestamp) -> Vec<Holder> {
    let mut found: Vec<Holder> = Vec::new();
    for task in stuck {
        let Some(agent) = task.task.held_by.clone() else { continue };
        match found.iter_mut().find(|holder| holder.agent == agent) {
            Some(holder) => holder.tasks.push(task),
            None => {
                let known = before.iter().find(|holder| holder.agent == agent);
                found.push(Holder {
                    agent,
                    tasks: vec![task],
                    since: known.map_or(now, |known| known.since),
                    looks: known.map_or(1, |known| known.looks.saturating_add(1)),
                });
            }
        }
    }
    found
}

/// Looks until it is dropped. While the API does not answer nothing is known.
pub(crate) async fn watch(api: Client, seen: watch::Sender<Vec<Holder>>) {
    let api = api.with_timeout(PATIENCE);
    loop {
        let found = match api.stuck().await {
            Ok(stuck) => holders(&seen.borrow(), stuck, Timestamp::now()),
            Err(_) => Vec::new(),
        };
        seen.send_replace(found);
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::stuck::LongRunning;
    use resurgam_model::{Capability, TaskId};

    use super::*;

    fn stuck(agent: Option<&str>) -> StuckTask {
        StuckTask {
            task: LongRunning {
                task: TaskId::new(),
                capability: Capability::new("sha256").unwrap(),
                held_by: agent.map(|agent| AgentId::new(agent).unwrap()),
                started_at: Timestamp::UNIX_EPOCH,
                running_for: resurgam_model::Duration::from_secs(90),
                attempt: 1,
            },
            threshold: resurgam_model::Duration::from_secs(60),
            usual: Some(resurgam_model::Duration::from_millis(20)),
        }
    }

    #[test]
    fn a_holder_is_sure_when_it_was_seen_again_and_again() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = holders(&[], vec![stuck(Some("a")), stuck(None), stuck(Some("a"))], at(1));
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].tasks.len(), first[0].since, first[0].is_sure()), (2, at(1), false));
        let second = holders(&first, vec![stuck(Some("a")), stuck(Some("b"))], at(4));
        let third = holders(&second, vec![stuck(Some("a")), stuck(Some("b"))], at(7));
        assert_eq!((third[0].since, third[0].is_sure()), (at(1), true));
        assert_eq!((third[1].since, third[1].is_sure()), (at(4), false));
        assert!(
            account(&third[0]).contains("a holds 1 tasks that hang, the longest for 1m 30s"),
            "{}",
            account(&third[0])
        );
        // One look without it begins anew.
        let gone = holders(&third, Vec::new(), at(10));
        assert!(!holders(&gone, vec![stuck(Some("a"))], at(13))[0].is_sure());
    }
}
