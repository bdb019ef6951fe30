//! A store that can be taken away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use resurgam_model::access::{
    AccessToken, AuditEntry, AuditOutcome, NewAccessToken, NewAuditEntry, TokenHash,
};
use resurgam_model::agent::{
    Agent, AgentPage, AgentQuery, Heartbeat, HeartbeatTerms, Registration,
};
use resurgam_model::limit::Limit;
use resurgam_model::message::{Message, NewMessage};
use resurgam_model::schedule::{NewSchedule, Schedule};
use resurgam_model::task::{
    Change, Claim, Completion, Failure, Lease, LeaseRef, NewTask, Outcome, Submitted, Task,
    TaskCounts, TaskQuery,
};
use resurgam_model::{AgentId, Capability, Duration, InstanceId, ScheduleName, TaskId, TokenId};
use resurgam_store::{
    Access, Admin, AuditQuery, Check, Counted, Error, Expired, Figures, Fired, LeasesOf, Limits,
    Messages, Meters, Order, Promoted, Registered, Registry, Result, Schedules, SharedStore,
    Snapshot, Tasks, Wakes,
};

/// Another store behind a switch. What it says when it is away must not get outside.
pub(crate) struct Flaky {
    store: SharedStore,
    away: AtomicBool,
}

pub(crate) const SECRET: &str = "host=db password=hunter2";

impl Flaky {
    pub(crate) fn new(store: SharedStore, away: bool) -> Arc<Self> {
        Arc::new(Self { store, away: AtomicBool::new(away) })
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn store(&self) -> Result<&SharedStore> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::NoWritableHost(SECRET.to_owned()));
        }
        Ok(&self.store)
    }
}

macro_rules! through {
    ($($seam:ident { $(fn $name:ident(&self $(, $arg:ident: $type:ty)*) -> $output:ty;)* })+) => {$(
        #[async_trait]
        impl $seam for Flaky {
            $(async fn $name(&self $(, $arg: $type)*) -> Result<$output> {
                $seam::$name(&**self.store()? $(, $arg)*).await
            })*
        }
    )+};
}

through! {
    Tasks {
        fn submit(&self, tasks: &[NewTask]) -> Vec<Submitted>;
        fn claim(&self, claim: &Claim) -> Vec<Lease>;
        fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Vec<Outcome>;
        fn complete(&self, completions: &[Completion]) -> Vec<Outcome>;
        fn fail(&self, failures: &[Failure]) -> Vec<Outcome>;
        fn return_expired(&self, limit: u32) -> u64;
        fn return_leases(&self, agent: &AgentId, whose: LeasesOf) -> u64;
        fn task(&self, id: TaskId) -> Option<Task>;
        fn tasks(&self, query: &TaskQuery) -> Vec<Task>;
        fn task_counts(&self, counted: Counted) -> Vec<(Capability, TaskCounts)>;
        fn promote(&self, limit: u32) -> Promoted;
        fn cancel(&self, tasks: &[TaskId], reason: &str) -> Vec<Change>;
        fn requeue(&self, tasks: &[TaskId]) -> Vec<Change>;
        fn purge(&self, limit: u32) -> u64;
    }
    Limits {
        fn set_limit(&self, capability: &Capability, limit: &Limit) -> ();
        fn remove_limit(&self, capability: &Capability) -> bool;
        fn limits(&self) -> Vec<(Capability, Limit)>;
    }
    Schedules {
        fn put_schedule(&self, name: &ScheduleName, new: &NewSchedule) -> Schedule;
        fn remove_schedule(&self, name: &ScheduleName) -> bool;
        fn schedule(&self, name: &ScheduleName) -> Option<Schedule>;
        fn schedules(&self) -> Vec<Schedule>;
        fn fire(&self) -> Vec<Fired>;
    }
    Registry {
        fn register_under(&self, registration: &Registration, terms: &HeartbeatTerms)
            -> Registered;
        fn heartbeat(&self, beats: &[Heartbeat]) -> Vec<bool>;
        fn expire(&self, watched: Duration, keep: Duration, limit: u32) -> Expired;
        fn order(&self, agent: &AgentId, order: &Order) -> Option<Agent>;
        fn count_held(&self, limit: u32) -> u64;
        fn deregister(&self, agent: &AgentId, instance: InstanceId) -> ();
        fn agent(&self, id: &AgentId) -> Option<Agent>;
        fn agents(&self, query: &AgentQuery) -> AgentPage;
    }
    Messages {
        fn send(&self, messages: &[NewMessage]) -> ();
        fn receive(&self, agent: &AgentId, after: Option<i64>, limit: u32) -> Vec<Message>;
        fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> ();
    }
    Access {
        fn create_token(&self, token: &NewAccessToken, hash: &TokenHash, by: &str) -> AccessToken;
        fn token_by_hash(&self, hash: &TokenHash) -> Option<AccessToken>;
        fn list_tokens(&self, after: Option<TokenId>, limit: u32) -> Vec<AccessToken>;
        fn revoke_token(&self, id: TokenId) -> Option<AccessToken>;
        fn access_generation(&self) -> i64;
        fn tokens_used(&self, ids: &[TokenId]) -> ();
        fn record_audit(&self, entries: &[NewAuditEntry]) -> Vec<i64>;
        fn finish_audit(&self, sequence: i64, outcome: AuditOutcome, detail: Option<&str>) -> ();
        fn audit_log(&self, query: &AuditQuery) -> Vec<AuditEntry>;
        fn prune_access(&self, keep: Duration, limit: u32) -> u64;
    }
}

#[async_trait]
impl Figures for Flaky {
    async fn figures(&self) -> Result<Snapshot> {
        self.store()?.figures().await
    }

    fn meters(&self) -> &Meters {
        self.store.meters()
    }
}

#[async_trait]
impl Admin for Flaky {
    async fn migrate(&self) -> Result<()> {
        self.store()?.migrate().await
    }

    async fn check(&self) -> Result<Check> {
        self.store()?.check().await
    }

    fn wakes(&self) -> Wakes {
        self.store.wakes()
    }

    fn kind(&self) -> &'static str {
        self.store.kind()
    }
}
