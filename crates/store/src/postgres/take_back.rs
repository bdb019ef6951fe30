//! Taking leases back: from those that ran out, and from agents that are gone.

use tokio_postgres::Row;

use super::{PostgresStore, get};
use crate::column::{parsed, unsigned};
use crate::{Result, Wake};

/// A statement that takes back the running tasks whose ids the given query locks, for the reason
/// given: ready at once, or dead when tries are used up. What has run beyond its timeout has
/// failed, and waits as after any failure. Answers how many, by capability, and whether they, or
/// others of a limited kind in their place, are ready.
macro_rules! take_back {
    ($due:literal, $why:literal) => {
        concat!(
            "WITH due AS MATERIALIZED (",
            $due,
            "), judged AS MATERIALIZED (
                SELECT t.id, t.limited, t.held_by AS holder, t.held_instance AS life, attempts >= max_attempts AS last, false AS failed,
                    row_number() OVER (ORDER BY t.id) AS n,
                    CASE WHEN timeout_at <= clock_timestamp()
                        THEN 'the try took longer than the task''s timeout' ELSE '",
            $why,
            "' END AS error,
                    CASE WHEN timeout_at <= clock_timestamp() THEN ",
            $crate::postgres::finish::policy_wait!(),
            " ELSE 0 END AS wait_ms
                FROM tasks AS t JOIN due ON due.id = t.id
            ), ",
            $crate::postgres::finish::end_tries!("judged"),
            " SELECT capability, state = 'ready' OR coalesce(limited, false) AS ready,
                  count(*) AS number
              FROM again GROUP BY 1, 2
              UNION ALL SELECT capability, coalesce(limited, false), count(*)
              FROM over GROUP BY 1, 2"
        )
    };
}
pub(super) use take_back;

/// Takes back what one life of an agent holds. Ordered by a text that no index has: in the order of
/// ids the whole table could be read instead, where statistics say that it is empty.
pub(super) const RETURN_LIFE: &str = take_back!(
    "SELECT id FROM tasks
     WHERE state = 'running' AND held_by = $1 AND held_instance = $2
     ORDER BY id::text FOR UPDATE",
    "the holder of the lease is gone"
);

/// Takes back what earlier lives of an agent hold.
pub(super) const RETURN_EARLIER_LIVES: &str = take_back!(
    "SELECT id FROM tasks
     WHERE state = 'running' AND held_by = $1 AND held_instance <> $2
     ORDER BY id::text FOR UPDATE",
    "the holder of the lease is gone"
);

/// Takes back these, whose holders are gone.
pub(super) const RETURN_THESE: &str = take_back!(
    "SELECT id FROM tasks
     WHERE id = ANY ($1::uuid[]) AND coalesce(state = 'running', false)
     ORDER BY id FOR UPDATE",
    "the holder of the lease is gone"
);

/// Takes back what has expired. What somebody else has locked is being extended, completed or
/// taken back already.
pub(super) const RETURN_EXPIRED: &str = take_back!(
    "SELECT id FROM tasks
     WHERE state = 'running' AND lease_until < statement_timestamp()
     ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED",
    "the lease ran out without a word from its holder"
);

impl PostgresStore {
    /// How many a statement took back. To be called after its commit: wakes those who wait.
    pub(super) fn returned(&self, rows: &[Row]) -> Result<u64> {
        let mut all = 0;
        for row in rows {
            let count = unsigned(get(row, "number")?)?;
            all += count;
            if get(row, "ready")? {
                self.ring(Wake { capability: parsed(get(row, "capability")?)?, count });
            }
        }
        self.meters.tasks("returned", usize::try_from(all).unwrap_or(usize::MAX));
        Ok(all)
    }
}
