//! A queue in memory, which can go away, lose answers and take leases back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use resurgam_client::problem::{Problem, code};
use resurgam_client::wire::Welcome;
use resurgam_client::worker::Queue;
use resurgam_client::{Error, Result};
use resurgam_model::agent::{Heartbeat, HeartbeatTerms, Registration};
use resurgam_model::task::{Claim, Completion, Failure, Lease, LeaseRef, Outcome, Token};
use resurgam_model::{
    AgentId, Capability, ClaimId, Duration, InstanceId, Payload, TaskId, Timestamp,
};
use tokio::sync::watch;

pub(crate) fn capability(name: &str) -> Capability {
    Capability::new(name).unwrap()
}

/// What a test looks at and turns.
#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) ready: VecDeque<Lease>,
    pub(crate) running: BTreeMap<TaskId, Lease>,
    pub(crate) completed: BTreeMap<TaskId, Payload>,
    pub(crate) failed: Vec<Failure>,
    /// How many each claim asked for, and how many each completion brought.
    pub(crate) claims: Vec<u32>,
    pub(crate) batches: Vec<usize>,
    pub(crate) registrations: Vec<Registration>,
    /// The most tasks that were held at once.
    pub(crate) most_running: usize,
    pub(crate) away: bool,
    /// Takes no reports, but all else.
    pub(crate) mute: bool,
    /// So many claims still take tasks without an answer.
    pub(crate) lost_answers: usize,
    /// What claims took.
    taken: BTreeMap<ClaimId, Vec<TaskId>>,
    /// Has forgotten every agent.
    pub(crate) forgot: bool,
}

/// The queue. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Memory {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<()>>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { inner: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }

    /// Looks at it or turns something.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let result = act(&mut self.lock());
        self.changed.send_replace(());
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Waits until it is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Inner) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !is_so(&self.lock()) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(StdDuration::from_secs(30), wait).await.expect("it never was so");
    }

    pub(crate) fn submit(&self, can: &str, payloads: impl IntoIterator<Item = String>) {
        let lease = |json: String| Lease {
            task: TaskId::new(),
            token: Token(0),
            capability: capability(can),
            payload: Payload::from_json(json).unwrap(),
            attempt: 0,
            until: Timestamp::now(),
            timeout_at: None,
        };
        self.with(|inner| inner.ready.extend(payloads.into_iter().map(lease)));
    }

    /// Takes all leases back.
    pub(crate) fn take_back(&self) {
        self.with(|inner| {
            let back = std::mem::take(&mut inner.running);
            inner.ready.extend(back.into_values());
        });
    }

    fn call<T>(&self, act: impl FnOnce(&mut Inner) -> Result<T>) -> Result<T> {
        self.with(|inner| match inner.away {
            true => Err(Error::Unreachable { url: self.place(), why: "away".to_owned() }),
            false => act(inner),
        })
    }

    fn outcomes(
        &self,
        leases: impl Iterator<Item = LeaseRef>,
        mut act: impl FnMut(&mut Inner, Lease),
    ) -> Result<Vec<Outcome>> {
        self.call(|inner| {
            if inner.mute {
                return Err(Error::Timeout { url: self.place(), after: Duration::default() });
            }
            let outcome = |lease: LeaseRef| match inner.running.get(&lease.task) {
                Some(running) if running.token == lease.token => {
                    let lease = inner.running.remove(&lease.task).unwrap();
                    act(inner, lease);
                    Outcome::Accepted
                }
                _ => Outcome::Stale,
            };
            Ok(leases.map(outcome).collect())
        })
    }
}

#[async_trait]
impl Queue for Memory {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    async fn register(&self, registration: &Registration) -> Result<Welcome> {
        self.call(|inner| {
            inner.forgot = false;
            inner.registrations.push(registration.clone());
            let (every, expire_after) = (Duration::from_millis(20), Duration::from_secs(60));
            let heartbeat = HeartbeatTerms { every, expire_after };
            Ok(Welcome { heartbeat, leases_returned: 0, registry: None })
        })
    }

    async fn heartbeat(&self, _: &Heartbeat) -> Result<bool> {
        self.call(|inner| Ok(!inner.forgot))
    }

    async fn claim(&self, claim: &Claim, wait: Duration) -> Result<Vec<Lease>> {
        let take = || {
            self.call(|inner| {
                if inner.forgot {
                    return Err(unknown_agent());
                }
                let before = claim.id.filter(|_| claim.again);
                let before = before.and_then(|id| inner.taken.get(&id)).into_iter().flatten();
                let before: Vec<_> =
                    before.filter_map(|task| inner.running.get(task).cloned()).collect();
                if !before.is_empty() {
                    return Ok(before);
                }
                let mut taken = Vec::new();
                let mut rest = VecDeque::new();
                for mut lease in std::mem::take(&mut inner.ready) {
                    if taken.len() < claim.max as usize
                        && claim.capabilities.contains(&lease.capability)
                    {
                        lease.token.0 += 1;
                        lease.attempt += 1;
                        inner.running.insert(lease.task, lease.clone());
                        taken.push(lease);
                    } else {
                        rest.push_back(lease);
                    }
                }
                inner.ready = rest;
                inner.claims.push(claim.max);
                inner.most_running = inner.most_running.max(inner.running.len());
                if let Some(id) = claim.id {
                    inner.taken.insert(id, taken.iter().map(|lease| lease.task).collect());
                }
                if !taken.is_empty() && inner.lost_answers > 0 {
                    inner.lost_answers -= 1;
                    return Err(Error::Timeout { url: self.place(), after: wait });
                }
                Ok(taken)
            })
        };
        let mut changed = self.changed.subscribe();
        let until = tokio::time::Instant::now() + wait.0;
        loop {
            let empty = self.lock().ready.is_empty() && !self.lock().away && !self.lock().forgot;
            if !empty {
                return take();
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(until) => return take(),
            }
        }
    }

    async fn extend(&self, leases: &[LeaseRef], _: Duration) -> Result<Vec<Outcome>> {
        self.call(|inner| {
            let outcome = |lease: &LeaseRef| match inner.running.get(&lease.task) {
                Some(running) if running.token == lease.token => Outcome::Accepted,
                _ => Outcome::Stale,
            };
            Ok(leases.iter().map(outcome).collect())
        })
    }

    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        self.with(|inner| inner.batches.push(completions.len()));
        let mut results = completions.iter().map(|completion| completion.result.clone());
        let mut results_of = BTreeMap::new();
        for completion in completions {
            results_of.insert(completion.lease.task, results.next().unwrap());
        }
        self.outcomes(completions.iter().map(|completion| completion.lease), |inner, lease| {
            inner.completed.insert(lease.task, results_of.remove(&lease.task).unwrap());
        })
    }

    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        let mut all = failures.iter();
        self.outcomes(failures.iter().map(|failure| failure.lease), |inner, lease| {
            let failure = all.find(|failure| failure.lease.task == lease.task).unwrap();
            inner.failed.push(failure.clone());
        })
    }

    async fn deregister(&self, _: &AgentId, _: InstanceId) -> Result<()> {
        self.take_back();
        Ok(())
    }
}

fn unknown_agent() -> Error {
    Error::Refused(Box::new(Problem {
        kind: "urn:resurgam:problem:unknown-agent".into(),
        title: "".into(),
        status: 409,
        detail: String::new(),
        code: code::UNKNOWN_AGENT.into(),
    }))
}
