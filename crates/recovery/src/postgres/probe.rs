//! The probe: writes to the primary and reads back, as a client would, straight to its address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use resurgam_deployment::postgres::Secrets;
use resurgam_deployment::postgres::secrets::PROBER;
use resurgam_model::plan::Detection;
use resurgam_model::{ComponentName, Timestamp};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::authority::Authority;
use super::diagnosis::SqlSign;

/// What the probe found last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whom it asked.
    pub target: Option<ComponentName>,
    /// What it found.
    pub sign: SqlSign,
    /// When the first of the failures in a row was.
    pub failing_since: Option<Timestamp>,
    /// So many pages on its disk have failed their checksums, as it said last.
    pub damaged: u64,
}

impl Default for Beat {
    fn default() -> Self {
        Self { target: None, sign: SqlSign::NotTried, failing_since: None, damaged: 0 }
    }
}

/// Probes whoever reigns until it is dropped.
pub async fn probe(
    authority: Arc<Authority>,
    secrets: Secrets,
    detection: Detection,
    beat: watch::Sender<Beat>,
) {
    let mut news = authority.news();
    loop {
        let target = authority.view().state.primary.and_then(|name| {
            let address = *authority.members().get(&name)?;
            Some((name, address))
        });
        let Some((name, address)) = target else {
            beat.send_if_modified(|beat| {
                let changed = *beat != Beat::default();
                *beat = Beat::default();
                changed
            });
            if news.changed().await.is_err() {
                return;
            }
            continue;
        };
        if beat.borrow().target.as_ref() != Some(&name) {
            beat.send_replace(Beat { target: Some(name.clone()), ..Beat::default() });
        }
        let still = |authority: &Authority| authority.view().state.primary.as_ref() == Some(&name);
        let session = async {
            let mut connected = connect(address, &secrets, detection.timeout.0).await?;
            let other = Failure::Other;
            loop {
                let write = tokio::time::timeout(detection.timeout.0, write(&connected.client));
                match write.await {
                    Ok(Ok(damaged)) => worked(&beat, &name, damaged),
                    Ok(Err(error)) => return Err(other(describe(&error))),
                    Err(_) => return Err(other(format!("no answer within {}", detection.timeout))),
                }
                tokio::select! {
                    () = tokio::time::sleep(detection.interval.0) => {}
                    // A broken connection is noticed at once, not at the next beat.
                    end = &mut connected.end => return Err(other(end.unwrap_or_else(|_| "closed".to_owned()))),
                }
                if !still(&authority) {
                    return Ok(());
                }
            }
        };
        if let Err(why) = session.await
            && still(&authority)
        {
            failed(&beat, &name, why);
            tokio::time::sleep(detection.interval.0.min(Duration::from_millis(100))).await;
        }
    }
}

fn worked(beat: &watch::Sender<Beat>, target: &ComponentName, damaged: u64) {
    beat.send_if_modified(|beat| {
        let (target, sign) = (Some(target.clone()), SqlSign::Works);
        let new = Beat { target, sign, failing_since: None, damaged };
        let changed = *beat != new;
        *beat = new;
        changed
    });
}

/// Why the probe did not get through.
enum Failure {
    /// All connections are taken.
    NoRoom,
    Other(String),
}

fn failed(beat: &watch::Sender<Beat>, target: &ComponentName, why: Failure) {
    beat.send_modify(|beat| {
        let times = match &beat.sign {
            SqlSign::Fails { times, .. } => times.saturating_add(1),
            SqlSign::NotTried | SqlSign::Works | SqlSign::NoRoom => 1,
        };
        *beat = Beat {
            target: Some(target.clone()),
            sign: match why {
                Failure::NoRoom => SqlSign::NoRoom,
                Failure::Other(why) => SqlSign::Fails { times, why },
            },
            failing_since: beat.failing_since.or_else(|| Some(Timestamp::now())),
            damaged: beat.damaged,
        };
    });
}

struct Connected {
    client: Client,
    /// Says why the connection ended.
    end: tokio::sync::oneshot::Receiver<String>,
}

async fn connect(
    address: SocketAddr,
    secrets: &Secrets,
    timeout: Duration,
) -> Result<Connected, Failure> {
    let mut config = Config::new();
    config
        .host(address.ip().to_string())
        .port(address.port())
        .user(PROBER)
        .password(&secrets.prober)
        .dbname("postgres")
        .application_name("resurgam probe");
    let connecting = tokio::time::timeout(timeout, config.connect(NoTls)).await;
    let (client, connection) = match connecting {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
            return Err(Failure::NoRoom);
        }
        Ok(Err(error)) => return Err(Failure::Other(describe(&error))),
        Err(_) => return Err(Failure::Other("connects, but gets no answer".to_owned())),
    };
    let (say, end) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let why = match connection.await {
            Ok(()) => "the server closed the connection".to_owned(),
            Err(error) => describe(&error),
        };
        // Nobody listens any more: the probe has moved on.
        let _ = say.send(why);
    });
    Ok(Connected { client, end })
}

/// So many pages have failed their checksums, which the server counts.
async fn write(client: &Client) -> Result<u64, tokio_postgres::Error> {
    let sql =
        "UPDATE resurgam_probe.beat SET value = value + 1, at = now() WHERE id = 1 RETURNING value";
    let written: i64 = client.query_one(sql, &[]).await?.get(0);
    // In a transaction of its own: what was committed must be there.
    let sql = "SELECT value,
            (SELECT coalesce(sum(checksum_failures), 0)::bigint FROM pg_stat_database)
        FROM resurgam_probe.beat WHERE id = 1";
    let row = client.query_one(sql, &[]).await?;
    let (read, damaged): (i64, i64) = (row.get(0), row.get(1));
    if read < written {
        tracing::error!(written, read, "the probe read back less than it wrote");
    }
    Ok(damaged.unsigned_abs())
}

/// What went wrong, in the server's words where it had any.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(refusal), _) => refusal.message().to_owned(),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => error.to_string(),
    }
}
