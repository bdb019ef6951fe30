//! Finds, among the servers named in the URL, the one that accepts writes.
//!
//! All are asked at once, each within a time limit that covers everything up to its answer: a
//! server that was stopped with a signal still accepts connections and then never says a word.

use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::Connect;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_postgres::config::{Host as Address, SslMode};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Notification, SimpleQueryMessage};

use super::Settings;
use crate::{Error, Result};

/// While some host has not answered, those that refused are asked again so often: the one that
/// is silent may be dead, and one of the others is about to be promoted.
const AGAIN: Duration = Duration::from_millis(100);

/// Why the last attempt found no server; empty when it found one.
pub(super) type Refusals = Arc<Mutex<String>>;

/// One server.
pub(super) struct Host {
    name: String,
    config: Config,
}

/// The names of the servers, for people.
pub(super) fn names(hosts: &[Host]) -> String {
    hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Reads the URL. Errors never repeat any of it: whatever part is wrong may be the password.
pub(super) fn hosts(settings: &Settings) -> Result<Vec<Host>> {
    let unreadable = || {
        Error::Settings(
            "the database URL cannot be read; write \
             postgresql://user:password@host1:5432,host2:5432/name, with special characters in \
             the password as %40 and the like"
                .to_owned(),
        )
    };
    let all: Config = settings.url.parse().map_err(|_| unreadable())?;
    let is_url = ["postgresql://", "postgres://"].iter().any(|s| settings.url.starts_with(s));
    if !is_url || all.get_hosts().is_empty() {
        return Err(unreadable());
    }
    if all.get_ssl_mode() == SslMode::Require {
        return Err(Error::Settings(
            "the database URL asks for TLS (sslmode=require), which is not supported".to_owned(),
        ));
    }
    let ports = all.get_ports();
    if ports.len() > 1 && ports.len() != all.get_hosts().len() {
        return Err(unreadable());
    }
    let host = |(index, address): (usize, &Address)| {
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        let mut config = common(&all, settings);
        config.port(port);
        let name = match address {
            Address::Tcp(host) => {
                config.host(host);
                format!("{host}:{port}")
            }
            Address::Unix(folder) => {
                config.host_path(folder);
                format!("{}:{port}", folder.display())
            }
        };
        if let Some(address) = all.get_hostaddrs().get(index) {
            config.hostaddr(*address);
        }
        Host { name, config }
    };
    Ok(all.get_hosts().iter().enumerate().map(host).collect())
}

/// What holds for every host.
fn common(all: &Config, settings: &Settings) -> Config {
    let mut config = Config::new();
    if let Some(user) = all.get_user() {
        config.user(user);
    }
    if let Some(password) = all.get_password() {
        config.password(password);
    }
    if let Some(name) = all.get_dbname() {
        config.dbname(name);
    }
    let timeout = settings.timeout;
    // What we no longer wait for must end by itself, or its locks would outlive our interest.
    // Not by statement_timeout: that also ends the wait of a commit for its synchronous standby,
    // after which the commit counts as done and is seen by others although no standby has it. A
    // repeated submit would then find its key and be acknowledged, and the next failover would
    // lose what was acknowledged.
    let end = timeout.saturating_add(Duration::from_secs(1)).as_millis().min(86_400_000);
    let options = format!(
        "{} -c lock_timeout={end} -c idle_in_transaction_session_timeout={end} \
         -c client_connection_check_interval=1000 -c default_transaction_isolation=read\\ committed \
         {PLANS}",
        all.get_options().unwrap_or_default()
    );
    config
        .options(options.trim_start())
        .application_name(&settings.application_name)
        .ssl_mode(SslMode::Disable)
        .channel_binding(all.get_channel_binding())
        .tcp_user_timeout(timeout.max(Duration::from_secs(1)))
        // The kernel counts in whole seconds and refuses none.
        .keepalives_idle(timeout.max(Duration::from_secs(1)))
        .keepalives_interval(Duration::from_secs(1))
        .keepalives_retries(3);
    config
}

/// How statements are planned. The tables of a queue are now empty and now full, and statistics
/// follow late: plans made for the one must do for the other. Each statement here has an index
/// made for it, and is to be planned once and not at each use.
pub(super) const PLANS: &str = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off \
     -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off";

/// Connects for the pool.
pub(super) struct Race {
    pub(super) hosts: Arc<[Host]>,
    pub(super) timeout: Duration,
    pub(super) refusals: Refusals,
}

type Connecting<'a> = Pin<
    Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>,
>;

impl Connect for Race {
    fn connect(&self, _: &Config) -> Connecting<'_> {
        Box::pin(async move {
            let outcome = race(&self.hosts, self.timeout, None).await;
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(connected) => {
                    refusals.clear();
                    connected.into_parts().ok_or_else(nobody)
                }
                Err(reasons) => {
                    *refusals = reasons;
                    Err(nobody())
                }
            }
        })
    }
}

/// The pool's interface wants an error of the driver. Nobody sees this one: the store tells the
/// reasons instead.
fn nobody() -> tokio_postgres::Error {
    tokio_postgres::Error::__private_api_timeout()
}

/// Where the notifications of a connection go.
pub(super) type Tell = mpsc::UnboundedSender<Notification>;

