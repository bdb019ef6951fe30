//! Claiming, working, extending.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration as StdDuration;

use resurgam_model::task::{Claim, Completion, Lease, LeaseRef, Outcome};
use resurgam_model::{Duration, Payload};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::outbox::Report;
use super::{CALL_TIMEOUT, Handler, HandlerError, Shared};
use crate::chain;
use crate::problem::code;

/// The tasks that are being worked on.
#[derive(Default)]
pub(super) struct Table(Mutex<HashMap<LeaseRef, AbortHandle>>);

impl Table {
    fn running(&self) -> MutexGuard<'_, HashMap<LeaseRef, AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> Vec<LeaseRef> {
        self.running().keys().copied().collect()
    }

    /// Drops the work under a lease.
    fn abort(&self, lease: &LeaseRef) {
        if let Some(work) = self.running().get(lease) {
            work.abort();
        }
    }
}

/// Tasks that were claimed, each with its place among those worked on at once.
type Claimed = Vec<(Lease, OwnedSemaphorePermit)>;
type Worked = Result<Payload, HandlerError>;

/// Claims and works until `shutdown` resolves; then finishes what has begun, within the grace.
pub(super) async fn work(
    shared: &Arc<Shared>,
    handler: &Arc<dyn Handler>,
    shutdown: impl Future<Output = ()>,
) {
    let mut works = Works { shared, handler, set: JoinSet::new(), leases: HashMap::new() };
    let (claimed, mut inbox) = mpsc::channel::<Claimed>(1);
    let mut claimer = JoinSet::new();
    claimer.spawn(claim(Arc::clone(shared), claimed));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            Some(claimed) = inbox.recv() => {
                claimed.into_iter().for_each(|(lease, place)| works.start(lease, place));
            }
            Some(ended) = works.set.join_next_with_id() => works.ended(ended),
            () = &mut shutdown => break,
        }
    }
    // What a claim that is under way still takes goes back when the worker leaves.
    claimer.shutdown().await;
    let running = works.set.len();
    tracing::info!(running, "ending: what has begun is finished");
    let until = Instant::now() + shared.settings.grace.0;
    loop {
        let ended = tokio::time::timeout_at(until, works.set.join_next_with_id()).await;
        match ended {
            Ok(Some(ended)) => works.ended(ended),
            Ok(None) => return,
            Err(_) => break,
        }
    }
    tracing::warn!(running = works.set.len(), "some tasks did not end in time; they go back");
    works.set.shutdown().await;
    shared.table.running().clear();
}

/// The tasks that are being worked on, each a task of the runtime. All are dropped with this.
struct Works<'a> {
    shared: &'a Arc<Shared>,
    handler: &'a Arc<dyn Handler>,
    set: JoinSet<Worked>,
    leases: HashMap<Id, LeaseRef>,
}

impl Works<'_> {
    fn start(&mut self, lease: Lease, place: OwnedSemaphorePermit) {
        let name = LeaseRef { task: lease.task, token: lease.token };
        let handler = Arc::clone(self.handler);
        let mut running = self.shared.table.running();
        // Being given a task again means that its earlier lease was lost.
        running.iter().filter(|(old, _)| old.task == name.task).for_each(|(_, work)| work.abort());
        let work = self.set.spawn(async move {
            let _place = place;
            handler.handle(&lease).await
        });
        self.leases.insert(work.id(), name);
        running.insert(name, work);
    }

    fn ended(&mut self, ended: Result<(Id, Worked), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(lease) = self.leases.remove(&id) else { return };
        let report = match ended {
            Ok((_, Ok(result))) => Some(Report::Completed(Completion { lease, result })),
            Ok((_, Err(error))) => Some(Report::failed(lease, error.message, error.retry)),
            Err(error) if error.is_panic() => {
                tracing::error!(task = %lease.task, "the handler panicked");
                Some(Report::failed(lease, "the handler panicked".to_owned(), true))
            }
            Err(_) => {
                tracing::warn!(task = %lease.task, "dropped: the lease was lost");
                None
            }
        };
        // Reported before it leaves the table, so that it is always in one of them.
        if let Some(report) = report {
            self.shared.outbox.push(report);
        }
        self.shared.table.running().remove(&lease);
    }
}

/// Claims as many tasks as there are free places; runs until dropped.
async fn claim(shared: Arc<Shared>, claimed: mpsc::Sender<Claimed>) {
    let places = Arc::new(Semaphore::new(shared.settings.concurrency as usize));
    let mut registered = shared.registered.subscribe();
    let mut backoff = Shared::patience().start();
    let mut away = false;
    // A platform that takes no reports gets no further work from here.
    let most_reports = (shared.settings.concurrency as usize).saturating_mul(4).max(16);
    loop {
        if registered.wait_for(|registered| *registered).await.is_err() {
            return;
        }
        shared.outbox.below(most_reports).await;
        let Ok(mut free) = Arc::clone(&places).acquire_owned().await else { return };
        let more = u32::try_from(places.available_permits()).unwrap_or(0);
        if let Ok(more) = Arc::clone(&places).try_acquire_many_owned(more.min(255)) {
            free.merge(more);
        }
        let claim = Claim {
            agent: shared.settings.id.clone(),
            instance: shared.instance,
            capabilities: shared.settings.capabilities.clone(),
            max: u32::try_from(free.num_permits()).unwrap_or(1),
            lease: shared.settings.lease,
        };
        match shared.client.claim(&claim, shared.settings.wait).await {
            Ok(leases) => {
                if away {
                    tracing::info!("claiming again");
                    away = false;
                }
                backoff = Shared::patience().start();
                let started = leases.into_iter().filter_map(|lease| Some((lease, free.split(1)?)));
                let started: Claimed = started.collect();
                if !started.is_empty() && claimed.send(started).await.is_err() {
                    return;
                }
            }
            Err(error) if error.code() == Some(code::UNKNOWN_AGENT) => {
                shared.registered.send_replace(false);
                shared.unknown.notify_one();
            }
            Err(error) => {
                if !away {
                    tracing::warn!(reason = chain(&error), "cannot claim; trying again");
                    away = true;
                }
                drop(free);
                tokio::time::sleep(backoff.next_delay().unwrap_or(CALL_TIMEOUT.0)).await;
            }
        }
    }
}

/// Extends the leases of what is being worked on, and drops what was lost; runs until dropped.
pub(super) async fn extend(shared: Arc<Shared>) {
    let lease = shared.settings.lease;
    let every = lease.0 / 3;
    // After a failure sooner, so that an outage shorter than a lease costs none.
    let retry = (lease.0 / 12).clamp(StdDuration::from_millis(10), StdDuration::from_millis(500));
    let client = shared.client.clone().with_timeout(Duration(every).min(CALL_TIMEOUT));
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let leases = shared.table.leases();
        for part in leases.chunks(1000) {
            match client.extend(part, lease).await {
                Ok(outcomes) => lost(&shared, part, &outcomes),
                Err(error) => {
                    log(&error);
                    ticks.reset_after(retry);
                }
            }
        }
    }
}

fn lost(shared: &Shared, leases: &[LeaseRef], outcomes: &[Outcome]) {
    for (lease, outcome) in leases.iter().zip(outcomes) {
        if *outcome != Outcome::Accepted {
            shared.table.abort(lease);
        }
    }
}

fn log(error: &crate::Error) {
    if error.is_transient() {
        tracing::debug!(reason = chain(error), "leases could not be extended; trying again");
    } else {
        tracing::warn!(reason = chain(error), "leases were not extended");
    }
}
