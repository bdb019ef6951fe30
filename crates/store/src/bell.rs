//! Tells those who wait for tasks that some have become ready.

use resurgam_model::Capability;
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

/// Words about tasks that have become ready. They only save waiting: some may be lost, when a
/// connection breaks or a listener is slow, so whoever waits also looks from time to time.
pub struct Wakes(broadcast::Receiver<Option<Wake>>);

impl Wakes {
    /// The next word; `None` when some were lost, so that anything may have become ready. Never
    /// resolves once the store is gone.
    pub async fn next(&mut self) -> Option<Wake> {
        match self.0.recv().await {
            Ok(wake) => wake,
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// The listeners of this process.
#[derive(Clone, Debug)]
pub(crate) struct Bell(broadcast::Sender<Option<Wake>>);

impl Default for Bell {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Bell {
    pub(crate) fn listen(&self) -> Wakes {
        Wakes(self.0.subscribe())
    }

    pub(crate) fn ring(&self, wake: Wake) {
        // An error says that nobody listens.
        let _ = self.0.send(Some(wake));
    }

    /// Words may have been missed.
    pub(crate) fn ring_for_all(&self) {
        let _ = self.0.send(None);
    }
}
