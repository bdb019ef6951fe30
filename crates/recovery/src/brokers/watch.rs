//! Asks the API how the buses are.

use std::time::Duration;

use resurgam_client::Client;
use resurgam_model::bus::BusStatus;
use tokio::sync::watch;

/// How often.
const EVERY: Duration = Duration::from_millis(250);
/// An answer that takes longer is of no use.
const PATIENCE: resurgam_model::Duration = resurgam_model::Duration::from_secs(2);

/// Asks until it is dropped. While the API does not answer, nothing is known.
pub(crate) async fn run(api: Client, seen: watch::Sender<Option<BusStatus>>) {
    let api = api.with_timeout(PATIENCE);
    loop {
        let status = api.bus().await.ok();
        seen.send_replace(status);
        tokio::time::sleep(EVERY).await;
    }
}
