//! The wish to end: Ctrl-C, or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Returns when the process is asked to end. Where signals cannot be listened for, they end the
/// process by themselves.
pub(crate) async fn requested() {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    match (interrupt, terminate) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}
