//! Who reigns. Keepers ask here for their directives and renew their leases.
//!
//! # Guarantees
//! - A change is on disk before any keeper can learn of it.
//! - The lease that is granted with an answer is reckoned from the answer, never earlier, so
//!   it is never believed over while a keeper still has it.
//! - After a restart of the controller the recorded primary is taken to have just got a lease.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::wire::{Directive, Order, Renewal, ServerState, Upstream};
use resurgam_model::ComponentName;
use resurgam_model::database::{Epoch, Lsn};
use tokio::sync::watch;

use crate::Result;
use crate::journal::Journal;
use crate::journal::cluster::ClusterState;

/// An answer is held back for at most this part of the lease when there is nothing new.
const HOLD_PART: u32 = 8;
/// And at most so long.
const LONGEST_HOLD: Duration = Duration::from_millis(250);
/// Positions of the primary are kept for so long, to tell how old a position is.
const SAMPLES_FOR: Duration = Duration::from_secs(900);
/// And taken at most so often.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// The last word of a keeper.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it said.
    pub renewal: Renewal,
    /// When.
    pub at: Instant,
}

/// Everything that is known at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Who reigns.
    pub state: ClusterState,
    /// How many instances there are.
    pub members: usize,
    /// The last words of the keepers.
    pub seen: BTreeMap<ComponentName, Seen>,
    /// Until when somebody may believe to be primary.
    pub lease: Option<(ComponentName, Instant)>,
    /// The primary was seen to accept writes in this epoch.
    pub reigned: bool,
    /// Since when the present epoch lasts, or this controller.
    pub since: Instant,
    /// Positions of the primary, the oldest first.
    pub samples: Vec<(Instant, Lsn)>,
}

impl View {
    /// The state of an instance as last heard.
    #[must_use]
    pub fn server(&self, name: &ComponentName) -> Option<&ServerState> {
        self.seen.get(name).map(|seen| &seen.renewal.observed.state)
    }

