//! The seam to what can bring a lost database back: backups, and the log after them.

use std::sync::Arc;

use async_trait::async_trait;
use resurgam_model::{ComponentName, IncidentId, Timestamp};
use serde::{Deserialize, Serialize};

/// What could be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The vault.
    pub vault: String,
    /// The backup in it.
    pub backup: String,
    /// All that was acknowledged before this moment is in it.
    pub until: Timestamp,
    /// What it is, in words.
    pub what: String,
}

/// How the log of the database stands in a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStanding {
    /// The vault.
    pub vault: String,
    /// All that was acknowledged before this moment is there; none while that is not known.
    pub until: Option<Timestamp>,
    /// Why it does not go on.
    pub error: Option<String>,
}

/// What a vault has, as it was seen last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultStanding {
    /// The vault.
    pub vault: String,
    /// From when the newest backup is that is not known to be bad.
    pub newest: Option<Timestamp>,
    /// From when the newest one is that was restored.
    pub proven: Option<Timestamp>,
    /// Why it could not be looked into.
    pub error: Option<String>,
}

/// Brings back what was lost.
#[async_trait]
pub trait Restorer: Send + Sync {
    /// The best that there is.
    ///
    /// # Errors
    /// Why there is nothing, in words.
    async fn best(&self) -> Result<Offer, String>;

    /// Moves the data of an instance aside, so that it has none. The instance must be at rest, and
    /// stay so. What was done, in words.
    ///
    /// # Errors
    /// Why it could not be done, in words. Once more may help.
    async fn set_aside(&self, instance: &ComponentName) -> Result<String, String>;

    /// How the log of the database stands in each vault.
    fn log(&self) -> Vec<LogStanding>;

    /// Puts the database of an instance back, for an incident. What is there is moved aside. Once
    /// more does nothing if it was done for this incident before. What was done, in words.
    ///
    /// The instance must be at rest, and stay so.
    ///
    /// # Errors
    /// Why it could not be done, in words. Once more may help.
    async fn restore(
        &self,
        offer: &Offer,
        instance: &ComponentName,
        incident: IncidentId,
    ) -> Result<String, String>;
}

/// What a controller may have.
pub type SharedRestorer = Arc<dyn Restorer>;
