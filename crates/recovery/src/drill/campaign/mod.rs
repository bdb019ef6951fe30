//! Faults at random, several at a time, and a checker that believes nobody.
//!
//! A campaign goes by rounds. In each, one to four faults strike within seconds, the later ones
//! often while the recovery from the first is under way. Then everything must come back, and the
//! books are balanced: nothing that was acknowledged is lost, nothing took effect twice, no two
//! primaries took writes, no incident is left open.
//!
//! The faults of a round follow from its seed. Round `k` of a campaign with the seed `n` is the
//! first round of one with the seed `n + k - 1`, so a round that found something is done again
//! alone.

mod dice;
mod logs;
mod report;
mod striking;
mod writers;

use std::time::{Duration, Instant};

use resurgam_deployment::postgres::Secrets;
use resurgam_model::Timestamp;
use resurgam_model::bus::BusKind;
use resurgam_model::plan::StoreKind;

pub use dice::{Arsenal, How, Strike, Target, round};
pub use report::{CampaignReport, IncidentReport, RoundReport};

use self::logs::Logs;
use self::striking::Striking;
use self::writers::Writers;
use super::Progress;
use super::load::Load;
use super::subject::Subject;
use crate::{Error, Result};

/// So many tasks are acknowledged before the first strike of a round.
const WARM_UP: usize = 30;
/// How long the load may take for that, and to take effect after everything is back.
const LOAD_PATIENCE: Duration = Duration::from_secs(90);
/// How long everything may take to come back after the last strike of a round.
const RECOVERY: Duration = Duration::from_secs(300);
/// For so long everything must stay well: longer than anything that was struck goes unnoticed.
const CALM: Duration = Duration::from_secs(5);
/// How often to look.
const LOOK: Duration = Duration::from_millis(50);

/// A campaign against a deployment under load, whose plan promises that nothing acknowledged is lost:
/// a PostgreSQL of its own is synchronous.
pub struct Campaign<'a> {
    /// The deployment.
    pub subject: &'a mut Subject,
    /// The load on it.
    pub load: &'a Load,
    /// Hears how far it is.
    pub progress: Progress<'a>,
    /// From which everything that strikes follows.
    pub seed: u64,
    /// No round begins after so long. At least one is done.
    pub lasts: Duration,
}

