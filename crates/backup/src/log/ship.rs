//! Receives the log of a database as it is written, and stores it in the vaults.
//!
//! ```text
//! primary ──stream──▶ feed (memory, spool) ──┬─▶ vault: a piece every few seconds, whole segments
//!                                            └─▶ vault, at its own pace
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::caught_up::CaughtUp;
use super::contents::Has;
use super::feed::{Feed, Job, MOST};
use super::replication::{Event, Replication, StreamError};
use super::segment::{Lineage, Size};
use super::store::{AsOf, LogStore};
use crate::vault::Vault;
use crate::{Error, Result};

/// So soon it is tried again after a failure, and so late at the most.
const SOON: Duration = Duration::from_millis(200);
const LATE: Duration = Duration::from_secs(2);
/// So often the server is asked for a word. A silence of [`SILENCE`] ends the connection.
const ASK: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(10);
/// So often it is written down that all is well while nothing is written.
const IDLE: Duration = Duration::from_secs(30);
/// So long the log waits for the vaults to say what they have, before it begins to come.
const VAULTS: Duration = Duration::from_secs(5);

/// Opens a vault; it may be away.
pub type Open = Arc<dyn Fn() -> Result<Arc<Vault>> + Send + Sync>;

/// Whose log it is.
pub struct Source {
    /// Where the primary can be reached.
    pub address: SocketAddr,
    /// Who may replicate.
    pub user: String,
    /// The password.
    pub password: String,
    /// The folder for what waits.
    pub spool: PathBuf,
    /// The folder in which backups are made here: it changes when one is.
    pub backups: PathBuf,
    /// Where it goes: the vaults' names, and how they are opened.
    pub vaults: BTreeMap<String, Open>,
    /// At most so long after it was written a piece goes to a vault.
    pub every: Duration,
}

/// How the log of one vault stands.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Up to when it is whole there; none while that is not known.
    pub as_of: Option<AsOf>,
    /// Something was received that is not there yet.
    pub waiting: bool,
    /// Why it does not go on.
    pub error: Option<String>,
}

/// How shipping stands. Shared between who ships and who asks.
#[derive(Debug, Default)]
pub struct Standings {
    each: Mutex<BTreeMap<String, Standing>>,
    /// Rung when a vault's log has a gap, so that it needs another base backup.
    pub gap: Notify,
    hurry: Notify,
}

impl Standings {
    /// Of each vault.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Standing> {
        self.each.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// What was received is wanted in the vaults now, and not only when its time has come.
    pub fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    fn with(&self, vault: &str, change: impl FnOnce(&mut Standing)) {
        let mut each = self.each.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(each.entry(vault.to_owned()).or_default());
    }

    /// Says once what is wrong, until it is well again.
    fn failed(&self, vault: &str, error: &dyn std::fmt::Display) {
        let error = error.to_string();
        self.with(vault, |standing| {
            if standing.error.as_ref() != Some(&error) {
                tracing::warn!(vault, error, "the log of the database does not reach the vault");
            }
            standing.error = Some(error);
        });
    }

    fn well(&self, vault: &str) {
        self.with(vault, |standing| {
            if standing.error.take().is_some() {
                tracing::info!(vault, "the log of the database reaches the vault again");
            }
        });
    }
}

/// How long to wait before the next try, in a row of tries.
struct Patience(Duration);

impl Patience {
    fn new() -> Self {
        Self(SOON)
    }

    /// Waits after a try that was begun then. One that went well for a while begins a new row.
    async fn after(&mut self, begun: Instant) {
        if begun.elapsed() > LATE {
            self.0 = SOON;
        }
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LATE);
    }
}

/// What each vault has, as its shipper knows; none while it is away.
type Having = watch::Sender<BTreeMap<String, Option<Has>>>;

