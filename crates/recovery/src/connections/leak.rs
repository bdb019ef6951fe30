//! Which connections may be ended when there are none left: a pure function.

use std::collections::BTreeMap;
use std::time::Duration;

use resurgam_deployment::postgres::secrets::{PROBER, REPLICATOR};
use resurgam_model::plan::{Connections, Endable};

use super::census::{Census, Session, State};

/// How the platform's own processes call themselves. They keep what their pools hold, which is
/// bounded by the plan.
pub(super) const OWN: &str = "resurgam ";
/// Connections are ended until so much less is taken than what makes an incident, in percent of all,
/// lest the next client that comes make the next incident.
const RELIEF: u32 = 20;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Nothing: enough is free.
    Relieved,
    /// End these.
    End(Vec<&'a Session>),
    /// Wait: none may be ended yet, and after this time one may, if it goes on doing nothing.
    Wait(Duration),
    /// Nothing that the plan allows would help.
    Stuck,
}

/// Chooses. Connections of superusers, of the probe, of those that replicate or back up, and of
/// protected applications are never chosen.
#[must_use]
pub fn choose<'a>(census: &'a Census, policy: &Connections) -> Choice<'a> {
    let relief = policy.full_at.saturating_sub(RELIEF);
    if !census.seats.reach(relief) {
        return Choice::Relieved;
    }
    let seats = census.seats;
    let target = u64::from(seats.limit) * u64::from(relief) / 100;
    let too_many = u64::from(seats.taken).saturating_sub(target).max(1);
    let too_many = usize::try_from(too_many).unwrap_or(usize::MAX);
    let open = may_be_ended(census, policy);
    let of = |state: State| open.iter().copied().filter(move |session| session.state == state);

    // A transaction without an owner is of no use to anybody, and holds back the vacuum and others
    // by its locks: all of them go, the longest first.
    let mut end: Vec<_> = aged(of(State::IdleInTransaction), policy.idle_in_transaction.0);
    // Of those that only rest, and of those at work, no more than are in the way.
    for (state, age) in [(State::Idle, policy.idle.0), (State::Active, policy.active.0)] {
        let enough = too_many.saturating_sub(end.len());
        let greedy = match state {
            State::Idle => greediest(of(state)),
            _ => None,
        };
        let these = of(state).filter(|session| greedy.is_none_or(|most| key(session) == most));
        end.extend(aged(these, age).into_iter().take(enough));
    }
    if !end.is_empty() {
        return Choice::End(end);
    }
    if !seats.reach(policy.full_at) {
        return Choice::Relieved;
    }
    let next = open.iter().filter_map(|session| {
        let age = match session.state {
            State::IdleInTransaction => policy.idle_in_transaction.0,
            State::Idle => policy.idle.0,
            State::Active => policy.active.0,
            State::Unknown => return None,
        };
        Some(age.saturating_sub(Duration::from_millis(session.state_ms)))
    });
    next.min().map_or(Choice::Stuck, Choice::Wait)
}

/// Those whose end the plan allows, however short they have been so.
pub(super) fn may_be_ended<'a>(census: &'a Census, policy: &Connections) -> Vec<&'a Session> {
    let allowed = |session: &&Session| {
        let listed = |state| policy.end.contains(&state);
        let by_state = match session.state {
            State::IdleInTransaction => listed(Endable::IdleInTransaction),
            State::Active => listed(Endable::Active),
            State::Idle => listed(Endable::Idle) && !session.application.starts_with(OWN),
            State::Unknown => false,
        };
        let needed = session.superuser || [PROBER, REPLICATOR].contains(&session.user.as_str());
        by_state && !needed && !policy.protect.contains(&session.application)
    };
    census.sessions.iter().filter(allowed).collect()
}

/// Those that have been so for so long, the longest first.
fn aged<'a>(these: impl Iterator<Item = &'a Session>, age: Duration) -> Vec<&'a Session> {
    let old = |session: &&Session| Duration::from_millis(session.state_ms) >= age;
    let mut these: Vec<_> = these.filter(old).collect();
    these.sort_by_key(|session| std::cmp::Reverse(session.state_ms));
    these
}

fn key(session: &Session) -> (&str, &str) {
    (&session.application, &session.user)
}

