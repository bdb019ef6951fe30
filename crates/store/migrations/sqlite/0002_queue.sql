ALTER TABLE tasks RENAME TO tasks_before;
DROP INDEX tasks_by_key;
DROP INDEX tasks_ready;
DROP INDEX tasks_leases;
DROP INDEX tasks_held;
DROP INDEX tasks_completed;
DROP INDEX tasks_dead;

CREATE TABLE tasks (
    seq             INTEGER PRIMARY KEY,
    id              BLOB NOT NULL UNIQUE,
    capability      TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN
        ('scheduled', 'ready', 'running', 'completed', 'dead', 'cancelled')),
    priority        INTEGER NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    token           INTEGER NOT NULL DEFAULT 0,
    run_at          INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    max_attempts    INTEGER NOT NULL,
    fixed_backoff   INTEGER NOT NULL,
    backoff_ms      INTEGER NOT NULL,
    max_backoff_ms  INTEGER NOT NULL,
    jitter          INTEGER NOT NULL,
    payload         TEXT NOT NULL,
    idempotency_key TEXT,
    -- For whom: limits can hold for each key.
    key             TEXT,
    -- A JSON list.
    tags            TEXT,
    timeout_ms      INTEGER,
    keep_ms         INTEGER,
    reply_to        TEXT,
    workflow        BLOB,
    step            TEXT,
    error           TEXT,
    -- The token of the last try that its worker ended as failed: tells the repetition of that
    -- word from a late word about a lease that was taken back.
    failed_token    INTEGER,
    held_by         TEXT,
    held_instance   BLOB,
    claim_id        BLOB,
    started_at      INTEGER,
    lease_until     INTEGER,
    timeout_at      INTEGER,
    -- 1 if it counts towards the limits of its capability.
    limited         INTEGER,
    result          TEXT,
    finished_at     INTEGER,
    -- When it is forgotten; never if there is no time.
    expires_at      INTEGER
) STRICT;

INSERT INTO tasks (seq, id, capability, state, priority, attempts, token, run_at, created_at,
    max_attempts, fixed_backoff, backoff_ms, max_backoff_ms, jitter, payload, idempotency_key,
    reply_to, error, failed_token, held_by, held_instance, started_at, lease_until, result,
    finished_at, expires_at)
SELECT seq, id, capability,
    iif(state = 'ready' AND run_at > unixepoch('subsec') * 1000000, 'scheduled', state),
    priority, attempts, token, run_at, created_at, max_attempts, 0, backoff_ms, max_backoff_ms, 0,
    payload, idempotency_key, reply_to, error, failed_token, held_by, held_instance,
    iif(state = 'running', unixepoch() * 1000000, NULL), lease_until, result, finished_at,
    iif(state = 'completed', (unixepoch() + 7 * 86400) * 1000000, NULL)
FROM tasks_before;

DROP TABLE tasks_before;

CREATE UNIQUE INDEX tasks_by_key ON tasks (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- One partial index for each question that is asked often, so that what is done and over costs
-- the queue nothing, however much of it there is.
CREATE INDEX tasks_ready ON tasks (capability, priority DESC, seq) WHERE state = 'ready';
CREATE INDEX tasks_ready_by_key ON tasks (capability, key, priority DESC, seq)
    WHERE state = 'ready' AND key IS NOT NULL;
CREATE INDEX tasks_scheduled ON tasks (run_at) WHERE state = 'scheduled';
CREATE INDEX tasks_leases ON tasks (lease_until) WHERE state = 'running';
CREATE INDEX tasks_held ON tasks (held_by) WHERE state = 'running';
CREATE INDEX tasks_limited ON tasks (capability, key) WHERE limited = 1;
CREATE INDEX tasks_dead ON tasks (capability, seq) WHERE state = 'dead';
CREATE INDEX tasks_cancelled ON tasks (capability, seq) WHERE state = 'cancelled';
CREATE INDEX tasks_expiry ON tasks (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX tasks_workflow ON tasks (workflow) WHERE workflow IS NOT NULL;
CREATE INDEX tasks_tagged ON tasks (seq) WHERE tags IS NOT NULL;

-- Limits of kinds of work, and how full their token buckets are.
CREATE TABLE limits (
    capability TEXT PRIMARY KEY,
    spec       TEXT NOT NULL,
    -- Whether tasks are chosen key by key. Tasks without a key have an empty one then.
    by_key     INTEGER NOT NULL,
    level      REAL,
    level_at   INTEGER
) STRICT;

CREATE TABLE limit_keys (
    capability TEXT NOT NULL,
    key        TEXT NOT NULL,
    level      REAL,
    -- When it had its last turn.
    level_at   INTEGER NOT NULL,
    PRIMARY KEY (capability, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE schedules (
    name      TEXT PRIMARY KEY,
    spec      TEXT NOT NULL,
    next_at   INTEGER,
    last_at   INTEGER,
    last_task BLOB
) STRICT;

-- Tasks of workflows that are over: what the workflow has yet to take note of. Written in the
-- transaction that ends the task.
CREATE TABLE workflow_events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow BLOB NOT NULL,
    step     TEXT NOT NULL,
    task     BLOB NOT NULL,
    state    TEXT NOT NULL
) STRICT;

CREATE INDEX workflow_events_by_workflow ON workflow_events (workflow, sequence);
