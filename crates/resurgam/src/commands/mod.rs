//! One file per command.

pub(crate) mod access;
pub(crate) mod agents;
pub(crate) mod api;
pub(crate) mod audit_log;
pub(crate) mod backup;
pub(crate) mod demo;
pub(crate) mod drill;
pub(crate) mod incident;
pub(crate) mod instance;
pub(crate) mod journal;
pub(crate) mod limit;
pub(crate) mod plan;
pub(crate) mod recover;
pub(crate) mod restore;
pub(crate) mod runbook;
pub(crate) mod schedule;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod task;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod vault;
pub(crate) mod work;
pub(crate) mod worker;
pub(crate) mod workflow;
