//! `resurgam worker`

use std::sync::Arc;

use resurgam_client::worker::{Exec, Remote, Sha256, Worker};
use resurgam_model::AgentId;

use crate::cli::WorkerArgs;
use crate::failure::{Failure, code};
use crate::shutdown;

pub(crate) async fn run(args: WorkerArgs) -> Result<u8, Failure> {
    let name = match args.name {
        Some(name) => name,
        None => own_name()?,
    };
    if args.exec.is_none()
        && let Some(unknown) = args.capabilities.iter().find(|c| c.as_str() != "sha256")
    {
        return Err(Failure::usage(format!(
            "nothing built in can do {unknown}; name the program that can with --exec"
        )));
    }
    let exec = args.exec.as_deref().map(Exec::new).transpose()?.map(Arc::new);
    let mut worker = Worker::new(name)
        .concurrency(args.concurrency)
        .lease(args.lease)
        .version(env!("CARGO_PKG_VERSION"));
    for capability in args.capabilities {
        worker = match &exec {
            Some(exec) => worker.on(capability, Arc::clone(exec)),
            None => worker.on(capability, Sha256),
        };
    }
    worker.run(Remote::new(args.api.client()?), shutdown::requested()).await?;
    Ok(code::OK)
}

fn own_name() -> Result<AgentId, Failure> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    Ok(AgentId::new(format!("{host}-{}", std::process::id()))?)
}
