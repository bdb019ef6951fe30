//! Which instance reigns: the record on which fencing rests.

use std::collections::BTreeSet;

use resurgam_model::database::Epoch;
use resurgam_model::{ComponentName, Timestamp};
use serde::{Deserialize, Serialize};

use super::chain::{Kind, append};
use super::{Journal, set_meta};
use crate::{Error, Result};

/// The key under which the state is kept.
pub(super) const KEY: &str = "cluster";

/// Who may be primary, and how safe a change would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterState {
    /// Grows with each change; the number of the directives that follow from this state.
    pub version: u64,
    /// The current reign.
    pub epoch: Epoch,
    /// Who has it. None between the fencing of one primary and the promotion of the next.
    pub primary: Option<ComponentName>,
    /// The database has been made: from now on a primary never begins with nothing.
    pub created: bool,
    /// The standby that the primary is told to wait for at each commit.
    pub synchronous: Option<ComponentName>,
    /// The standby that is sure to have every acknowledged write: the primary waits for it, and
    /// has since before anything was acknowledged that it may lack.
    pub complete: Option<ComponentName>,
    /// Who has been seen to stream from the present primary: what they have is a part of what it
    /// has. The data of others may have gone its own way, and be further on it.
    #[serde(default)]
    pub followers: BTreeSet<ComponentName>,
    /// Who must stay stopped until a runbook says otherwise: a former primary that has not been
    /// rebuilt.
    pub stopped: Option<ComponentName>,
    /// Who had the reign before.
    pub former: Option<ComponentName>,
}

impl ClusterState {
    /// The state after the data of one instance was restored from a backup: that instance reigns,
    /// nobody follows it yet, and whatever was before has lost its reign.
    #[must_use]
    pub fn restored(self, instance: ComponentName) -> Self {
        Self {
            version: self.version + 1,
            epoch: self.epoch.next(),
            primary: Some(instance),
            created: true,
            ..Self::default()
        }
    }
}

impl Journal {
    /// The state as last recorded.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn cluster(&self) -> Result<ClusterState> {
        match self.meta(KEY)? {
            None => Ok(ClusterState::default()),
            Some(json) => {
                serde_json::from_str(&json).map_err(|error| Error::Corrupt(error.to_string()))
            }
        }
    }

    /// Records a change. When this returns, it is on disk.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn set_cluster(&self, state: &ClusterState) -> Result<()> {
        let json =
            serde_json::to_string(state).map_err(|error| Error::Corrupt(error.to_string()))?;
        self.write(|transaction| {
            set_meta(transaction, KEY, &json)?;
            append(transaction, Timestamp::now(), Kind::Cluster, KEY, state)?;
            Ok(())
        })
    }
}
