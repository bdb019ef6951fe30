//! What is done with tasks that are over, whatever ended them.

/// Common table expressions that record as over what the expression named removed from `tasks`.
/// That one must have all columns of `tasks` and `end_state`, `end_result`, `end_error`,
/// `end_failed` (the token of the last failed try) and `n`, the order.
macro_rules! finish {
    ($over:literal) => {
        concat!(
            "kept AS (
                INSERT INTO tasks_done (id, created_at, run_at, token, backoff_ms, max_backoff_ms,
                    attempts, max_attempts, priority, jitter, fixed_backoff, capability, payload,
                    idempotency_key, key, tags, timeout_ms, keep_ms, reply_to, workflow, step,
                    held_by, started_at, fallback, fall_ms, state, result, error, failed_token,
                    finished_at, expires_at)
                SELECT id, created_at, run_at, token, backoff_ms, max_backoff_ms,
                    attempts, max_attempts, priority, jitter, fixed_backoff, capability, payload,
                    idempotency_key, key, tags, timeout_ms, keep_ms, reply_to, workflow, step,
                    held_by, started_at, fallback, fall_ms, end_state, end_result, end_error, end_failed,
                    now(),
                    -- Seven days are the default of the model.
                    CASE WHEN end_state <> 'dead' THEN now()
                        + coalesce(keep_ms, 604800000) * interval '1 millisecond' END
                FROM ",
            $over,
            "), noted AS (
                INSERT INTO workflow_events (workflow, step, task, state)
                SELECT workflow, step, id, end_state FROM ",
            $over,
            " WHERE workflow IS NOT NULL ORDER BY n
            ), letters AS (
                SELECT gen_random_uuid() AS id, 'agent-messages' AS topic, reply_to AS recipient,
                    NULL::text AS sender, 'task.' || end_state AS kind,
                    '{\"task\":\"' || id || '\",\"state\":\"' || end_state || '\",'
                        || CASE WHEN end_state = 'completed' THEN '\"result\":' || end_result
                            ELSE '\"error\":' || to_json(end_error) END || '}' AS body,
                    NULL::text AS reply_to, NULL::uuid AS in_reply_to, NULL::bigint AS ttl_ms,
                    false AS there, n
                FROM ",
            $over,
            " WHERE reply_to IS NOT NULL
            ), ",
            $crate::postgres::messages::deliver!("letters")
        )
    };
}
pub(super) use finish;

/// Common table expressions `again` and `over` that end the tries of the expression named, which
/// must have the columns `id`, `last` (no further try), `error`, `wait_ms` (before the next try),
/// `failed` (its worker said so), `limited`, `holder`, `life` (whose try it was) and `n`, and must
/// hold the locks of the rows.
macro_rules! end_tries {
    ($ended:literal) => {
        concat!(
            "again AS (
                UPDATE tasks AS t SET
                    state = CASE WHEN e.wait_ms > 0 THEN 'scheduled' ELSE 'ready' END,
                    run_at = clock_timestamp() + e.wait_ms * interval '1 millisecond',
                    error = e.error,
                    failed_token = CASE WHEN e.failed THEN t.token ELSE t.failed_token END,
                    held_by = NULL, held_instance = NULL, claim_id = NULL, lease_until = NULL,
                    timeout_at = NULL, limited = NULL, note = NULL
                FROM ",
            $ended,
            " AS e WHERE t.id = e.id AND NOT e.last
                RETURNING t.id, t.token, t.capability, t.state, e.limited, e.holder, e.life
            ), over AS (
                DELETE FROM tasks AS t USING ",
            $ended,
            " AS e WHERE t.id = e.id AND e.last
                RETURNING t.*, 'dead' AS end_state, NULL::text AS end_result,
                    e.error AS end_error,
                    CASE WHEN e.failed THEN t.token ELSE t.failed_token END AS end_failed, e.n,
                    e.holder, e.life
            ), ",
            $crate::postgres::finish::finish!("over")
        )
    };
}
pub(super) use end_tries;

/// The wait of a task's retry policy after the try that has just failed, in milliseconds.
macro_rules! policy_wait {
    () => {
        "least(CASE WHEN fixed_backoff THEN backoff_ms::double precision
             ELSE backoff_ms * power(2, least(attempts - 1, 32)) END, max_backoff_ms)
         * (1 - jitter / 100.0 * random())"
    };
}
pub(super) use policy_wait;
