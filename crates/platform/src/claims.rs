//! Claims that wait until there is a task.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use resurgam_model::Capability;
use resurgam_model::task::{Claim, Lease};
use resurgam_store::{Error, Result, Store};
use tokio::time::Instant;

use crate::waiting::Waiting;

/// An agent that is given no tasks is looked at again so often while it waits.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Whose turn it is first.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Makes a claim again and again until there is a task, the time is over, or `closed` resolves.
pub(crate) async fn claim_until(
    store: &dyn Store,
    waiting: &Waiting<Capability>,
    claim: &Claim,
    until: Instant,
    closed: impl Future<Output = ()>,
) -> Result<Vec<Lease>> {
    let mut closed = std::pin::pin!(closed);
    let mut claim = claim.clone();
    loop {
        // The first capability has the first turn: for claims of one task the only one.
        if !claim.capabilities.is_empty() {
            let first = TURN.fetch_add(1, Ordering::Relaxed) % claim.capabilities.len();
            claim.capabilities.rotate_left(first);
        }
        let place = waiting.join(&claim.capabilities, claim.max);
        let leases = match store.claim(&claim).await {
            Err(Error::NoTasks { agent, state }) => {
                // It takes nobody's wake-up. That it may take tasks again it finds out itself.
                drop(place);
                tracing::debug!(%agent, %state, "an agent that is given no tasks claims");
                tokio::select! {
                    () = tokio::time::sleep_until(until.min(Instant::now() + ASK_AGAIN)) => {}
                    () = &mut closed => return Ok(Vec::new()),
                }
                if Instant::now() >= until {
                    return Ok(Vec::new());
                }
                continue;
            }
            leases => leases?,
        };
        if !leases.is_empty() {
            if leases.len() as u64 >= u64::from(claim.max) {
                // There may be more than this claim could take.
                drop(place);
                claim.capabilities.iter().for_each(|capability| waiting.wake(capability, 1));
            }
            return Ok(leases);
        }
        tokio::select! {
            () = place.woken() => {}
            () = tokio::time::sleep_until(until) => return Ok(leases),
            () = &mut closed => return Ok(leases),
        }
    }
}