    /// The primary, if it was last heard to be one in the current epoch.
    #[must_use]
    pub fn reigning(&self) -> Option<&ComponentName> {
        let primary = self.state.primary.as_ref()?;
        match self.server(primary)? {
            ServerState::Primary(state) if state.epoch == self.state.epoch => Some(primary),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Inner {
    state: ClusterState,
    seen: BTreeMap<ComponentName, Seen>,
    lease: Option<(ComponentName, Instant)>,
    reigned: Option<Epoch>,
    since: Instant,
    samples: VecDeque<(Instant, Lsn)>,
}

/// The authority over one group of instances.
#[derive(Debug)]
pub struct Authority {
    journal: Journal,
    members: BTreeMap<ComponentName, SocketAddr>,
    lease: resurgam_model::Duration,
    inner: Mutex<Inner>,
    /// The version of the cluster state.
    version: watch::Sender<u64>,
    /// Rings when anything new is known.
    news: watch::Sender<u64>,
}

impl Authority {
    /// Takes up the reign as recorded. A recorded primary gets a new epoch: whatever a former
    /// controller, or a former life of the primary, believes is over.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn new(
        journal: Journal,
        members: BTreeMap<ComponentName, SocketAddr>,
        lease: resurgam_model::Duration,
    ) -> Result<Self> {
        let mut state = journal.cluster()?;
        let now = Instant::now();
        // Between two reigns the former primary may still have what is left of its lease.
        let holder = state.primary.clone().or_else(|| state.former.clone());
        let held = holder.map(|holder| (holder, now + lease.0));
        if !state.created && state.primary.is_none() {
            state.primary = members.keys().next().cloned();
        }
        if state.primary.is_some() {
            state.epoch = state.epoch.next();
        }
        state.version += 1;
        journal.set_cluster(&state)?;
        let (version, _) = watch::channel(state.version);
        let (news, _) = watch::channel(0);
        let inner = Inner {
            state,
            seen: BTreeMap::new(),
            lease: held,
            reigned: None,
            since: now,
            samples: VecDeque::new(),
        };
        Ok(Self { journal, members, lease, inner: Mutex::new(inner), version, news })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instances and where they listen.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<ComponentName, SocketAddr> {
        &self.members
    }

    /// How long a lease lasts.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease.0
    }

    /// Rings when anything new is known.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Everything that is known now.
    #[must_use]
    pub fn view(&self) -> View {
        let inner = self.lock();
        View {
            state: inner.state.clone(),
            members: self.members.len(),
            seen: inner.seen.clone(),
            lease: inner.lease.clone(),
            reigned: inner.reigned == Some(inner.state.epoch),
            since: inner.since,
            samples: inner.samples.iter().copied().collect(),
        }
    }

    /// Changes the cluster state: first on disk, then for the keepers. Nothing happens if the
    /// change changes nothing.
    ///
    /// # Errors
    /// When the journal fails; the old state then holds on.
    pub fn change(&self, change: impl FnOnce(&mut ClusterState)) -> Result<ClusterState> {
        let mut inner = self.lock();
        let mut state = inner.state.clone();
        change(&mut state);
        if state == inner.state {
            return Ok(state);
        }
        state.version += 1;
        self.journal.set_cluster(&state)?;
        if state.epoch != inner.state.epoch {
            inner.since = Instant::now();
        }
        if state.primary != inner.state.primary && state.primary.is_some() {
            inner.since = Instant::now();
            inner.samples.clear();
        }
        tracing::info!(?state, "cluster state");
        inner.state = state.clone();
        drop(inner);
        self.version.send_replace(state.version);
        self.ring();
        Ok(state)
    }

    fn ring(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// A keeper's word, and the answer to it. Held back for a while when there is nothing new.
    pub async fn renew(&self, name: &ComponentName, renewal: Renewal) -> Option<Directive> {
        if !self.members.contains_key(name) {
            return None;
        }
        let heard = renewal.heard;
        self.hear(name, renewal);
        let mut version = self.version.subscribe();
        let hold = (self.lease.0 / HOLD_PART).min(LONGEST_HOLD);
        // An error means that the time is up.
        let _ = tokio::time::timeout(hold, version.wait_for(|now| *now != heard)).await;
        Some(self.answer(name))
    }

    fn hear(&self, name: &ComponentName, renewal: Renewal) {
        let now = Instant::now();
        let mut inner = self.lock();
        if let ServerState::Primary(primary) = &renewal.observed.state
            && inner.state.primary.as_ref() == Some(name)
            && primary.epoch == inner.state.epoch
        {
            inner.reigned = Some(primary.epoch);
            let due = inner.samples.back().is_none_or(|(at, _)| now - *at >= SAMPLE_EVERY);
            if due {
                inner.samples.push_back((now, primary.flushed));
            }
            while inner.samples.front().is_some_and(|(at, _)| now - *at > SAMPLES_FOR) {
                inner.samples.pop_front();
            }
        }
        let changed = inner.seen.get(name).is_none_or(|before| {
            before.renewal.observed != renewal.observed || before.renewal.life != renewal.life
        });
        inner.seen.insert(name.clone(), Seen { renewal, at: now });
        drop(inner);
        if changed {
            self.ring();
        }
    }

    fn answer(&self, name: &ComponentName) -> Directive {
        let mut inner = self.lock();
        let state = &inner.state;
        let order = order(state, &self.members, name);
        let directive =
            Directive { number: state.version, epoch: state.epoch, lease: self.lease, order };
        if matches!(directive.order, Order::Primary { .. }) {
            inner.lease = Some((name.clone(), Instant::now() + self.lease.0));
        }
        directive
    }
}

/// What an instance shall be.
fn order(
    state: &ClusterState,
    members: &BTreeMap<ComponentName, SocketAddr>,
    name: &ComponentName,
) -> Order {
    if state.stopped.as_ref() == Some(name) {
        return Order::Stopped;
    }
    if state.primary.as_ref() == Some(name) {
        return Order::Primary {
            create: !state.created,
            standbys: members.keys().filter(|member| *member != name).cloned().collect(),
            synchronous: state.synchronous.clone(),
        };
    }
    // While nobody reigns the standbys stay as they are, behind the one that did.
    let upstream = state.primary.as_ref().or(state.former.as_ref());
    match upstream.and_then(|name| Some((name, members.get(name)?))) {
        Some((upstream, address)) if upstream != name => {
            Order::Standby { upstream: Upstream { name: upstream.clone(), address: *address } }
        }
        _ => Order::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ComponentName {
        ComponentName::new(text).unwrap()
    }

    #[test]
    fn at_most_one_instance_is_ever_ordered_to_be_primary() {
        let members: BTreeMap<_, _> = ["a", "b", "c"]
            .iter()
            .map(|text| (name(text), "127.0.0.1:1".parse().unwrap()))
            .collect();
        let options = [None, Some(name("a")), Some(name("b"))];
        for primary in &options {
            for former in &options {
                for stopped in &options {
                    let state = ClusterState {
                        primary: primary.clone(),
                        former: former.clone(),
                        stopped: stopped.clone(),
                        ..ClusterState::default()
                    };
                    let primaries = members
                        .keys()
                        .filter(|m| matches!(order(&state, &members, m), Order::Primary { .. }))
                        .count();
                    let expected = usize::from(primary.is_some() && primary != stopped);
                    assert_eq!(primaries, expected, "{state:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_new_controller_begins_a_new_epoch_and_assumes_a_fresh_lease() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal.db")).unwrap();
        let members = BTreeMap::from([(name("a"), "127.0.0.1:1".parse().unwrap())]);
        let lease = resurgam_model::Duration::from_secs(3);
        let first = Authority::new(journal.clone(), members.clone(), lease).unwrap();
        assert_eq!(first.view().state.epoch, Epoch(1));
        assert!(first.view().lease.is_none(), "nobody was ever told to be primary");
        first.change(|state| state.created = true).unwrap();
        let second = Authority::new(journal, members, lease).unwrap();
        let view = second.view();
        assert_eq!(view.state.epoch, Epoch(2));
        assert!(view.lease.is_some_and(|(_, until)| until > Instant::now()));
        assert!(view.state.version > first.view().state.version);
    }
}
