//! Being known to the registry.
//!
//! Heartbeats go to the registry itself if the API has said where it is, and otherwise, or when
//! it does not answer there, by way of the API. So a worker stays known, and keeps its tasks,
//! while either of the two is away.

use std::sync::Arc;
use std::time::Duration as StdDuration;

use resurgam_model::Duration;
use resurgam_model::agent::{Heartbeat, HeartbeatTerms};
use tokio::time::MissedTickBehavior;

use super::{CALL_TIMEOUT, Shared};
use crate::wire::Welcome;
use crate::{Client, chain};

/// Registers for the first time, waiting for the platform as long as it takes.
pub(super) async fn register_first(shared: &Shared) -> crate::Result<Welcome> {
    let registration = shared.registration();
    let mut backoff = Shared::patience().start();
    let mut reported = false;
    loop {
        match shared.client.register(&registration).await {
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
    let life = [Heartbeat::new(shared.settings.id.clone(), shared.instance)];
    let mut ways = Ways::new(&shared, welcome);
    let mut ticks = ways.interval();
    let mut away = false;
    loop {
        let told = tokio::select! {
            _ = ticks.tick() => false,
            () = shared.unknown.notified() => true,
        };
        let known = match told {
            true => Ok(false),
            false => ways.heartbeat(&life).await,
        };
        match known {
            Ok(known) => {
                if away {
                    tracing::info!("the registry is back");
                    away = false;
                }
                shared.registered.send_replace(known);
                if !known && ways.register_again(&shared).await {
                    ticks = ways.interval();
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

/// The ways to the registry.
struct Ways {
    terms: HeartbeatTerms,
    direct: Option<Client>,
    api: Client,
}

impl Ways {
    fn new(shared: &Shared, welcome: Welcome) -> Self {
        let mut ways = Self { terms: welcome.heartbeat, direct: None, api: shared.client.clone() };
        ways.take(welcome);
        ways
    }

    fn take(&mut self, welcome: Welcome) {
        self.terms = welcome.heartbeat;
        // A heartbeat that takes longer is of no use any more.
        let bound = Duration(self.terms.expire_after.0 / 3).min(CALL_TIMEOUT);
        self.api = self.api.clone().with_timeout(bound);
        if let Some(url) = welcome.registry {
            self.direct = self.api.at(&url).ok();
        }
        self.direct = self.direct.take().map(|client| client.with_timeout(bound));
    }

    fn interval(&self) -> tokio::time::Interval {
        let every = self.terms.every.0.max(StdDuration::from_millis(10));
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    async fn heartbeat(&self, life: &[Heartbeat]) -> crate::Result<bool> {
        if let Some(direct) = &self.direct
            && let Ok(known) = direct.heartbeat(life).await
        {
            return Ok(known == [true]);
        }
        Ok(self.api.heartbeat(life).await? == [true])
    }

    /// One attempt; the next heartbeat leads to the next one. True when it worked.
    async fn register_again(&mut self, shared: &Shared) -> bool {
        tracing::warn!("the registry does not know this worker; registering again");
        let registration = shared.registration();
        let mut result = self.api.register(&registration).await;
        if let (Err(error), Some(direct)) = (&result, &self.direct)
            && error.is_transient()
        {
            result = direct.register(&registration).await;
        }
        match result {
            Ok(welcome) => {
                tracing::info!("registered again");
                self.take(welcome);
                shared.registered.send_replace(true);
                true
            }
            Err(error) => {
                tracing::warn!(reason = chain(&error), "cannot register again; trying further");
                false
            }
        }
    }
}

/// Leaves in order, which returns whatever leases are left. If that cannot be said, the missing
/// heartbeats say it.
pub(super) async fn leave(shared: &Shared) {
    let client = shared.client.clone().with_timeout(Duration::from_secs(2));
    match client.deregister(&shared.settings.id, shared.instance).await {
        Ok(()) => tracing::info!("left in order"),
        Err(error) => tracing::warn!(reason = chain(&error), "left without saying so"),
    }
}
