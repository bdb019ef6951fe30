//! The runbook for the loss of the primary, for people.

use crate::runbook::{Danger, Outline};

pub(super) const CONFIRM: usize = 0;
pub(super) const EVIDENCE: usize = 1;
pub(super) const FENCE: usize = 2;
pub(super) const CHOOSE: usize = 3;
pub(super) const RESTORE: usize = 4;
pub(super) const PROMOTE: usize = 5;
pub(super) const REROUTE: usize = 6;
pub(super) const VERIFY: usize = 7;
pub(super) const REBUILD: usize = 8;
pub(super) const REDUNDANCY: usize = 9;

/// In order.
pub static OUTLINE: [Outline; 10] = [
    Outline {
        name: "confirm",
        danger: Danger::Looks,
        does: "Waits until more than one kind of sign says that the primary is lost: its keeper, SQL from outside, and what the standbys receive. If it works again, the recovery ends as a false alarm. Where pages are damaged, the server counts those that fail their checksums, or a backup has met them.",
        verified: "The signs are in the journal, each with what it says.",
        by_hand: &[
            "resurgam status",
            "pg_isready --host 127.0.0.1 --port PORT_OF_THE_PRIMARY --timeout 2",
            "psql --command \"SELECT datname, checksum_failures, checksum_last_failure FROM pg_stat_database\"",
            "# Kubernetes:",
            "kubectl --namespace dotnetagents get pods --selector app=postgres --output wide",
            "kubectl --namespace dotnetagents logs postgres-0 --tail 100 --previous",
        ],
    },
    Outline {
        name: "evidence",
        danger: Danger::Looks,
        does: "Keeps what every keeper said last, with positions in the log, and the last lines that the lost primary logged.",
        verified: "The records are in the journal.",
        by_hand: &[
            "resurgam logs postgres-0 --lines 200 > evidence-postgres-0.txt",
            "psql --host STANDBY --username postgres --command \"SELECT pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), now() - pg_last_xact_replay_timestamp() AS age\"",
            "# Kubernetes: ask the standby. The lost primary cannot answer, and pg_stat_replication is empty on a standby.",
            "kubectl --namespace dotnetagents exec postgres-1 -- psql --username postgres --command \"SELECT * FROM pg_stat_wal_receiver\"",
        ],
    },
    Outline {
        name: "fence",
        danger: Danger::Dangerous,
        does: "Takes the reign away, cuts the clients off, and proves that the former primary can accept no write: its keeper has stopped it, or its lease has ended and the kernel has killed it.",
        verified: "The proof is in the journal. Without one the recovery is refused, because two primaries could write.",
        by_hand: &[
            "# Nothing may follow before this is certain: two primaries that accept writes lose data.",
            "pg_ctl stop --pgdata DATA_OF_THE_FORMER_PRIMARY --mode immediate",
            "# Kubernetes: no pod with the volume may run, also not on a node that does not answer.",
            "kubectl --namespace dotnetagents scale statefulset postgres-primary --replicas 0",
            "kubectl --namespace dotnetagents wait pod/postgres-0 --for delete --timeout 120s",
        ],
    },
    Outline {
        name: "choose",
        danger: Danger::Looks,
        does: "Chooses the most advanced standby among those that are known to have followed this primary, and says what would be lost, in time and bytes of log. Where nobody has the data any more, the last backup and the log after it are chosen. More than the objective allows is asked of a person.",
        verified: "The choice and the expected loss are in the journal.",
        by_hand: &[
            "# The greatest position on the greatest timeline wins:",
            "psql --host EACH_STANDBY --username postgres --command \"SELECT received_tli, pg_last_wal_receive_lsn() FROM pg_stat_wal_receiver\"",
        ],
    },
    Outline {
        name: "restore",
        danger: Danger::Dangerous,
        does: "Where nobody has the data any more: restores the last backup beside it, has PostgreSQL check it, replays the log to its end, and puts it in its place. What is there is moved aside, never removed. Otherwise nothing.",
        verified: "The replay came to its end, and the position and the last transaction in it are in the journal.",
        by_hand: &[
            "resurgam backup list && resurgam backup log",
            "# Without this program, as the user postgres. The key to the log lies in the vault too:",
            "restic --repo VAULT --password-file PASSWORD restore latest --tag complete --target restored",
            "restic --repo VAULT --password-file PASSWORD dump --path /log.key latest /log.key > log.key",
            "mkdir log && for f in VAULT/log/DEPLOYMENT/SYSTEM/*.zst.age; do age --decrypt --identity log.key \"$f\" | zstd --decompress > log/\"$(basename \"$f\" .zst.age)\"; done",
            "# Pieces (SEGMENT.FROM-TO) are to be put together: cat log/SEGMENT.* > log/SEGMENT; truncate --size 16M log/SEGMENT",
            "mv DATA_OF_THE_PRIMARY data.lost && cp --archive restored/recovery-point/database/data DATA_OF_THE_PRIMARY",
            "rm --force DATA_OF_THE_PRIMARY/standby.signal && touch DATA_OF_THE_PRIMARY/recovery.signal",
            "postgres -D DATA_OF_THE_PRIMARY -c \"restore_command=cp $PWD/log/%f %p\" -c recovery_target_action=promote",
        ],
    },
    Outline {
        name: "promote",
        danger: Danger::Dangerous,
        does: "Gives the reign to the chosen one, in a new epoch that is in the journal before the instance can learn of it.",
        verified: "The instance itself says that it is a primary, in that epoch and on a new timeline.",
        by_hand: &[
            "pg_ctl promote --pgdata DATA_OF_THE_STANDBY --wait",
            "# Kubernetes (as the user postgres: pg_ctl does not run as root):",
            "kubectl --namespace dotnetagents exec postgres-1 -- psql --username postgres --command \"SELECT pg_promote(wait => true)\"",
        ],
    },
    Outline {
        name: "reroute",
        danger: Danger::Acts,
        does: "Leads the service of the database to the new primary, and cuts connections to the former one.",
        verified: "The service leads to the new address.",
        by_hand: &[
            "# Kubernetes: pods are labelled by what they are; the service only selects.",
            "kubectl --namespace dotnetagents label pod postgres-1 role=primary --overwrite",
            "kubectl --namespace dotnetagents label pod postgres-0 role=former --overwrite",
            "kubectl --namespace dotnetagents patch service postgres --patch '{\"spec\":{\"selector\":{\"app\":\"postgres\",\"role\":\"primary\"}}}'",
        ],
    },
    Outline {
        name: "verify",
        danger: Danger::Looks,
        does: "Writes a row as a client does and reads it back, and asks the platform for its readiness down to the store.",
        verified: "The row came back from the new primary, and the platform is ready.",
        by_hand: &[
            "resurgam status",
            "psql \"$DATABASE_URL\" --command \"SELECT pg_is_in_recovery(), pg_current_wal_lsn()\"",
            "curl --fail --silent --show-error http://127.0.0.1:7070/ready",
        ],
    },
    Outline {
        name: "rebuild",
        danger: Danger::Dangerous,
        does: "Makes the former primary a standby of the new one: with pg_rewind where that is enough, else with a base backup. What it alone had is given up here. Damaged data is moved aside and copied anew: a rewind would keep the damage.",
        verified: "It streams from the new primary.",
        by_hand: &[
            "pg_rewind --target-pgdata DATA_OF_THE_FORMER_PRIMARY --source-server \"host=NEW_PRIMARY user=postgres\" --progress",
            "touch DATA_OF_THE_FORMER_PRIMARY/standby.signal",
            "# or, when pg_rewind cannot:",
            "pg_basebackup --host NEW_PRIMARY --username replicator --pgdata EMPTY_FOLDER --write-recovery-conf --wal-method stream --progress",
        ],
    },
    Outline {
        name: "redundancy",
        danger: Danger::Looks,
        does: "Waits until every standby streams and, where the plan wants it, commits wait for one of them: then the next loss would be as harmless.",
        verified: "The new primary lists the standbys as streaming.",
        by_hand: &[
            "psql --host NEW_PRIMARY --username postgres --command \"SELECT application_name, state, sync_state, replay_lag FROM pg_stat_replication\"",
        ],
    },
];
