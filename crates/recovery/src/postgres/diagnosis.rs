//! Whether the primary is lost: a pure function of what was seen.
//!
//! No single sign is enough. The keeper, the probe's SQL and the standbys see the primary over
//! different ways; only when those that can know agree is it taken for lost. In particular a
//! slow answer alone never is: on an overloaded machine everything is slow.

use std::time::Duration;

use resurgam_deployment::postgres::wire::ServerState;

/// What the primary's keeper says.
#[derive(Clone, Debug, PartialEq)]
pub enum KeeperSign {
    /// Nothing yet.
    NeverHeard,
    /// It has been silent for so long.
    Silent(Duration),
    /// It reports.
    Reports(ServerState),
}

/// What the probe's SQL found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlSign {
    /// Not tried yet.
    NotTried,
    /// A write succeeded.
    Works,
    /// It answers that it has no connection left: it lives, and is no less lost than one that works.
    NoRoom,
    /// So many tries in a row have failed.
    Fails {
        /// How many.
        times: u32,
        /// The last reason.
        why: String,
    },
}

/// What a standby sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbySign {
    /// Its name.
    pub name: String,
    /// It still receives from the primary. None when it cannot be asked.
    pub receives: Option<bool>,
}

/// All signs at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Signs {
    /// The keeper's.
    pub keeper: KeeperSign,
    /// The probe's.
    pub sql: SqlSign,
    /// The standbys'.
    pub standbys: Vec<StandbySign>,
    /// The database has been made.
    pub created: bool,
    /// The primary was seen to accept writes in this epoch.
    pub reigned: bool,
    /// For how long the epoch has lasted.
    pub reign_for: Duration,
    /// How long the keeper may be silent. More than half of the lease, lest a slow machine be
    /// taken for a dead one; less than the lease, because a failover has to wait for the end of
    /// that in any case.
    pub patience: Duration,
}

/// The finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has not accepted writes in this epoch yet.
    Starting,
    /// It accepts writes.
    Healthy,
    /// Something is wrong, but it is not known to be lost.
    Suspect(Vec<String>),
    /// It is lost; the signs that say so, at least two.
    Lost(Vec<String>),
}

/// A primary that has not come up after so long is taken for lost.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// One that is replaying its log, as after a crash, gets so long: it will come up, with
/// everything, and to stop it would make it begin again.
const REPLAY_PATIENCE: Duration = Duration::from_secs(300);
/// A server that exists but answers nobody is taken for lost after so long.
const STUCK_PATIENCE: Duration = Duration::from_secs(3);
/// So many failed tries of the probe count as a sign.
const SQL_TIMES: u32 = 2;