impl Campaign<'_> {
    /// Goes on until its time is over, or a round has found a violation: what comes after one
    /// would prove nothing.
    ///
    /// # Errors
    /// When the campaign itself cannot be carried out.
    pub async fn run(&mut self) -> Result<CampaignReport> {
        (self.progress)("waiting until everything is up");
        let status = self.subject.ready().await?;
        let started_at = Timestamp::now();
        let began = Instant::now();
        let writers = self.writers().await?;
        let mut logs = Logs::new(&self.subject.state_dir().join("logs"));
        let mut rounds: Vec<RoundReport> = Vec::new();
        let mut violated = false;
        while (rounds.is_empty() || began.elapsed() < self.lasts) && !violated {
            let number = u64::try_from(rounds.len()).unwrap_or(u64::MAX);
            let seed = self.seed.wrapping_add(number);
            let report = self.round(seed, number + 1, writers.as_ref(), &mut logs).await?;
            violated = !report.violations.is_empty();
            rounds.push(report);
        }
        let writes = writers.as_ref().map_or(0, Writers::count);
        if let Some(writers) = writers {
            // Where nothing comes back, the table stays: there are other troubles then.
            let ended = writers.end().await;
            if !violated {
                ended?;
            }
        }
        if let Err(error) = self.subject.command(&["journal", "verify"]).await
            && let Some(last) = rounds.last_mut()
        {
            last.violations.push(error.to_string());
        }
        let balance = self.load.ledger().balance(started_at);
        Ok(CampaignReport {
            seed: self.seed,
            deployment: status.kind,
            started_at,
            lasted_ms: millis(began.elapsed()),
            acknowledged: balance.acknowledged,
            writes: u64::try_from(writes).unwrap_or(u64::MAX),
            rounds,
        })
    }

    fn arsenal(&self) -> Arsenal {
        let plan = self.subject.plan();
        let postgres = plan.store.kind == StoreKind::Postgres;
        let uses = |bus| plan.bus.order.contains(&bus);
        Arsenal {
            postgres,
            standbys: postgres && plan.postgres.standbys > 0,
            kafka: uses(BusKind::Kafka) && plan.bus.kafka.brokers > 0,
            rabbitmq: uses(BusKind::RabbitMq) && plan.bus.rabbitmq.nodes > 0,
            own: self.subject.is_own(),
        }
    }

    async fn writers(&self) -> Result<Option<Writers>> {
        let Some(postgres) = self.subject.status().await?.postgres else { return Ok(None) };
        let secrets = Secrets::load(&self.subject.state_dir().join("secrets/postgres.json"))?;
        let instances: Vec<_> =
            postgres.instances.iter().map(|i| (i.name.clone(), i.address)).collect();
        let database = &self.subject.plan().deployment.name;
        Writers::start(postgres.service, &instances, database, &secrets).await.map(Some)
    }

    async fn round(
        &mut self,
        seed: u64,
        number: u64,
        writers: Option<&Writers>,
        logs: &mut Logs,
    ) -> Result<RoundReport> {
        let started_at = Timestamp::now();
        let say = self.progress;
        self.warm_up(started_at).await?;
        let planned = round(seed, self.arsenal());
        let mut striking = Striking::new(self.subject);
        let mut strikes = Vec::new();
        for strike in planned {
            tokio::time::sleep(strike.after).await;
            let what = striking.strike(&strike).await?;
            say(&format!("round {number} (seed {seed}): {what}"));
            strikes.push(what);
        }
        striking.over().await;
        say(&format!("round {number} (seed {seed}): waiting until everything is back"));
        let mut violations = Vec::new();
        let back = self.subject.ready_within(RECOVERY, CALM).await;
        let recovered_ms = back.as_ref().ok().map(|(_, after)| millis(*after));
        match back {
            Ok(_) => {
                say(&format!("round {number} (seed {seed}): balancing the books"));
                self.balance(started_at, &mut violations).await;
                if let Some(writers) = writers {
                    violations.extend(writers.violations().await?);
                }
            }
            Err(error) => {
                violations.push(format!("not everything came back within {RECOVERY:?}: {error}"));
            }
        }
        violations.extend(logs.panics());
        let until = Timestamp::now();
        let ledger = self.load.ledger();
        Ok(RoundReport {
            seed,
            started_at,
            strikes,
            incidents: self.incidents(started_at).await,
            recovered_ms,
            outage_ms: millis(ledger.longest_silence(started_at, until)),
            acknowledged: ledger.balance(started_at).acknowledged,
            violations,
        })
    }

    async fn warm_up(&self, from: Timestamp) -> Result<()> {
        let deadline = Instant::now() + LOAD_PATIENCE;
        while self.load.ledger().acknowledged_within(from, Timestamp::now()).len() < WARM_UP {
            if Instant::now() > deadline {
                return Err(Error::Timeout(
                    "the load is not acknowledged although everything is said to be up; see the logs of the api".to_owned(),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// All that was acknowledged in the round up to now must take effect once.
    async fn balance(&self, from: Timestamp, violations: &mut Vec<String>) {
        let ledger = self.load.ledger();
        let until = Timestamp::now();
        let deadline = Instant::now() + LOAD_PATIENCE;
        let open = || {
            let balance = ledger.balance(from);
            balance.open.into_iter().filter(|(_, at)| *at <= until).collect::<Vec<_>>()
        };
        let mut lost = open();
        while !lost.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
            lost = open();
        }
        if let Some((first, at)) = lost.first() {
            let count = lost.len();
            violations.push(format!(
                "{count} acknowledged tasks have not taken effect, as {first} of {at}"
            ));
        }
        let balance = ledger.balance(from);
        if balance.duplicated > 0 {
            violations.push(format!("{} tasks took effect more than once", balance.duplicated));
        }
        violations.extend(balance.wrong);
    }

    /// Those of the round, the oldest first.
    async fn incidents(&self, from: Timestamp) -> Vec<IncidentReport> {
        let all = self.subject.incidents().await.unwrap_or_default();
        let of_round = all.into_iter().filter(|incident| incident.opened_at >= from);
        of_round.map(IncidentReport::from).collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
