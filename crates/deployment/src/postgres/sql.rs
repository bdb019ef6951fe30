//! The keeper's words to servers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls, Row};

use super::secrets::SUPERUSER;
use crate::{Error, Result};

/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection as superuser.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
}

/// What became of an attempt to connect.
#[derive(Debug)]
pub(super) enum Attempt {
    Connected(Session),
    /// The server is there and does not take connections yet.
    StartingUp,
    /// Nobody listens.
    NobodyThere,
    /// Somebody listens and does not answer.
    NoAnswer,
    Refused(Error),
}

impl Session {
    pub(super) async fn connect(address: SocketAddr, password: &str) -> Attempt {
        let mut config = Config::new();
        config
            .host(address.ip().to_string())
            .port(address.port())
            .user(SUPERUSER)
            .password(password)
            .dbname("postgres")
            .application_name("resurgam keeper")
            // What the keeper makes it makes again where it is lost; it must not wait for a
            // standby, lest it could not be told that nobody is to be waited for.
            .options("-c synchronous_commit=local");
        let error = match tokio::time::timeout(PATIENCE, config.connect(NoTls)).await {
            Ok(Ok((client, connection))) => {
                tokio::spawn(connection);
                return Attempt::Connected(Self { client });
            }
            Ok(Err(error)) => error,
            Err(_) => return Attempt::NoAnswer,
        };
        let code = error.code().map(|code| code.code().to_owned());
        match code.as_deref() {
            // cannot_connect_now: it starts, or stops.
            Some("57P03") => Attempt::StartingUp,
            Some(_) => {
                Attempt::Refused(Error::Postgres { action: "let the keeper in", source: error })
            }
            None => Attempt::NobodyThere,
        }
    }

    /// One row, or nothing.
    pub(super) async fn row(&self, action: &'static str, sql: &str) -> Result<Option<Row>> {
        bounded(action, self.client.query_opt(sql, &[])).await
    }

    /// Rows.
    pub(super) async fn rows(&self, action: &'static str, sql: &str) -> Result<Vec<Row>> {
        bounded(action, self.client.query(sql, &[])).await
    }

    /// Statements without an answer.
    pub(super) async fn run(&self, action: &'static str, sql: &str) -> Result<()> {
        bounded(action, self.client.batch_execute(sql)).await
    }

    /// A statement that may take long.
    pub(super) async fn run_long(&self, action: &'static str, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(|source| Error::Postgres { action, source })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

async fn bounded<T>(
    action: &'static str,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(result) => result.map_err(|source| Error::Postgres { action, source }),
        Err(_) => Err(Error::Timeout(format!("PostgreSQL took too long to {action}"))),
    }
}

/// A literal in SQL.
pub(super) fn literal(text: &str) -> String {
    let escaped = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", escaped.replace('\\', "\\\\"))
    } else {
        format!("'{escaped}'")
    }
}

/// A name in SQL.
pub(super) fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
