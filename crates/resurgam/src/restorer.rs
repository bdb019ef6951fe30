//! Brings the database of a deployment that runs back from its vaults, when a runbook asks for it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use resurgam_backup::log::ship::{Standing, Standings};
use resurgam_backup::restore::{Component, Point, Target, Wish};
use resurgam_backup::vault::Vault;
use resurgam_model::{ComponentName, IncidentId};
use resurgam_recovery::restorer::{LogStanding, Offer, Restorer};

use crate::backups::{self, blocking};
use crate::failure::Failure;
use crate::plan::Loaded;
use crate::points::{Found, look};

/// So long the vaults are given to get what was received of the log.
const DRAIN: Duration = Duration::from_secs(30);
/// They must have all of it for so long.
const STEADY: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(50);

/// Restores from the vaults of a plan.
pub(crate) struct FromVaults {
    pub(crate) loaded: Loaded,
    pub(crate) standings: Arc<Standings>,
}

impl FromVaults {
    /// Waits until what was received of the log is in the vaults that can be reached.
    async fn drained(&self) {
        let until = tokio::time::Instant::now() + DRAIN;
        let mut still = Duration::ZERO;
        while still < STEADY && tokio::time::Instant::now() < until {
            self.standings.hurry();
            let waits = self.standings.all().values().any(|standing| standing.waiting);
            still = if waits { Duration::ZERO } else { still + LOOK };
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The point that comes nearest to now.
    async fn nearest(&self) -> Result<Found, Failure> {
        let (found, without) = look(&self.loaded, None, &|_, _| Ok(Wish::Latest), None).await?;
        let why = || without.iter().map(|(vault, why)| format!("{vault}: {}", why.message));
        found.ok_or_else(|| Failure::new(why().collect::<Vec<_>>().join("; ")))
    }

    fn target(&self, instance: &ComponentName) -> Result<Target, Failure> {
        let programs = backups::programs(&self.loaded)?;
        let postgres = programs.map(|programs| (programs, instance.to_string()));
        Ok(Target { state: self.loaded.state_dir(), postgres })
    }

    async fn put_back(
        &self,
        instance: &ComponentName,
        incident: IncidentId,
    ) -> Result<String, Failure> {
        let target = self.target(instance)?;
        let mark = incident.to_string();
        if target.is_restored(&mark) {
            return Ok(format!("{instance} has it already"));
        }
        let Found { vault, point, .. } = self.nearest().await?;
        let handle = tokio::runtime::Handle::current();
        let what = name(&vault, &point);
        let (reached, aside) = blocking(move || {
            let prepared = handle.block_on(target.prepare(&vault, &point, Component::Database))?;
            let reached = prepared.reached().cloned();
            Ok((reached, target.put_instance(&prepared, &mark)?))
        })
        .await?;
        let reached = match reached {
            Some(reached) => match reached.last_commit {
                Some(at) => {
                    format!(", replayed up to {}: the last transaction is of {at}", reached.at)
                }
                None => format!(", replayed up to {}", reached.at),
            },
            None => String::new(),
        };
        let aside = aside
            .map_or(String::new(), |aside| format!("; what was there is in {}", aside.display()));
        Ok(format!("{instance} has {what}{reached}{aside}"))
    }
}

fn name(vault: &Vault, point: &Point) -> String {
    let log = match point.goes_on() {
        true => " with the log after it",
        false => "",
    };
    format!(
        "the backup {} of {}{log} from the vault {}",
        point.backup.id,
        point.backup.taken_at,
        vault.name()
    )
}

#[async_trait]
impl Restorer for FromVaults {
    async fn best(&self) -> Result<Offer, String> {
        self.drained().await;
        let found = self.nearest().await.map_err(|failure| failure.message)?;
        let Found { vault, point, until } = found;
        Ok(Offer {
            vault: vault.name().to_owned(),
            backup: point.backup.id.clone(),
            until,
            what: name(&vault, &point),
        })
    }

    async fn set_aside(&self, instance: &ComponentName) -> Result<String, String> {
        let target = self.target(instance).map_err(|failure| failure.message)?;
        let moved = blocking(move || target.set_aside("damaged")).await;
        Ok(match moved.map_err(|failure| failure.message)? {
            Some(aside) => format!("its data moved to {}", aside.display()),
            None => "it had no data".to_owned(),
        })
    }

    fn log(&self) -> Vec<LogStanding> {
        let standing = |(vault, standing): (String, Standing)| LogStanding {
            vault,
            until: standing.as_of.map(|as_of| as_of.at),
            error: standing.error,
        };
        self.standings.all().into_iter().map(standing).collect()
    }

    async fn restore(
        &self,
        _: &Offer,
        instance: &ComponentName,
        incident: IncidentId,
    ) -> Result<String, String> {
        // What is the best may have become better since.
        self.put_back(instance, incident).await.map_err(|failure| failure.message)
    }
}
