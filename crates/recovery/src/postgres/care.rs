//! Keeps the record of redundancy true while nothing is wrong, or only a standby is.
//!
//! The order of events is what makes "complete" a fact:
//! - a standby is recorded as complete only after the primary was seen to wait for it *and* the
//!   standby was seen to have everything from before that;
//! - a primary is released from waiting only after the record no longer calls anybody complete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::wire::{PrimaryState, ServerState};
use resurgam_model::ComponentName;
use resurgam_model::database::Lsn;

use super::authority::{Authority, View};
use crate::Result;

/// For so long the primary must have been seen to wait before what it has counts as the mark
/// that the standby must reach: a server takes a moment to apply a new setting everywhere.
const SETTLE: Duration = Duration::from_secs(1);

/// A standby that has not got on for so long is not waited for.
const SLOW: Duration = Duration::from_secs(1);

/// What was seen so far.
#[derive(Debug, Default)]
struct Watching {
    /// The standbys that have not all that the primary has: how far each is, and since when. A
    /// frozen one counts as streaming until the primary gives up its connection.
    behind: BTreeMap<String, (Lsn, Instant)>,
    /// Since when the primary has been seen to wait for this standby, and the mark to reach.
    waiting: Option<(ComponentName, Instant, Option<Lsn>)>,
    /// Since when the synchronous standby has not been seen to stream.
    missing_since: Option<Instant>,
}

impl Watching {
    /// Begins anew with what the primary waits for.
    fn forget(&mut self) {
        self.waiting = None;
        self.missing_since = None;
    }

    fn look(&mut self, primary: &PrimaryState, now: Instant) {
        // Those that have gone are no further than they were.
        for standby in primary.standbys.iter().filter(|standby| standby.streaming) {
            match self.behind.get_mut(&standby.name) {
                _ if standby.flushed >= primary.flushed => drop(self.behind.remove(&standby.name)),
                Some((reached, _)) if *reached == standby.flushed => {}
                Some(entry) => *entry = (standby.flushed, now),
                None => {
                    self.behind.insert(standby.name.clone(), (standby.flushed, now));
                }
            }
        }
    }

    /// Whether a standby that lacks something has got no further for so long.
    fn is_stuck(&self, name: &str, long: Duration, now: Instant) -> bool {
        self.behind.get(name).is_some_and(|(_, since)| now - *since >= long)
    }
}

/// What to change.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Created,
    Follows(ComponentName),
    WaitFor(ComponentName),
    Complete(ComponentName),
    Release,
}

fn decide(
    view: &View,
    primary: &PrimaryState,
    synchronous: bool,
    degrade_after: Duration,
    watching: &mut Watching,
    now: Instant,
) -> Option<Change> {
    watching.look(primary, now);
    let state = &view.state;
    if !state.created {
        return primary.furnished.then_some(Change::Created);
    }
    let new = primary
        .standbys
        .iter()
        .filter(|standby| standby.streaming)
        .filter_map(|standby| ComponentName::new(standby.name.clone()).ok())
        .find(|name| view.seen.contains_key(name) && !state.followers.contains(name));
    if let Some(name) = new {
        return Some(Change::Follows(name));
    }
    let Some(standby) = &state.synchronous else {
        watching.forget();
        if !synchronous {
            return None;
        }
        let ready = primary
            .standbys
            .iter()
            .find(|standby| standby.streaming && !watching.is_stuck(&standby.name, SLOW, now))?;
        let name = ComponentName::new(ready.name.clone()).ok()?;
        let allowed = state.stopped.as_ref() != Some(&name) && view.seen.contains_key(&name);
        return allowed.then_some(Change::WaitFor(name));
    };
    let seen = primary.standbys.iter().find(|seen| seen.name == standby.as_str());
    let Some(seen) = seen.filter(|seen| seen.streaming) else {
        watching.waiting = None;
        // Commits may have begun to wait before the connection was given up.
        let stuck = watching.behind.get(standby.as_str()).map(|(_, since)| *since);
        let since = *watching.missing_since.get_or_insert(stuck.unwrap_or(now));
        return (now - since >= degrade_after).then_some(Change::Release);
    };
    watching.missing_since = None;
    // Commits wait for it, and get nothing from waiting.
    if watching.is_stuck(standby.as_str(), degrade_after, now) {
        return Some(Change::Release);
    }
    if state.complete.is_some() {
        return None;
    }
    let waits = primary.synchronous.as_ref() == Some(standby) && seen.synchronous;
    if !waits {
        watching.waiting = None;
        return None;
    }
    match &mut watching.waiting {
        Some((name, since, mark)) if name == standby => {
            if now - *since < SETTLE {
                return None;
            }
            let mark = *mark.get_or_insert(primary.flushed);
            (seen.flushed >= mark).then(|| Change::Complete(standby.clone()))
        }
        waiting => {
            *waiting = Some((standby.clone(), now, None));
            None
        }
    }
}

