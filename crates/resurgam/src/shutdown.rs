//! The wish to end: Ctrl-C, or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Listens from now on, also before the future is first awaited, and for the rest of the
/// process's life: from then on the signals end nothing by themselves. Where they cannot be
/// listened for, they do, and the future never returns.
pub(crate) fn requested() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        match signals {
            (Ok(mut interrupt), Ok(mut terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            _ => std::future::pending().await,
        }
    }
}
