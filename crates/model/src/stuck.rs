//! Which running tasks are stuck: a rule that goes by how long their like usually take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::Moment;
use crate::{AgentId, Capability, Duration, TaskId, Timestamp};

/// How long tasks of one capability took lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usual {
    /// In the median.
    pub median: Duration,
    /// Of so many.
    pub samples: u64,
}

/// So many must have ended before their median says anything.
pub const ENOUGH: u64 = 5;
/// Longer than this many medians is much longer than usual.
const TIMES: u32 = 10;
/// Nothing that runs for less is stuck, however fast its like usually are.
pub const FLOOR: Duration = Duration::from_secs(60);
/// While nothing is known of a capability, what runs for longer is worth a look.
const UNKNOWN: Duration = Duration::from_secs(3600);

/// After how long a task of a capability counts as stuck: ten times the median, and a minute at
/// least; an hour while fewer than five have ended lately.
#[must_use]
pub fn threshold(usual: Option<Usual>) -> Duration {
    match usual {
        Some(usual) if usual.samples >= ENOUGH => {
            Duration(usual.median.0.saturating_mul(TIMES)).max(FLOOR)
        }
        _ => UNKNOWN,
    }
}

/// A task that has been running for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LongRunning {
    /// The task.
    pub task: TaskId,
    /// What it is about.
    pub capability: Capability,
    /// Who holds it.
    pub held_by: Option<AgentId>,
    /// When its present try began.
    #[schemars(with = "Moment")]
    pub started_at: Timestamp,
    /// For how long it has been running.
    pub running_for: Duration,
    /// Which try it is; 1 is the first.
    pub attempt: u32,
}

/// A task that counts as stuck, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StuckTask {
    /// The task and its holder.
    #[serde(flatten)]
    pub task: LongRunning,
    /// After so long its like count as stuck.
    pub threshold: Duration,
    /// How long its like usually take, if enough of them have ended lately.
    pub usual: Option<Duration>,
}

/// Those that are stuck, given what is usual for each capability.
#[must_use]
pub fn stuck(
    running: Vec<LongRunning>,
    usual: impl Fn(&Capability) -> Option<Usual>,
) -> Vec<StuckTask> {
    let judged = running.into_iter().filter_map(|task| {
        let usual = usual(&task.capability);
        let threshold = threshold(usual);
        let usual = usual.filter(|usual| usual.samples >= ENOUGH).map(|usual| usual.median);
        (task.running_for > threshold).then_some(StuckTask { task, threshold, usual })
    });
    judged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(millis: u64, samples: u64) -> Option<Usual> {
        Some(Usual { median: Duration::from_millis(millis), samples })
    }

    #[test]
    fn much_longer_than_usual_has_a_floor_and_needs_samples() {
        assert_eq!(threshold(usual(20, 100)), FLOOR);
        assert_eq!(threshold(usual(6_000, 100)), FLOOR);
        assert_eq!(threshold(usual(7_000, 5)), Duration::from_secs(70));
        assert_eq!(threshold(usual(7_000, 4)), UNKNOWN);
        assert_eq!(threshold(None), UNKNOWN);
        let endless = Some(Usual { median: Duration(std::time::Duration::MAX), samples: 9 });
        assert_eq!(threshold(endless).0, std::time::Duration::MAX);
    }

    #[test]
    fn each_is_judged_by_its_like() {
        let (slow, fast) = (Capability::new("slow").unwrap(), Capability::new("fast").unwrap());
        let task = |capability: &Capability, seconds| LongRunning {
            task: TaskId::new(),
            capability: capability.clone(),
            held_by: None,
            started_at: Timestamp::UNIX_EPOCH,
            running_for: Duration::from_secs(seconds),
            attempt: 1,
        };
        let running = vec![task(&slow, 100), task(&fast, 60), task(&fast, 61), task(&slow, 301)];
        let found = stuck(running.clone(), |capability| {
            if *capability == slow { usual(30_000, 9) } else { usual(1, 9) }
        });
        let tasks: Vec<_> = found.iter().map(|stuck| stuck.task.task).collect();
        assert_eq!(tasks, [running[2].task, running[3].task]);
        assert_eq!(found[1].usual, Some(Duration::from_secs(30)));
    }
}
