//! The configuration files of an instance.
//!
//! There are two sets. The keeper's lies beside the data folder and is named on the command
//! line; with it the server can be used. The one inside the data folder is what a server finds
//! that somebody else starts; it refuses every connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use resurgam_model::ComponentName;

use super::secrets::{REPLICATOR, SUPERUSER};
use super::wire::Upstream;

/// What the keeper's `postgresql.conf` depends on.
#[derive(Clone, Debug)]
pub(super) struct Config<'a> {
    pub(super) name: &'a ComponentName,
    pub(super) address: SocketAddr,
    pub(super) hba_file: &'a Path,
    pub(super) passfile: &'a Path,
    pub(super) settings: &'a BTreeMap<String, String>,
    pub(super) upstream: Option<&'a Upstream>,
    pub(super) commits: &'a Commits,
}

/// When a commit is confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Commits {
    /// Never: the server has no reign. Should somebody promote it behind its keeper's back, it
    /// still confirms nothing.
    ///
    /// It also makes that a promotion need not wait until its servers' processes have read
    /// the name of the standby: they know already that there is something to wait for.
    #[default]
    Never,
    /// When it is on this server's disk.
    AtOnce,
    /// When it is on this standby's disk too.
    With(ComponentName),
}

impl Commits {
    pub(super) fn new(standby: Option<&ComponentName>) -> Self {
        standby.cloned().map_or(Self::AtOnce, Self::With)
    }

    pub(super) fn standby(&self) -> Option<&ComponentName> {
        match self {
            Self::With(standby) => Some(standby),
            Self::Never | Self::AtOnce => None,
        }
    }

    /// The value of `synchronous_standby_names`.
    fn names(&self) -> String {
        match self {
            // No component has such a name.
            Self::Never => "FIRST 1 (\"no reign\")".to_owned(),
            Self::AtOnce => String::new(),
            Self::With(standby) => format!("FIRST 1 (\"{standby}\")"),
        }
    }
}

/// `max_connections`, unless the plan says otherwise.
pub(super) const MAX_CONNECTIONS: u64 = 120;

/// `pg_hba.conf` of the keeper: only this machine, only with a password.
pub(super) const HBA: &str = "\
# TYPE  DATABASE     USER        ADDRESS        METHOD
host    all          all         127.0.0.0/8    scram-sha-256
host    all          all         ::1/128        scram-sha-256
host    replication  replicator  127.0.0.0/8    scram-sha-256
host    replication  replicator  ::1/128        scram-sha-256
";

/// `pg_hba.conf` inside the data folder.
pub(super) const FENCED_HBA: &str = "\
# This data folder belongs to a keeper. Started without it, the server lets nobody in.
local  all          all       reject
host   all          all  all  reject
local  replication  all       reject
host   replication  all  all  reject
";

/// `postgresql.conf` inside the data folder.
pub(super) const FENCED_CONF: &str = "\
# This data folder belongs to a keeper. Started without it, the server is a standby that has
# nowhere to listen: only its keeper knows whether it may be more.
listen_addresses = ''
unix_socket_directories = ''
default_transaction_read_only = on
restart_after_crash = off
";

/// The replication slot of a standby: its name in the letters that PostgreSQL allows.
pub(super) fn slot_name(standby: &ComponentName) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    standby.as_str().chars().take(60).map(plain).collect()
}

/// A value in `postgresql.conf`.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A value in a connection string.
fn conninfo_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A connection string for PostgreSQL's own programs; the password comes from the passfile.
pub(super) fn conninfo(address: SocketAddr, user: &str, passfile: &Path, name: &str) -> String {
    format!(
        "host={} port={} user={user} dbname=postgres passfile={} application_name={} connect_timeout=3 keepalives_idle=2 keepalives_interval=1 keepalives_count=3",
        address.ip(),
        address.port(),
        conninfo_value(&passfile.to_string_lossy()),
        conninfo_value(name),
    )
}

/// A connection string for `pg_rewind`, which must read the source's files.
pub(super) fn superuser_conninfo(address: SocketAddr, passfile: &Path, name: &str) -> String {
    conninfo(address, SUPERUSER, passfile, name)
}

impl Config<'_> {
    /// The text of the keeper's `postgresql.conf`.
    pub(super) fn render(&self) -> String {
        let mut lines: Vec<(&str, String)> = Vec::new();
        let mut set = |key, value: &str| lines.push((key, quote(value)));
        // A local deployment is small, and several servers share the machine.
        set("shared_buffers", "64MB");
        set("max_connections", &MAX_CONNECTIONS.to_string());
        // For keeper, controller and people, when ordinary users have taken all others.
        set("superuser_reserved_connections", "5");
        // Files in the data folder, so that nothing is left elsewhere when a server is killed.
        set("dynamic_shared_memory_type", "mmap");
        for (key, value) in self.settings {
            set(key, value);
        }
        set("hba_file", &self.hba_file.to_string_lossy());
        set("listen_addresses", &self.address.ip().to_string());
        set("port", &self.address.port().to_string());
        set("unix_socket_directories", "");
        set("cluster_name", self.name.as_str());
        set("wal_level", "replica");
        set("hot_standby", "on");
        set("max_wal_senders", "16");
        set("max_replication_slots", "16");
        // What a standby may be behind without its slot, and what a dead one may hold back.
        set("wal_keep_size", "256MB");
        set("max_slot_wal_keep_size", "4GB");
        set("wal_receiver_status_interval", "1s");
        set("wal_receiver_timeout", "5s");
        set("wal_sender_timeout", "5s");
        set("wal_retrieve_retry_interval", "100ms");
        set("recovery_target_timeline", "latest");
        // After a crash the keeper decides what the server may be, not the server.
        set("restart_after_crash", "off");
        set("synchronous_commit", "on");
        set("log_line_prefix", "%m [%p] ");
        set("synchronous_standby_names", &self.commits.names());
        if let Some(upstream) = self.upstream {
            let from = conninfo(upstream.address, REPLICATOR, self.passfile, self.name.as_str());
            set("primary_conninfo", &from);
            set("primary_slot_name", &slot_name(self.name));
        }
        let body: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        format!("# Written by the keeper of {}. Changes are lost.\n{body}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_break_out_of_their_quotes() {
        let name = ComponentName::new("postgres-1").unwrap();
        let upstream = Upstream {
            name: ComponentName::new("postgres-0").unwrap(),
            address: "127.0.0.1:5432".parse().unwrap(),
        };
        let settings = BTreeMap::from([("work_mem".to_owned(), "4MB'\nfsync = 'off".to_owned())]);
        let config = Config {
            name: &name,
            address: "127.0.0.1:5433".parse().unwrap(),
            hba_file: Path::new("/tmp/it's/hba"),
            passfile: Path::new("/tmp/it's/pass"),
            settings: &settings,
            upstream: Some(&upstream),
            commits: &Commits::With(upstream.name.clone()),
        };
        let text = config.render();
        assert!(text.contains("hba_file = '/tmp/it''s/hba'"), "{text}");
        assert!(text.contains(r"passfile=''/tmp/it\\''s/pass''"), "{text}");
        assert!(text.contains("work_mem = '4MB''\nfsync = ''off'"), "{text}");
        assert!(text.contains("synchronous_standby_names = 'FIRST 1 (\"postgres-0\")'"), "{text}");
        assert_eq!(slot_name(&name), "postgres_1");
    }
}
