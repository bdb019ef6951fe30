//! What to do next with a server: a pure function of the directive and what is seen.

use std::time::Duration;

use resurgam_model::ComponentName;
use resurgam_model::database::Epoch;

use super::super::history::Kinship;
use super::super::wire::{Directive, Order, ServerState, Upstream};

/// How long a standby whose data fits may fail to stream before it is copied anew. Its primary
/// may have thrown away what it needs, or its data may be damaged.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);
/// How often a standby may fail to start before it is copied anew: its data is damaged.
const START_PATIENCE: u32 = 4;

/// What is known besides the server's state.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    /// The reign under which the server may accept writes, if it may.
    pub(super) reign: Option<Epoch>,
    /// The last reign that the instance began, in this or an earlier life.
    pub(super) last_reign: Epoch,
    /// Whom it is configured to follow.
    pub(super) upstream: Option<&'a Upstream>,
    /// The standby that commits wait for.
    pub(super) synchronous: Option<&'a ComponentName>,
    /// How its data relates to the ordered upstream's; none when that could not be found out.
    pub(super) kinship: Option<Kinship>,
    /// For how long it has been up without streaming.
    pub(super) not_streaming_for: Duration,
    /// A rewind was tried since it last streamed.
    pub(super) rewound: bool,
    /// The data may have gone its own way: it was a primary's, and was not compared since.
    pub(super) branch: bool,
    /// How often the server was started since it last took connections.
    pub(super) starts: u32,
    /// Roles, database and slots have been made sure of in this reign.
    pub(super) furnished: bool,
}

/// The next act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// All is as ordered, or only time can help.
    Nothing,
    /// It cannot be done; say why.
    Complain(&'static str),
    /// Kill the server at once.
    Kill,
    /// End the server in order.
    Stop,
    /// Make a new database.
    Create,
    /// Start as a standby.
    Start(Option<Upstream>),
    /// Become primary.
    Promote {
        /// In this epoch.
        epoch: Epoch,
        /// Commits wait for this one.
        synchronous: Option<ComponentName>,
    },
    /// Go on as primary in a later epoch.
    Adopt(Epoch),
    /// Let commits wait for a standby, or for none.
    SetSynchronous(Option<ComponentName>),
    /// Make roles, database and slots.
    Furnish(Vec<ComponentName>),
    /// Follow another primary.
    Follow(Upstream),
    /// Take back what the primary never had.
    Rewind(Upstream),
    /// Replace the data with a copy of the primary's.
    Copy(Upstream),
    /// The copy has proved itself.
    ForgetReplaced,
}

