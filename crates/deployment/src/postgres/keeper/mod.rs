//! The process beside a PostgreSQL server.
//!
//! Two parts run side by side: one asks the controller for the directive and renews the lease,
//! the other makes the server what the directive says. The second looks, decides
//! ([`decide`]), does one thing, and looks again; nothing is remembered that can be seen. If the
//! keeper dies at any moment, the server dies too, and the next keeper begins by looking.

mod decide;
mod lease;
mod renew;

pub use renew::Controller;

use std::sync::Arc;
use std::time::{Duration, Instant};

use resurgam_model::database::Epoch;
use tokio::sync::watch;

use super::contain::Strength;
use super::data::evict;
use super::history::Kinship;
use super::rebuild;
use super::server::{Instance, Server};
use super::wire::{Directive, Observed, Order, ServerState, StandbyState, Upstream};
use crate::Result;
use decide::{Act, Facts, decide};
use lease::Lease;
use renew::Said;

/// How often to look when nothing happens.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often to look while something is about to happen.
const LOOK_SOON: Duration = Duration::from_millis(10);
/// How often to ask the primary about its history while not streaming.
const ASK_HISTORY_EVERY: Duration = Duration::from_millis(100);
/// The pause after an act that failed.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// Keeps the server until `shutdown`, then ends it in order.
///
/// # Errors
/// When the instance's folder cannot be used, or the kernel has no timer for the lease.
pub async fn run(
    instance: Instance,
    controller: Controller,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    instance.layout.prepare(&instance.programs, &instance.secrets)?;
    // A keeper before this one is dead. What it may have left is ended before the first word to
    // the controller: that word says that nothing of an earlier life is left.
    evict(&instance.layout.data()).await?;
    rebuild::claim_folder(&instance)?;

    let lease = Arc::new(Lease::new().map_err(crate::Error::path("cannot use", "a kernel timer"))?);
    let last_reign = instance.layout.last_reign()?;
    let (say, said) = watch::channel(Said {
        observed: Observed::default(),
        carried_out: 0,
        fence: Strength::Kernel,
    });
    let mut keeper = Keeper {
        server: Server::new(instance.clone()),
        directives: lease.directives(),
        lease: Arc::clone(&lease),
        say,
        last_reign,
        last_streamed: Instant::now(),
        asked_history: None,
        kinship: None,
        rewound: false,
        starts: 0,
        problem: None,
    };
    tokio::select! {
        () = keeper.keep() => {}
        error = renew::renew(&instance, &controller, lease, said) => {
            tracing::error!(%error, "put off the fuse");
        }
        () = shutdown => {}
    }
    keeper.server.stop().await;
    Ok(())
}

struct Keeper {
    server: Server,
    directives: watch::Receiver<Option<Directive>>,
    lease: Arc<Lease>,
    say: watch::Sender<Said>,
    last_reign: Epoch,
    last_streamed: Instant,
    asked_history: Option<Instant>,
    kinship: Option<Kinship>,
    rewound: bool,
    starts: u32,
    problem: Option<String>,
}

impl Keeper {
    async fn keep(&mut self) {
        loop {
            let directive = self.directives.borrow_and_update().clone();
            let state = self.server.observe().await;
            let Some(directive) = directive else {
                self.tell(state, 0, None);
                self.wait(LOOK_EVERY).await;
                continue;
            };
            if matches!(state, ServerState::Standby(_) | ServerState::Primary(_)) {
                self.starts = 0;
            }
            // Also of one that somebody else has promoted.
            let layout = &self.server.instance().layout;
            if matches!(state, ServerState::Primary(_))
                && !layout.is_branch()
                && let Err(error) = layout.begin_branch()
            {
                self.problem = Some(chain(&error));
            }
            self.learn(&directive, &state).await;
            let act = decide(&directive, &state, &self.facts());
            let doing = long_act(&act);
            self.tell(state, directive.number, doing);
            if self.server.reign().is_none()
                && let Err(error) = self.lease.put_out()
            {
                // It burns down then, which is safe.
                tracing::warn!(%error, "put out the fuse");
            }
            if self.server.reign().is_some()
                && let Err(error) = self.server.keep_fenced()
            {
                self.problem = Some(chain(&error));
            }
            let pause = match act {
                Act::Nothing => self.quiet(&directive),
                Act::ForgetReplaced => {
                    let _ = rebuild::forget_replaced(self.server.instance()).await;
                    LOOK_EVERY
                }
                act => {
                    tracing::info!(?act, "act");
                    match self.act(act).await {
                        Ok(()) => {
                            self.problem = None;
                            Duration::ZERO
                        }
                        Err(error) => {
                            let text = chain(&error);
                            tracing::warn!(error = text, "act");
                            self.problem = Some(text);
                            FAILED_PAUSE
                        }
                    }
                }
            };
            if !pause.is_zero() {
                self.wait(pause).await;
            }
        }
    }

    /// How long to wait when there is nothing to do.
    fn quiet(&self, directive: &Directive) -> Duration {
        let starting = match self.say.borrow().observed.state {
            ServerState::Starting => true,
            // On its way to become one.
            ServerState::Standby(_) => matches!(directive.order, Order::Primary { .. }),
            _ => false,
        };
        if starting { LOOK_SOON } else { LOOK_EVERY }
    }

