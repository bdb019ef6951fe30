//! What recoveries of the owned PostgreSQL would do now.

use resurgam_deployment::RunState;
use resurgam_deployment::postgres::wire::ServerState;
use resurgam_model::plan::{Endable, Plan};
use resurgam_model::{ComponentName, Scenario};

use super::Parts;
use crate::connections::account;
use crate::status::{Health, Postgres, Status};

/// The loss of the primary.
pub(super) fn database(postgres: &Postgres, plan: &Plan) -> Parts {
    let Some(primary) = &postgres.primary else {
        let summary = "nobody reigns: a recovery is under way, or was refused; see resurgam incident list --open";
        return (false, summary.to_owned(), "not known".to_owned(), Vec::new());
    };
    let objective = plan.objectives(Scenario::PostgresPrimary).rpo;
    let vaults = !plan.backup.vaults.is_empty();
    let state = |name: &ComponentName| {
        let instance = postgres.instances.iter().find(|instance| instance.name == *name);
        instance.and_then(|instance| instance.observed.as_ref()).map(|seen| &seen.state)
    };
    let works = matches!(state(primary), Some(ServerState::Primary(_)));
    let mut standbys: Vec<_> = postgres
        .instances
        .iter()
        .filter(|instance| instance.name != *primary)
        .filter(|instance| {
            instance.heard_ms.is_some_and(|ms| ms < 1000)
                && matches!(
                    instance.observed.as_ref().map(|o| &o.state),
                    Some(ServerState::Standby(_))
                )
        })
        .collect();
    // The nearest to the primary; whoever is complete wins a tie.
    standbys.sort_by_key(|instance| {
        (instance.lag_bytes.unwrap_or(u64::MAX), postgres.complete.as_ref() != Some(&instance.name))
    });
    let Some(best) = standbys.first() else {
        let summary = format!(
            "{primary} has no standby that could take over; it can only be started again with its own data{}",
            if vaults { ", or with a backup and the log after it when these are gone" } else { "" }
        );
        let would = vec![
            finds(works, primary.as_str()),
            "keep what the keepers said last, and the last lines of its log".to_owned(),
            format!("take the reign from {primary} and prove that it accepts no write"),
            match vaults {
                true => format!(
                    "choose {primary} itself, when its data is there; else the newest backup with the log after it, or ask a person if more than {objective} would be lost"
                ),
                false => format!(
                    "choose {primary} itself, when its data is there; else refuse: only a backup helps then, and the plan has no vault"
                ),
            },
            format!("nothing, when {primary} has its data; else restore them from a vault"),
            format!("start {primary} in a new epoch"),
            format!("lead the service at {} to it again", postgres.service),
            "write a row, read it back, and ask the platform for its readiness".to_owned(),
            "nothing: it reigns again itself".to_owned(),
            "nothing: there is no standby".to_owned(),
        ];
        let loss = match vaults {
            true => "nothing, if its data is there; else what has not reached a vault yet",
            false => "nothing, if its data is there; else everything",
        };
        return (true, summary, loss.to_owned(), would);
    };
    let complete = postgres.complete.is_some();
    let loss = if complete {
        format!("nothing that was acknowledged: {} has all of it", best.name)
    } else {
        match best.lag_bytes {
            Some(bytes) => {
                format!("up to {bytes} bytes of log that {} has not received yet", best.name)
            }
            None => {
                format!("not known: the position of {} relative to {primary} is not", best.name)
            }
        }
    };
    let choose = if complete {
        format!("choose {}, which has every acknowledged write", best.name)
    } else {
        format!("choose {} if at most {objective} would be lost; else ask a person", best.name)
    };
    let summary = if works {
        format!(
            "{primary} works, so this would end at its first step as a false alarm; were it lost, {} would take over",
            best.name
        )
    } else {
        format!("{} takes over from {primary}", best.name)
    };
    let mode = if plan.postgres.synchronous { "synchronously" } else { "asynchronously" };
    let would = vec![
        finds(works, primary.as_str()),
        "keep what the keepers said last, and the last lines of its log".to_owned(),
        format!(
            "take the reign from {primary} (epoch {}) and prove that it accepts no write; refuse if that cannot be proven",
            postgres.epoch
        ),
        choose,
        format!("nothing: {} has the data", best.name),
        format!("give the reign to {}", best.name),
        format!("lead the service at {} to {}", postgres.service, best.address),
        "write a row, read it back, and ask the platform for its readiness".to_owned(),
        format!("make {primary} a standby of {}, by pg_rewind or a base backup", best.name),
        format!("wait until all of {} instances replicate {mode}", postgres.instances.len()),
    ];
    (true, summary, loss, would)
}

