//! The durable state of the platform, behind one seam with two adapters: SQLite, which needs
//! nothing else, and PostgreSQL.
//!
//! # Guarantees, of both adapters
//! - A call that returned `Ok` is durable: it survives the death of every process and of the
//!   machine's power (SQLite: WAL with `synchronous = FULL`; PostgreSQL: the server's
//!   `synchronous_commit`, with a synchronous standby also the loss of the primary).
//! - A call that returned an error for which [`Error::is_transient`] holds may or may not have
//!   taken effect. Every call may be repeated: keys, tokens and message ids make the repetition
//!   harmless.
//! - A call that hands in, ends or takes back is one transaction, however many items it carries.
//!   A claim may be several, one after the other: each lease that it answers is durable.
//!
//! # Why operations and not queries
//! The seam is at "claim tasks", not at "run SQL", so that each adapter can use what its
//! database does best: `FOR UPDATE SKIP LOCKED` in one, a single writer with group commit in
//! the other.

pub mod access;
mod allowance;
mod bell;
mod bus;
mod column;
mod error;
mod figures;
mod letters;
mod limits;
mod meters;
pub mod postgres;
mod registry;
mod schedules;
pub mod sqlite;
mod supervision;
pub mod workflows;

pub use access::Access;
pub use bell::{Mails, Wake, Wakes, Words};
pub use bus::{BusRecord, BusStore, Received};
pub use column::REMEMBER;
pub use error::Error;
pub use figures::{Figures, Queue, Snapshot};
pub use letters::{DEAD_FOR, DeadLetters, Rejection};
pub use limits::Limits;
pub use meters::Meters;
pub use registry::{Expired, FAILING_AFTER, FAILING_FOR, Order, Registered, Registry};
pub use schedules::{Fired, Schedules};
pub use supervision::Supervision;
pub use workflows::Workflows;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use resurgam_model::message::{Message, NewMessage};
use resurgam_model::task::{
    Change, Claim, Completion, Failure, Lease, LeaseRef, NewTask, Outcome, Submitted, Task,
    TaskCounts, TaskQuery,
};
use resurgam_model::{AgentId, Capability, Duration, InstanceId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};

/// What calls to the store return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The whole seam.
pub trait Store:
    Tasks
    + Limits
    + Schedules
    + Registry
    + Supervision
    + Messages
    + DeadLetters
    + BusStore
    + Workflows
    + Access
    + Figures
    + Admin
{
}

impl<T> Store for T where
    T: Tasks
        + Limits
        + Schedules
        + Registry
        + Supervision
        + Messages
        + DeadLetters
        + BusStore
        + Workflows
        + Access
        + Figures
        + Admin
{
}

/// A store that many can share.
pub type SharedStore = Arc<dyn Store>;

/// Which store, and where. Debug output shows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// A SQLite file.
    Sqlite {
        /// The file; its folder must be there.
        path: PathBuf,
    },
    /// A PostgreSQL database.
    Postgres(postgres::Settings),
}

/// Opens a store. A PostgreSQL server need not be up for that; a SQLite file is made if it is
/// missing. [`Admin::migrate`] has to run before the store is of use.
///
/// # Errors
/// When the settings cannot be used, or the file cannot be opened.
pub fn open(settings: &Settings) -> Result<SharedStore> {
    Ok(match settings {
        Settings::Sqlite { path } => Arc::new(sqlite::SqliteStore::open(path)?),
        Settings::Postgres(settings) => Arc::new(postgres::PostgresStore::connect(settings)?),
    })
}

