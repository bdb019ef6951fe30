-- Tasks that are not over stay in `tasks`; those that are over move to `tasks_done`. The queue
-- works on a table that is as small as its backlog, however much has been done before.

ALTER TABLE tasks RENAME TO tasks_before;
DROP INDEX tasks_by_key, tasks_ready, tasks_leases, tasks_held, tasks_completed, tasks_dead;
ALTER INDEX tasks_pkey RENAME TO tasks_before_pkey;
ALTER INDEX tasks_id_key RENAME TO tasks_before_id_key;

CREATE TABLE tasks (
    id              uuid PRIMARY KEY,
    created_at      timestamptz NOT NULL,
    run_at          timestamptz NOT NULL,
    token           bigint NOT NULL DEFAULT 0,
    backoff_ms      bigint NOT NULL,
    max_backoff_ms  bigint NOT NULL,
    attempts        integer NOT NULL DEFAULT 0,
    max_attempts    integer NOT NULL,
    priority        smallint NOT NULL,
    jitter          smallint NOT NULL,
    fixed_backoff   boolean NOT NULL,
    state           text NOT NULL CHECK (state IN ('scheduled', 'ready', 'running')),
    capability      text NOT NULL,
    payload         text NOT NULL,
    idempotency_key text,
    -- For whom: limits can hold for each key.
    key             text,
    tags            text[],
    timeout_ms      bigint,
    keep_ms         bigint,
    reply_to        text,
    workflow        uuid,
    step            text,
    error           text,
    -- The token of the last try that its worker ended as failed: tells the repetition of that
    -- word from a late word about a lease that was taken back.
    failed_token    bigint,
    held_by         text,
    held_instance   uuid,
    claim_id        uuid,
    started_at      timestamptz,
    lease_until     timestamptz,
    timeout_at      timestamptz,
    -- Counts towards the limits of its capability.
    limited         boolean
) WITH (
    -- A queue turns over: waiting for a fifth of the table to die would let the indexes rot.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.1
);

-- One partial index for each question that is asked often. Ids sort by time: they are the order
-- of the queue.
CREATE INDEX tasks_ready ON tasks (capability, priority DESC, id) WHERE state = 'ready';
CREATE INDEX tasks_ready_by_key ON tasks (capability, key, priority DESC, id)
    WHERE state = 'ready' AND key IS NOT NULL;
CREATE INDEX tasks_scheduled ON tasks (run_at) WHERE state = 'scheduled';
CREATE INDEX tasks_leases ON tasks (lease_until) WHERE state = 'running';
CREATE INDEX tasks_held ON tasks (held_by) WHERE state = 'running';
CREATE INDEX tasks_limited ON tasks (capability, key) WHERE limited;
CREATE INDEX tasks_workflow ON tasks (workflow) WHERE workflow IS NOT NULL;
CREATE INDEX tasks_tags ON tasks USING gin (tags) WHERE tags IS NOT NULL;

CREATE TABLE tasks_done (
    id              uuid PRIMARY KEY,
    created_at      timestamptz NOT NULL,
    run_at          timestamptz NOT NULL,
    token           bigint NOT NULL,
    backoff_ms      bigint NOT NULL,
    max_backoff_ms  bigint NOT NULL,
    attempts        integer NOT NULL,
    max_attempts    integer NOT NULL,
    priority        smallint NOT NULL,
    jitter          smallint NOT NULL,
    fixed_backoff   boolean NOT NULL,
    state           text NOT NULL CHECK (state IN ('completed', 'dead', 'cancelled')),
    capability      text NOT NULL,
    payload         text NOT NULL,
    idempotency_key text,
    key             text,
    tags            text[],
    timeout_ms      bigint,
    keep_ms         bigint,
    reply_to        text,
    workflow        uuid,
    step            text,
    error           text,
    failed_token    bigint,
    held_by         text,
    started_at      timestamptz,
    result          text,
    finished_at     timestamptz NOT NULL,
    -- When it is forgotten; never if there is no time.
    expires_at      timestamptz
) WITH (
    -- Only its oldest rows ever die.
    autovacuum_vacuum_insert_scale_factor = 0.5
);

