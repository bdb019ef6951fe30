//! The controller is lost, or everything at once: what nobody inside can recover from.

use resurgam_model::{Scenario, Timestamp};

use super::FaultKind;
use super::fault::{Frozen, strike};
use super::run::{Drill, RECOVERY, Struck};
use crate::status::Status;
use crate::{Error, Result};

impl Drill<'_> {
    /// Strikes the controller alone. That the rest dies with it, and comes back, is its guard's business.
    pub(super) async fn controller(&mut self, kind: FaultKind) -> Result<Struck> {
        let victim = self.subject.controller();
        let victim = victim.ok_or_else(|| Error::Drill("no controller runs".to_owned()))?;
        self.say(&format!("{} the controller", kind.as_str()));
        let _frozen = Frozen::by(kind, &[victim]);
        let since = Timestamp::now();
        strike(&[victim], kind).await?;
        let at = Timestamp::now();
        self.say("waiting until its guard has started another one");
        self.subject.next_controller(RECOVERY).await?;
        let incident = self.recovery(Scenario::Controller, since).await?;
        Ok(Struck { at, incident, ..Struck::default() })
    }

    pub(super) async fn full_stop(&mut self, _: &Status) -> Result<Struck> {
        self.say("killing every process, the controller included");
        let since = Timestamp::now();
        self.subject.kill_all().await?;
        let at = Timestamp::now();
        self.subject.start_again().await?;
        let incident = self.recovery(Scenario::FullStop, since).await?;
        Ok(Struck { at, incident, ..Struck::default() })
    }
}
