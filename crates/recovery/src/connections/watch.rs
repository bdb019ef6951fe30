//! Sees that connections run out.

use std::sync::Arc;
use std::time::Duration;

use resurgam_model::Timestamp;
use resurgam_model::plan::{Connections, Detection};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::census::{Holder, Seats};
use super::line::Line;

/// So many looks in a row must find too many taken: a burst is no leak.
const TIMES: u32 = 2;

/// What was seen last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How many connections there are and can be.
    pub seats: Seats,
    /// Who holds them, while too many are taken.
    pub holders: Vec<Holder>,
    /// When too many were taken first, in a row.
    pub since: Option<Timestamp>,
    /// How many looks in a row have found that.
    pub times: u32,
}

impl Seen {
    /// They have run out, and not for a moment only.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.times >= TIMES
    }

    /// With what was seen before, unless a recovery has made that void.
    fn after(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before
            && self.times > 0
        {
            self.times = self.times.saturating_add(before.times);
            self.since = before.since.or(self.since);
        }
        self
    }
}

/// Looks until it is dropped. What is not known is none.
pub async fn watch(
    line: Arc<Line>,
    policy: Connections,
    detection: Detection,
    seen: watch::Sender<Option<Seen>>,
) {
    // Half as often as others are probed: two looks together take less than the 2 s in which a
    // failure is to be noticed.
    let pause: Duration = detection.interval.0.saturating_mul(2);
    loop {
        let now = look(&line, &policy).await;
        let now = now.inspect_err(|why| tracing::debug!(why, "cannot count connections")).ok();
        seen.send_if_modified(|seen| {
            let now = now.map(|now| now.after(seen.as_ref()));
            let changed = *seen != now;
            *seen = now;
            changed
        });
        tokio::time::sleep(pause).await;
    }
}

async fn look(line: &Line, policy: &Connections) -> Result<Seen, String> {
    let seats = line.seats().await?;
    if !seats.reach(policy.full_at) {
        return Ok(Seen { seats, holders: Vec::new(), since: None, times: 0 });
    }
    let census = line.census().await?;
    let (seats, holders, since) = (census.seats, census.holders(), Some(Timestamp::now()));
    Ok(Seen { seats, holders, since, times: 1 })
}