CREATE INDEX tasks_done_expiry ON tasks_done (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX tasks_dead ON tasks_done (capability, id) WHERE state = 'dead';
CREATE INDEX tasks_cancelled ON tasks_done (capability, id) WHERE state = 'cancelled';
CREATE INDEX tasks_done_workflow ON tasks_done (workflow) WHERE workflow IS NOT NULL;
CREATE INDEX tasks_done_tags ON tasks_done USING gin (tags) WHERE tags IS NOT NULL;

-- Which task was handed in under an idempotency key, whichever of the two tables it is in.
CREATE TABLE task_keys (
    key  text PRIMARY KEY,
    task uuid NOT NULL
);

INSERT INTO tasks (id, created_at, run_at, token, backoff_ms, max_backoff_ms, attempts,
    max_attempts, priority, jitter, fixed_backoff, state, capability, payload, idempotency_key,
    reply_to, error, failed_token, held_by, held_instance, started_at, lease_until)
SELECT id, created_at, run_at, token, backoff_ms, max_backoff_ms,
    least(attempts, 2147483647), least(max_attempts, 2147483647), priority, 0, false,
    CASE WHEN state = 'ready' AND run_at > now() THEN 'scheduled' ELSE state END,
    capability, payload, idempotency_key, reply_to, error, failed_token, held_by, held_instance,
    CASE WHEN state = 'running' THEN now() END, lease_until
FROM tasks_before WHERE state IN ('ready', 'running') ORDER BY seq;

INSERT INTO tasks_done (id, created_at, run_at, token, backoff_ms, max_backoff_ms, attempts,
    max_attempts, priority, jitter, fixed_backoff, state, capability, payload, idempotency_key,
    reply_to, error, failed_token, result, finished_at, expires_at)
SELECT id, created_at, run_at, token, backoff_ms, max_backoff_ms,
    least(attempts, 2147483647), least(max_attempts, 2147483647), priority, 0, false,
    state, capability, payload, idempotency_key, reply_to, error, failed_token, result,
    coalesce(finished_at, now()),
    CASE WHEN state = 'completed' THEN now() + interval '7 days' END
FROM tasks_before WHERE state IN ('completed', 'dead') ORDER BY seq;

INSERT INTO task_keys (key, task)
SELECT idempotency_key, id FROM tasks_before WHERE idempotency_key IS NOT NULL;

DROP TABLE tasks_before;

-- Limits of kinds of work, and how full their token buckets are.
CREATE TABLE limits (
    capability text PRIMARY KEY,
    spec       text NOT NULL,
    -- Whether tasks are chosen key by key. Tasks without a key have an empty one then.
    by_key     boolean NOT NULL,
    level      double precision,
    level_at   timestamptz
);

CREATE TABLE limit_keys (
    capability text NOT NULL REFERENCES limits ON DELETE CASCADE,
    key        text NOT NULL,
    level      double precision,
    -- When it had its last turn.
    level_at   timestamptz NOT NULL,
    PRIMARY KEY (capability, key)
);

CREATE TABLE schedules (
    name      text PRIMARY KEY,
    spec      text NOT NULL,
    next_at   timestamptz,
    last_at   timestamptz,
    last_task uuid
);

CREATE INDEX schedules_next ON schedules (next_at) WHERE next_at IS NOT NULL;

-- Tasks of workflows that are over: what the workflow has yet to take note of. Written in the
-- transaction that ends the task.
CREATE TABLE workflow_events (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow uuid NOT NULL,
    step     text NOT NULL,
    task     uuid NOT NULL,
    state    text NOT NULL
);

CREATE INDEX workflow_events_by_workflow ON workflow_events (workflow, sequence);