/// Who has most of them: whoever keeps a few does not suffer for it.
fn greediest<'a>(these: impl Iterator<Item = &'a Session>) -> Option<(&'a str, &'a str)> {
    let mut counts: BTreeMap<_, usize> = BTreeMap::new();
    for session in these {
        *counts.entry(key(session)).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(who, _)| who)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use resurgam_model::plan::Endable;

    use super::super::census::Seats;
    use super::*;

    pub(crate) fn session(pid: i32, application: &str, state: State, state_ms: u64) -> Session {
        Session {
            pid,
            began_us: 0,
            since_us: Some(0),
            user: "dotnetagents".to_owned(),
            superuser: false,
            application: application.to_owned(),
            address: String::new(),
            state,
            state_ms,
            statement: String::new(),
        }
    }

    fn census(limit: u32, sessions: Vec<Session>) -> Census {
        let taken = u32::try_from(sessions.len()).unwrap();
        Census { seats: Seats { taken, limit }, sessions }
    }

    fn pids(choice: &Choice) -> Vec<i32> {
        match choice {
            Choice::End(these) => these.iter().map(|session| session.pid).collect(),
            other => panic!("{other:?}"),
        }
    }

    const MINUTE: u64 = 60_000;

    #[test]
    fn all_forgotten_transactions_go_and_nothing_else_while_they_are_enough() {
        let mut all: Vec<_> = (0..8)
            .map(|n| session(n, "leak", State::IdleInTransaction, MINUTE + u64::from(n as u32)))
            .collect();
        all.push(session(8, "short", State::IdleInTransaction, 100));
        all.push(session(9, "rests", State::Idle, 10 * MINUTE));
        let full = census(10, all.clone());
        let choice = choose(&full, &Connections::default());
        assert_eq!(pids(&choice), [7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(choose(&census(100, all), &Connections::default()), Choice::Relieved);
    }

    #[test]
    fn of_those_that_rest_the_greediest_gives_up_as_many_as_are_needed() {
        let mut all: Vec<_> = (0..7).map(|n| session(n, "many", State::Idle, 5 * MINUTE)).collect();
        all.push(session(7, "few", State::Idle, 90 * MINUTE));
        all.push(session(8, "resurgam api", State::Idle, 90 * MINUTE));
        all.push(session(9, "busy", State::Active, 90 * MINUTE));
        let full = census(10, all);
        // Of 10, 7 may be taken.
        assert_eq!(pids(&choose(&full, &Connections::default())), [0, 1, 2]);
    }

    #[test]
    fn the_young_are_waited_for_and_the_busy_left_alone() {
        let wait = |sessions| match choose(&census(2, sessions), &Connections::default()) {
            Choice::Wait(wait) => Some(wait.as_millis()),
            Choice::Stuck => None,
            other => panic!("{other:?}"),
        };
        let busy = session(1, "busy", State::Active, 90 * MINUTE);
        let young = session(2, "leak", State::IdleInTransaction, 59_000);
        assert_eq!(wait(vec![busy.clone(), young]), Some(1000));
        let unknown = session(3, "x", State::Unknown, 90 * MINUTE);
        assert_eq!(wait(vec![busy.clone(), unknown]), None);
        let policy = Connections { end: vec![Endable::Active], ..Connections::default() };
        let full = census(1, vec![busy]);
        assert_eq!(pids(&choose(&full, &policy)), [1], "if the plan says so");
    }

    fn sessions() -> impl Strategy<Value = Vec<Session>> {
        let state = prop_oneof![
            Just(State::IdleInTransaction),
            Just(State::Idle),
            Just(State::Active),
            Just(State::Unknown)
        ];
        let application = prop_oneof![Just("a"), Just("b"), Just("resurgam api"), Just("vip")];
        let user = prop_oneof![Just("dotnetagents"), Just(PROBER), Just(REPLICATOR)];
        let one = (state, application, user, any::<bool>(), 0..1_000_000_u64);
        let one = one.prop_map(|(state, application, user, superuser, ms)| Session {
            user: user.to_owned(),
            superuser,
            ..session(0, application, state, ms)
        });
        prop::collection::vec(one, 0..40).prop_map(|mut all| {
            for (pid, session) in (0..).zip(&mut all) {
                session.pid = pid;
            }
            all
        })
    }

    proptest! {
        #[test]
        fn nobody_is_ended_who_must_not_be(
            all in sessions(),
            limit in 0..50_u32,
            full_at in 10..=100_u32,
            end in prop::sample::subsequence(
                vec![Endable::IdleInTransaction, Endable::Idle, Endable::Active], 0..=3),
        ) {
            let policy = Connections {
                full_at, end, protect: vec!["vip".to_owned()], ..Connections::default()
            };
            let census = census(limit, all);
            if let Choice::End(these) = choose(&census, &policy) {
                prop_assert!(!these.is_empty());
                let mut seen = std::collections::BTreeSet::new();
                for session in these {
                    prop_assert!(seen.insert(session.pid), "twice");
                    prop_assert!(!session.superuser && session.user == "dotnetagents");
                    prop_assert!(session.application != "vip");
                    let (age, listed) = match session.state {
                        State::IdleInTransaction =>
                            (policy.idle_in_transaction, Endable::IdleInTransaction),
                        State::Idle => (policy.idle, Endable::Idle),
                        State::Active => (policy.active, Endable::Active),
                        State::Unknown => return Err(TestCaseError::fail("an unknown state")),
                    };
                    prop_assert!(policy.end.contains(&listed));
                    prop_assert!(u128::from(session.state_ms) >= age.0.as_millis());
                    let rests = session.state == State::Idle;
                    prop_assert!(!rests || session.application != "resurgam api");
                }
            }
        }
    }
}
