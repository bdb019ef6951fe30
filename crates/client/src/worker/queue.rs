//! What a worker needs of the platform, and the way to it over HTTP.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use resurgam_model::agent::{Heartbeat, Registration};
use resurgam_model::task::{Claim, Completion, Failure, Lease, LeaseRef, Outcome};
use resurgam_model::{AgentId, Duration, InstanceId};

use super::CALL_TIMEOUT;
use crate::wire::Welcome;
use crate::{Client, Error, Result, chain};

/// What a worker needs of the platform. Every call may be repeated, and is bounded in time by
/// the worker, which drops it when it takes too long.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Where it is, for people.
    fn place(&self) -> String;

    /// Makes the worker known.
    async fn register(&self, registration: &Registration) -> Result<Welcome>;

    /// A sign of life. False when the worker must register again.
    async fn heartbeat(&self, life: &Heartbeat) -> Result<bool>;

    /// Claims tasks, waiting up to `wait` until there is one.
    async fn claim(&self, claim: &Claim, wait: Duration) -> Result<Vec<Lease>>;

    /// Extends leases to `lease` from now; one word per lease, in order.
    async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>>;

    /// Extends leases as [`Queue::extend`], and says how far the work is. A queue that has no place
    /// for that only extends.
    async fn extend_with_note(
        &self,
        leases: &[LeaseRef],
        lease: Duration,
        note: &str,
    ) -> Result<Vec<Outcome>> {
        let _ = note;
        self.extend(leases, lease).await
    }

    /// Completes tasks; one word per task, in order.
    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>>;

    /// Ends tries that failed; one word per try, in order.
    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>>;

    /// Leaves, and gives back the leases that are left.
    async fn deregister(&self, id: &AgentId, instance: InstanceId) -> Result<()>;
}

/// The platform by way of its HTTP interface.
///
/// Heartbeats go to the registry itself if the API has said where it is, and otherwise, or when
/// it does not answer there, by way of the API. So a worker stays known, and keeps its tasks,
/// while either of the two is away.
#[derive(Debug)]
pub struct Remote {
    api: Client,
    ways: Mutex<Ways>,
}

/// The ways to the registry.
#[derive(Clone, Debug)]
struct Ways {
    direct: Option<Client>,
    /// A heartbeat that takes longer is of no use any more.
    bound: Duration,
}

impl Remote {
    /// The platform whose API the client speaks to.
    #[must_use]
    pub fn new(api: Client) -> Self {
        // The worker bounds what it asks for, and a claim that waits on top of that.
        let api = api.with_timeout(CALL_TIMEOUT);
        Self { api, ways: Mutex::new(Ways { direct: None, bound: CALL_TIMEOUT }) }
    }

    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_note(&self, welcome: &Welcome) {
        let mut ways = self.ways();
        ways.bound = Duration(welcome.heartbeat.expire_after.0 / 3).min(CALL_TIMEOUT);
        if let Some(url) = &welcome.registry {
            match self.api.at(url) {
                Ok(direct) => ways.direct = Some(direct),
                Err(error) => {
                    tracing::warn!(reason = chain(&error), "the registry is asked by the API only");
                }
            }
        }
    }
}

impl From<Client> for Remote {
    fn from(api: Client) -> Self {
        Self::new(api)
    }
}

#[async_trait]
impl Queue for Remote {
    fn place(&self) -> String {
        self.api.base_url().to_owned()
    }

    async fn register(&self, registration: &Registration) -> Result<Welcome> {
        let mut result = self.api.register(registration).await;
        let direct = self.ways().direct.clone();
        if let (Err(error), Some(direct)) = (&result, direct)
            && error.is_transient()
        {
            result = direct.register(registration).await;
        }
        if let Ok(welcome) = &result {
            self.take_note(welcome);
        }
        result
    }

    async fn heartbeat(&self, life: &Heartbeat) -> Result<bool> {
        let Ways { direct, bound } = self.ways().clone();
        let life = std::slice::from_ref(life);
        if let Some(direct) = direct
            && let Ok(known) = direct.with_timeout(bound).heartbeat(life).await
        {
            return Ok(known == [true]);
        }
        Ok(self.api.clone().with_timeout(bound).heartbeat(life).await? == [true])
    }

    async fn claim(&self, claim: &Claim, wait: Duration) -> Result<Vec<Lease>> {
        self.api.claim(claim, wait).await
    }

    async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>> {
        self.api.extend(leases, lease).await
    }

    async fn extend_with_note(
        &self,
        leases: &[LeaseRef],
        lease: Duration,
        note: &str,
    ) -> Result<Vec<Outcome>> {
        self.api.extend_with_note(leases, lease, note).await
    }

    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        self.api.complete(completions).await
    }

    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        self.api.fail(failures).await
    }

    async fn deregister(&self, id: &AgentId, instance: InstanceId) -> Result<()> {
        self.api.deregister(id, instance).await
    }
}

/// One call, dropped when it takes too long.
pub(super) async fn within<T>(
    queue: &dyn Queue,
    bound: Duration,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(bound.0, call).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout { url: queue.place(), after: bound }),
    }
}
