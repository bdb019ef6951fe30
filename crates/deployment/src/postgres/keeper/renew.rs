//! Asks the controller for the directive, again and again.

use std::sync::Arc;
use std::time::Duration;

use resurgam_model::InstanceId;
use tokio::sync::watch;

use super::super::contain::Strength;
use super::super::fuse::BootTime;
use super::super::server::Instance;
use super::super::wire::{Directive, Observed, Renewal};
use super::lease::Lease;

/// The pause after the controller could not be asked.
const PAUSE: Duration = Duration::from_millis(50);
/// The controller answers within its holding time or not at all; what takes longer is given up
/// and asked again.
const PATIENCE: Duration = Duration::from_millis(1000);

/// What is told to the controller.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Said {
    pub(super) observed: Observed,
    pub(super) carried_out: u64,
    pub(super) fence: Strength,
}

impl Said {
    /// Worth telling at once, rather than with the next renewal.
    fn differs(&self, other: &Self) -> bool {
        std::mem::discriminant(&self.observed.state)
            != std::mem::discriminant(&other.observed.state)
            || self.carried_out != other.carried_out
            || self.observed.doing != other.observed.doing
            || self.observed.problem != other.observed.problem
    }
}

/// Where the controller is and how to be let in.
#[derive(Clone, Debug)]
pub struct Controller {
    /// Such as `http://127.0.0.1:4000`.
    pub url: String,
    /// What it wants to see.
    pub token: String,
}

/// Asks until the end of time. Returns only if the kernel refuses to put off the fuse; the
/// process must end then.
pub(super) async fn renew(
    instance: &Instance,
    controller: &Controller,
    lease: Arc<Lease>,
    mut said: watch::Receiver<Said>,
) -> std::io::Error {
    let client = reqwest::Client::new();
    let url = format!("{}/v1/instances/{}/renew", controller.url, instance.name);
    let life = InstanceId::new();
    let mut failing = false;
    loop {
        let telling = said.borrow_and_update().clone();
        let renewal = Renewal {
            life,
            fence: telling.fence,
            address: instance.address,
            observed: telling.observed.clone(),
            heard: lease.heard(),
            carried_out: telling.carried_out,
        };
        let asked = BootTime::now();
        let request = client
            .post(&url)
            .bearer_auth(&controller.token)
            .timeout(PATIENCE)
            .json(&renewal)
            .send();
        let answer = async {
            let response = request.await?.error_for_status()?;
            response.json::<Directive>().await
        };
        let answer = tokio::select! {
            answer = answer => answer,
            // What is new is told at once; the question is asked again with it.
            () = news(&mut said, &telling) => continue,
        };
        match answer {
            Ok(directive) => {
                failing = false;
                if let Err(error) = lease.take(directive, asked) {
                    return error;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "ask the controller");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn news(said: &mut watch::Receiver<Said>, told: &Said) {
    let worth = said.wait_for(|now| now.differs(told)).await.is_ok();
    if !worth {
        // The acting part is gone and the process is about to end.
        std::future::pending::<()>().await;
    }
}
