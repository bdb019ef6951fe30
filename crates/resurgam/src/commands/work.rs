//! What a worker is to do: the options of `worker` and of `serve --role worker`.

use std::sync::Arc;

use clap::Args;
use resurgam_client::worker::{Exec, Sha256, Worker};
use resurgam_model::{AgentId, Capability, Duration};

use crate::failure::Failure;

/// The options. Flatten them into the command's own arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "The work")]
pub(crate) struct WorkArgs {
    /// The worker's name, to be kept over restarts; made from host name and process number if
    /// not given.
    #[arg(long)]
    pub(crate) name: Option<AgentId>,
    /// What the worker can do. Can be given several times.
    #[arg(long = "capability")]
    pub(crate) capabilities: Vec<Capability>,
    /// Tasks at once; 4 if not given.
    #[arg(long)]
    pub(crate) concurrency: Option<u32>,
    /// How long a lease lasts unless it is extended; 10s if not given.
    #[arg(long)]
    pub(crate) lease: Option<Duration>,
    /// Also take the tasks that are expected to begin within this time; 50ms if not given.
    #[arg(long)]
    pub(crate) ahead: Option<Duration>,
    /// Where the worker is, as LABEL=VALUE: a label for the registry, by which it also gets the
    /// tasks that are to be done near. Can be given several times.
    #[arg(long = "at", value_name = "LABEL=VALUE", value_parser = Label::parse)]
    pub(crate) at: Vec<Label>,
    /// The program that does the work, with all that follows as its arguments.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "PROGRAM")]
    pub(crate) exec: Option<Vec<String>>,
}

impl WorkArgs {
    /// The worker that is asked for.
    ///
    /// # Errors
    /// Wrong usage, when it can do nothing.
    pub(crate) fn worker(self) -> Result<Worker, Failure> {
        if self.capabilities.is_empty() {
            return Err(Failure::usage(
                "a worker must be able to do something: name it with --capability",
            ));
        }
        if self.exec.is_none()
            && let Some(unknown) = self.capabilities.iter().find(|c| c.as_str() != "sha256")
        {
            return Err(Failure::usage(format!(
                "nothing built in can do {unknown}; name the program that can with --exec"
            )));
        }
        let name = match self.name {
            Some(name) => name,
            None => own_name()?,
        };
        let mut worker = Worker::new(name).version(env!("CARGO_PKG_VERSION"));
        if let Some(concurrency) = self.concurrency {
            worker = worker.concurrency(concurrency);
        }
        if let Some(lease) = self.lease {
            worker = worker.lease(lease);
        }
        if let Some(ahead) = self.ahead {
            worker = worker.ahead(ahead);
        }
        let exec = self.exec.as_deref().map(Exec::new).transpose()?.map(Arc::new);
        for capability in self.capabilities {
            worker = match &exec {
                Some(exec) => worker.on(capability, Arc::clone(exec)),
                None => worker.on(capability, Sha256),
            };
        }
        // What it can do is known by now.
        for Label { name, value } in &self.at {
            worker = worker.at(name, value)?;
        }
        Ok(worker)
    }
}

/// A label with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl Label {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("give it as LABEL=VALUE, such as zone=eu-1".to_owned()),
        }
    }
}

fn own_name() -> Result<AgentId, Failure> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    Ok(AgentId::new(format!("{host}-{}", std::process::id()))?)
}
