//! Tells those who wait that there is something for them: tasks, or messages.

use resurgam_model::{AgentId, Capability};
use tokio::sync::broadcast;

/// So many tasks of a capability have become ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wake {
    /// What an agent must be able to do.
    pub capability: Capability,
    /// How many, at least.
    pub count: u64,
}

/// So many words may be waiting for one listener before it loses some.
const BACKLOG: usize = 4096;

/// Words about what has become ready. They only save waiting: some may be lost, when a
/// connection breaks or a listener is slow, so whoever waits also looks from time to time.
pub struct Words<T>(broadcast::Receiver<Option<T>>);

/// Words about tasks that have become ready.
pub type Wakes = Words<Wake>;

/// Words about agents into whose mailboxes something came.
pub type Mails = Words<AgentId>;

impl<T: Clone> Words<T> {
    /// The next word; `None` when some were lost, so that anything may have become ready. Never
    /// resolves once the store is gone.
    pub async fn next(&mut self) -> Option<T> {
        match self.0.recv().await {
            Ok(word) => word,
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// The listeners of this process.
#[derive(Clone, Debug)]
pub(crate) struct Bell<T>(broadcast::Sender<Option<T>>);

impl<T: Clone> Default for Bell<T> {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl<T: Clone> Bell<T> {
    pub(crate) fn listen(&self) -> Words<T> {
        Words(self.0.subscribe())
    }

    pub(crate) fn ring(&self, word: T) {
        // An error says that nobody listens.
        let _ = self.0.send(Some(word));
    }

    /// Words may have been missed.
    pub(crate) fn ring_for_all(&self) {
        let _ = self.0.send(None);
    }
}