/// Takes care until it is dropped. `synchronous` and `degrade_after` are the plan's.
///
/// # Errors
/// When the journal fails.
pub async fn care(
    authority: Arc<Authority>,
    synchronous: bool,
    degrade_after: Duration,
) -> Result<()> {
    let mut watching = Watching::default();
    let mut news = authority.news();
    loop {
        let view = authority.view();
        if let Some(name) = view.reigning()
            && let Some(ServerState::Primary(primary)) = view.server(name)
            // An old word about a standby is no reason to change anything.
            && view.seen.get(name).is_some_and(|seen| seen.at.elapsed() < Duration::from_secs(1))
        {
            let now = Instant::now();
            let change = decide(&view, primary, synchronous, degrade_after, &mut watching, now);
            let epoch = view.state.epoch;
            if let Some(change) = change {
                tracing::info!(?change, "redundancy");
                authority.change(|state| {
                    // Somebody else may have taken the reign away meanwhile.
                    if state.epoch != epoch || state.primary.is_none() {
                        return;
                    }
                    match change {
                        Change::Created => state.created = true,
                        Change::Follows(name) => {
                            state.followers.insert(name);
                        }
                        Change::WaitFor(name) => state.synchronous = Some(name),
                        Change::Complete(name) => state.complete = Some(name),
                        Change::Release => {
                            state.complete = None;
                            state.synchronous = None;
                        }
                    }
                })?;
            }
        } else {
            watching = Watching::default();
        }
        tokio::select! {
            _ = news.changed() => {}
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use resurgam_deployment::postgres::wire::SeenStandby;

    use super::*;
    use crate::journal::cluster::ClusterState;

    fn name() -> ComponentName {
        ComponentName::new("postgres-1").unwrap()
    }

    fn view(synchronous: bool, complete: bool) -> View {
        let state = ClusterState {
            created: true,
            synchronous: synchronous.then(name),
            complete: complete.then(name),
            ..ClusterState::default()
        };
        let since = Instant::now();
        View {
            state,
            members: 2,
            seen: BTreeMap::new(),
            lease: None,
            reigned: true,
            since,
            samples: vec![],
        }
    }

    fn primary(flushed: u64, waits: bool, standby_at: Option<u64>) -> PrimaryState {
        let standbys = standby_at.map(|at| SeenStandby {
            name: "postgres-1".to_owned(),
            streaming: true,
            synchronous: waits,
            flushed: Lsn(at),
            lag_ms: None,
        });
        PrimaryState {
            epoch: Default::default(),
            furnished: true,
            timeline: 1,
            flushed: Lsn(flushed),
            synchronous: waits.then(name),
            standbys: standbys.into_iter().collect(),
        }
    }

    #[test]
    fn a_standby_is_complete_only_when_it_has_all_from_before_the_primary_waited() {
        let mut watching = Watching::default();
        let start = Instant::now();
        let second = Duration::from_secs(5);
        let mut at = |ms: u64, primary: &PrimaryState| {
            let now = start + Duration::from_millis(ms);
            decide(&view(true, false), primary, true, second, &mut watching, now)
        };
        assert_eq!(at(0, &primary(100, false, Some(100))), None);
        assert_eq!(at(100, &primary(100, true, Some(100))), None, "the setting has to settle");
        assert_eq!(at(1200, &primary(500, true, Some(400))), None, "behind the mark");
        assert_eq!(at(1300, &primary(900, true, Some(499))), None);
        let complete = at(1400, &primary(990, true, Some(500)));
        assert_eq!(complete, Some(Change::Complete(name())));
    }

    #[test]
    fn a_standby_that_streams_and_gets_no_further_is_waited_for_no_longer_than_one_that_is_gone() {
        let mut watching = Watching::default();
        let start = Instant::now();
        let patience = Duration::from_secs(5);
        let mut at = |ms: u64, waits: bool, has: u64, standby: u64| {
            let now = start + Duration::from_millis(ms);
            let primary = primary(has, waits, Some(standby));
            decide(&view(waits, waits), &primary, true, patience, &mut watching, now)
        };
        // It is always a little behind, and gets on.
        for second in 0..20 {
            assert_eq!(at(second * 1000, true, 100 + second, 99 + second), None, "{second}");
        }
        assert_eq!(at(20_000, true, 130, 120), None);
        assert_eq!(at(24_900, true, 130, 120), None);
        assert_eq!(at(25_000, true, 130, 120), Some(Change::Release));
        // It is not taken back before it gets on.
        let stuck = |watching: &mut Watching, ms: u64, has: u64, standby: u64| {
            let now = start + Duration::from_millis(ms);
            watching.look(&primary(has, false, Some(standby)), now);
            watching.is_stuck("postgres-1", SLOW, now)
        };
        assert!(stuck(&mut watching, 25_100, 140, 120));
        assert!(!stuck(&mut watching, 27_000, 150, 121));
        assert!(stuck(&mut watching, 28_000, 150, 121));
        // Who has everything is not stuck, however long nothing is written.
        assert!(!stuck(&mut watching, 28_100, 150, 150));
        assert!(!stuck(&mut watching, 60_000, 150, 150));
        assert!(!stuck(&mut watching, 60_100, 151, 150));
    }

    #[test]
    fn a_connection_that_is_given_up_begins_no_new_patience() {
        let mut watching = Watching::default();
        let start = Instant::now();
        let patience = Duration::from_secs(5);
        let mut at = |ms: u64, has: u64, standby: Option<u64>| {
            let now = start + Duration::from_millis(ms);
            let primary = primary(has, true, standby);
            decide(&view(true, true), &primary, true, patience, &mut watching, now)
        };
        assert_eq!(at(0, 100, Some(100)), None);
        assert_eq!(at(100, 110, Some(100)), None);
        assert_eq!(at(4900, 110, Some(100)), None);
        assert_eq!(at(5000, 110, None), None);
        assert_eq!(at(5100, 110, None), Some(Change::Release));
    }

    #[test]
    fn the_primary_is_released_only_after_the_plans_patience() {
        let mut watching = Watching::default();
        let start = Instant::now();
        let patience = Duration::from_secs(5);
        for (ms, expected) in [(0, None), (4900, None), (5000, Some(Change::Release))] {
            let now = start + Duration::from_millis(ms);
            let gone = primary(100, true, None);
            let change = decide(&view(true, true), &gone, true, patience, &mut watching, now);
            assert_eq!(change, expected, "{ms}");
        }
    }
}
