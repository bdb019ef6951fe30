//! `resurgam worker`

use resurgam_client::worker::{self, WorkerSettings};
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
    let mut settings = WorkerSettings::new(args.api.builder()?, name, args.capabilities);
    settings.concurrency = args.concurrency;
    settings.lease = args.lease;
    settings.exec = args.exec;
    let handler = settings.handler()?;
    worker::run(settings, handler, shutdown::requested()).await?;
    Ok(code::OK)
}

fn own_name() -> Result<AgentId, Failure> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    Ok(AgentId::new(format!("{host}-{}", std::process::id()))?)
}