/// Decides.
pub(super) fn decide(directive: &Directive, state: &ServerState, facts: &Facts<'_>) -> Act {
    match &directive.order {
        Order::Stopped => match state {
            ServerState::Absent | ServerState::Stopped => Act::Nothing,
            _ if facts.reign.is_some() => Act::Kill,
            ServerState::Standby(_) => Act::Stop,
            _ => Act::Kill,
        },
        Order::Primary { create, standbys, synchronous } => match (state, facts.reign) {
            (ServerState::Absent, _) if *create => Act::Create,
            (ServerState::Absent, _) => {
                Act::Complain("it shall be primary, but has no data; it must not begin with none")
            }
            // A reign is one life of a server. What has ended does not come back under the same
            // epoch: meanwhile another may have been chosen.
            (ServerState::Stopped | ServerState::Standby(_), None)
                if facts.last_reign > directive.epoch =>
            {
                Act::Complain(
                    "it has reigned in a later epoch than the controller knows of: the controller's journal was lost or replaced; bring journal.db back, or move the data of all instances away to begin anew",
                )
            }
            (ServerState::Stopped | ServerState::Standby(_), None)
                if facts.last_reign == directive.epoch =>
            {
                Act::Complain(
                    "its server ended during this reign; it waits for the controller's decision",
                )
            }
            (ServerState::Stopped, _) => Act::Start(None),
            // With a reign already: an earlier try to promote it failed midway.
            (ServerState::Standby(_), reign) if reign <= Some(directive.epoch) => {
                Act::Promote { epoch: directive.epoch, synchronous: synchronous.clone() }
            }
            (ServerState::Standby(_), _) => Act::Complain("the order is older than its reign"),
            (ServerState::Primary(_), None) => Act::Kill,
            (ServerState::Primary(_), Some(reign)) => {
                if reign > directive.epoch {
                    Act::Complain("the order is older than its reign")
                } else if reign < directive.epoch {
                    Act::Adopt(directive.epoch)
                } else if facts.synchronous != synchronous.as_ref() {
                    Act::SetSynchronous(synchronous.clone())
                } else if !facts.furnished {
                    Act::Furnish(standbys.clone())
                } else {
                    Act::Nothing
                }
            }
            (
                ServerState::Unknown | ServerState::Starting | ServerState::Unresponsive { .. },
                _,
            ) => Act::Nothing,
        },
        Order::Standby { upstream } => match state {
            _ if facts.reign.is_some() => Act::Kill,
            ServerState::Absent => Act::Copy(upstream.clone()),
            ServerState::Stopped if facts.starts >= START_PATIENCE => Act::Copy(upstream.clone()),
            ServerState::Stopped => Act::Start((!facts.branch).then(|| upstream.clone())),
            ServerState::Primary(_) => Act::Kill,
            ServerState::Unknown | ServerState::Starting | ServerState::Unresponsive { .. } => {
                Act::Nothing
            }
            ServerState::Standby(standby) => {
                if facts.upstream == Some(upstream)
                    && standby.streaming_from == Some(upstream.address.port())
                {
                    return Act::ForgetReplaced;
                }
                match facts.kinship {
                    Some(Kinship::Diverged) if !facts.rewound => Act::Rewind(upstream.clone()),
                    Some(Kinship::Diverged | Kinship::Namesake) => Act::Copy(upstream.clone()),
                    None if facts.branch => Act::Nothing,
                    _ if facts.upstream != Some(upstream) => Act::Follow(upstream.clone()),
                    Some(Kinship::Fits) if facts.not_streaming_for > STREAM_PATIENCE => {
                        Act::Copy(upstream.clone())
                    }
                    // Without word from the primary nothing is thrown away.
                    _ => Act::Nothing,
                }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::wire::{PrimaryState, StandbyState};
    use super::*;

    fn upstream() -> Upstream {
        Upstream {
            name: ComponentName::new("postgres-1").unwrap(),
            address: "127.0.0.1:5433".parse().unwrap(),
        }
    }

    fn facts(reign: Option<i64>) -> Facts<'static> {
        Facts {
            reign: reign.map(Epoch),
            last_reign: reign.map(Epoch).unwrap_or_default(),
            upstream: None,
            synchronous: None,
            kinship: None,
            not_streaming_for: Duration::ZERO,
            rewound: false,
            branch: false,
            starts: 0,
            furnished: true,
        }
    }

    fn states() -> Vec<ServerState> {
        let standby = StandbyState {
            timeline: 1,
            received: Default::default(),
            replayed: Default::default(),
            streaming_from: None,
            silent_ms: None,
        };
        let primary = PrimaryState {
            epoch: Epoch(1),
            furnished: true,
            timeline: 1,
            flushed: Default::default(),
            synchronous: None,
            standbys: vec![],
        };
        vec![
            ServerState::Unknown,
            ServerState::Absent,
            ServerState::Stopped,
            ServerState::Starting,
            ServerState::Unresponsive { for_ms: 1 },
            ServerState::Standby(standby),
            ServerState::Primary(primary),
        ]
    }

    fn directive(order: Order) -> Directive {
        let lease = resurgam_model::Duration::from_secs(3);
        Directive { number: 7, epoch: Epoch(2), lease, order }
    }

    #[test]
    fn a_server_with_a_reign_is_killed_by_every_order_but_to_be_primary() {
        for order in [Order::Stopped, Order::Standby { upstream: upstream() }] {
            for state in states() {
                let act = decide(&directive(order.clone()), &state, &facts(Some(1)));
                let gone = matches!(order, Order::Stopped)
                    && matches!(state, ServerState::Absent | ServerState::Stopped);
                let expected = if gone { Act::Nothing } else { Act::Kill };
                assert_eq!(act, expected, "{order:?} {state:?}");
            }
        }
    }

    #[test]
    fn only_the_order_to_be_primary_promotes_and_only_in_its_epoch() {
        let primary = Order::Primary { create: false, standbys: vec![], synchronous: None };
        for order in [Order::Stopped, Order::Standby { upstream: upstream() }, primary] {
            for state in states() {
                for reign in [None, Some(1), Some(2), Some(3)] {
                    let act = decide(&directive(order.clone()), &state, &facts(reign));
                    let may = matches!(order, Order::Primary { .. });
                    match act {
                        Act::Promote { epoch, .. } | Act::Adopt(epoch) => {
                            assert!(may && epoch == Epoch(2), "{order:?} {state:?}");
                            assert!(reign <= Some(2));
                        }
                        Act::Create => unreachable!("only when told so"),
                        _ => {}
                    }
                }
            }
        }
    }

    #[test]
    fn a_server_that_ended_during_its_reign_stays_down_until_the_next_epoch() {
        let order = |epoch| Directive {
            epoch: Epoch(epoch),
            ..directive(Order::Primary { create: false, standbys: vec![], synchronous: None })
        };
        let fallen = Facts { last_reign: Epoch(2), ..facts(None) };
        let act = decide(&order(2), &ServerState::Stopped, &fallen);
        assert!(matches!(act, Act::Complain(_)), "{act:?}");
        // Nor by way of having been a standby meanwhile.
        let act = decide(&order(2), &states().remove(5), &fallen);
        assert!(matches!(act, Act::Complain(_)), "{act:?}");
        assert_eq!(decide(&order(3), &ServerState::Stopped, &fallen), Act::Start(None));
    }

    #[test]
    fn data_is_replaced_only_on_word_from_the_primary() {
        let order = directive(Order::Standby { upstream: upstream() });
        let standby = states().remove(5);
        let upstream = upstream();
        let following = Facts {
            upstream: Some(&upstream),
            not_streaming_for: Duration::from_secs(3600),
            ..facts(None)
        };
        assert_eq!(decide(&order, &standby, &following), Act::Nothing);
        let diverged = Facts { kinship: Some(Kinship::Diverged), ..following.clone() };
        assert_eq!(decide(&order, &standby, &diverged), Act::Rewind(upstream.clone()));
        let again = Facts { rewound: true, ..diverged };
        assert_eq!(decide(&order, &standby, &again), Act::Copy(upstream.clone()));
        let namesake = Facts { kinship: Some(Kinship::Namesake), ..following.clone() };
        assert_eq!(decide(&order, &standby, &namesake), Act::Copy(upstream.clone()));
        let fits = Facts { kinship: Some(Kinship::Fits), ..following };
        assert_eq!(decide(&order, &standby, &fits), Act::Copy(upstream.clone()));
        let broken = Facts { starts: START_PATIENCE, ..facts(None) };
        assert_eq!(decide(&order, &ServerState::Stopped, &broken), Act::Copy(upstream.clone()));
    }

    #[test]
    fn data_that_was_a_primarys_is_compared_before_it_follows() {
        let order = directive(Order::Standby { upstream: upstream() });
        let branch = Facts { branch: true, ..facts(None) };
        assert_eq!(decide(&order, &ServerState::Stopped, &branch), Act::Start(None));
        let standby = states().remove(5);
        assert_eq!(decide(&order, &standby, &branch), Act::Nothing);
        let fits = Facts { kinship: Some(Kinship::Fits), ..branch };
        assert_eq!(decide(&order, &standby, &fits), Act::Follow(upstream()));
        let replica = facts(None);
        assert_eq!(decide(&order, &ServerState::Stopped, &replica), Act::Start(Some(upstream())));
        assert_eq!(decide(&order, &standby, &replica), Act::Follow(upstream()));
    }
}
