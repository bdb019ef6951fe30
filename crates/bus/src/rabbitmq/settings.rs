//! Where RabbitMQ is.

use std::fmt;
use std::time::Duration;

use resurgam_model::plan::{Bus, RabbitMq};

/// Where RabbitMQ is, and how to use it. Debug output shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RabbitSettings {
    /// Its nodes, each `amqp://user:password@host:port/vhost`; the first that answers is used.
    pub urls: Vec<String>,
    /// What the names of the queues begin with.
    pub queue: String,
    /// Whether the queues have copies on several nodes, which agree on each message; else each
    /// lies on one node.
    pub quorum: bool,
    /// Its management API, such as `http://user:password@host:15672`; without it alarms are seen
    /// only when they stop us.
    pub management: Option<String>,
    /// What has not answered within this time has failed.
    pub timeout: Duration,
}

impl fmt::Debug for RabbitSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitSettings")
            .field("nodes", &self.urls.len())
            .field("queue", &self.queue)
            .field("quorum", &self.quorum)
            .field("management", &self.management.is_some())
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl RabbitSettings {
    /// The RabbitMQ of a plan.
    #[must_use]
    pub fn of(plan: &Bus) -> Self {
        let RabbitMq { urls, queue, quorum, management, .. } = plan.rabbitmq.clone();
        Self { urls, queue, quorum, management, timeout: plan.timeout.0 }
    }
}
