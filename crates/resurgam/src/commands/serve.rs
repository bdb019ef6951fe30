//! `resurgam serve`

use std::sync::Arc;
use std::time::Duration;

use resurgam_bus::EmbeddedBus;
use resurgam_platform::serve::Limits;
use resurgam_platform::{ServeSettings, serve};
use resurgam_store::Settings;

use crate::cli::ServeArgs;
use crate::failure::{Failure, code};
use crate::shutdown;

/// How long one operation on PostgreSQL may take. A server that does not answer is left for
/// another connection after so long; callers wait longer than that.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: ServeArgs) -> Result<u8, Failure> {
    let url = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    let store = match (args.sqlite, url) {
        (Some(path), _) => Settings::Sqlite { path },
        (None, Some(url)) => {
            let roles: Vec<_> = args.roles.iter().map(|role| role.as_str()).collect();
            Settings::Postgres(resurgam_store::postgres::Settings {
                url,
                max_pool_size: args.pool,
                application_name: format!("resurgam {}", roles.join("+")),
                timeout: DATABASE_TIMEOUT,
            })
        }
        (None, None) => {
            return Err(Failure::usage(
                "no database was named: set DATABASE_URL, or give --sqlite FILE",
            ));
        }
    };
    let store = resurgam_store::open(&store)?;
    let bus = Arc::new(EmbeddedBus::new(Arc::clone(&store)));
    let mut settings = ServeSettings::new(args.roles, args.listen);
    settings.registry_url = args.registry;
    settings.limits = Limits::with_payload(args.max_payload);
    let ready = |address| tracing::info!(%address, "serving");
    serve(settings, store, bus, ready, shutdown::requested()).await?;
    Ok(code::OK)
}
