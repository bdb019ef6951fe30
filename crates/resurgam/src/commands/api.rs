//! How a command reaches the API.

use clap::Args;
use resurgam_client::Client;

use crate::failure::Failure;

/// The options of every command that speaks to the API. Flatten it into the command's own
/// arguments, and call [`ApiArgs::client`].
#[derive(Clone, Debug, Args)]
pub(crate) struct ApiArgs {
    /// Where the API is.
    #[arg(
        long = "api",
        value_name = "URL",
        env = "RESURGAM_API",
        default_value = "http://127.0.0.1:7070"
    )]
    pub(crate) url: String,
}

impl ApiArgs {
    /// A client of the API. Nothing is sent yet.
    ///
    /// # Errors
    /// Wrong usage, when the address cannot be called.
    #[allow(dead_code, reason = "the commands that use it come next")]
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.url).map_err(|error| {
            Failure::usage(format!("{error}; name the API with --api or RESURGAM_API"))
        })
    }
}
