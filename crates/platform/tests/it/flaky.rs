//! A store that can be taken away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use resurgam_model::access::{
    AccessToken, AuditEntry, AuditOutcome, AuditQuery, NewAccessToken, NewAuditEntry, TokenHash,
};
use resurgam_model::agent::{
    Agent, AgentPage, AgentQuery, Heartbeat, HeartbeatTerms, Registration,
};
use resurgam_model::bus::{BusState, BusWish, Outbox};
use resurgam_model::limit::Limit;
use resurgam_model::message::{DeadLetter, Message, NewMessage};
use resurgam_model::pool::Demand;
use resurgam_model::schedule::{NewSchedule, Schedule};
use resurgam_model::stuck::{LongRunning, Usual};
use resurgam_model::task::{
    Change, Claim, Completion, Failure, Lease, LeaseRef, NewTask, Outcome, Submitted, Task,
    TaskCounts, TaskQuery,
};
use resurgam_model::workflow::{
    DefinitionInfo, ItemQuery, NewSignal, StartedWorkflow, Workflow, WorkflowDetail, WorkflowQuery,
    WorkflowStepView,
};
use resurgam_model::{
    AgentId, Capability, Duration, InstanceId, MessageId, ScheduleName, TaskId, Timestamp, TokenId,
    WorkflowId,
};
use resurgam_store::access::LeaseStanding;
use resurgam_store::workflows::{
    Advanced, ChangedWorkflow, Checkpoint, Defined, Moved, NewWorkflow, Restored, Told,
};
use resurgam_store::{
    Access, Admin, BusRecord, BusStore, Check, Counted, DeadLetters, Error, Expired, Figures,
    Fired, LeasesOf, Limits, Mails, Messages, Meters, Order, Promoted, Received, Registered,
    Registry, Rejection, Result, Schedules, SharedStore, Snapshot, Supervision, Tasks, Wakes,
    Workflows,
};
use resurgam_workflow::Definition;

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
        fn note(&self, leases: &[LeaseRef], note: &str) -> Vec<Outcome>;
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
    Workflows {
        fn define(&self, definition: &Definition) -> Defined;
        fn definition(&self, name: &str, version: Option<u32>) -> Option<DefinitionInfo>;
        fn definitions(&self, after: Option<(&str, u32)>, limit: u32) -> Vec<DefinitionInfo>;
        fn start_workflow(&self, start: &NewWorkflow) -> StartedWorkflow;
        fn workflow(&self, id: WorkflowId) -> Option<WorkflowDetail>;
        fn workflow_step(&self, id: WorkflowId, step: &str, items: &ItemQuery)
            -> Vec<WorkflowStepView>;
        fn workflows(&self, query: &WorkflowQuery) -> Vec<Workflow>;
        fn signal_workflow(&self, id: WorkflowId, signal: &NewSignal) -> Told;
        fn cancel_workflow(&self, id: WorkflowId, reason: &str) -> Told;
        fn retry_workflow(&self, id: WorkflowId) -> Told;
        fn advance_workflow(&self, id: WorkflowId, wait: bool) -> Advanced;
        fn due_workflows(&self, limit: u32) -> Vec<WorkflowId>;
        fn expire_workflows(&self, limit: u32) -> u64;
        fn changed_workflows(&self, since: Timestamp, after: Option<(Timestamp, WorkflowId)>,
            limit: u32) -> Vec<ChangedWorkflow>;
        fn known_workflows(&self, ids: &[WorkflowId]) -> BTreeSet<WorkflowId>;
        fn checkpoint(&self, id: WorkflowId) -> Option<Checkpoint>;
        fn restore(&self, checkpoint: &Checkpoint) -> Restored;
        fn reconnect(&self, id: WorkflowId) -> ();
    }
    Schedules {
        fn put_schedule(&self, name: &ScheduleName, new: &NewSchedule) -> Schedule;
        fn remove_schedule(&self, name: &ScheduleName) -> bool;
        fn schedule(&self, name: &ScheduleName) -> Option<Schedule>;
        fn schedules(&self) -> Vec<Schedule>;
        fn fire(&self) -> Vec<Fired>;
    }
    Registry {
        fn register_all(&self, registrations: &[(Registration, HeartbeatTerms)])
            -> Vec<Registered>;
        fn heartbeat(&self, beats: &[Heartbeat]) -> Vec<bool>;
        fn expire(&self, watched: Duration, keep: Duration, limit: u32) -> Expired;
        fn order(&self, agent: &AgentId, order: &Order) -> Option<Agent>;
        fn forgive(&self, early: Duration) -> Vec<AgentId>;
        fn count_held(&self, limit: u32) -> u64;
        fn deregister(&self, agent: &AgentId, instance: InstanceId) -> ();
        fn agent(&self, id: &AgentId) -> Option<Agent>;
        fn agents(&self, query: &AgentQuery) -> AgentPage;
    }
    Supervision {
        fn demand(&self, capabilities: &[Capability], window: Duration) -> Demand;
        fn usual(&self) -> Vec<(Capability, Usual)>;
        fn long_running(&self, than: Duration, limit: u32) -> Vec<LongRunning>;
    }
    Messages {
        fn send(&self, messages: &[NewMessage]) -> ();
        fn receive(&self, agent: &AgentId, after: Option<i64>, limit: u32) -> Vec<Message>;
        fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> ();
    }
    DeadLetters {
        fn reject(&self, agent: &AgentId, sequences: &[i64], rejection: &Rejection) -> u64;
        fn expire_messages(&self, limit: u32) -> u64;
        fn dead_letters(&self, limit: u32) -> Vec<DeadLetter>;
        fn revive(&self, id: MessageId) -> Option<MessageId>;
        fn forget_letter(&self, id: MessageId) -> bool;
    }
    BusStore {
        fn set_relayed(&self, relayed: bool) -> ();
        fn lead(&self, relay: &str, lease: Duration) -> bool;
        fn leave(&self, relay: &str) -> ();
        fn bus(&self) -> BusRecord;
        fn note_bus(&self, relay: &str, state: &BusState) -> bool;
        fn wish(&self, wish: Option<&BusWish>) -> ();
        fn outgoing(&self, after: i64, under_way: &[i64], limit: u32) -> Vec<Message>;
        fn outgoing_of(&self, sequences: &[i64]) -> Vec<Message>;
        fn waiting(&self, up_to: i64) -> Vec<i64>;
        fn delivered(&self, ids: &[MessageId]) -> Received;
        fn arrive(&self, messages: &[NewMessage]) -> ();
        fn outbox(&self) -> Outbox;
        fn bury(&self, letters: &[DeadLetter]) -> ();
    }
    Access {
        fn create_token(&self, token: &NewAccessToken, hash: &TokenHash, by: &str) -> AccessToken;
        fn token_by_hash(&self, hash: &TokenHash) -> Option<AccessToken>;
        fn list_tokens(&self, after: Option<TokenId>, limit: u32) -> Vec<AccessToken>;
        fn revoke_token(&self, id: TokenId) -> Option<AccessToken>;
        fn access_generation(&self) -> i64;
        fn tokens_used(&self, ids: &[TokenId]) -> ();
        fn lease_standings(&self, tasks: &[TaskId]) -> Vec<Option<LeaseStanding>>;
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

    fn moved(&self) -> &Moved {
        self.store.moved()
    }

    fn wakes(&self) -> Wakes {
        self.store.wakes()
    }

    fn mails(&self) -> Mails {
        self.store.mails()
    }

    fn kind(&self) -> &'static str {
        self.store.kind()
    }
}
