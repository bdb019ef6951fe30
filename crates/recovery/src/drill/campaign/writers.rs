//! Writers that knock at every instance of PostgreSQL, whoever is said to be the primary.
//!
//! What an instance has accepted from them must be in the database for ever: an instance that takes
//! a write when another reigns loses it when it is made a standby. And each promotion begins a new
//! timeline, so that once a write on a higher one was accepted, no write that begins later may be
//! accepted on a lower one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::Secrets;
use resurgam_model::ComponentName;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

use crate::{Error, Result};

/// The table of the writers, in a schema of their own.
const PREPARE: &str = "CREATE SCHEMA IF NOT EXISTS resurgam_drill; CREATE TABLE IF NOT EXISTS resurgam_drill.writes (token uuid PRIMARY KEY)";
const REMOVE: &str = "DROP SCHEMA IF EXISTS resurgam_drill CASCADE";
/// Says on which timeline it was.
const WRITE: &str = "INSERT INTO resurgam_drill.writes VALUES ($1) RETURNING substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
const READ: &str = "SELECT token FROM resurgam_drill.writes";
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// How long those wait who connect anew each time. One that is given up may hold its place in the
/// server until its commit is confirmed, so there must not be many.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How long the database may take to answer once everything is said to be well.
const PATIENCE: Duration = Duration::from_secs(30);

/// A write that was accepted.
#[derive(Clone, Debug)]
struct Accepted {
    token: Uuid,
    instance: ComponentName,
    timeline: u32,
    sent: Instant,
    answered: Instant,
}

/// Where an instance is, and who knocks there.
#[derive(Clone, Debug)]
struct Door {
    instance: ComponentName,
    address: SocketAddr,
    database: String,
    password: String,
}

/// Writers at every instance. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Writers {
    service: Door,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Makes their table, and lets them begin.
    pub(super) async fn start(
        service: SocketAddr,
        instances: &[(ComponentName, SocketAddr)],
        database: &str,
        secrets: &Secrets,
    ) -> Result<Self> {
        let door = |instance: &ComponentName, address: SocketAddr| Door {
            instance: instance.clone(),
            address,
            database: database.to_owned(),
            password: secrets.platform.clone(),
        };
        let Some((first, _)) = instances.first() else {
            return Err(Error::Drill("this deployment has no instance of PostgreSQL".to_owned()));
        };
        let service = door(first, service);
        service.insist(async |client| client.batch_execute(PREPARE).await).await?;
        let mut writers = Self { service, accepted: Arc::default(), tasks: JoinSet::new() };
        for (name, address) in instances {
            let door = door(name, *address);
            writers.tasks.spawn(door.clone().keep_writing(Arc::clone(&writers.accepted)));
            writers.tasks.spawn(door.keep_connecting(Arc::clone(&writers.accepted)));
        }
        Ok(writers)
    }

    /// How many writes were accepted so far.
    pub(super) fn count(&self) -> usize {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What must not be, for people; nothing when all is well.
    pub(super) async fn violations(&self) -> Result<Vec<String>> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // After the list was taken: what comes in meanwhile may be there as well.
        let there = self.service.insist(async |client| client.query(READ, &[]).await).await?;
        let there: BTreeSet<Uuid> = there.iter().filter_map(|row| row.try_get(0).ok()).collect();
        let mut found = two_primaries(&accepted);
        let mut lost: BTreeMap<(&str, u32), usize> = BTreeMap::new();
        for write in accepted.iter().filter(|write| !there.contains(&write.token)) {
            *lost.entry((write.instance.as_str(), write.timeline)).or_default() += 1;
        }
        found.extend(lost.into_iter().map(|((instance, timeline), count)| {
            format!("{count} writes that {instance} accepted on timeline {timeline} are gone")
        }));
        Ok(found)
    }

    /// Ends them, and removes their table.
    pub(super) async fn end(mut self) -> Result<()> {
        self.tasks.shutdown().await;
        self.service.insist(async |client| client.batch_execute(REMOVE).await).await
    }
}

