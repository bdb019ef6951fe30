//! The client of the HTTP interface, for agents, workers and tools.
//!
//! Every call is safe to repeat: registrations, heartbeats, extensions, completions, failures
//! and messages by their nature, submissions when each task carries an idempotency key, and a
//! claim whose answer was lost costs no more than the length of its lease. So a caller survives
//! an outage by calling again, which is what [`Client::patiently`] does.

use bytes::Bytes;
use http::Method;
use resurgam_model::agent::{
    Agent, AgentCursor, AgentOrder, AgentPage, AgentQuery, Heartbeat, Registration,
};
use resurgam_model::bus::BusStatus;
use resurgam_model::limit::Limit;
use resurgam_model::message::{DeadLetter, Message, NewMessage};
use resurgam_model::schedule::{NewSchedule, Schedule};
use resurgam_model::stuck::StuckTask;
use resurgam_model::task::{
    Claim, Completion, Failure, Lease, LeaseRef, NewTask, Outcome, Submitted, Task, TaskQuery,
};
use resurgam_model::{AgentId, Capability, Duration, InstanceId, MessageId, ScheduleName, TaskId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::builder::{self, ClientBuilder};
use crate::error::Error;
use crate::http::Http;
use crate::patience::Patience;
use crate::problem::{Problem, code};
use crate::wire;

/// What calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A client of one server. Cloning is cheap, and clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: Http,
    base: Url,
    timeout: Duration,
}

impl Client {
    /// A client of the server at `base_url`, such as `http://127.0.0.1:7070`, without a token.
    ///
    /// # Errors
    /// [`Error::Url`] when that is no address to call, [`Error::Option`] when it is an `https`
    /// address and the system trusts nobody.
    pub fn new(base_url: &str) -> Result<Self> {
        Self::builder(base_url).build()
    }

    /// The options of a client of the server at `base_url`, an `http` or `https` address.
    #[must_use]
    pub fn builder(base_url: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(base_url.into())
    }

    pub(crate) fn from_parts(http: Http, base: Url, timeout: Duration) -> Self {
        Self { http, base, timeout }
    }

    /// The same client, with the same token and certificates, of another server of the same
    /// platform.
    ///
    /// # Errors
    /// [`Error::Url`] when that is no address to call, or one without TLS while this one has it:
    /// the token would go over the network in the clear.
    pub fn at(&self, base_url: &str) -> Result<Self> {
        let base = builder::address(base_url)?;
        if self.base.scheme() == "https" && base.scheme() != "https" {
            let why = "it has no TLS, and the platform was addressed with TLS".to_owned();
            return Err(Error::Url { url: base_url.to_owned(), why });
        }
        Ok(Self { base, ..self.clone() })
    }

    /// The same client with another bound on each call; waiting that was asked for comes on top.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where it speaks to.
    #[must_use]
    pub fn base_url(&self) -> &str {
        self.base.as_str()
    }

