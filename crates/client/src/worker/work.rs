//! Working.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use resurgam_model::task::{Completion, Lease, LeaseRef};
use resurgam_model::{Capability, Payload};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::claims::{CLAIMERS, claim};
use super::job::Job;
use super::outbox::Report;
use super::{Handler, HandlerError, Shared};

/// The handlers by what they can do.
pub(super) type Handlers = HashMap<Capability, Arc<dyn Handler>>;

type Worked = Result<Payload, HandlerError>;

/// Claims and works until `shutdown` resolves; then finishes what is here, within the grace.
pub(super) async fn work(
    shared: &Arc<Shared>,
    handlers: &Handlers,
    shutdown: impl Future<Output = ()>,
) {
    let mut works = Works::new(shared, handlers);
    let (claimed, mut inbox) = mpsc::unbounded_channel();
    let mut claimers = JoinSet::new();
    for index in 0..CLAIMERS {
        claimers.spawn(claim(Arc::clone(shared), index > 0, claimed.clone()));
    }
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        works.begin();
        tokio::select! {
            Some(leases) = inbox.recv() => works.take(leases),
            Some(ended) = works.set.join_next_with_id() => works.all_ended(ended),
            () = shared.outbox.room(), if works.is_held_up() => {}
            () = &mut shutdown => break,
        }
    }
    shared.ending.send_replace(true);
    claimers.shutdown().await;
    while let Ok(leases) = inbox.try_recv() {
        works.take(leases);
    }
    shared.table.announce_shutdown();
    let (running, waiting) = (works.set.len(), works.waiting.len());
    tracing::info!(running, waiting, "ending: what is here is finished");
    let until = Instant::now() + shared.settings.grace.0;
    while works.finish_one(until).await {}
    let left = works.set.len() + works.waiting.len();
    if left > 0 {
        tracing::warn!(left, "some tasks did not end in time; they go back");
    }
    works.set.shutdown().await;
    shared.table.clear();
}

/// The tasks that are here. All are dropped with this.
struct Works<'a> {
    shared: &'a Shared,
    handlers: &'a Handlers,
    waiting: VecDeque<Lease>,
    /// Each a task of the runtime, with the moment when it began.
    set: JoinSet<Worked>,
    running: HashMap<Id, (LeaseRef, Instant)>,
}

impl<'a> Works<'a> {
    fn new(shared: &'a Shared, handlers: &'a Handlers) -> Self {
        Self {
            shared,
            handlers,
            waiting: VecDeque::new(),
            set: JoinSet::new(),
            running: HashMap::new(),
        }
    }

    /// Takes in what was claimed.
    fn take(&mut self, leases: Vec<Lease>) {
        for lease in leases {
            if self.shared.table.claimed(&lease) {
                self.waiting.push_back(lease);
            } else {
                self.shared.demand.gone();
            }
        }
    }

    fn has_place(&self) -> bool {
        !self.waiting.is_empty() && self.set.len() < self.shared.settings.concurrency as usize
    }

    /// A task could begin, but for the reports that wait.
    fn is_held_up(&self) -> bool {
        self.has_place() && !self.shared.outbox.has_room()
    }

    /// Begins as many of those that wait as there are places.
    fn begin(&mut self) {
        while self.has_place() && self.shared.outbox.has_room() {
            let Some(lease) = self.waiting.pop_front() else { return };
            self.start(lease);
        }
    }

    fn start(&mut self, lease: Lease) {
        let name = LeaseRef { task: lease.task, token: lease.token };
        let Some(handler) = self.handlers.get(&lease.capability) else {
            let reason = format!("this worker has no handler for {}", lease.capability);
            self.shared.outbox.push(Report::failed(name, reason, true));
            self.shared.table.ended(name);
            self.shared.demand.gone();
            return;
        };
        let handler = Arc::clone(handler);
        let Self { set, running, .. } = self;
        let begun = self.shared.table.begin(name, |cancelled, note| {
            let job = Job::under(lease, cancelled, note);
            let work = set.spawn(async move { handler.handle(job).await });
            running.insert(work.id(), (name, Instant::now()));
            work
        });
        if !begun {
            tracing::warn!(task = %name.task, "not begun: the lease was lost");
            self.shared.demand.gone();
        }
    }

    /// Takes note of a task that ended, and of all others that did meanwhile.
    fn all_ended(&mut self, first: Result<(Id, Worked), JoinError>) {
        self.ended(first);
        while let Some(ended) = self.set.try_join_next_with_id() {
            self.ended(ended);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Worked), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some((lease, began)) = self.running.remove(&id) else { return };
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
            self.shared.demand.took(began.elapsed());
            self.shared.outbox.push(report);
        }
        self.shared.table.ended(lease);
        self.shared.demand.gone();
    }

    /// Waits for one task to end. False when none is left, or the time is over.
    async fn finish_one(&mut self, until: Instant) -> bool {
        self.begin();
        let held_up = self.is_held_up();
        if self.set.is_empty() && !held_up {
            return false;
        }
        let one = async {
            tokio::select! {
                Some(ended) = self.set.join_next_with_id() => Some(ended),
                () = self.shared.outbox.room(), if held_up => None,
            }
        };
        match tokio::time::timeout_at(until, one).await {
            Ok(ended) => {
                ended.into_iter().for_each(|ended| self.ended(ended));
                true
            }
            Err(_) => false,
        }
    }
}
