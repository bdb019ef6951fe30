//! Claiming.

use std::sync::Arc;

use resurgam_model::task::{Claim, Lease};
use resurgam_model::{ClaimId, Duration};
use tokio::sync::mpsc;

use super::queue::within;
use super::{CALL_TIMEOUT, Shared};
use crate::chain;
use crate::problem::code;

/// So many claims may be under way at once; one only when there is not plenty.
pub(super) const CLAIMERS: usize = 2;

/// Claims the tasks that are wanted; runs until dropped. What a claim that is under way then
/// still takes goes back when the worker leaves.
pub(super) async fn claim(
    shared: Arc<Shared>,
    helper: bool,
    claimed: mpsc::UnboundedSender<Vec<Lease>>,
) {
    let mut registered = shared.registered.subscribe();
    loop {
        if registered.wait_for(|registered| *registered).await.is_err() {
            return;
        }
        // A platform that takes no reports gets no further work from here.
        shared.outbox.room().await;
        let asked = shared.demand.ask(helper).await;
        let claim = Claim {
            agent: shared.settings.id.clone(),
            instance: shared.instance,
            capabilities: shared.capabilities.clone(),
            max: asked.count(),
            lease: shared.settings.lease,
            id: Some(ClaimId::new()),
            again: false,
        };
        let leases = persistently(&shared, claim).await;
        asked.came(leases.len());
        if !leases.is_empty() && claimed.send(leases).is_err() {
            return;
        }
    }
}

/// Makes a claim until it is answered. It may have taken tasks although its answer was lost; so it
/// says when it is made again, and is told what it took.
async fn persistently(shared: &Shared, mut claim: Claim) -> Vec<Lease> {
    let wait = shared.settings.wait;
    let bound = Duration(wait.0.saturating_add(CALL_TIMEOUT.0));
    let mut registered = shared.registered.subscribe();
    let mut backoff = Shared::patience().start();
    let mut away = false;
    loop {
        match within(&*shared.queue, bound, shared.queue.claim(&claim, wait)).await {
            Ok(leases) => {
                if away {
                    tracing::info!("claiming again");
                }
                return leases;
            }
            Err(error) if error.code() == Some(code::UNKNOWN_AGENT) => {
                shared.registered.send_replace(false);
                shared.unknown.notify_one();
                // The sender is in `shared`, so that it cannot be gone.
                let _ = registered.wait_for(|registered| *registered).await;
            }
            Err(error) => {
                claim.again |= error.is_transient();
                if !away {
                    tracing::warn!(reason = chain(&error), "cannot claim; trying again");
                    away = true;
                }
            }
        }
        tokio::time::sleep(backoff.next_delay().unwrap_or(CALL_TIMEOUT.0)).await;
    }
}
