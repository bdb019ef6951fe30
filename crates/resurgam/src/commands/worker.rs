//! `resurgam worker`

use resurgam_client::worker::Remote;
use resurgam_model::agent::HeartbeatTerms;
use resurgam_platform::Direct;

use crate::cli::WorkerArgs;
use crate::failure::{Failure, code};
use crate::shutdown;

pub(crate) async fn run(args: WorkerArgs) -> Result<u8, Failure> {
    let worker = args.work.worker()?;
    if args.store || args.database.sqlite.is_some() {
        let store = args.database.open("worker")?;
        let queue = Direct::new(store, HeartbeatTerms::default());
        worker.run(queue, shutdown::requested()).await?;
    } else {
        worker.run(Remote::new(args.api.client()?), shutdown::requested()).await?;
    }
    Ok(code::OK)
}
