//! Taking leases back: from those that ran out, and from agents that are gone.

use tokio_postgres::Row;

use super::get;
use super::messages::deliver;
use crate::Result;
use crate::column::unsigned;

/// A statement that takes back the running tasks whose ids the given query locks, for the reason
/// given: ready at once, or dead when tries are used up. Answers how many in `returned`.
macro_rules! take_back {
    ($due:literal, $why:literal) => {
        concat!(
            "WITH due AS MATERIALIZED (",
            $due,
            "), taken AS (
                UPDATE tasks AS t SET
                    state = CASE WHEN attempts >= max_attempts THEN 'dead' ELSE 'ready' END,
                    finished_at =
                        CASE WHEN attempts >= max_attempts THEN clock_timestamp() END,
                    run_at = clock_timestamp(), error = '",
            $why,
            "', held_by = NULL, held_instance = NULL, lease_until = NULL
                FROM due WHERE t.id = due.id
                RETURNING t.id, t.state, t.error, t.reply_to, t.seq
            ), letters AS (
                SELECT gen_random_uuid() AS id, 'agent-messages' AS topic, reply_to AS recipient,
                    NULL::text AS sender, 'task.dead' AS kind,
                    '{\"task\":\"' || id || '\",\"state\":\"dead\",\"error\":'
                        || to_json(error) || '}' AS body,
                    seq AS n
                FROM taken WHERE state = 'dead' AND reply_to IS NOT NULL
            ), ",
            deliver!("letters"),
            " SELECT count(*) AS returned FROM taken"
        )
    };
}
pub(super) use take_back;

/// Takes back what one life of an agent holds.
pub(super) const RETURN_LIFE: &str = take_back!(
    "SELECT id FROM tasks
     WHERE state = 'running' AND held_by = $1 AND held_instance = $2
     ORDER BY id FOR UPDATE",
    "the holder of the lease is gone"
);

/// Takes back what earlier lives of an agent hold.
pub(super) const RETURN_EARLIER_LIVES: &str = take_back!(
    "SELECT id FROM tasks
     WHERE state = 'running' AND held_by = $1 AND held_instance <> $2
     ORDER BY id FOR UPDATE",
    "the holder of the lease is gone"
);

/// Takes back what has expired. What somebody else has locked is being extended, completed or
/// taken back already.
pub(super) const RETURN_EXPIRED: &str = take_back!(
    "SELECT id FROM tasks
     WHERE state = 'running' AND lease_until < clock_timestamp()
     ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED",
    "the lease ran out without a word from its holder"
);

/// How many a statement took back.
pub(super) fn returned(rows: &[Row]) -> Result<u64> {
    rows.first().map_or(Ok(0), |row| unsigned(get(row, "returned")?))
}