/// Decides.
#[must_use]
pub fn diagnose(signs: &Signs) -> Verdict {
    let sql = match &signs.sql {
        SqlSign::Fails { times, why } => {
            Some((*times, format!("SQL fails ({times} times): {why}")))
        }
        SqlSign::NotTried | SqlSign::Works | SqlSign::NoRoom => None,
    };
    let deaf: Vec<String> = signs
        .standbys
        .iter()
        .filter(|standby| standby.receives == Some(false))
        .map(|standby| format!("{} receives nothing from it", standby.name))
        .collect();
    let contradicted = signs.standbys.iter().any(|standby| standby.receives == Some(true));
    let mut evidence = Vec::new();

    let lost = match &signs.keeper {
        KeeperSign::Reports(state @ (ServerState::Stopped | ServerState::Absent)) => {
            // Before it has reigned, stopped is a step on the way up; and before the database
            // was made there is none.
            let ended = signs.reigned || (signs.created && matches!(state, ServerState::Absent));
            if ended {
                evidence.push(format!("its keeper reports: the server is {}", state.word()));
            }
            ended
        }
        KeeperSign::Reports(ServerState::Unresponsive { for_ms }) => {
            let stuck = Duration::from_millis(*for_ms);
            evidence.push(format!("its keeper reports: no answer for {for_ms} ms"));
            stuck > STUCK_PATIENCE
                && !contradicted
                && sql.as_ref().is_some_and(|s| s.0 >= SQL_TIMES)
        }
        KeeperSign::Silent(silence) if *silence > signs.patience => {
            evidence.push(format!("its keeper has been silent for {} ms", silence.as_millis()));
            // The word of a standby is asked for where there is one.
            let alone = signs.standbys.is_empty();
            !contradicted && (alone || !deaf.is_empty()) && sql.is_some()
        }
        KeeperSign::NeverHeard | KeeperSign::Silent(_) | KeeperSign::Reports(_) => false,
    };
    evidence.extend(sql.as_ref().map(|(_, text)| text.clone()));
    evidence.extend(deaf);

    if lost && evidence.len() >= 2 {
        return Verdict::Lost(evidence);
    }
    if !signs.reigned {
        let replaying = signs.keeper == KeeperSign::Reports(ServerState::Starting);
        let patience = if replaying { REPLAY_PATIENCE } else { START_PATIENCE };
        if signs.reign_for > patience {
            let waited = format!("it has not come up for {} s", signs.reign_for.as_secs());
            evidence.push(waited);
            if evidence.len() >= 2 {
                return Verdict::Lost(evidence);
            }
        }
        return Verdict::Starting;
    }
    let works = signs.sql == SqlSign::Works
        && matches!(&signs.keeper, KeeperSign::Reports(ServerState::Primary(_)));
    if works { Verdict::Healthy } else { Verdict::Suspect(evidence) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(times: u32) -> SqlSign {
        SqlSign::Fails { times, why: "connection refused".to_owned() }
    }

    fn signs(keeper: KeeperSign, sql: SqlSign, receives: &[Option<bool>]) -> Signs {
        let standbys = receives
            .iter()
            .map(|receives| StandbySign { name: "postgres-1".to_owned(), receives: *receives })
            .collect();
        let reign_for = Duration::from_secs(100);
        let patience = Duration::from_millis(1500);
        Signs { keeper, sql, standbys, created: true, reigned: true, reign_for, patience }
    }

    fn lost(signs: &Signs) -> bool {
        matches!(diagnose(signs), Verdict::Lost(_))
    }

    #[test]
    fn a_dead_server_is_lost_once_a_second_sign_agrees() {
        let stopped = KeeperSign::Reports(ServerState::Stopped);
        assert!(lost(&signs(stopped.clone(), fails(1), &[])));
        assert!(lost(&signs(stopped.clone(), SqlSign::Works, &[Some(false)])));
        assert!(!lost(&signs(stopped, SqlSign::Works, &[Some(true)])));
    }

    #[test]
    fn slowness_alone_is_never_a_loss() {
        let silent = |ms| KeeperSign::Silent(Duration::from_millis(ms));
        assert!(!lost(&signs(silent(2500), SqlSign::Works, &[Some(false)])));
        assert!(!lost(&signs(silent(2500), fails(5), &[Some(true)])));
        assert!(!lost(&signs(silent(2500), fails(5), &[None])), "the standby cannot be asked");
        assert!(!lost(&signs(silent(500), fails(5), &[Some(false)])));
        assert!(!lost(&signs(silent(2500), SqlSign::NoRoom, &[])), "it answers");
        assert!(lost(&signs(silent(2500), fails(2), &[Some(false)])));

        let stuck = |for_ms| KeeperSign::Reports(ServerState::Unresponsive { for_ms });
        assert!(!lost(&signs(stuck(1000), fails(5), &[Some(false)])));
        assert!(!lost(&signs(stuck(9000), SqlSign::Works, &[Some(false)])));
        assert!(lost(&signs(stuck(9000), fails(5), &[Some(false)])));
    }

    #[test]
    fn a_lost_standby_is_not_a_lost_primary() {
        // Commits wait for the standby, so that the probe's writes fail.
        let primary = resurgam_deployment::postgres::wire::PrimaryState {
            epoch: Default::default(),
            furnished: true,
            timeline: 1,
            flushed: Default::default(),
            synchronous: None,
            standbys: vec![],
        };
        let keeper = KeeperSign::Reports(ServerState::Primary(primary));
        assert!(!lost(&signs(keeper, fails(50), &[None])));
    }

    #[test]
    fn coming_up_is_not_being_lost() {
        let stopped = KeeperSign::Reports(ServerState::Stopped);
        let young = Signs {
            reigned: false,
            reign_for: Duration::from_secs(2),
            ..signs(stopped, fails(9), &[Some(false)])
        };
        assert_eq!(diagnose(&young), Verdict::Starting);
        let old = Signs { reign_for: Duration::from_secs(99), ..young.clone() };
        assert!(lost(&old));
        let replaying = KeeperSign::Reports(ServerState::Starting);
        assert!(!lost(&Signs { keeper: replaying, ..old }));
        let gone = Signs { keeper: KeeperSign::Reports(ServerState::Absent), ..young };
        assert!(lost(&gone), "its data was there before");
        assert_eq!(diagnose(&Signs { created: false, ..gone }), Verdict::Starting);
    }
}
