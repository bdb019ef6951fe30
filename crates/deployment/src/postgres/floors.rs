//! Settings that a server may not have lower than the log that it replays was written with.
//!
//! Every server here starts as a standby, and PostgreSQL refuses to replay with less room than the
//! primary had. So what the control file remembers is the least.

use std::collections::BTreeMap;

use super::server::Instance;

/// The settings, how `pg_controldata` calls them, and what a server has that says nothing of them.
const FLOORS: [(&str, &str, u64); 4] = [
    ("max_connections", "max_connections setting:", super::config::MAX_CONNECTIONS),
    ("max_worker_processes", "max_worker_processes setting:", 8),
    ("max_prepared_transactions", "max_prepared_xacts setting:", 0),
    ("max_locks_per_transaction", "max_locks_per_xact setting:", 64),
];

/// Those of the settings that a new database is to be made with, as arguments.
pub(super) fn as_arguments(settings: &BTreeMap<String, String>) -> Vec<String> {
    let of = |(name, _, otherwise): &(&str, &str, u64)| {
        let value = wanted(settings, name).unwrap_or_else(|| otherwise.to_string());
        format!("{name}={value}")
    };
    FLOORS.iter().map(of).collect()
}

fn wanted(settings: &BTreeMap<String, String>, name: &str) -> Option<String> {
    settings.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
}

/// The settings of the instance, none lower than its data needs.
pub(super) async fn settings(instance: &Instance) -> BTreeMap<String, String> {
    let mut command = tokio::process::Command::new(instance.programs.path("pg_controldata"));
    command.arg(instance.layout.data()).env("LC_ALL", "C").kill_on_drop(true);
    match command.output().await {
        Ok(output) if output.status.success() => {
            raised(&instance.settings, &String::from_utf8_lossy(&output.stdout))
        }
        // The server itself will say what it lacks.
        _ => instance.settings.clone(),
    }
}

fn raised(settings: &BTreeMap<String, String>, control: &str) -> BTreeMap<String, String> {
    let mut all = settings.clone();
    for (name, label, otherwise) in FLOORS {
        let floor = control.lines().find_map(|line| line.strip_prefix(label)?.trim().parse().ok());
        let wanted = match wanted(settings, name) {
            // What is no number the server refuses with its own words.
            Some(text) => text.trim().parse().ok(),
            None => Some(otherwise),
        };
        if let (Some(floor), Some(wanted)) = (floor, wanted)
            && wanted < floor
        {
            tracing::warn!(
                setting = name,
                wanted,
                floor,
                "cannot be lowered: the log that is replayed was written with more"
            );
            all.retain(|key, _| !key.eq_ignore_ascii_case(name));
            all.insert(name.to_owned(), floor.to_string());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: &str = "pg_control version number:            1300\n\
        max_connections setting:              200\n\
        max_worker_processes setting:         8\n\
        max_locks_per_xact setting:           64\n";

    fn with(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn what_the_data_needs_is_the_least() {
        let raise = |settings| raised(&settings, CONTROL);
        assert_eq!(raise(BTreeMap::new()), with("max_connections", "200"));
        assert_eq!(raise(with("MAX_CONNECTIONS", "40")), with("max_connections", "200"));
        assert_eq!(raise(with("max_connections", "300")), with("max_connections", "300"));
        let unreadable = with("max_connections", "many");
        assert_eq!(raise(unreadable.clone()), unreadable);
        assert_eq!(raised(&BTreeMap::new(), ""), BTreeMap::new());
    }

    #[test]
    fn a_new_database_is_made_with_what_is_wanted() {
        let arguments = as_arguments(&with("MAX_CONNECTIONS", "40"));
        assert_eq!(
            arguments,
            [
                "max_connections=40",
                "max_worker_processes=8",
                "max_prepared_transactions=0",
                "max_locks_per_transaction=64"
            ]
        );
    }
}