/// Ships for as long as it is waited for.
pub async fn ship(source: &Source, standings: &Standings) {
    let mut patience = Patience::new();
    loop {
        let begun = Instant::now();
        if let Err(why) = one_system(source, standings).await {
            source.vaults.keys().for_each(|vault| standings.failed(vault, &why));
            patience.after(begun).await;
        }
    }
}

/// Ships until the database is another one.
async fn one_system(source: &Source, standings: &Standings) -> Result<(), StreamError> {
    let mut connection =
        Replication::connect(source.address, &source.user, &source.password).await?;
    let (system, size) = (connection.identify().await?, connection.segment_size().await?);
    drop(connection);
    let spool = source.spool.join(&system.id);
    let feed = Feed::open(spool, size).map_err(|error| StreamError::Odd(error.to_string()))?;
    let feed = Arc::new(feed);
    let having = Having::new(source.vaults.keys().map(|name| (name.clone(), None)).collect());
    let shippers = source.vaults.iter().map(|(name, open)| Shipper {
        name,
        open,
        system: &system.id,
        every: source.every,
        backups: &source.backups,
        feed: &feed,
        standings,
        having: &having,
    });
    let shipping =
        futures_util::future::join_all(shippers.map(|shipper| async move { shipper.run().await }));
    tokio::select! {
        ended = receive(source, &system.id, &feed, &having, standings) => ended,
        _ = shipping => Ok(()),
    }
}

/// Receives until the database is another one. A connection that is lost is made again.
async fn receive(
    source: &Source,
    system: &str,
    feed: &Arc<Feed>,
    having: &Having,
    standings: &Standings,
) -> Result<(), StreamError> {
    let known = |having: &BTreeMap<String, Option<Has>>| having.values().all(Option::is_some);
    let _ = tokio::time::timeout(VAULTS, having.subscribe().wait_for(known)).await;
    let (mut gone, mut patience) = (0, Patience::new());
    loop {
        let begun = Instant::now();
        match one_stream(source, system, feed, having, &mut gone, standings).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                source.vaults.keys().for_each(|vault| standings.failed(vault, &error));
                patience.after(begun).await;
            }
        }
    }
}

