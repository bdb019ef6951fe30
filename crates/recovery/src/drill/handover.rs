//! The database is handed over while all is well, under load.

use resurgam_deployment::postgres::Programs;
use resurgam_model::report::{StepReport, StepStatus};
use resurgam_model::{Scenario, Timestamp};

use super::fence::Witness;
use super::run::{DETECTION, Drill, Struck};
use crate::journal::IncidentState;
use crate::status::Status;
use crate::{Error, Result};

impl Drill<'_> {
    /// Has another instance reign first, and then hands over to the preferred one, as people order it.
    pub(super) async fn failback(&mut self, status: &Status) -> Result<Struck> {
        let missing = || {
            Error::Drill("this deployment has no standby of PostgreSQL to hand over to".to_owned())
        };
        let postgres = status.postgres.as_ref().ok_or_else(missing)?;
        let preferred = self.subject.plan().postgres.preferred.clone();
        let other = postgres.instances.iter().find(|instance| instance.name != preferred);
        let other = other.ok_or_else(missing)?;
        if postgres.primary.as_ref() == Some(&preferred) {
            self.say(&format!("handing over to {} first", other.name));
            self.subject.command(&["failback", "--to", other.name.as_str()]).await?;
            self.subject.ready().await?;
        }
        let status = self.subject.status().await?;
        let primary = status.postgres.as_ref().and_then(|postgres| postgres.primary.clone());
        let former = primary.ok_or_else(|| Error::Drill("there is no primary".to_owned()))?;
        let instance = postgres.instances.iter().find(|instance| instance.name == former);
        let address = instance.ok_or_else(missing)?.address;
        let programs = Programs::find(self.subject.plan().postgres.bin_dir.as_deref())?;
        let state_dir = self.subject.state_dir().to_owned();
        let mut witness = Witness::new(&state_dir, former.as_str(), address, programs).await?;
        self.say(&format!("handing over from {former} to {preferred}"));
        let at = Timestamp::now();
        let ordered = self.subject.command(&["failback"]);
        let watched = async {
            let incident = self.subject.incident(Scenario::Failback, at, DETECTION).await?;
            self.until(&incident, |detail| {
                let fenced =
                    |step: &StepReport| step.name == "fence" && step.status != StepStatus::Started;
                detail.steps.iter().any(fenced) || detail.incident.state != IncidentState::Open
            })
            .await?;
            // From here on nobody may write there any more.
            witness.begin();
            witness.keep_starting();
            self.until(&incident, |detail| detail.incident.state != IncidentState::Open).await
        };
        let (ordered, detail) = tokio::join!(ordered, watched);
        let (split_brain, fence) = witness.end().await;
        ordered?;
        Ok(Struck { at, incident: Some(detail?), split_brain, fence, ..Struck::default() })
    }
}
