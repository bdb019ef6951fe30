//! What people order: written into the journal, from where the controller takes it.
//!
//! Whoever may write into the state folder may order. So an order needs no way into the controller,
//! is on disk before anything follows from it, and stands in the chain with its author.

use std::collections::{BTreeMap, BTreeSet};

use resurgam_model::plan::Ask;
use resurgam_model::{ComponentName, IncidentId, Scenario, Timestamp};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::chain::{Kind, append};
use super::{Journal, counted, set_meta, to_counted};
use crate::Result;

/// Something that a person wants done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Go through the runbook of a scenario, whether or not a failure was noticed.
    Recover {
        /// Which.
        scenario: Scenario,
        /// Of what; the scenario's usual component if not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        component: Option<ComponentName>,
        /// When people are asked, if otherwise than the plan says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<Ask>,
    },
    /// A failure that somebody else than the controller has noticed, such as a backup that met damage.
    Report {
        /// What it is.
        scenario: Scenario,
        /// Of what; the scenario's usual component if not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        component: Option<ComponentName>,
        /// What was found.
        finding: String,
    },
    /// Begin the recovery of a failed or refused incident anew.
    Resume {
        /// Which.
        incident: IncidentId,
    },
    /// Let a step that waits go on.
    Approve {
        /// Of which incident.
        incident: IncidentId,
        /// Which.
        step: String,
        /// What was asked. The word is on this alone: should there be more to lose by the time it
        /// is heard, it is asked again. Without one it is given in advance, and lets the step be
        /// taken, but on no terms that nobody has seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<String>,
    },
    /// Let a step that waits not go on; the recovery is refused then.
    Reject {
        /// Of which incident.
        incident: IncidentId,
        /// Which.
        step: String,
    },
    /// Start components again, one after the other.
    Restart {
        /// Which; all of them if none is named.
        #[serde(default)]
        components: Vec<ComponentName>,
    },
    /// Bring a pool to a size, until it is ordered otherwise.
    Scale {
        /// Which.
        pool: ComponentName,
        /// How many.
        size: u16,
    },
}

/// An order, and who gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// Who.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub order: Order,
}

/// What people have decided about a step that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Who let it go on, each person once, by what they were asked.
    pub approved: BTreeMap<Option<String>, BTreeSet<String>>,
    /// Who did not.
    pub rejected: BTreeSet<String>,
}

impl Decisions {
    /// How many people have said yes to this question.
    #[must_use]
    pub fn in_favour(&self, question: &str) -> usize {
        self.approved.get(&Some(question.to_owned())).map_or(0, BTreeSet::len)
    }

    /// How many people let the step be taken: asked so, or in advance.
    #[must_use]
    pub fn in_favour_of_taking(&self, question: &str) -> usize {
        let asked = self.approved.get(&Some(question.to_owned()));
        let before = self.approved.get(&None);
        asked.into_iter().chain(before).flatten().collect::<BTreeSet<_>>().len()
    }
}

/// The number of the last order that was carried out.
const SEEN: &str = "orders-seen";

impl Order {
    fn about(&self) -> String {
        match self {
            Self::Resume { incident }
            | Self::Approve { incident, .. }
            | Self::Reject { incident, .. } => incident.to_string(),
            Self::Recover { scenario, .. } | Self::Report { scenario, .. } => scenario.to_string(),
            Self::Restart { .. } => "components".to_owned(),
            Self::Scale { pool, .. } => pool.to_string(),
        }
    }
}

impl Journal {
    /// Writes an order down. Its number tells it from all others.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn order(&self, ordered: &Ordered, now: Timestamp) -> Result<u64> {
        self.write(|transaction| {
            append(transaction, now, Kind::Order, &ordered.order.about(), ordered)
        })
    }

    /// The orders that were not carried out yet, the oldest first.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn open_orders(&self) -> Result<Vec<(u64, Ordered)>> {
        let seen: u64 = self.meta(SEEN)?.and_then(|seen| seen.parse().ok()).unwrap_or_default();
        let orders: Vec<(u64, String)> = self.with("be read", |c| {
            c.prepare(
                "SELECT number, content FROM entries WHERE number > ?1 AND kind = 'order' ORDER BY number",
            )?
            .query_map(params![to_counted(seen)], |row| Ok((counted(row.get(0)?), row.get(1)?)))?
            .collect()
        })?;
        // What a later version ordered is passed over.
        let known =
            |(number, content): (u64, String)| Some((number, serde_json::from_str(&content).ok()?));
        Ok(orders.into_iter().filter_map(known).collect())
    }

    /// Notes that everything up to this order was carried out.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn orders_done(&self, number: u64) -> Result<()> {
        self.write(|transaction| set_meta(transaction, SEEN, &number.to_string()))
    }

    /// What was decided about a step of an incident since its present recovery began to wait.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn decisions(&self, incident: IncidentId, step: &str) -> Result<Decisions> {
        let about = incident.to_string();
        let contents: Vec<(String, String)> = self.with("be read", |c| {
            // An incident that is begun anew asks anew.
            c.prepare(
                "SELECT kind, content FROM entries WHERE about = ?1 AND kind IN ('order', 'incident')
                 ORDER BY number",
            )?
            .query_map([&about], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })?;
        let mut decisions = Decisions::default();
        let mut round = 0;
        for (kind, content) in contents {
            if kind == Kind::Incident.as_str() {
                let incident: Option<super::Incident> = serde_json::from_str(&content).ok();
                if let Some(incident) = incident.filter(|incident| incident.round != round) {
                    round = incident.round;
                    decisions = Decisions::default();
                }
                continue;
            }
            let Ok(Ordered { by, order }) = serde_json::from_str(&content) else { continue };
            match order {
                Order::Approve { step: of, question, .. } if of == step => {
                    decisions.rejected.remove(&by);
                    decisions.approved.entry(question).or_default().insert(by);
                }
                Order::Reject { step: of, .. } if of == step => {
                    decisions.approved.values_mut().for_each(|people| {
                        people.remove(&by);
                    });
                    decisions.rejected.insert(by);
                }
                _ => {}
            }
        }
        Ok(decisions)
    }
}
