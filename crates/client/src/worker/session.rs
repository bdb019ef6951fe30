//! Being known to the registry.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use resurgam_model::Duration;
use resurgam_model::agent::{Heartbeat, HeartbeatTerms, OwnState};
use tokio::time::MissedTickBehavior;

use super::queue::within;
use super::{CALL_TIMEOUT, Shared};
use crate::chain;
use crate::wire::Welcome;

/// Registering may go two ways, one after the other.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Registers for the first time, waiting for the platform as long as it takes.
pub(super) async fn register_first(shared: &Shared) -> crate::Result<Welcome> {
    let registration = shared.registration();
    let mut backoff = Shared::patience().start();
    let mut reported = false;
    loop {
        let call = shared.queue.register(&registration);
        match within(&*shared.queue, REGISTER_TIMEOUT, call).await {
            Ok(welcome) => {
                let returned = welcome.leases_returned;
                tracing::info!(id = %registration.id, leases_returned = returned, "registered");
                shared.registered.send_replace(true);
                return Ok(welcome);
            }
            Err(error) if error.is_transient() => {
                if !reported {
                    tracing::warn!(reason = chain(&error), "cannot register yet; trying again");
                    reported = true;
                }
                tokio::time::sleep(backoff.next_delay().unwrap_or(CALL_TIMEOUT.0)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Gives signs of life, and registers again whenever the registry does not know this life.
pub(super) async fn keep(shared: Arc<Shared>, welcome: Welcome) {
    let mut life = Heartbeat::new(shared.settings.id.clone(), shared.instance);
    let mut ending = shared.ending.subscribe();
    let mut ticks = interval(welcome.heartbeat);
    let mut away = false;
    loop {
        let told = tokio::select! {
            _ = ticks.tick() => false,
            () = shared.unknown.notified() => true,
            // Said at once, so that nobody counts on it any more. The sender is in `shared`.
            Ok(()) = ending.changed() => {
                life.state = Some(OwnState::Draining);
                life.reason = Some("it ends, and finishes what it has".to_owned());
                false
            }
        };
        let known = match told {
            true => Ok(false),
            false => within(&*shared.queue, CALL_TIMEOUT, shared.queue.heartbeat(&life)).await,
        };
        match known {
            Ok(known) => {
                if away {
                    tracing::info!("the registry is back");
                    away = false;
                }
                shared.registered.send_replace(known);
                if !known && let Some(terms) = register_again(&shared).await {
                    ticks = interval(terms);
                }
            }
            Err(error) => {
                if !away {
                    tracing::warn!(reason = chain(&error), "the registry does not answer");
                    away = true;
                }
            }
        }
    }
}

/// One attempt; the next heartbeat leads to the next one. Gives the terms when it worked.
async fn register_again(shared: &Shared) -> Option<HeartbeatTerms> {
    tracing::warn!("the registry does not know this worker; registering again");
    let registration = shared.registration();
    let call = shared.queue.register(&registration);
    match within(&*shared.queue, REGISTER_TIMEOUT, call).await {
        Ok(welcome) => {
            tracing::info!("registered again");
            shared.registered.send_replace(true);
            Some(welcome.heartbeat)
        }
        Err(error) => {
            tracing::warn!(reason = chain(&error), "cannot register again; trying further");
            None
        }
    }
}

fn interval(terms: HeartbeatTerms) -> tokio::time::Interval {
    let every = terms.every.0.max(StdDuration::from_millis(10));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Leaves in order, which returns whatever leases are left. If that cannot be said, the missing
/// heartbeats say it.
pub(super) async fn leave(shared: &Shared) {
    let call = shared.queue.deregister(&shared.settings.id, shared.instance);
    match within(&*shared.queue, Duration::from_secs(2), call).await {
        Ok(()) => tracing::info!("left in order"),
        Err(error) => tracing::warn!(reason = chain(&error), "left without saying so"),
    }
}
