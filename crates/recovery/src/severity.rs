//! How bad an incident has become. It begins with the severity of its scenario, and is raised as its impact
//! grows; it is never lowered while the incident is open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use resurgam_model::{Severity, Timestamp};

use crate::Result;
use crate::controller::Controller;
use crate::health::Readiness;
use crate::journal::Incident;

/// A platform that takes nothing for so long is out, and not only slow.
const OUTAGE: Duration = Duration::from_secs(5);
/// How often to look.
const LOOK: Duration = Duration::from_secs(1);

/// What is known at a moment.
#[derive(Clone, Copy, Debug)]
struct Facts<'a> {
    /// The incidents that are open.
    open: &'a [Incident],
    /// For how long the platform has not been ready.
    out_for: Option<Duration>,
    now: Timestamp,
}

/// What an incident is by now, and why, if that is worse than before.
fn raised(incident: &Incident, rto: Duration, facts: &Facts<'_>) -> Option<(Severity, String)> {
    if incident.restored_at.is_some() || incident.severity == Severity::P0 {
        return None;
    }
    // What takes the platform away is the cause; whatever is open beside it is not.
    let explained = facts.open.iter().any(|other| {
        other.id != incident.id && other.severity == Severity::P0 && other.restored_at.is_none()
    });
    if let Some(out) = facts.out_for.filter(|out| *out >= OUTAGE && !explained) {
        let why = format!("the platform has taken nothing for {} s", out.as_secs());
        return Some((Severity::P0, why));
    }
    let age = Duration::try_from(facts.now.duration_since(incident.first_sign)).ok()?;
    // Once: what is late twice over is not graver than the next grade.
    let late = age > rto && incident.severity == incident.scenario.severity();
    late.then(|| {
        let why =
            format!("it is not over within its objective of {}", resurgam_model::Duration(rto));
        (incident.severity.graver(), why)
    })
}

impl Controller {
    /// Raises the severity of what grows, for as long as it is waited for.
    pub(crate) async fn watch_severity(self: Arc<Self>) -> Result<()> {
        let platform = Readiness::new(self.parts.api.clone());
        let mut out_since = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let open = self.parts.journal.open_incidents()?;
            let concerned = open
                .iter()
                .filter(|open| open.restored_at.is_none() && open.severity > Severity::P0);
            if concerned.clone().next().is_none() || !*self.settled.borrow() {
                out_since = None;
                continue;
            }
            out_since = match platform.is_ready().await {
                true => None,
                false => Some(out_since.unwrap_or_else(Instant::now)),
            };
            let now = Timestamp::now();
            let out_for = out_since.map(|since: Instant| since.elapsed());
            let facts = Facts { open: &open, out_for, now };
            for incident in concerned {
                let rto = self.parts.plan.objectives(incident.scenario).rto.0;
                let Some((to, why)) = raised(incident, rto, &facts) else { continue };
                if self.parts.journal.escalate(incident.id, to, &why, now)? {
                    tracing::warn!(incident = %incident.id, scenario = %incident.scenario, %to, why, "the incident is graver by now");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::Scenario;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn incident(scenario: Scenario) -> Incident {
        Incident::example(scenario, at(0))
    }

    #[test]
    fn an_outage_is_p0_and_what_lasts_too_long_is_one_grade_worse() {
        let rto = Duration::from_secs(300);
        let workers = incident(Scenario::WorkerPool);
        let standby = incident(Scenario::PostgresStandby);
        let look = |incident: &Incident, open: &[Incident], out: Option<u64>, seconds: i64| {
            let out_for = out.map(Duration::from_secs);
            raised(incident, rto, &Facts { open, out_for, now: at(seconds) }).map(|(to, _)| to)
        };
        assert_eq!(look(&workers, &[], None, 299), None);
        assert_eq!(look(&workers, &[], Some(4), 10), None, "only slow");
        assert_eq!(look(&workers, &[], Some(5), 10), Some(Severity::P0));
        assert_eq!(look(&workers, &[], None, 301), Some(Severity::P0));
        assert_eq!(look(&standby, &[], None, 301), Some(Severity::P1));
        let late = Incident { severity: Severity::P1, ..standby };
        assert_eq!(look(&late, &[], None, 9999), None, "raised already");
        assert_eq!(look(&late, &[], Some(6), 9999), Some(Severity::P0));
        let primary = incident(Scenario::PostgresPrimary);
        assert_eq!(
            look(&workers, std::slice::from_ref(&primary), Some(60), 100),
            None,
            "the other one is the cause"
        );
        let back = Incident { restored_at: Some(at(3)), ..workers };
        assert_eq!(look(&back, &[], Some(60), 9999), None, "only redundancy is missing");
        assert_eq!(look(&primary, &[], Some(60), 9999), None, "there is nothing graver");
    }
}
