//! Limits on kinds of work.

use async_trait::async_trait;
use resurgam_model::Capability;
use resurgam_model::limit::Limit;

use crate::Result;

/// Limits, which [`Tasks::claim`](crate::Tasks::claim) keeps to exactly, however many claim at
/// once. A limit counts the tasks that were claimed, or under a lease, when it was set or after.
#[async_trait]
pub trait Limits: Send + Sync + 'static {
    /// Sets the limit of a capability, in place of the one that it had.
    async fn set_limit(&self, capability: &Capability, limit: &Limit) -> Result<()>;

    /// Takes the limit of a capability away. False if it had none.
    async fn remove_limit(&self, capability: &Capability) -> Result<bool>;

    /// All limits, in the order of the names.
    async fn limits(&self) -> Result<Vec<(Capability, Limit)>>;
}
