//! Whether a former primary is sure to accept no write any more.

use std::time::Instant;

use resurgam_deployment::postgres::contain::Strength;
use resurgam_model::ComponentName;

use super::authority::View;

/// What is known about a former primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It cannot accept a write; and why.
    Fenced(String),
    /// Not yet; at that moment it will be sure.
    At(Instant),
    /// Not to be had; and why.
    None(String),
}

/// Finds out, from what is known at `now`. `fenced_at` is the version of the cluster state that
/// took the reign away.
#[must_use]
pub fn prove(view: &View, former: &ComponentName, fenced_at: u64, now: Instant) -> Proof {
    let seen = view.seen.get(former);
    if let Some(seen) = seen
        && seen.renewal.carried_out >= fenced_at
        && seen.renewal.observed.state.is_harmless()
    {
        let word = seen.renewal.observed.state.word();
        return Proof::Fenced(format!(
            "its keeper has carried out the order to stop: it is {word}"
        ));
    }
    match &view.lease {
        Some((holder, until)) if holder == former && *until > now => return Proof::At(*until),
        _ => {}
    }
    // Of one that was never heard of nothing better is known.
    match seen.map_or(Strength::Process, |seen| seen.renewal.fence) {
        Strength::Kernel => Proof::Fenced(
            "its lease has ended, so the kernel has killed its keeper and the server".to_owned(),
        ),
        // With more than one standby the one that it waits for may go on listening to it.
        Strength::Process if view.state.complete.is_some() && view.members == 2 => Proof::Fenced(
            "its lease has ended, and without its synchronous standby it can acknowledge nothing"
                .to_owned(),
        ),
        Strength::Process => Proof::None(
            "its lease has ended, but nothing proves that every process of its server is dead; start its keeper, which ends them, or allow PID namespaces".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use resurgam_deployment::postgres::wire::{Observed, Renewal, ServerState};
    use resurgam_model::InstanceId;

    use super::super::authority::Seen;
    use super::*;
    use crate::journal::cluster::ClusterState;

    fn view(carried_out: u64, state: ServerState, fence: Strength, until: Instant) -> View {
        let name = ComponentName::new("postgres-0").unwrap();
        let renewal = Renewal {
            life: InstanceId::new(),
            fence,
            address: "127.0.0.1:1".parse().unwrap(),
            observed: Observed { state, ..Observed::default() },
            heard: carried_out,
            carried_out,
        };
        View {
            state: ClusterState::default(),
            seen: BTreeMap::from([(name.clone(), Seen { renewal, at: Instant::now() })]),
            members: 2,
            lease: Some((name, until)),
            reigned: true,
            since: Instant::now(),
            samples: vec![],
        }
    }

    #[test]
    fn only_the_keepers_word_on_this_very_order_or_the_end_of_the_lease_counts() {
        let name = ComponentName::new("postgres-0").unwrap();
        let now = Instant::now();
        let later = now + Duration::from_secs(3);
        let prove = |view: &View| prove(view, &name, 7, now);

        let stopped = view(7, ServerState::Stopped, Strength::Kernel, later);
        assert!(matches!(prove(&stopped), Proof::Fenced(_)));
        let old_word = view(6, ServerState::Stopped, Strength::Kernel, later);
        assert_eq!(prove(&old_word), Proof::At(later));
        let unknown = view(7, ServerState::Unresponsive { for_ms: 9 }, Strength::Kernel, later);
        assert_eq!(prove(&unknown), Proof::At(later));

        let over = view(6, ServerState::Starting, Strength::Kernel, now);
        assert!(matches!(prove(&over), Proof::Fenced(_)));
        let weak = view(6, ServerState::Starting, Strength::Process, now);
        assert!(matches!(prove(&weak), Proof::None(_)));
        let mut waits = weak.clone();
        waits.state.complete = Some(ComponentName::new("postgres-1").unwrap());
        assert!(matches!(prove(&waits), Proof::Fenced(_)));
        waits.members = 3;
        assert!(matches!(prove(&waits), Proof::None(_)));
        let never_heard = View { seen: BTreeMap::new(), ..weak };
        assert!(matches!(prove(&never_heard), Proof::None(_)));
    }
}