/// A connection whose task ends with it.
pub(super) struct Connected {
    parts: Option<(Client, JoinHandle<()>)>,
    // Kept beside the parts so that dropping need not take them apart.
    abort: tokio::task::AbortHandle,
}

impl Connected {
    /// The connection, if it was not taken apart.
    pub(super) fn client(&self) -> Option<&Client> {
        self.parts.as_ref().map(|(client, _)| client)
    }

    fn into_parts(mut self) -> Option<(Client, JoinHandle<()>)> {
        self.parts.take()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if self.parts.is_some() {
            self.abort.abort();
        }
    }
}

/// Connects to the server that accepts writes, or tells what each of them said.
pub(super) async fn race(
    hosts: &Arc<[Host]>,
    timeout: Duration,
    tell: Option<Tell>,
) -> Result<Connected, String> {
    let deadline = Instant::now() + timeout;
    let mut reasons: Vec<Option<String>> = hosts.iter().map(|_| None).collect();
    let mut attempts = JoinSet::new();
    let ask = |attempts: &mut JoinSet<_>, index: usize, wait: Duration| {
        let (hosts, tell) = (Arc::clone(hosts), tell.clone());
        attempts.spawn(async move {
            let attempt = async {
                tokio::time::sleep(wait).await;
                match hosts.get(index) {
                    Some(host) => attempt(&host.config, tell).await,
                    None => Err("is not in the list".to_owned()),
                }
            };
            let answer = tokio::time::timeout_at(deadline, attempt).await;
            (index, answer.unwrap_or_else(|_| Err("did not answer in time".to_owned())))
        });
    };
    for index in 0..hosts.len() {
        ask(&mut attempts, index, Duration::ZERO);
    }
    while let Some(answer) = attempts.join_next().await {
        let Ok((index, answer)) = answer else { continue };
        match answer {
            Ok(connected) => return Ok(connected),
            Err(reason) => {
                let Some(slot) = reasons.get_mut(index) else { continue };
                // Keep what the host said rather than that its second asking ran out of time.
                if slot.is_none() || Instant::now() < deadline {
                    *slot = Some(reason);
                }
                if reasons.iter().all(Option::is_some) {
                    break;
                }
                ask(&mut attempts, index, AGAIN);
            }
        }
    }
    let mut told = String::new();
    for (host, reason) in hosts.iter().zip(&reasons) {
        let separator = if told.is_empty() { "" } else { "; " };
        let reason = reason.as_deref().unwrap_or("did not answer");
        let _ = write!(told, "{separator}{} {reason}", host.name);
    }
    Err(told)
}

async fn attempt(config: &Config, tell: Option<Tell>) -> Result<Connected, String> {
    let (client, mut connection) = config.connect(NoTls).await.map_err(|error| describe(&error))?;
    let task = tokio::spawn(async move {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match (message, &tell) {
                (Ok(AsyncMessage::Notification(word)), Some(tell)) => {
                    // An error says that nobody listens any more.
                    let _ = tell.send(word);
                }
                (Ok(AsyncMessage::Notice(notice)), _) => {
                    tracing::debug!(notice = notice.message(), "PostgreSQL says");
                }
                (Ok(_), _) => {}
                (Err(error), _) => {
                    tracing::debug!(error = describe(&error), "a connection to PostgreSQL ended");
                    break;
                }
            }
        }
    });
    let abort = task.abort_handle();
    let connected = Connected { parts: Some((client, task)), abort };
    let Some((client, _)) = &connected.parts else { return Err("is gone".to_owned()) };
    let answer = client
        .simple_query("SHOW transaction_read_only")
        .await
        .map_err(|error| describe(&error))?;
    let writable = answer.iter().any(
        |message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("off")),
    );
    if writable { Ok(connected) } else { Err("accepts only reads".to_owned()) }
}

/// The error with its causes, which the driver does not tell by itself. None of them holds the
/// password.
fn describe(error: &tokio_postgres::Error) -> String {
    let mut text = format!("refused: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.to_owned(),
            max_pool_size: 1,
            application_name: "test".to_owned(),
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn every_host_gets_its_own_port() {
        let names_of = |url: &str| names(&hosts(&settings(url)).unwrap());
        assert_eq!(names_of("postgresql://u:p@a:1,b:2/db"), "a:1, b:2");
        assert_eq!(names_of("postgres://u@a,b/db"), "a:5432, b:5432");
        assert_eq!(names_of("postgresql:///db?host=/run/pg&port=7"), "/run/pg:7");
    }

    #[test]
    fn no_message_repeats_the_password() {
        for url in [
            "postgresql://u:s3cret@a:port/db",
            "postgresql://u:s3cret@a/db?s3cret=s3cret",
            "postgresql://u:s3cret@a/db?sslmode=require",
            "mysql://u:s3cret@a/db",
            "u:s3cret@a",
            "",
        ] {
            let settings = settings(url);
            let error = hosts(&settings).err().unwrap();
            let text = format!("{error} {error:?} {settings:?}");
            assert!(!text.contains("s3cret"), "{url}: {text}");
        }
        let good = settings("postgresql://u:s3cret@a:1/db");
        let store = super::super::PostgresStore::connect(&good);
        let text = format!("{good:?} {store:?} {:?}", crate::Settings::Postgres(good.clone()));
        assert!(text.contains("a:1") && !text.contains("s3cret"), "{text}");
    }
}
