//! `resurgam instance`: the process beside a PostgreSQL server.

use std::collections::BTreeMap;

use resurgam_deployment::postgres::data::Layout;
use resurgam_deployment::postgres::keeper::{self, Controller};
use resurgam_deployment::postgres::server::Instance;
use resurgam_deployment::postgres::{Programs, Secrets};

use crate::cli::InstanceArgs;
use crate::failure::{Failure, code};
use crate::shutdown;

/// The variable that carries the token; arguments could be read by others.
pub(crate) const TOKEN: &str = "RESURGAM_CONTROLLER_TOKEN";

pub(crate) async fn run(args: InstanceArgs) -> Result<u8, Failure> {
    let token = std::env::var(TOKEN)
        .map_err(|_| Failure::usage(format!("{TOKEN} is not set; `up` starts instances")))?;
    let mut settings = BTreeMap::new();
    for setting in args.settings {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("{setting:?} is not name=value")))?;
        settings.insert(key.to_owned(), value.to_owned());
    }
    let instance = Instance {
        name: args.name,
        layout: Layout::new(args.dir),
        address: args.address,
        programs: Programs::find(Some(&args.bin_dir))?,
        secrets: Secrets::load(&args.secrets)?,
        database: args.database,
        settings,
    };
    let controller = Controller { url: args.controller, token };
    keeper::run(instance, controller, shutdown::requested()).await?;
    Ok(code::OK)
}