/// The loss of the database with its data, or the order to take it from a vault.
pub(super) fn restore(postgres: &Postgres, plan: &Plan) -> Parts {
    let loss = "what has not reached a vault yet".to_owned();
    let Some(name) = postgres.primary.as_ref().or(postgres.instances.first().map(|i| &i.name))
    else {
        return (false, "there is no instance".to_owned(), loss, Vec::new());
    };
    if plan.backup.vaults.is_empty() {
        let summary = "the plan has no vault to restore from; add one under [[backup.vaults]]";
        return (false, summary.to_owned(), loss, Vec::new());
    }
    let works = postgres.instances.iter().any(|instance| {
        let state = instance.observed.as_ref().map(|seen| &seen.state);
        instance.name == *name && matches!(state, Some(ServerState::Primary(_)))
    });
    let objective = plan.objectives(Scenario::PostgresRestore).rpo;
    let summary = match works {
        true => format!(
            "{name} works, so this would end at its first step as a false alarm; to go back in time: end resurgam up, then resurgam restore"
        ),
        false => format!("{name} gets the newest backup, and the log after it to its end"),
    };
    let would = vec![
        finds(works, name.as_str()),
        "keep what the keepers said last, and the last lines of its log".to_owned(),
        format!("take the reign from {name} and prove that it accepts no write"),
        format!(
            "choose the newest backup with the log after it; ask a person if more than {objective} would be lost"
        ),
        format!("restore it beside {name}, check it, replay the log, and move what is there aside"),
        format!("start {name} in a new epoch"),
        format!("lead the service at {} to it again", postgres.service),
        "write a row, read it back, and ask the platform for its readiness".to_owned(),
        "nothing: it reigns itself".to_owned(),
        format!("wait until all of {} instances replicate", postgres.instances.len()),
    ];
    (true, summary, loss, would)
}

/// Damaged pages of the primary.
pub(super) fn damaged(postgres: &Postgres, plan: &Plan) -> Parts {
    let Some(primary) = &postgres.primary else {
        let summary = "nobody reigns: a recovery is under way, or was refused; see resurgam incident list --open";
        return (false, summary.to_owned(), "not known".to_owned(), Vec::new());
    };
    let objective = plan.objectives(Scenario::DatabaseCorruption).rpo;
    let alone = postgres.instances.len() == 1;
    let vaults = !plan.backup.vaults.is_empty();
    let (summary, loss) = match (alone, vaults, postgres.complete.is_some()) {
        (false, _, true) => ("a standby takes over", "nothing that was acknowledged"),
        (false, ..) => ("the most advanced standby takes over", "what it has not received yet"),
        (true, true, _) => {
            ("the newest backup and the log after it take over", "what has not reached a vault yet")
        }
        (true, false, _) => (
            "there is neither a standby nor a vault, so it would be refused",
            "nothing: nothing would be done",
        ),
    };
    let choose = match alone {
        true => "choose the newest backup with the log after it",
        false => {
            "choose the most advanced standby; without one, the newest backup with the log after it"
        }
    };
    let would = vec![
        format!("say what was found on the disk of {primary}; stop if it does not reign any more"),
        "keep what the keepers said last, and the last lines of its log".to_owned(),
        format!("take the reign from {primary} and prove that it accepts no write"),
        format!("{choose}; ask a person if more than {objective} would be lost"),
        "restore from a vault, if no standby takes over; the damaged data moves aside".to_owned(),
        "give the reign to the chosen one".to_owned(),
        format!("lead the service at {} to it", postgres.service),
        "write a row, read it back, and ask the platform for its readiness".to_owned(),
        format!("move the damaged data of {primary} aside, and copy it anew from the new primary"),
        format!("wait until all of {} instances replicate", postgres.instances.len()),
    ];
    (!alone || vaults, summary.to_owned(), loss.to_owned(), would)
}

