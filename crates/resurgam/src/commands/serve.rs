//! `resurgam serve`

use std::sync::Arc;

use resurgam_bus::EmbeddedBus;
use resurgam_model::Role;
use resurgam_model::plan::Bus;
use resurgam_platform::serve::Limits;
use resurgam_platform::{Direct, ServeSettings, serve};
use tokio::sync::watch;

use super::work::WorkArgs;
use crate::cli::ServeArgs;
use crate::failure::{Failure, code};
use crate::shutdown;

pub(crate) async fn run(args: ServeArgs) -> Result<u8, Failure> {
    let worker = if args.roles.contains(&Role::Worker) {
        Some(args.work.worker()?)
    } else if args.work == WorkArgs::default() {
        None
    } else {
        return Err(Failure::usage(
            "--name, --capability, --concurrency, --lease, --ahead and --exec are for a worker: \
             give --role worker, too",
        ));
    };
    let roles: Vec<_> = args.roles.iter().map(|role| role.as_str()).collect();
    let store = args.database.open(&roles.join("+"))?;
    let bus = Arc::new(EmbeddedBus::new(Arc::clone(&store)));
    let mut settings = ServeSettings::new(args.roles, args.listen);
    settings.registry_url = args.registry;
    settings.checkpoints = args.checkpoints;
    settings.limits = Limits::with_payload(args.max_payload);
    settings.bus = Bus::from_env(|name| std::env::var(name).ok())
        .map_err(|error| Failure::usage(error.to_string()))?;
    args.access.apply(&mut settings)?;
    let ready = |address| tracing::info!(%address, "serving");

    // Both are told to end at the same moment, and each ends in order. If one ends by itself, so
    // does the other.
    let (end, _) = watch::channel(false);
    let ended = || {
        let mut ends = end.subscribe();
        async move { drop(ends.wait_for(|end| *end).await) }
    };
    let work = async {
        let result = match worker {
            Some(worker) => {
                let queue = Direct::new(Arc::clone(&store), settings.heartbeat);
                worker.run(queue, ended()).await.map_err(Failure::from)
            }
            None => {
                ended().await;
                Ok(())
            }
        };
        end.send_replace(true);
        result
    };
    let serving = async {
        let served = serve(settings.clone(), Arc::clone(&store), bus, ready, ended()).await;
        end.send_replace(true);
        served.map_err(Failure::from)
    };
    let stopping = async {
        tokio::select! {
            () = shutdown::requested() => {}
            () = ended() => {}
        }
        end.send_replace(true);
    };
    let (worked, served, ()) = tokio::join!(work, serving, stopping);
    served.and(worked)?;
    Ok(code::OK)
}
