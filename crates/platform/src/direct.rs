//! The queue for workers that run beside the database: straight to the store, without HTTP.
//!
//! Such a worker registers, shows itself and is found like any other. What judges it and takes
//! back expired leases are the roles `registry` and `supervisor`, which must run somewhere.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use resurgam_client::wire::Welcome;
use resurgam_client::worker::Queue;
use resurgam_client::{Patience, chain};
use resurgam_model::agent::{Heartbeat, HeartbeatTerms, Registration};
use resurgam_model::task::{Claim, Completion, Failure, Lease, LeaseRef, Outcome};
use resurgam_model::{AgentId, Capability, Duration, InstanceId};
use resurgam_store::SharedStore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::check;
use crate::claims::claim_until;
use crate::problem::Problem;
use crate::serve::Limits;
use crate::waiting::Waiting;

/// How often it looks for tasks of which it was not told.
const RECHECK: Duration = Duration::from_millis(500);

/// The store as a queue.
pub struct Direct {
    inner: Arc<Inner>,
    /// Ends with this.
    _background: JoinSet<()>,
}

struct Inner {
    store: SharedStore,
    terms: HeartbeatTerms,
    claims: Waiting<Capability>,
    /// Whether the schema is in place.
    migrated: watch::Sender<bool>,
}

impl Direct {
    /// The queue in that store, for workers that show themselves on these terms. The schema is
    /// brought up to date as soon as there is a database. To be called inside of a runtime.
    #[must_use]
    pub fn new(store: SharedStore, terms: HeartbeatTerms) -> Self {
        Self::with_recheck(store, terms, RECHECK)
    }

    /// The same, which looks so often for tasks of which it was not told.
    #[must_use]
    pub fn with_recheck(store: SharedStore, terms: HeartbeatTerms, recheck: Duration) -> Self {
        let (claims, migrated) = (Waiting::default(), watch::Sender::new(false));
        let inner = Arc::new(Inner { store, terms, claims, migrated });
        let mut background = JoinSet::new();
        background.spawn(migrate(Arc::clone(&inner)));
        background.spawn(wake(Arc::clone(&inner), recheck));
        Self { inner, _background: background }
    }

    /// The store, once its schema is in place.
    async fn store(&self) -> &SharedStore {
        // The sender is in `self`, so that it cannot be gone.
        let _ = self.inner.migrated.subscribe().wait_for(|migrated| *migrated).await;
        &self.inner.store
    }
}

async fn migrate(inner: Arc<Inner>) {
    let patience = Patience { max: Duration::from_millis(500), ..Patience::endless() };
    let mut backoff = patience.start();
    let mut last_reason = String::new();
    while let Err(error) = inner.store.migrate().await {
        let reason = chain(&error);
        if reason != last_reason {
            tracing::warn!(reason, "the database is not ready; trying again until it is");
            last_reason = reason;
        }
        tokio::time::sleep(backoff.next_delay().unwrap_or(patience.max.0)).await;
    }
    inner.migrated.send_replace(true);
}

/// Wakes claims that wait, whichever process made tasks ready.
async fn wake(inner: Arc<Inner>, recheck: Duration) {
    let mut wakes = inner.store.wakes();
    let mut ticks = tokio::time::interval(recheck.0.max(StdDuration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            wake = wakes.next() => match wake {
                Some(wake) => {
                    let count = usize::try_from(wake.count).unwrap_or(usize::MAX);
                    inner.claims.wake(&wake.capability, count);
                }
                None => inner.claims.recheck(),
            },
            _ = ticks.tick() => inner.claims.recheck(),
        }
    }
}

/// As the HTTP interface would put it.
fn told(error: resurgam_store::Error) -> resurgam_client::Error {
    refused(error.into())
}

fn refused(problem: Problem) -> resurgam_client::Error {
    resurgam_client::Error::Refused(Box::new(problem.into()))
}

#[async_trait]
impl Queue for Direct {
    fn place(&self) -> String {
        format!("the {} store", self.inner.store.kind())
    }

    async fn register(&self, registration: &Registration) -> resurgam_client::Result<Welcome> {
        check::registration(registration).map_err(refused)?;
        let terms = self.inner.terms.agreed(registration.heartbeat);
        let registered = self.store().await.register_under(registration, &terms).await;
        let leases_returned = registered.map_err(told)?.leases_returned;
        Ok(Welcome { heartbeat: terms, leases_returned, registry: None })
    }

    async fn heartbeat(&self, beat: &Heartbeat) -> resurgam_client::Result<bool> {
        let known = self.store().await.heartbeat(std::slice::from_ref(beat)).await;
        Ok(known.map_err(told)? == [true])
    }

    async fn claim(&self, claim: &Claim, wait: Duration) -> resurgam_client::Result<Vec<Lease>> {
        let until = Instant::now() + wait.0;
        let store = &**self.store().await;
        let never = std::future::pending();
        claim_until(store, &self.inner.claims, claim, until, never).await.map_err(told)
    }

    async fn extend(
        &self,
        leases: &[LeaseRef],
        lease: Duration,
    ) -> resurgam_client::Result<Vec<Outcome>> {
        self.store().await.extend(leases, lease).await.map_err(told)
    }

    async fn extend_with_note(
        &self,
        leases: &[LeaseRef],
        lease: Duration,
        note: &str,
    ) -> resurgam_client::Result<Vec<Outcome>> {
        check::text("note", note).map_err(refused)?;
        let store = self.store().await;
        let outcomes = store.extend(leases, lease).await.map_err(told)?;
        store.note(leases, note).await.map_err(told)?;
        Ok(outcomes)
    }

    async fn complete(&self, completions: &[Completion]) -> resurgam_client::Result<Vec<Outcome>> {
        check::completions(completions, &Limits::default()).map_err(refused)?;
        self.store().await.complete(completions).await.map_err(told)
    }

    async fn fail(&self, failures: &[Failure]) -> resurgam_client::Result<Vec<Outcome>> {
        let mut failures = failures.to_vec();
        check::failures(&mut failures, &Limits::default()).map_err(refused)?;
        self.store().await.fail(&failures).await.map_err(told)
    }

    async fn deregister(&self, id: &AgentId, instance: InstanceId) -> resurgam_client::Result<()> {
        self.store().await.deregister(id, instance).await.map_err(told)
    }
}