/// The task queue.
#[async_trait]
pub trait Tasks: Send + Sync + 'static {
    /// Hands in tasks: all of them or, on an error, none. A task whose idempotency key is known
    /// already (also one that occurs twice in the same call) gives the earlier task back.
    async fn submit(&self, tasks: &[NewTask]) -> Result<Vec<Submitted>>;

    /// Claims up to `claim.max` tasks that are ready and whose capability the claimer has. The
    /// capabilities take turns, so that none starves: in the order given each gets an equal
    /// share of `max`, rounded up, and what is left over goes to those that have more. Within a
    /// capability the highest priority goes first, then the longest waiting; where keys take
    /// turns ([`Limits`]), that holds within a key. Each claim raises the task's token and its
    /// count of attempts.
    ///
    /// # Errors
    /// [`Error::UnknownAgent`] unless the agent is registered, in this life, and available.
    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>>;

    /// Extends leases to `lease` from now, but not beyond the timeout of the try, after which
    /// they are [`Outcome::Stale`]. Answers one outcome per lease, in order.
    async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>>;

    /// Takes note of what holders say of how far they are. It shows as long as the lease holds.
    /// Answers one outcome per lease, in order.
    async fn note(&self, leases: &[LeaseRef], note: &str) -> Result<Vec<Outcome>>;

    /// Completes tasks, and sends each one's `reply_to` a `task.completed` message in the same
    /// transaction. Saying the same again (same token, completed already) is
    /// [`Outcome::Accepted`] and changes nothing. An expired lease that nobody has taken back
    /// yet still counts.
    async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>>;

    /// Ends tries that failed: scheduled for after the policy's wait, or dead when tries are
    /// used up or `retry` is false; a dead task sends `reply_to` a `task.dead` message. Saying
    /// the same again under the same token is [`Outcome::Accepted`] if the task has not been
    /// claimed since. An agent whose tries keep failing is given no tasks for a while
    /// ([`FAILING_AFTER`]).
    async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>>;

    /// Takes back up to `limit` leases that have expired: ready at once, after the policy's wait
    /// when it was the try's timeout that ended them, or dead when tries are used up. Returns
    /// how many were taken back.
    async fn return_expired(&self, limit: u32) -> Result<u64>;

    /// Takes back the leases of an agent: those of one life, or all that are not of the life
    /// `except`. Ready at once, or dead when tries are used up.
    async fn return_leases(&self, agent: &AgentId, whose: LeasesOf) -> Result<u64>;

    /// Makes up to `limit` tasks ready whose time has come, and turns as many over to the agents of
    /// their fallback that nobody has begun in time. Answers how many, and when the time of the
    /// next one comes.
    async fn promote(&self, limit: u32) -> Result<Promoted>;

    /// Takes back tasks that are not over, also those under a lease, whose holders learn of it
    /// at their next word. `reply_to` gets a `task.cancelled` message. One word per task.
    async fn cancel(&self, tasks: &[TaskId], reason: &str) -> Result<Vec<Change>>;

    /// Makes dead or cancelled tasks ready again, with all their tries. Tasks of workflows stay
    /// as they are: their workflow is what can be tried again. One word per task.
    async fn requeue(&self, tasks: &[TaskId]) -> Result<Vec<Change>>;

    /// Forgets up to `limit` finished tasks whose time to be kept is over, with their
    /// idempotency keys. Answers how many.
    async fn purge(&self, limit: u32) -> Result<u64>;

    /// One task.
    async fn task(&self, id: TaskId) -> Result<Option<Task>>;

    /// Tasks in the order in which they were handed in, after `after` if given.
    async fn tasks(&self, query: &TaskQuery) -> Result<Vec<Task>>;

    /// Counts by capability, in the order of the names. Counting what is completed or cancelled
    /// takes time in proportion to it, and is left out with [`Counted::Open`].
    async fn task_counts(&self, counted: Counted) -> Result<Vec<(Capability, TaskCounts)>>;
}

/// What [`Tasks::promote`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promoted {
    /// So many are ready now.
    pub promoted: u64,
    /// When the time of the next one comes, if there is one.
    pub next: Option<Timestamp>,
}

/// Which tasks are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Those that are not over, and the dead.
    Open,
    /// All that are kept.
    All,
}

/// Which leases of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeasesOf {
    /// Those that this life of the agent took.
    Life(InstanceId),
    /// Those that earlier lives took, given the present one.
    EarlierLives(InstanceId),
}

/// Durable mailboxes, one per agent: what the embedded bus is made of.
#[async_trait]
pub trait Messages: Send + Sync + 'static {
    /// Accepts messages. One whose id is known changes nothing.
    async fn send(&self, messages: &[NewMessage]) -> Result<()>;

    /// What lies in the mailbox of `agent`, oldest first, those after `after` if given. They
    /// stay until they are acknowledged.
    async fn receive(
        &self,
        agent: &AgentId,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Message>>;

    /// Takes messages out of the mailbox, by their sequence numbers.
    async fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> Result<()>;
}

/// Care of the store itself.
#[async_trait]
pub trait Admin: Send + Sync + 'static {
    /// Brings the schema up to this program's version. Harmless when it is there already, also
    /// when several processes try at once.
    ///
    /// # Errors
    /// [`Error::NewerSchema`] when a later version of the program has been here.
    async fn migrate(&self) -> Result<()>;

    /// Writes a row and reads it back in another transaction: what works here works for the
    /// platform.
    async fn check(&self) -> Result<Check>;

    /// Tells of tasks that become ready, in this process and, with PostgreSQL, in all.
    fn wakes(&self) -> Wakes;

    /// Tells of messages that came into mailboxes, in this process and, with PostgreSQL, in all.
    fn mails(&self) -> Mails;

    /// Workflows to which something happened just now in this process, for whoever advances
    /// them at once.
    fn moved(&self) -> &workflows::Moved;

    /// `sqlite` or `postgres`.
    fn kind(&self) -> &'static str;
}

/// What [`Admin::check`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The database's clock.
    pub at: Timestamp,
    /// Where the write went: the file, or the server's address, without any password.
    pub location: String,
}
