//! That nobody touches a lease of somebody else.
//!
//! A caller that is bound to agents may speak only of leases that such an agent holds. That is
//! looked up before the call to the store, and yet no time between the two can be misused: a
//! lease is a task and a token, each claim raises the token, and so the holder of a task under
//! one token never changes. What is let through is the present token of the task, held by an
//! agent of the caller or over; any other token is answered here and never reaches the store.
//! Callers who may act as any agent pay nothing for this.

use resurgam_model::access::AgentPattern;
use resurgam_model::task::{LeaseRef, Outcome};
use resurgam_store::access::LeaseStanding;

use super::Caller;
use crate::api::App;
use crate::problem::Problem;

/// The items of a request about leases, sorted into those that the store is asked about and
/// those that have their answer.
pub(crate) struct Own<T> {
    /// For the store.
    pub(crate) items: Vec<T>,
    /// One for each item of the request; none for those in `items`. Empty when all are.
    answers: Vec<Option<Outcome>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The store may judge it.
    Pass,
    /// It needs no judging.
    Answer(Outcome),
    /// It is somebody else's.
    Foreign,
}

fn judge(lease: LeaseRef, standing: Option<&LeaseStanding>, pattern: &AgentPattern) -> Verdict {
    let Some(standing) = standing else { return Verdict::Answer(Outcome::Unknown) };
    if standing.token != lease.token {
        return Verdict::Answer(Outcome::Stale);
    }
    match &standing.holder {
        Some(holder) if !pattern.matches(holder) => Verdict::Foreign,
        // What is over under this token stays over: the store answers a repeated word as it
        // answered the first one, and nothing changes.
        _ => Verdict::Pass,
    }
}

impl<T> Own<T> {
    /// Sorts the items. One that is somebody else's refuses the request as a whole, before any
    /// of it is done.
    pub(crate) async fn of(
        app: &App,
        caller: &Caller,
        items: Vec<T>,
        lease: impl Fn(&T) -> LeaseRef,
    ) -> Result<Self, Problem> {
        let Some(pattern) = caller.only() else { return Ok(Self { items, answers: Vec::new() }) };
        if items.is_empty() {
            return Ok(Self { items, answers: Vec::new() });
        }
        let tasks: Vec<_> = items.iter().map(|item| lease(item).task).collect();
        let standings = app.store.lease_standings(&tasks).await?;
        let mut own = Self { items: Vec::new(), answers: Vec::with_capacity(items.len()) };
        for (item, standing) in items.into_iter().zip(standings) {
            let lease = lease(&item);
            own.answers.push(match judge(lease, standing.as_ref(), pattern) {
                Verdict::Pass => None,
                Verdict::Answer(outcome) => Some(outcome),
                Verdict::Foreign => {
                    return Err(Problem::forbidden(format!(
                        "the lease on task {} is held by another agent than {pattern}; nothing of \
                         this request was done",
                        lease.task
                    )));
                }
            });
            if own.answers.last() == Some(&None) {
                own.items.push(item);
            }
        }
        Ok(own)
    }

    /// The answers to all items, given those of the store.
    pub(crate) fn answer(self, outcomes: Vec<Outcome>) -> Vec<Outcome> {
        if self.answers.is_empty() {
            return outcomes;
        }
        let mut outcomes = outcomes.into_iter();
        let own = self.answers.into_iter();
        // There is one outcome for each item that the store was asked about.
        own.map(|answer| answer.or_else(|| outcomes.next()).unwrap_or(Outcome::Unknown)).collect()
    }
}

#[cfg(test)]
mod tests {
    use resurgam_model::task::Token;
    use resurgam_model::{AgentId, TaskId};

    use super::*;

    fn standing(token: i64, holder: Option<&str>) -> LeaseStanding {
        LeaseStanding {
            token: Token(token),
            holder: holder.map(|name| AgentId::new(name).unwrap()),
        }
    }

    #[test]
    fn only_the_present_token_of_an_own_lease_reaches_the_store() {
        let pattern: AgentPattern = "mine-*".parse().unwrap();
        let lease = LeaseRef { task: TaskId::new(), token: Token(4) };
        let verdict = |standing: Option<LeaseStanding>| judge(lease, standing.as_ref(), &pattern);
        assert_eq!(verdict(None), Verdict::Answer(Outcome::Unknown));
        assert_eq!(verdict(Some(standing(4, Some("mine-1")))), Verdict::Pass);
        assert_eq!(verdict(Some(standing(4, None))), Verdict::Pass);
        assert_eq!(verdict(Some(standing(4, Some("theirs")))), Verdict::Foreign);
        // Neither a token of the past nor one that somebody will get with the next claim.
        for token in [3, 5] {
            for holder in [None, Some("mine-1"), Some("theirs")] {
                let verdict = verdict(Some(standing(token, holder)));
                assert_eq!(verdict, Verdict::Answer(Outcome::Stale));
            }
        }
    }

    #[test]
    fn answers_come_in_the_order_of_the_request() {
        let own = Own {
            items: vec![1, 3],
            answers: vec![None, Some(Outcome::Stale), None, Some(Outcome::Unknown)],
        };
        let answers = own.answer(vec![Outcome::Accepted, Outcome::Stale]);
        assert_eq!(answers, [Outcome::Accepted, Outcome::Stale, Outcome::Stale, Outcome::Unknown]);
        let all = Own { items: vec![1], answers: Vec::new() };
        assert_eq!(all.answer(vec![Outcome::Accepted]), [Outcome::Accepted]);
    }
}