    /// Makes a call again and again until it succeeds, fails in a way that repeating cannot
    /// help, or `patience` is at its end.
    ///
    /// # Errors
    /// The last error of the call.
    pub async fn patiently<T, F, Fut>(&self, patience: &Patience, mut call: F) -> Result<T>
    where
        F: FnMut(Self) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let mut backoff = patience.start();
        loop {
            match call(self.clone()).await {
                Err(error) if error.is_transient() => match backoff.next_delay() {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => return Err(error),
                },
                result => return result,
            }
        }
    }

    /// Hands in one task. Only with an idempotency key is it safe to repeat.
    pub async fn submit(&self, task: &NewTask) -> Result<Submitted> {
        self.post("tasks", task).await
    }

    /// Hands in tasks, all or none; at most 1000.
    pub async fn submit_batch(&self, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        let answer: wire::TaskList<_> =
            self.post("tasks/batch", &wire::TaskBatch { tasks }).await?;
        Ok(answer.tasks)
    }

    /// Lists tasks.
    pub async fn tasks(&self, query: &TaskQuery) -> Result<Vec<Task>> {
        let mut parameters = vec![("limit", query.effective_limit().to_string())];
        parameters.extend(query.state.map(|state| ("state", state.as_str().to_owned())));
        parameters.extend(query.capability.as_ref().map(|c| ("capability", c.to_string())));
        parameters.extend(query.after.map(|after| ("after", after.to_string())));
        let answer: wire::TaskList<_> = self.get("tasks", &parameters).await?;
        Ok(answer.tasks)
    }

    /// Counts tasks.
    pub async fn pending(&self) -> Result<wire::Pending> {
        self.get("tasks/pending", &[]).await
    }

    /// Counts tasks; with `finished` also those that are completed or cancelled, which takes time
    /// where there are many.
    pub async fn counts(&self, finished: bool) -> Result<wire::Pending> {
        self.get("tasks/pending", &[("finished", finished.to_string())]).await
    }

    /// One task, if there is such a one.
    pub async fn task(&self, id: TaskId) -> Result<Option<Task>> {
        found(self.get(&format!("tasks/{id}"), &[]).await)
    }

    /// One task, waiting up to `wait` (at most 30 s) until it is over.
    pub async fn wait_for(&self, id: TaskId, wait: Duration) -> Result<Option<Task>> {
        let url = self.url(&format!("tasks/{id}"), &[("wait", wait.to_string())])?;
        found(self.call::<_, ()>(Method::GET, url, None, wait).await)
    }

    /// Cancels tasks that are not over.
    pub async fn cancel(&self, order: &wire::TaskOrder) -> Result<wire::Ordered> {
        self.post("tasks/cancel", order).await
    }

    /// Makes dead or cancelled tasks ready again.
    pub async fn requeue(&self, order: &wire::TaskOrder) -> Result<wire::Ordered> {
        self.post("tasks/requeue", order).await
    }

    /// All limits.
    pub async fn limits(&self) -> Result<Vec<wire::CapabilityLimit>> {
        let answer: wire::LimitList<_> = self.get("limits", &[]).await?;
        Ok(answer.limits)
    }

    /// Sets the limit of a capability.
    pub async fn set_limit(&self, capability: &Capability, limit: &Limit) -> Result<Limit> {
        let url = self.url(&format!("limits/{capability}"), &[])?;
        self.call(Method::PUT, url, Some(limit), Duration::default()).await
    }

    /// Takes the limit of a capability away. False if it had none.
    pub async fn remove_limit(&self, capability: &Capability) -> Result<bool> {
        let url = self.url(&format!("limits/{capability}"), &[])?;
        removed(self.exchange::<()>(Method::DELETE, url, None, Duration::default()).await)
    }

    /// All schedules.
    pub async fn schedules(&self) -> Result<Vec<Schedule>> {
        let answer: wire::ScheduleList<_> = self.get("schedules", &[]).await?;
        Ok(answer.schedules)
    }

    /// One schedule, if there is such a one.
    pub async fn schedule(&self, name: &ScheduleName) -> Result<Option<Schedule>> {
        found(self.get(&format!("schedules/{name}"), &[]).await)
    }

    /// Makes a schedule, or changes it.
    pub async fn put_schedule(&self, name: &ScheduleName, new: &NewSchedule) -> Result<Schedule> {
        let url = self.url(&format!("schedules/{name}"), &[])?;
        self.call(Method::PUT, url, Some(new), Duration::default()).await
    }

    /// Takes a schedule away. False if there is none.
    pub async fn remove_schedule(&self, name: &ScheduleName) -> Result<bool> {
        let url = self.url(&format!("schedules/{name}"), &[])?;
        removed(self.exchange::<()>(Method::DELETE, url, None, Duration::default()).await)
    }

    /// Claims tasks, waiting up to `wait` (at most 30 s) until there is one.
    pub async fn claim(&self, claim: &Claim, wait: Duration) -> Result<Vec<Lease>> {
        let Claim { agent, instance, capabilities, max, lease, id, again } = claim.clone();
        let request =
            wire::ClaimRequest { agent, instance, capabilities, max, lease, wait, id, again };
        let answer: wire::Leases<_> =
            self.call(Method::POST, self.url("tasks/claim", &[])?, Some(&request), wait).await?;
        Ok(answer.leases)
    }

    /// Extends leases to `lease` from now.
    pub async fn extend(&self, leases: &[LeaseRef], lease: Duration) -> Result<Vec<Outcome>> {
        let request = wire::ExtendRequest { leases: leases.to_vec(), lease, note: None };
        let answer: wire::Outcomes<_> = self.post("tasks/extend", &request).await?;
        Ok(answer.outcomes)
    }

    /// Extends leases to `lease` from now, and says how far the work is: a short text for people,
    /// of up to 256 characters, shown with the tasks as long as they run.
    pub async fn extend_with_note(
        &self,
        leases: &[LeaseRef],
        lease: Duration,
        note: &str,
    ) -> Result<Vec<Outcome>> {
        let note = Some(note.to_owned());
        let request = wire::ExtendRequest { leases: leases.to_vec(), lease, note };
        let answer: wire::Outcomes<_> = self.post("tasks/extend", &request).await?;
        Ok(answer.outcomes)
    }

    /// Completes tasks.
    pub async fn complete(&self, completions: &[Completion]) -> Result<Vec<Outcome>> {
        let answer: wire::Outcomes<_> =
            self.post("tasks/complete", &wire::Completions { completions }).await?;
        Ok(answer.outcomes)
    }

    /// Ends tries that failed.
    pub async fn fail(&self, failures: &[Failure]) -> Result<Vec<Outcome>> {
        let answer: wire::Outcomes<_> =
            self.post("tasks/fail", &wire::Failures { failures }).await?;
        Ok(answer.outcomes)
    }

    /// Registers an agent.
    pub async fn register(&self, registration: &Registration) -> Result<wire::Welcome> {
        self.post("agents", registration).await
    }

    /// Signs of life. False for an agent that must register again.
    pub async fn heartbeat(&self, agents: &[Heartbeat]) -> Result<Vec<bool>> {
        let answer: wire::Known<_> =
            self.post("agents/heartbeat", &wire::Heartbeats { agents }).await?;
        Ok(answer.known)
    }

    /// A page of the agents that match, gone ones too unless a state is asked for.
    pub async fn agents(&self, query: &AgentQuery) -> Result<AgentPage> {
        let mut parameters = vec![("limit".to_owned(), query.effective_limit().to_string())];
        let mut add = |name: &str, value: String| parameters.push((name.to_owned(), value));
        query.capability.iter().for_each(|capability| add("capability", capability.to_string()));
        query.state.iter().for_each(|state| add("state", state.to_string()));
        query.labels.iter().for_each(|(name, value)| add(&format!("label.{name}"), value.clone()));
        if query.sort == AgentOrder::Load {
            add("sort", "load".to_owned());
        }
        query.after.iter().for_each(|after| add("after", after.to_string()));
        let parameters: Vec<_> = parameters.iter().map(|(n, v)| (&**n, v.clone())).collect();
        let answer: wire::AgentList = self.get("agents", &parameters).await?;
        let next = answer.next.as_deref().map(|next| AgentCursor::parse(next, query.sort));
        let next = next.transpose().map_err(|why| Error::Unreadable { status: 200, why })?;
        Ok(AgentPage { agents: answer.agents, next })
    }

    /// All agents that match, page by page.
    pub async fn all_agents(&self, query: &AgentQuery) -> Result<Vec<Agent>> {
        let mut query = AgentQuery { limit: 1000, ..query.clone() };
        let mut all = Vec::new();
        loop {
            let page = self.agents(&query).await?;
            all.extend(page.agents);
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Has an agent take nothing new; it finishes what it has. None if there is no such agent.
    pub async fn drain(&self, id: &AgentId, reason: Option<&str>) -> Result<Option<Agent>> {
        let reason = reason.map(str::to_owned);
        found(self.post("agents/drain", &wire::DrainRequest { id: id.clone(), reason }).await)
    }

    /// Has an agent take tasks again. None if there is no such agent.
    pub async fn resume(&self, id: &AgentId) -> Result<Option<Agent>> {
        found(self.post("agents/resume", &wire::ResumeRequest { id: id.clone() }).await)
    }

    /// One agent, if there is such a one.
    pub async fn agent(&self, id: &AgentId) -> Result<Option<Agent>> {
        found(self.get(&format!("agents/{id}"), &[]).await)
    }

    /// Takes an agent that leaves in order out of the registry and returns its leases.
    pub async fn deregister(&self, id: &AgentId, instance: InstanceId) -> Result<()> {
        let url = self.url(&format!("agents/{id}"), &[("instance", instance.to_string())])?;
        self.exchange::<()>(Method::DELETE, url, None, Duration::default()).await.map(drop)
    }

    /// The agents that take tasks.
    pub async fn workers(&self) -> Result<Vec<Agent>> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let mut parameters = vec![("limit", "1000".to_owned())];
            parameters.extend(after.map(|after| ("after", after)));
            let answer: wire::WorkerList = self.get("workers", &parameters).await?;
            all.extend(answer.workers);
            after = answer.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// How many workers the tasks of these capabilities need, at so many places each.
    pub async fn pool(
        &self,
        capabilities: &[Capability],
        concurrency: u32,
        drain_within: Duration,
    ) -> Result<wire::PoolReport> {
        let mut parameters = vec![
            ("concurrency", concurrency.to_string()),
            ("drain_within", drain_within.to_string()),
        ];
        parameters.extend(capabilities.iter().map(|c| ("capability", c.to_string())));
        self.get("pool", &parameters).await
    }

    /// Tasks that run for much longer than usual.
    pub async fn stuck(&self) -> Result<Vec<StuckTask>> {
        let answer: wire::StuckList = self.get("tasks/stuck", &[]).await?;
        Ok(answer.tasks)
    }

    /// Sends messages.
    pub async fn send(&self, messages: &[NewMessage]) -> Result<()> {
        let url = self.url("messages", &[])?;
        let body = wire::MessageBatch { messages };
        self.exchange(Method::POST, url, Some(&body), Duration::default()).await.map(drop)
    }

    /// Sends a message to one agent that can do something: the one with the most free places. Answers
    /// which. `None` if there is none.
    pub async fn send_to_any(&self, announcement: &wire::Announcement) -> Result<Option<AgentId>> {
        let url = self.url("messages/any", &[])?;
        let answer = self.call::<wire::AnnouncedTo, _>(
            Method::POST,
            url,
            Some(announcement),
            Duration::default(),
        );
        Ok(found(answer.await)?.map(|announced| announced.to))
    }

    /// Sends a message to all agents that are not gone, or to those of them that can do something.
    /// Answers how many.
    pub async fn send_to_all(&self, announcement: &wire::Announcement) -> Result<u64> {
        let url = self.url("messages/all", &[])?;
        let answer: wire::Announced =
            self.call(Method::POST, url, Some(announcement), Duration::default()).await?;
        Ok(answer.agents)
    }

    /// Reads a mailbox, waiting up to `wait` (at most 30 s) until something is in it.
    pub async fn receive(
        &self,
        agent: &AgentId,
        after: Option<i64>,
        limit: u32,
        wait: Duration,
    ) -> Result<Vec<Message>> {
        let mut parameters = vec![
            ("agent", agent.to_string()),
            ("limit", limit.to_string()),
            ("wait", wait.to_string()),
        ];
        parameters.extend(after.map(|after| ("after", after.to_string())));
        let url = self.url("mailbox", &parameters)?;
        let answer: wire::MessageList<_> = self.call::<_, ()>(Method::GET, url, None, wait).await?;
        Ok(answer.messages)
    }

    /// Takes messages out of a mailbox.
    pub async fn acknowledge(&self, agent: &AgentId, sequences: &[i64]) -> Result<()> {
        let url = self.url("mailbox/acknowledge", &[])?;
        let body = wire::Acknowledgement { agent: agent.clone(), sequences: sequences.to_vec() };
        self.exchange(Method::POST, url, Some(&body), Duration::default()).await.map(drop)
    }

    /// Says that an agent can do nothing with messages of its mailbox. They come again, until they
    /// were rejected so often that they are dead letters; `at_once` they are that now. Answers how
    /// many became one.
    pub async fn reject_messages(
        &self,
        agent: &AgentId,
        sequences: &[i64],
        reason: &str,
        at_once: bool,
    ) -> Result<u64> {
        let url = self.url("mailbox/reject", &[])?;
        let body = wire::MailRejection {
            agent: agent.clone(),
            sequences: sequences.to_vec(),
            reason: reason.to_owned(),
            at_once,
        };
        let answer: wire::Rejected =
            self.call(Method::POST, url, Some(&body), Duration::default()).await?;
        Ok(answer.dead)
    }

    /// Sends a message and waits up to `wait` for a message that answers it: one in the mailbox of
    /// `message.reply_to` whose `in_reply_to` is its id. The answer is taken out of the mailbox,
    /// all else stays there. `None` when no answer came in time; it may still come.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::receive`]. A message without `reply_to` is not sent:
    /// [`Error::NoReplyTo`].
    pub async fn request(&self, message: &NewMessage, wait: Duration) -> Result<Option<Message>> {
        let mailbox = message.reply_to.clone().ok_or(Error::NoReplyTo)?;
        self.send(std::slice::from_ref(message)).await?;
        let until = tokio::time::Instant::now() + wait.0;
        let mut after = None;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let patience = Duration(left.min(wire::MAX_WAIT.0));
            let came = self.receive(&mailbox, after, 1000, patience).await?;
            let answer = came.iter().find(|one| one.in_reply_to == Some(message.id));
            if let Some(answer) = answer {
                self.acknowledge(&mailbox, &[answer.sequence]).await?;
                return Ok(Some(answer.clone()));
            }
            after = came.last().map(|last| last.sequence).or(after);
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Messages that were not delivered, the newest first, at most `limit`.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>> {
        let limit = [("limit", limit.to_string())];
        let answer: wire::DeadLetterList<_> = self.get("dead-letters", &limit).await?;
        Ok(answer.letters)
    }

    /// Sends a dead letter again, under a new id, which it answers. `None` when there is no such
    /// letter.
    pub async fn resend_letter(&self, id: MessageId) -> Result<Option<MessageId>> {
        let url = self.url(&format!("dead-letters/{id}/resend"), &[])?;
        let answer = self.call::<wire::Resent, ()>(Method::POST, url, None, Duration::default());
        Ok(found(answer.await)?.map(|resent| resent.id))
    }

    /// Forgets a dead letter. False if there is no such letter.
    pub async fn forget_letter(&self, id: MessageId) -> Result<bool> {
        let url = self.url(&format!("dead-letters/{id}"), &[])?;
        removed(self.exchange::<()>(Method::DELETE, url, None, Duration::default()).await)
    }

    /// How the buses are, and which of them carries messages.
    pub async fn bus(&self) -> Result<BusStatus> {
        self.get("bus", &[]).await
    }

    /// Has messages take another bus. Answers how it was before that was done.
    pub async fn switch_bus(&self, switch: &wire::BusSwitch) -> Result<BusStatus> {
        let url = self.url("bus/switch", &[])?;
        self.call(Method::POST, url, Some(switch), Duration::default()).await
    }

    /// Has messages take the order of the plan again. Answers how it was before that was done.
    pub async fn return_bus(&self, order: &wire::BusReturn) -> Result<BusStatus> {
        let url = self.url("bus/return", &[])?;
        self.call(Method::POST, url, Some(order), Duration::default()).await
    }

    /// Whether the process is alive; says nothing about its store.
    pub async fn health(&self) -> Result<wire::Health> {
        self.get("health", &[]).await
    }

    /// Whether the process can work. `Ok` also when it answers that it cannot.
    pub async fn ready(&self) -> Result<wire::Readiness> {
        let url = self.url("health/ready", &[])?;
        let (status, body) = self.raw::<()>(Method::GET, url, None, Duration::default()).await?;
        match serde_json::from_slice(&body) {
            Ok(readiness) => Ok(readiness),
            Err(_) => Err(refusal(status, &body)),
        }
    }

    pub(crate) fn url(&self, path: &str, parameters: &[(&str, String)]) -> Result<Url> {
        let mut url = self.base.join(path).map_err(|error| Error::Url {
            url: format!("{}{path}", self.base),
            why: error.to_string(),
        })?;
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        Ok(url)
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        parameters: &[(&str, String)],
    ) -> Result<T> {
        let url = self.url(path, parameters)?;
        self.call::<_, ()>(Method::GET, url, None, Duration::default()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let url = self.url(path, &[])?;
        self.call(Method::POST, url, Some(body), Duration::default()).await
    }

    pub(crate) async fn call<T: DeserializeOwned, B: Serialize>(
        &self,
        method: Method,
        url: Url,
        body: Option<&B>,
        wait: Duration,
    ) -> Result<T> {
        let (status, body) = self.exchange(method, url, body, wait).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::Unreadable { status, why: error.to_string() })
    }

    /// One request whose answer must be a success.
    pub(crate) async fn exchange<B: Serialize>(
        &self,
        method: Method,
        url: Url,
        body: Option<&B>,
        wait: Duration,
    ) -> Result<(u16, Bytes)> {
        let (status, body) = self.raw(method, url, body, wait).await?;
        if (200..300).contains(&status) { Ok((status, body)) } else { Err(refusal(status, &body)) }
    }

    async fn raw<B: Serialize>(
        &self,
        method: Method,
        url: Url,
        body: Option<&B>,
        wait: Duration,
    ) -> Result<(u16, Bytes)> {
        let timeout = self.timeout.0.saturating_add(wait.0);
        let json = body.map(serde_json::to_vec).transpose();
        let json = json.map_err(|error| Error::Unsendable(error.to_string()))?;
        self.http.exchange(method, &url, json, timeout).await
    }
}

/// `None` when the server says that there is no such thing.
pub(crate) fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(thing) => Ok(Some(thing)),
        Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there was something to take away.
fn removed<T>(result: Result<T>) -> Result<bool> {
    Ok(found(result)?.is_some())
}

/// The error behind an answer that is no success.
fn refusal(status: u16, body: &[u8]) -> Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Error::Refused(Box::new(problem)),
        Err(_) => Error::Unreadable { status, why: "it is no problem document".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_listening_is_transient_and_patience_ends() {
        // Bound and closed again: nobody listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = Client::new(&format!("http://{address}")).unwrap();
        let error = client.health().await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        let patience = Patience {
            total: Some(Duration::from_millis(60)),
            first: Duration::from_millis(5),
            max: Duration::from_millis(10),
        };
        let mut calls = 0;
        let result = client
            .patiently(&patience, |client| {
                calls += 1;
                async move { client.health().await }
            })
            .await;
        assert!(result.unwrap_err().is_transient());
        assert!(calls > 1, "{calls}");
    }
}
