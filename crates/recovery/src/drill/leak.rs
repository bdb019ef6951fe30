//! A client that leaks connections: it opens one after the other, begins a transaction in each, and
//! forgets them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use resurgam_deployment::postgres::Secrets;
use resurgam_model::{Scenario, Timestamp};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::run::{Drill, Struck};
use crate::status::Status;
use crate::{Error, Result};

/// What the client calls itself.
pub const LEAKER: &str = "leaking-client";
/// More connections than this nobody is expected to allow.
const MOST: usize = 5000;
/// How often somebody who is refused tries again.
const KNOCK: Duration = Duration::from_millis(20);
/// How long one try to connect may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long until somebody must be let in again.
const PATIENCE: Duration = Duration::from_secs(600);

impl Drill<'_> {
    /// Takes all connections that there are, and forgets them.
    pub(super) async fn pool_exhaustion(&mut self, status: &Status) -> Result<Struck> {
        let postgres = status.postgres.as_ref().ok_or_else(|| {
            Error::Drill("this deployment runs no PostgreSQL of its own".to_owned())
        })?;
        let file = self.subject.state_dir().join("secrets/postgres.json");
        let user = User {
            address: postgres.service,
            name: self.subject.plan().deployment.name.clone(),
            password: Secrets::load(&file)?.platform,
        };
        self.say("opening connections until there are none left");
        let since = Timestamp::now();
        let leaked = user.leak().await?;
        let at = Timestamp::now();
        self.say(&format!("{} connections are forgotten", leaked.len()));
        // A client as others are: refused until there is room again.
        let knocking = tokio::spawn(async move { user.knock().await });
        let incident = self.recovery(Scenario::PoolExhaustion, since).await?;
        let back = match incident.is_some() {
            true => knocking.await.unwrap_or_default(),
            false => {
                knocking.abort();
                None
            }
        };
        drop(leaked);
        Ok(Struck { at, back, incident, ..Struck::default() })
    }
}

/// An ordinary user of the database.
struct User {
    address: SocketAddr,
    name: String,
    password: String,
}

impl User {
    async fn connect(&self, application: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user(&self.name)
            .password(&self.password)
            .dbname(&self.name)
            .connect_timeout(ATTEMPT)
            .application_name(application);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn leak(&self) -> Result<Vec<Client>> {
        let broken =
            |error: tokio_postgres::Error| Error::Drill(format!("the leak broke: {error}"));
        let mut leaked = Vec::new();
        while leaked.len() < MOST {
            match self.connect(LEAKER).await {
                Ok(client) => {
                    client.batch_execute("BEGIN; SELECT 1").await.map_err(broken)?;
                    leaked.push(client);
                }
                Err(error) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                    return Ok(leaked);
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Err(Error::Drill(format!("{MOST} connections were not enough to take all")))
    }

    /// Tries until it is let in and can work, and says when that was.
    async fn knock(&self) -> Option<Timestamp> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let attempt =
                async { self.connect("resurgam drill").await?.simple_query("SELECT 1").await };
            if attempt.await.is_ok() {
                return Some(Timestamp::now());
            }
            tokio::time::sleep(KNOCK).await;
        }
        None
    }
}