    /// Waits for a directive, the server's end, or the time.
    async fn wait(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            _ = self.directives.changed() => {}
            () = self.server.ended() => {}
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            reign: self.server.reign(),
            last_reign: self.last_reign,
            upstream: self.server.upstream(),
            synchronous: self.server.synchronous(),
            kinship: self.kinship,
            not_streaming_for: self.last_streamed.elapsed(),
            rewound: self.rewound,
            branch: self.server.instance().layout.is_branch(),
            starts: self.starts,
            furnished: self.server.furnished(),
        }
    }

    /// Finds out, for a standby that does not stream, whether it can.
    async fn learn(&mut self, directive: &Directive, state: &ServerState) {
        let (Order::Standby { upstream }, ServerState::Standby(standby)) =
            (&directive.order, state)
        else {
            self.kinship = None;
            self.last_streamed = Instant::now();
            return;
        };
        if standby.streaming_from == Some(upstream.address.port()) {
            self.last_streamed = Instant::now();
            self.kinship = None;
            self.rewound = false;
            self.asked_history = None;
            return;
        }
        if self.asked_history.is_some_and(|at| at.elapsed() < ASK_HISTORY_EVERY) {
            return;
        }
        self.asked_history = Some(Instant::now());
        self.kinship = match self.compare(upstream, standby).await {
            Ok(kinship) => kinship,
            Err(error) => {
                tracing::debug!(error = chain(&error), "ask the primary about its history");
                None
            }
        };
    }

    async fn compare(
        &self,
        upstream: &Upstream,
        standby: &StandbyState,
    ) -> Result<Option<Kinship>> {
        let instance = self.server.instance();
        let position = if instance.layout.is_branch() {
            // What it has not replayed yet may be what the primary never had.
            match self.server.replayed_all().await? {
                Some(position) => position,
                None => return Ok(None),
            }
        } else {
            standby.replayed
        };
        rebuild::kinship(instance, upstream, standby.timeline, position).await.map(Some)
    }

    fn tell(&self, state: ServerState, carried_out: u64, doing: Option<String>) {
        // A promotion may have been begun that has not ended: then it is no harmless standby.
        let state = match state {
            ServerState::Standby(_) if self.server.reign().is_some() => ServerState::Starting,
            state => state,
        };
        self.say.send_modify(|said| {
            said.observed = Observed {
                state,
                last_exit: self.server.last_exit().map(str::to_owned),
                doing,
                problem: self.problem.clone(),
            };
            said.carried_out = carried_out;
            if let Some(strength) = self.server.strength() {
                said.fence = strength;
            }
        });
    }

    async fn act(&mut self, act: Act) -> Result<()> {
        match act {
            Act::Nothing | Act::ForgetReplaced => Ok(()),
            Act::Complain(why) => Err(crate::Error::State(why.to_owned())),
            Act::Kill => {
                self.server.kill().await;
                Ok(())
            }
            Act::Stop => {
                self.server.stop().await;
                Ok(())
            }
            Act::Create => rebuild::initialise(self.server.instance()).await,
            Act::Start(upstream) => {
                if self.starts > 0 {
                    // What ended right after its start may do so again.
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
                self.starts += 1;
                self.last_streamed = Instant::now();
                self.server.start(upstream.as_ref()).await
            }
            Act::Promote { epoch, synchronous } => {
                if !self.lease.suffices(epoch) {
                    // The next renewal brings a longer one.
                    tokio::time::sleep(LOOK_SOON).await;
                    return Ok(());
                }
                let promoted = self.server.promote(epoch, synchronous.as_ref()).await;
                // Also when it failed midway.
                self.last_reign = self.last_reign.max(self.server.reign().unwrap_or_default());
                promoted
            }
            Act::Adopt(epoch) => {
                self.last_reign = epoch;
                self.server.adopt(epoch)
            }
            Act::SetSynchronous(standby) => self.server.set_synchronous(standby.as_ref()).await,
            Act::Furnish(standbys) => self.server.furnish(&standbys).await,
            Act::Follow(upstream) => {
                self.last_streamed = Instant::now();
                if self.kinship == Some(Kinship::Fits) {
                    self.server.instance().layout.end_branch()?;
                }
                self.server.follow(Some(&upstream)).await
            }
            Act::Rewind(upstream) => {
                self.rewound = true;
                self.server.stop().await;
                rebuild::rewind(self.server.instance(), &upstream).await?;
                self.start_following(&upstream).await
            }
            Act::Copy(upstream) => {
                // What there is goes on serving reads until the copy is whole.
                rebuild::base_backup(self.server.instance(), &upstream).await?;
                self.server.stop().await;
                rebuild::take_over_copy(self.server.instance()).await?;
                self.start_following(&upstream).await
            }
        }
    }

    async fn start_following(&mut self, upstream: &Upstream) -> Result<()> {
        self.last_streamed = Instant::now();
        self.kinship = None;
        self.starts = 1;
        self.server.start(Some(upstream)).await
    }
}

fn long_act(act: &Act) -> Option<String> {
    match act {
        Act::Create => Some("creating the database".to_owned()),
        Act::Rewind(upstream) => Some(format!("rewinding to {}", upstream.name)),
        Act::Copy(upstream) => Some(format!("base backup from {}", upstream.name)),
        _ => None,
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
