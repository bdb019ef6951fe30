//! The runbook for connections that have run out, for people.

use crate::runbook::{Danger, Outline};

pub(super) const CONFIRM: usize = 0;
pub(super) const EVIDENCE: usize = 1;
pub(super) const RELIEVE: usize = 2;
pub(super) const RESTART: usize = 3;
pub(super) const VERIFY: usize = 4;

/// The steps, in order.
pub(crate) static OUTLINE: [Outline; 5] = [
    Outline {
        name: "confirm",
        danger: Danger::Looks,
        does: "Counts the connections of clients, over one that was kept open for this, and compares with what is there for ordinary users: max_connections without what is reserved.",
        verified: "The count is in the journal.",
        by_hand: &[
            "# as superuser: the last places are reserved for it",
            "psql --host PRIMARY --username postgres --command \"SELECT count(*), current_setting('max_connections'), current_setting('superuser_reserved_connections') FROM pg_stat_activity WHERE backend_type = 'client backend'\"",
        ],
    },
    Outline {
        name: "evidence",
        danger: Danger::Looks,
        does: "Keeps who holds the connections, before any of them is ended: by application and user, in which state, for how long, and what was done last, without the values in it.",
        verified: "The records are in the journal.",
        by_hand: &[
            "psql --host PRIMARY --username postgres --command \"SELECT application_name, usename, state, count(*), max(clock_timestamp() - state_change) AS longest FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1, 2, 3 ORDER BY 4 DESC\"",
            "psql --host PRIMARY --username postgres --command \"SELECT pid, application_name, usename, client_addr, client_port, state, state_change, left(query, 60) FROM pg_stat_activity WHERE backend_type = 'client backend' ORDER BY state_change\"",
        ],
    },
    Outline {
        name: "relieve",
        danger: Danger::Dangerous,
        does: "Ends the connections that leaked, as the plan measures that under [postgres.connections]: all that have done nothing in an open transaction for too long, and of those that rest the oldest of whoever holds most, until enough are free. What they had not committed is undone; nobody was told that it was done. Never ends those of superusers, of replication, of backups, of the probe, or of protected applications. If none has been so for long enough, it waits; if none may be ended, a person decides.",
        verified: "Fewer connections are taken than make an incident.",
        by_hand: &[
            "# those that have done nothing in their transaction for a minute; look at the list before",
            "psql --host PRIMARY --username postgres --command \"SELECT pid, application_name, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state LIKE 'idle in transaction%' AND state_change < clock_timestamp() - interval '1 minute' AND usename NOT IN ('postgres', 'replicator', 'resurgam_probe')\"",
        ],
    },
    Outline {
        name: "restart",
        danger: Danger::Acts,
        does: "Starts those components of the deployment again whose connections leaked, one after the other, each when the one before serves. Applications elsewhere are named, for those who run them.",
        verified: "Each of them serves again.",
        by_hand: &[
            "resurgam restart COMPONENT",
            "kubectl --namespace dotnetagents rollout restart deployment dotnetagents-api",
            "# a larger pool only if all of them together stay below max_connections:",
            "#   processes x DATABASE_MAX_POOL_SIZE + others < max_connections - superuser_reserved_connections",
            "kubectl --namespace dotnetagents set env deployment dotnetagents-api DATABASE_MAX_POOL_SIZE=20",
        ],
    },
    Outline {
        name: "verify",
        danger: Danger::Looks,
        does: "Connects anew as an ordinary user, writes a row and reads it back, asks the platform for its readiness, and counts again.",
        verified: "All of it holds at once.",
        by_hand: &[
            "psql --host PRIMARY --username dotnetagents --dbname dotnetagents --command \"SELECT 1\"",
            "curl --fail --silent --show-error http://127.0.0.1:7070/ready",
        ],
    },
];
