//! The bus that lives in the platform's own store.

use async_trait::async_trait;
use resurgam_model::AgentId;
use resurgam_model::message::{Message, NewMessage};
use resurgam_store::{Messages, SharedStore};

use crate::{Bus, Result};

/// Mailboxes in the store. It keeps nothing in memory: a crash loses nothing, and as many
/// processes as like can use the same store.
///
/// Because bus and tasks share one store, a task's result and the message about it are one
/// transaction: neither is ever there without the other.
#[derive(Clone)]
pub struct EmbeddedBus {
    store: SharedStore,
}

impl EmbeddedBus {
    /// A bus in this store.
    #[must_use]
    pub fn new(store: SharedStore) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn send(&self, messages: &[NewMessage]) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        Ok(Messages::send(&*self.store, messages).await?)
    }

    async fn receive(
        &self,
        agent: &AgentId,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Message>> {
        Ok(Messages::receive(&*self.store, agent, after, limit).await?)
    }

    async fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> Result<()> {
        if sequences.is_empty() {
            return Ok(());
        }
        Ok(Messages::acknowledge(&*self.store, agent, sequences).await?)
    }

    fn kind(&self) -> &'static str {
        "embedded"
    }

    /// Reads a mailbox. That the store takes writes is what the store's own check proves; the
    /// embedded bus has no other moving part.
    async fn check(&self) -> Result<()> {
        if let Ok(nobody) = AgentId::new("bus-check") {
            Messages::receive(&*self.store, &nobody, None, 1).await?;
        }
        Ok(())
    }
}
