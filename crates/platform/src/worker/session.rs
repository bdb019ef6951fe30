//! Being known to the registry.

use std::sync::Arc;

use resurgam_model::agent::HeartbeatTerms;
use tokio::time::MissedTickBehavior;

use super::{CALL_TIMEOUT, Shared};
use crate::client::{self, chain};
use crate::wire::Life;

/// Registers for the first time, waiting for the platform as long as it takes.
pub(super) async fn register_first(shared: &Shared) -> client::Result<HeartbeatTerms> {
    let registration = shared.registration();
    let mut backoff = Shared::patience().start();
    let mut reported = false;
    loop {
        match shared.client.register(&registration).await {
            Ok(welcome) => {
                let returned = welcome.leases_returned;
                tracing::info!(id = %registration.id, leases_returned = returned, "registered");
                shared.registered.send_replace(true);
                return Ok(welcome.heartbeat);
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
pub(super) async fn keep(shared: Arc<Shared>, mut terms: HeartbeatTerms) {
    let life = Life { id: shared.settings.id.clone(), instance: shared.instance };
    // A heartbeat that takes longer than the next is due is not waited for.
    let mut client = shared.client.clone().with_timeout(bound(&terms));
    let mut away = false;
    let mut ticks = interval(&terms);
    loop {
        let told = tokio::select! {
            _ = ticks.tick() => false,
            () = shared.unknown.notified() => true,
        };
        let result = if told {
            Ok(false)
        } else {
            client.heartbeat(std::slice::from_ref(&life)).await.map(|known| known == [true])
        };
        match result {
            Ok(known) => {
                if away {
                    tracing::info!("the registry is back");
                    away = false;
                }
                if known {
                    shared.registered.send_replace(true);
                    continue;
                }
                tracing::warn!("the registry does not know this worker; registering again");
                shared.registered.send_replace(false);
                if let Some(new) = register_again(&shared).await
                    && new != terms
                {
                    terms = new;
                    client = shared.client.clone().with_timeout(bound(&terms));
                    ticks = interval(&terms);
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

fn interval(terms: &HeartbeatTerms) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(terms.every.0.max(std::time::Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn bound(terms: &HeartbeatTerms) -> resurgam_model::Duration {
    resurgam_model::Duration(terms.expire_after.0 / 2).min(CALL_TIMEOUT)
}

/// One attempt: the next heartbeat makes the next one.
async fn register_again(shared: &Shared) -> Option<HeartbeatTerms> {
    match shared.client.register(&shared.registration()).await {
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

/// Leaves in order, which returns whatever leases are left. If that cannot be said, the missing
/// heartbeats say it.
pub(super) async fn leave(shared: &Shared) {
    let client = shared.client.clone().with_timeout(resurgam_model::Duration::from_secs(2));
    match client.deregister(&shared.settings.id, shared.instance).await {
        Ok(()) => tracing::info!("left in order"),
        Err(error) => tracing::warn!(reason = chain(&error), "left without saying so"),
    }
}