/// Whether two instances took writes at once.
fn two_primaries(accepted: &[Accepted]) -> Vec<String> {
    // When a write was first known to be accepted on each timeline, and by whom.
    let mut reigns: BTreeMap<u32, (Instant, BTreeSet<&str>)> = BTreeMap::new();
    for write in accepted {
        let (first, who) =
            reigns.entry(write.timeline).or_insert((write.answered, BTreeSet::new()));
        *first = (*first).min(write.answered);
        who.insert(write.instance.as_str());
    }
    let mut found = Vec::new();
    for (timeline, (_, who)) in reigns.iter().filter(|(_, (_, who))| who.len() > 1) {
        let who = who.iter().copied().collect::<Vec<_>>().join(" and ");
        found.push(format!("{who} both accepted writes on timeline {timeline}"));
    }
    let late = accepted.iter().find_map(|write| {
        let later = reigns.range(write.timeline.saturating_add(1)..);
        let reign = later.into_iter().find(|(_, (first, _))| *first < write.sent)?;
        Some((write, *reign.0))
    });
    if let Some((write, reign)) = late {
        found.push(format!(
            "{} accepted a write on timeline {} after one was accepted on timeline {reign}",
            write.instance, write.timeline
        ));
    }
    found
}

impl Door {
    async fn connect(&self) -> std::result::Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user(&self.database)
            .password(&self.password)
            .dbname(&self.database)
            .connect_timeout(ATTEMPT)
            .application_name("resurgam drill");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Asks until it is answered.
    async fn insist<T>(
        &self,
        ask: impl AsyncFn(&Client) -> std::result::Result<T, tokio_postgres::Error>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = tokio::time::timeout(PATIENCE, async {
                let client = self.connect().await?;
                ask(&client).await
            });
            let why = match answer.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => crate::postgres::probe::describe(&error),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() > deadline {
                return Err(Error::Drill(format!("the database of the drill's writers: {why}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write(&self, client: &Client) -> std::result::Result<Accepted, ()> {
        let (token, sent) = (Uuid::new_v4(), Instant::now());
        let row = client.query_one(WRITE, &[&token]).await.map_err(drop)?;
        let timeline: String = row.try_get(0).map_err(drop)?;
        let timeline = u32::from_str_radix(&timeline, 16).map_err(drop)?;
        let instance = self.instance.clone();
        Ok(Accepted { token, instance, timeline, sent, answered: Instant::now() })
    }

    /// Writes over one connection as long as it lasts, and waits for each answer without a limit:
    /// a frozen server may give it when it wakes.
    async fn keep_writing(self, accepted: Arc<Mutex<Vec<Accepted>>>) {
        loop {
            if let Ok(client) = self.connect().await {
                while !client.is_closed() {
                    // Those of a standby are refused.
                    if let Ok(write) = self.write(&client).await {
                        accepted.lock().unwrap_or_else(PoisonError::into_inner).push(write);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes over a new connection each time.
    async fn keep_connecting(self, accepted: Arc<Mutex<Vec<Accepted>>>) {
        loop {
            let attempt = async {
                let client = self.connect().await.map_err(drop)?;
                self.write(&client).await
            };
            if let Ok(Ok(write)) = tokio::time::timeout(ATTEMPT, attempt).await {
                accepted.lock().unwrap_or_else(PoisonError::into_inner).push(write);
            }
            tokio::time::sleep(PAUSE * 4).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(instance: &str, timeline: u32, sent: u64, answered: u64, start: Instant) -> Accepted {
        Accepted {
            token: Uuid::new_v4(),
            instance: ComponentName::new(instance).unwrap(),
            timeline,
            sent: start + Duration::from_millis(sent),
            answered: start + Duration::from_millis(answered),
        }
    }

    #[test]
    fn who_reigns_may_change_but_not_go_back() {
        let start = Instant::now();
        // The answer may come late: it may have been on its way.
        let sound = [
            write("a", 1, 0, 10, start),
            write("a", 1, 5, 50, start),
            write("b", 2, 20, 30, start),
            write("a", 3, 40, 60, start),
        ];
        assert_eq!(two_primaries(&sound), Vec::<String>::new());
        let back = [write("b", 2, 20, 30, start), write("a", 1, 31, 40, start)];
        assert!(two_primaries(&back).concat().contains("after one was accepted on timeline 2"));
        let both = [write("a", 1, 0, 1, start), write("b", 1, 2, 3, start)];
        assert!(two_primaries(&both).concat().contains("a and b both"));
    }
}