/// Receives the log until its timeline ends (true), or the database is another one (false).
async fn one_stream(
    source: &Source,
    system: &str,
    feed: &Arc<Feed>,
    having: &Having,
    gone: &mut u64,
    standings: &Standings,
) -> Result<bool, StreamError> {
    let mut connection =
        Replication::connect(source.address, &source.user, &source.password).await?;
    let server = connection.identify().await?;
    if server.id != system {
        return Ok(false);
    }
    let size = feed.size();
    let mut histories = BTreeMap::new();
    if server.timeline > 1 {
        histories.insert(server.timeline, connection.history(server.timeline).await?);
    }
    let own = histories.get(&server.timeline).map(Vec::as_slice).unwrap_or_default();
    let lineage =
        Lineage::parse(server.timeline, &String::from_utf8_lossy(own)).map_err(StreamError::Odd)?;
    feed.set_lineage(lineage.clone(), histories);
    let wanted = wanted(feed, having);
    let number = feed.first_wanted(&wanted, *gone, size.number(server.at));
    let segment = lineage.owner(number, size);
    tracing::debug!(segment = size.file_name(segment), %lineage, "the log begins to come");
    let streamed = async {
        connection.start(segment.timeline, size.start(number)).await?;
        feed.begin(segment);
        source.vaults.keys().for_each(|vault| standings.well(vault));
        stream(&mut connection, feed, having, *gone).await
    };
    match streamed.await {
        Err(StreamError::Gone(why)) => {
            // Whoever wanted it has a gap now. The server has what it writes, and no more is sure.
            *gone = number.max(*gone);
            tracing::warn!(why, "a part of the log is lost to the vaults");
            Ok(true)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

async fn stream(
    connection: &mut Replication,
    feed: &Arc<Feed>,
    having: &Having,
    gone: u64,
) -> Result<(), StreamError> {
    let mut ask = tokio::time::interval(ASK);
    let mut heard = Instant::now();
    let mut caught_up = CaughtUp::default();
    let mut asked = false;
    loop {
        let event = tokio::select! {
            event = connection.next() => event?,
            _ = ask.tick() => {
                if heard.elapsed() > SILENCE {
                    return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
                }
                let received = feed.end().unwrap_or_default();
                let wants = wanted(feed, having);
                if feed.must_go_back(&wants, gone) {
                    return Ok(());
                }
                let least = wants.into_iter().min().unwrap_or(0);
                let stored = feed.size().start(least).min(received);
                // One question at a time: two answers in one go would say nothing.
                connection.report(received, stored, !asked).await?;
                asked = true;
                continue;
            }
        };
        heard = Instant::now();
        // By the time at which it was so, not by that at which it is heard of.
        let (flushed, at) = match event {
            Event::Data { start, flushed, sent, bytes } => {
                // Once in each segment this waits for the disk.
                let (to, fills) = (Arc::clone(feed), feed.room() <= bytes.len());
                let append = move || to.append(start, &bytes);
                let appended = if fills { blocking(append).await } else { append() };
                appended.map_err(|error| StreamError::Odd(error.to_string()))?;
                (flushed, caught_up.data(sent))
            }
            Event::Alive { end, sent, answer } => {
                asked = false;
                if answer {
                    let received = feed.end().unwrap_or_default();
                    connection.report(received, received, false).await?;
                }
                (end, caught_up.answer(sent))
            }
            Event::End => return Ok(()),
        };
        if let Some(at) = at {
            feed.flushed(flushed, at);
        }
    }
}

/// Brings the log into one vault.
struct Shipper<'a> {
    name: &'a str,
    open: &'a Open,
    system: &'a str,
    every: Duration,
    backups: &'a Path,
    feed: &'a Arc<Feed>,
    standings: &'a Standings,
    having: &'a Having,
}

impl Shipper<'_> {
    async fn run(&self) {
        let mut patience = Patience::new();
        loop {
            let begun = Instant::now();
            let Err(error) = self.one_life().await;
            self.standings.failed(self.name, &error);
            // Nobody is to wait for a vault that cannot be used.
            self.standings.with(self.name, |standing| standing.waiting = false);
            self.having.send_modify(|having| {
                having.insert(self.name.to_owned(), None);
            });
            patience.after(begun).await;
        }
    }

    /// Until the vault cannot be used.
    async fn one_life(&self) -> Result<std::convert::Infallible> {
        let (open, system) = (Arc::clone(self.open), self.system.to_owned());
        let size: Size = self.feed.size();
        let (vault, store, contents) = blocking(move || {
            let vault = open()?;
            let store = vault.log(&system, size)?;
            let contents = store.contents()?;
            Ok((vault, store, contents))
        })
        .await?;
        let mut has = Has { contents, bases: Vec::new() };
        let mut seen = None;
        let mut news = self.feed.news();
        let mut told = Instant::now().checked_sub(IDLE);
        let mut piece_at: Option<Instant> = None;
        let (mut has_gap, mut missed) = (false, false);
        loop {
            // Backups come and go.
            let made = std::fs::metadata(self.backups).and_then(|meta| meta.modified()).ok();
            let changed = (vault.snapshots_changed_at(), made);
            if seen != Some(changed) {
                let (vault, system) = (Arc::clone(&vault), self.system.to_owned());
                has.bases = blocking(move || vault.bases_of(&system)).await?;
                seen = Some(changed);
                self.tell(&has)?;
            }
            let job = self.feed.job(&has);
            let waiting = !matches!(job, Job::Nothing(_));
            self.standings.with(self.name, |standing| standing.waiting = waiting);
            match job {
                Job::History(timeline, history) => {
                    let store = store.clone();
                    blocking(move || store.put_history(timeline, &history)).await?;
                    has.contents.histories.insert(timeline);
                }
                Job::Whole { segment, gap } => {
                    self.note(gap, &mut has_gap);
                    let (store, path) = (store.clone(), self.feed.path(segment));
                    blocking(move || {
                        let bytes =
                            std::fs::read(&path).map_err(Error::path("cannot read", &path))?;
                        store.put(segment, &bytes)
                    })
                    .await?;
                    has.contents.whole.insert(segment);
                    has.contents.pieces.remove(&segment);
                    has_gap = false;
                    self.tell(&has)?;
                }
                Job::Piece { segment, from, bytes, gap, as_of } => {
                    self.note(gap, &mut has_gap);
                    let due = piece_at.map(|at| at + self.every);
                    if let Some(wait) = due.and_then(|at| at.checked_duration_since(Instant::now()))
                    {
                        // Meanwhile more may come, or the whole segment.
                        tokio::select! {
                            () = tokio::time::sleep(wait) => {}
                            () = self.standings.hurry.notified() => {}
                        }
                        piece_at = None;
                        continue;
                    }
                    piece_at = Some(Instant::now());
                    let (into, to) = (store.clone(), from + bytes.len() as u64);
                    blocking(move || into.put_piece(segment, from, &bytes)).await?;
                    let pieces = has.contents.pieces.entry(segment).or_default();
                    if from == 0 && !pieces.is_empty() {
                        pieces.clear();
                        let store = store.clone();
                        blocking(move || store.remove_pieces(segment, Some((from, to)))).await?;
                    }
                    pieces.insert(from, to);
                    self.whole(&store, as_of, &mut None).await?;
                    self.miss_base(&has, as_of, &mut missed);
                }
                Job::Nothing(as_of) => {
                    self.whole(&store, as_of, &mut told).await?;
                    self.miss_base(&has, as_of, &mut missed);
                    let _ = tokio::time::timeout(ASK, news.changed()).await;
                }
            }
        }
    }

    /// Makes known up to when the log is whole, and writes it down if that was not done lately.
    async fn whole(
        &self,
        store: &LogStore,
        as_of: Option<AsOf>,
        told: &mut Option<Instant>,
    ) -> Result<()> {
        let Some(as_of) = as_of else { return Ok(()) };
        self.standings.with(self.name, |standing| standing.as_of = Some(as_of));
        self.standings.well(self.name);
        if told.is_none_or(|told| told.elapsed() >= IDLE) {
            *told = Some(Instant::now());
            let store = store.clone();
            blocking(move || store.put_as_of(&as_of)).await?;
        }
        Ok(())
    }

    /// Asks for a base backup when there is none of this database, so that its log is of no use.
    fn miss_base(&self, has: &Has, as_of: Option<AsOf>, missed: &mut bool) {
        if as_of.is_some() && has.bases.is_empty() && !*missed {
            *missed = true;
            self.standings.gap.notify_one();
        }
    }

    fn note(&self, gap: bool, has_gap: &mut bool) {
        if gap && !*has_gap {
            *has_gap = true;
            tracing::warn!(
                vault = self.name,
                "the log in the vault has a gap; another backup of the database is needed"
            );
            self.standings.gap.notify_one();
        }
    }

    fn tell(&self, has: &Has) -> Result<()> {
        self.having.send_modify(|having| {
            having.insert(self.name.to_owned(), Some(has.clone()));
        });
        self.feed.sweep(&wanted(self.feed, self.having), MOST)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::Unusable(error.to_string())),
    }
}

/// What each vault wants next; 0 if nothing in particular, or that is not known.
fn wanted(feed: &Feed, having: &Having) -> Vec<u64> {
    let want = |has: &Option<Has>| has.as_ref().and_then(|has| feed.wanted(has));
    having.borrow().values().map(|has| want(has).unwrap_or(0)).collect()
}
