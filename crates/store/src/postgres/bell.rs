//! Tells of tasks that become ready, and of messages, in all processes that use the database.
//!
//! One connection beside the pool both listens and notifies. Words are gathered while the last
//! ones are on their way, so that a flood of tasks costs few notifications; and they are sent
//! after the commit, outside of it: a transaction that notifies would hold a lock over the whole
//! server until its commit is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use resurgam_model::{AgentId, Capability};
use tokio::sync::{Notify, mpsc};
use tokio_postgres::Notification;

use super::PostgresStore;
use super::connect::{Connected, Host, race};
use super::tidy::Tidy;
use crate::bell::{Bell, Mails};
use crate::{Wake, Wakes};

/// The channels of the database.
const LISTEN: &str = "SET synchronous_commit = off; LISTEN resurgam_work; LISTEN resurgam_mail";
const NOTIFY: &str = "SELECT pg_notify($1, word) FROM unnest($2::text[]) AS word";
const WORK: &str = "resurgam_work";
const MAIL: &str = "resurgam_mail";

/// Words about more mailboxes than these at once are not worth the way: the others see by
/// themselves, a little later.
const MANY: usize = 1024;

/// Waits between attempts to connect.
const AGAIN: Duration = Duration::from_millis(500);

/// The listeners here, and what is to be told elsewhere.
pub(super) struct Bells {
    here: Bell<Wake>,
    elsewhere: Mutex<BTreeMap<Capability, u64>>,
    mail: Bell<AgentId>,
    mail_elsewhere: Mutex<BTreeSet<AgentId>>,
    /// Told when there is something to tell, and when the bells go away.
    rung: Arc<Notify>,
    started: AtomicBool,
    pub(super) hosts: Arc<[Host]>,
    pub(super) timeout: Duration,
    pub(super) tidy: Tidy,
}

impl Bells {
    pub(super) fn new(hosts: Arc<[Host]>, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            here: Bell::default(),
            elsewhere: Mutex::default(),
            mail: Bell::default(),
            mail_elsewhere: Mutex::default(),
            rung: Arc::default(),
            started: AtomicBool::new(false),
            hosts,
            timeout,
            tidy: Tidy::default(),
        })
    }

    /// Starts the connection, once.
    fn start(self: &Arc<Self>) {
        if self.started.load(Ordering::Relaxed) {
            return;
        }
        // Without a runtime nothing could use the store either.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.started.swap(true, Ordering::AcqRel) {
            let (bells, rung) = (Arc::downgrade(self), Arc::clone(&self.rung));
            runtime.spawn(keep(bells, rung));
        }
    }

    fn take(&self) -> Vec<String> {
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let words = std::mem::take(&mut *elsewhere);
        words.into_iter().map(|(capability, count)| format!("{count} {capability}")).collect()
    }

    fn take_mail(&self) -> Vec<String> {
        let mut elsewhere = self.mail_elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *elsewhere).iter().map(ToString::to_string).collect()
    }

    fn hear_mail(&self, word: &str) {
        match word.parse() {
            Ok(agent) => self.mail.ring(agent),
            Err(_) => tracing::warn!("a notification on the channel resurgam_mail is not ours"),
        }
    }

    fn hear(&self, word: &str) {
        let wake = word.split_once(' ').and_then(|(count, capability)| {
            Some(Wake { capability: capability.parse().ok()?, count: count.parse().ok()? })
        });
        match wake {
            Some(wake) => self.here.ring(wake),
            None => tracing::warn!("a notification on the channel resurgam_work is not ours"),
        }
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        self.rung.notify_one();
    }
}

impl PostgresStore {
    pub(super) fn listen(&self) -> Wakes {
        // In this order, so that the first word, that the connection is there, is heard too.
        let words = self.bells.here.listen();
        self.bells.start();
        words
    }

    pub(super) fn listen_to_mail(&self) -> Mails {
        let words = self.bells.mail.listen();
        self.bells.start();
        words
    }

    /// Tells these agents of messages.
    pub(super) fn ring_mail(&self, agents: BTreeSet<AgentId>) {
        if agents.is_empty() {
            return;
        }
        self.bells.start();
        {
            let elsewhere = &self.bells.mail_elsewhere;
            let mut elsewhere = elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
            if elsewhere.len() + agents.len() <= MANY {
                elsewhere.extend(agents.iter().cloned());
            }
        }
        for agent in agents {
            self.bells.mail.ring(agent);
        }
        self.bells.rung.notify_one();
    }

    /// Tells that tasks have become ready.
    pub(super) fn ring(&self, wake: Wake) {
        self.bells.start();
        {
            let mut elsewhere = self.bells.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
            *elsewhere.entry(wake.capability.clone()).or_default() += wake.count;
        }
        self.bells.here.ring(wake);
        self.bells.rung.notify_one();
    }
}

/// Keeps the connection until the bells are gone.
async fn keep(bells: Weak<Bells>, rung: Arc<Notify>) {
    loop {
        let Some((hosts, timeout)) =
            bells.upgrade().map(|bells| (Arc::clone(&bells.hosts), bells.timeout))
        else {
            return;
        };
        let (tell, told) = mpsc::unbounded_channel();
        match race(&hosts, timeout, Some(tell)).await {
            Ok(connected) => {
                if let Err(error) = serve(&bells, &rung, &connected, told).await {
                    tracing::debug!(%error, "the connection for notifications ended");
                }
            }
            Err(reasons) => tracing::debug!(reasons, "no connection for notifications"),
        }
        if bells.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn serve(
    bells: &Weak<Bells>,
    rung: &Notify,
    connected: &Connected,
    mut told: mpsc::UnboundedReceiver<Notification>,
) -> Result<(), tokio_postgres::Error> {
    let Some(client) = connected.client() else { return Ok(()) };
    client.batch_execute(LISTEN).await?;
    let myself: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?;
    let notify = client.prepare(NOTIFY).await?;
    if let Some(bells) = bells.upgrade() {
        bells.here.ring_for_all();
        bells.mail.ring_for_all();
    }
    loop {
        tokio::select! {
            () = rung.notified() => {
                let taken = bells.upgrade().map(|bells| [bells.take(), bells.take_mail()]);
                let Some(taken) = taken else { return Ok(()) };
                for (channel, words) in [WORK, MAIL].iter().zip(taken) {
                    if !words.is_empty() {
                        client.execute(&notify, &[channel, &words]).await?;
                    }
                }
            }
            word = told.recv() => {
                let (Some(word), Some(bells)) = (word, bells.upgrade()) else { return Ok(()) };
                if word.process_id() == myself {
                    continue;
                }
                match word.channel() {
                    MAIL => bells.hear_mail(word.payload()),
                    _ => bells.hear(word.payload()),
                }
            }
        }
    }
}
