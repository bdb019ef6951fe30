//! The line to the primary that is kept open for when nobody else gets one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use resurgam_deployment::postgres::Secrets;
use resurgam_deployment::postgres::secrets::{PROBER, SUPERUSER};
use resurgam_model::ComponentName;
use tokio::sync::Mutex;
use tokio_postgres::{Client, Config, NoTls, Row};

use super::census::{Census, Seats, Session, State};
use crate::postgres::Authority;
use crate::postgres::probe::describe;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is there for ordinary users. `reserved_connections` came with PostgreSQL 16.
const SEATS: &str = "SELECT
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS taken,
        current_setting('max_connections')::bigint
            - current_setting('superuser_reserved_connections')::bigint
            - coalesce(current_setting('reserved_connections', true), '0')::bigint AS \"limit\"";

/// Times as numbers: they are compared again when a connection is ended.
const SESSIONS: &str = "SELECT activity.pid,
        (extract(epoch FROM activity.backend_start) * 1000000)::bigint AS began_us,
        (extract(epoch FROM activity.state_change) * 1000000)::bigint AS since_us,
        coalesce(activity.usename, '') AS \"user\",
        coalesce(roles.rolsuper, true) AS superuser,
        coalesce(activity.application_name, '') AS application,
        coalesce(host(activity.client_addr) || ':' || activity.client_port, 'local') AS address,
        activity.state,
        greatest(0, extract(epoch FROM clock_timestamp()
            - coalesce(activity.state_change, activity.backend_start)) * 1000)::bigint AS state_ms,
        coalesce(activity.query, '') AS statement
    FROM pg_stat_activity AS activity LEFT JOIN pg_roles AS roles ON roles.oid = activity.usesysid
    WHERE activity.backend_type = 'client backend' AND activity.pid <> pg_backend_pid()";

/// Only the connection that was meant, and only if it has done nothing since.
const END: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2
      AND (extract(epoch FROM state_change) * 1000000)::bigint IS NOT DISTINCT FROM $3";

/// A superuser's connection to whoever reigns. It is made while there is room, and kept; if it has to
/// be made anew, it takes one of those that are reserved.
pub struct Line {
    authority: Arc<Authority>,
    secrets: Secrets,
    open: Mutex<Option<(ComponentName, Arc<Client>)>>,
}

type Result<T, E = String> = std::result::Result<T, E>;

impl Line {
    /// Connects when it is used.
    #[must_use]
    pub fn new(authority: Arc<Authority>, secrets: Secrets) -> Self {
        Self { authority, secrets, open: Mutex::default() }
    }

    async fn client(&self) -> Result<Arc<Client>> {
        let view = self.authority.view();
        let name = view.reigning().ok_or("nobody reigns")?;
        let mut open = self.open.lock().await;
        if let Some((of, client)) = &*open
            && of == name
            && !client.is_closed()
        {
            return Ok(Arc::clone(client));
        }
        let address = self.authority.members().get(name).ok_or("the primary has no address")?;
        let user = (SUPERUSER, self.secrets.superuser.as_str());
        let client = Arc::new(connect(*address, user, "resurgam connections").await?);
        *open = Some((name.clone(), Arc::clone(&client)));
        Ok(client)
    }

    async fn rows(&self, sql: &str) -> Result<Vec<Row>> {
        let client = self.client().await?;
        bounded(client.query(sql, &[])).await
    }

    /// How many connections there are and can be.
    ///
    /// # Errors
    /// Why that is not known.
    pub async fn seats(&self) -> Result<Seats> {
        let rows = self.rows(SEATS).await?;
        let row = rows.first().ok_or("no answer")?;
        let number = |column| -> Result<u32> {
            let number: i64 = row.try_get(column).map_err(|error| describe(&error))?;
            Ok(u32::try_from(number.max(0)).unwrap_or(u32::MAX))
        };
        Ok(Seats { taken: number("taken")?, limit: number("limit")? })
    }

    /// Who has them.
    ///
    /// # Errors
    /// Why that is not known.
    pub async fn census(&self) -> Result<Census> {
        let seats = self.seats().await?;
        let rows = self.rows(SESSIONS).await?;
        let sessions = rows.iter().map(session).collect::<Result<_, _>>();
        Ok(Census { seats, sessions: sessions.map_err(|error| describe(&error))? })
    }

    /// Ends a connection, if it is the one that was meant, still in the state it was in. Answers
    /// whether it was.
    ///
    /// # Errors
    /// Why it is not known to be ended.
    pub async fn end(&self, session: &Session) -> Result<bool> {
        let client = self.client().await?;
        let about: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&session.pid, &session.began_us, &session.since_us];
        Ok(!bounded(client.query(END, &about)).await?.is_empty())
    }

    /// Connects anew as an ordinary user, writes, and reads back.
    ///
    /// # Errors
    /// Why that did not work.
    pub async fn try_as_others(&self) -> Result<()> {
        let view = self.authority.view();
        let name = view.reigning().ok_or("nobody reigns")?;
        let address = self.authority.members().get(name).ok_or("the primary has no address")?;
        let user = (PROBER, self.secrets.prober.as_str());
        let client = connect(*address, user, "resurgam probe").await?;
        let sql = "UPDATE resurgam_probe.beat SET value = value + 1, at = now() WHERE id = 1
            RETURNING value";
        let written: i64 = one(&bounded(client.query(sql, &[])).await?)?;
        let sql = "SELECT value FROM resurgam_probe.beat WHERE id = 1";
        let read: i64 = one(&bounded(client.query(sql, &[])).await?)?;
        if read < written {
            return Err("what was written cannot be read back".to_owned());
        }
        Ok(())
    }
}

fn one(rows: &[Row]) -> Result<i64> {
    let row = rows.first().ok_or("the row of the probe is gone")?;
    row.try_get(0).map_err(|error| describe(&error))
}

fn session(row: &Row) -> Result<Session, tokio_postgres::Error> {
    let state_ms: i64 = row.try_get("state_ms")?;
    let session = Session {
        pid: row.try_get("pid")?,
        began_us: row.try_get("began_us")?,
        since_us: row.try_get("since_us")?,
        user: row.try_get("user")?,
        superuser: row.try_get("superuser")?,
        application: row.try_get("application")?,
        address: row.try_get("address")?,
        state: State::new(row.try_get("state")?),
        state_ms: u64::try_from(state_ms).unwrap_or(0),
        statement: String::new(),
    };
    Ok(session.with_statement(row.try_get("statement")?))
}

/// A connection whose other half ends with it.
async fn connect(
    address: SocketAddr,
    (user, password): (&str, &str),
    application: &str,
) -> Result<Client> {
    let mut config = Config::new();
    config
        .host(address.ip().to_string())
        .port(address.port())
        .user(user)
        .password(password)
        .dbname("postgres")
        .application_name(application);
    let (client, connection) = bounded(config.connect(NoTls)).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn bounded<T>(
    call: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(result) => result.map_err(|error| describe(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
