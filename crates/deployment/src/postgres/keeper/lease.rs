//! The keeper's side of the lease: the latest directive, and the fuse that goes with it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resurgam_model::database::Epoch;
use tokio::sync::watch;

use super::super::fuse::{BootTime, Fuse};
use super::super::wire::{Directive, Order};

/// A promotion is begun only if the lease lasts at least so long, lest it be cut off midway.
const ENOUGH: Duration = Duration::from_millis(300);

/// What the renewing and the acting part of a keeper share.
#[derive(Debug)]
pub(super) struct Lease {
    fuse: Fuse,
    directive: watch::Sender<Option<Directive>>,
    /// Guards fuse and directive together: the fuse must never be put out for a directive that
    /// is no longer the latest.
    burning: Mutex<Option<(Epoch, BootTime)>>,
}

impl Lease {
    pub(super) fn new() -> std::io::Result<Self> {
        let (directive, _) = watch::channel(None);
        Ok(Self { fuse: Fuse::new()?, directive, burning: Mutex::new(None) })
    }

    pub(super) fn directives(&self) -> watch::Receiver<Option<Directive>> {
        self.directive.subscribe()
    }

    /// The number of the latest directive.
    pub(super) fn heard(&self) -> u64 {
        self.directive.borrow().as_ref().map_or(0, |directive| directive.number)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Epoch, BootTime)>> {
        self.burning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a directive that was asked for at `asked`. For a primary the fuse is put off to the
    /// end of the lease, counted from the asking: the controller counts from its answer, which
    /// is later, so it never believes the lease over while it lasts here.
    pub(super) fn take(&self, directive: Directive, asked: BootTime) -> std::io::Result<()> {
        let mut burning = self.lock();
        if directive.number < self.heard() {
            // Overtaken on the way.
            return Ok(());
        }
        if matches!(directive.order, Order::Primary { .. }) {
            let until = asked.plus(directive.lease.0);
            self.fuse.light(until)?;
            *burning = Some((directive.epoch, until));
        }
        self.directive.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&directive);
            if changed {
                *current = Some(directive);
            }
            changed
        });
        Ok(())
    }

    /// Whether a promotion may begin in this epoch.
    pub(super) fn suffices(&self, epoch: Epoch) -> bool {
        let burning = self.lock();
        let ordered = self.directive.borrow().as_ref().is_some_and(|directive| {
            directive.epoch == epoch && matches!(directive.order, Order::Primary { .. })
        });
        ordered && burning.is_some_and(|(of, until)| of == epoch && until.left() > ENOUGH)
    }

    /// Puts the fuse out, unless the latest directive is to be primary. Only to be called when
    /// the server cannot accept a write.
    pub(super) fn put_out(&self) -> std::io::Result<()> {
        let mut burning = self.lock();
        let directive = self.directive.borrow();
        let primary = matches!(&*directive, Some(Directive { order: Order::Primary { .. }, .. }));
        if primary || burning.is_none() {
            return Ok(());
        }
        *burning = None;
        self.fuse.put_out()
    }
}