/// The way back, or to another instance, while all is well.
pub(super) fn handover(postgres: &Postgres, successor: &ComponentName) -> Parts {
    let nothing = "nothing: only who has every acknowledged write is handed to".to_owned();
    let no = |summary: String| (false, summary, "nothing".to_owned(), Vec::new());
    let Some(primary) = &postgres.primary else {
        return no("nobody reigns: a recovery is under way, or was refused; see resurgam incident list --open".to_owned());
    };
    let Some(instance) = postgres.instances.iter().find(|i| i.name == *successor) else {
        let names: Vec<_> = postgres.instances.iter().map(|i| i.name.to_string()).collect();
        return no(format!("there is no instance {successor}; there are {}", names.join(", ")));
    };
    if primary == successor {
        return no(format!("{successor} reigns already"));
    }
    let streams = match instance.observed.as_ref().map(|seen| &seen.state) {
        Some(ServerState::Standby(state)) => state.streaming_from.is_some(),
        _ => false,
    };
    if !streams || instance.heard_ms.is_none_or(|ms| ms > 1000) {
        return no(format!(
            "{successor} does not stream from {primary}, so that it cannot take over; see resurgam status"
        ));
    }
    let complete = postgres.complete.as_ref() == Some(successor);
    let catch_up = match complete {
        true => format!("nothing: {successor} has every acknowledged write"),
        false => format!("have commits wait for {successor} until it has every acknowledged write"),
    };
    let would = vec![
        format!("find that {primary} reigns and {successor} streams from it"),
        "keep what the keepers said last".to_owned(),
        catch_up,
        format!(
            "take the reign from {primary} (epoch {}) and wait until its server is stopped",
            postgres.epoch
        ),
        format!("choose {successor}; if it is gone by then, {primary} reigns again"),
        format!("give the reign to {successor}"),
        format!("lead the service at {} to {}", postgres.service, instance.address),
        "write a row, read it back, and ask the platform for its readiness".to_owned(),
        format!("make {primary} a standby of {successor}"),
        format!("wait until all of {} instances replicate", postgres.instances.len()),
    ];
    (true, format!("{primary} hands over to {successor}"), nothing, would)
}

fn finds(works: bool, primary: &str) -> String {
    if works {
        format!("find that {primary} accepts writes, and stop")
    } else {
        format!("wait until the signs agree that {primary} is lost")
    }
}

/// The loss of a standby.
pub(super) fn standby(postgres: &Postgres, status: &Status) -> Parts {
    let standbys = postgres.instances.iter().filter(|i| postgres.primary.as_ref() != Some(&i.name));
    let names: Vec<_> = standbys.map(|instance| instance.name.to_string()).collect();
    if names.is_empty() || postgres.primary.is_none() {
        let summary = match postgres.primary {
            None => "nobody reigns, which is another scenario: postgres-primary",
            Some(_) => "the plan has no standby",
        };
        return (false, summary.to_owned(), "nothing".to_owned(), Vec::new());
    }
    let state = |health: &&Health| {
        let component = &health.component;
        let of = names.iter().any(|name| name == component.name.as_str());
        of.then(|| match component.state {
            RunState::Running => format!("{} runs", component.name),
            _ => format!("{} does not run", component.name),
        })
    };
    let found: Vec<_> = status.components.iter().filter_map(|health| state(&health)).collect();
    let would = vec![
        format!("find that {}", found.join(", ")),
        "keep what its keeper said last, and the last lines of its log".to_owned(),
        "start it if it does not run, and anew if its keeper says nothing".to_owned(),
        "wait until every standby streams, and has everything where commits are to wait for it"
            .to_owned(),
    ];
    let summary = format!("{} would be brought back; the primary goes on", names.join(", "));
    (true, summary, "nothing: the primary has everything".to_owned(), would)
}

/// Connections that have run out.
pub(super) fn connections(postgres: &Postgres, plan: &Plan) -> Parts {
    let policy = &plan.postgres.connections;
    let Some(seen) = &postgres.connections else {
        let summary = "it is not known how many connections are taken, so none would be ended";
        return (false, summary.to_owned(), "not known".to_owned(), Vec::new());
    };
    let found = account(seen.seats, &seen.holders);
    if !seen.seats.reach(policy.full_at) {
        let summary =
            format!("{found}; {} % would be too many, so nothing is to be done", policy.full_at);
        return (false, summary, "nothing".to_owned(), Vec::new());
    }
    let allowed: Vec<_> = [
        (Endable::IdleInTransaction, "idle in transaction", policy.idle_in_transaction),
        (Endable::Idle, "idle", policy.idle),
        (Endable::Active, "active", policy.active),
    ]
    .into_iter()
    .filter(|(state, ..)| policy.end.contains(state))
    .map(|(_, word, age)| format!("{word} for {age}"))
    .collect();
    let relieve = match allowed.is_empty() {
        true => "ask a person: the plan allows to end none".to_owned(),
        false => format!("end those that are {}, as they get there", allowed.join(", or ")),
    };
    let would = vec![
        format!("find that {found}"),
        "keep who holds them, in which state, and what was done last".to_owned(),
        relieve,
        "start the components again whose connections leaked, and name the applications elsewhere"
            .to_owned(),
        "connect anew as an ordinary user, write and read, and ask the platform for its readiness"
            .to_owned(),
    ];
    let loss = "nothing acknowledged: what the ended connections had not committed is undone";
    (true, format!("{found}; those that leaked are ended"), loss.to_owned(), would)
}
