-- Times are microseconds since 1970, ids the 16 bytes of a UUID, payloads JSON text as it came.

CREATE TABLE tasks (
    seq             INTEGER PRIMARY KEY,
    id              BLOB NOT NULL UNIQUE,
    capability      TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('ready', 'running', 'completed', 'dead')),
    payload         TEXT NOT NULL,
    result          TEXT,
    error           TEXT,
    idempotency_key TEXT,
    priority        INTEGER NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    max_attempts    INTEGER NOT NULL,
    backoff_ms      INTEGER NOT NULL,
    max_backoff_ms  INTEGER NOT NULL,
    token           INTEGER NOT NULL DEFAULT 0,
    -- The token of the last try that its worker ended as failed: tells the repetition of that
    -- word from a late word about a lease that was taken back.
    failed_token    INTEGER,
    held_by         TEXT,
    held_instance   BLOB,
    lease_until     INTEGER,
    run_at          INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    finished_at     INTEGER,
    reply_to        TEXT
) STRICT;

CREATE UNIQUE INDEX tasks_by_key ON tasks (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- One partial index for each question that is asked often, so that what is done and over costs
-- the queue nothing, however much of it there is.
CREATE INDEX tasks_ready ON tasks (capability, priority DESC, seq, run_at) WHERE state = 'ready';
CREATE INDEX tasks_leases ON tasks (lease_until) WHERE state = 'running';
CREATE INDEX tasks_held ON tasks (held_by) WHERE state = 'running';
CREATE INDEX tasks_completed ON tasks (capability, seq) WHERE state = 'completed';
CREATE INDEX tasks_dead ON tasks (capability, seq) WHERE state = 'dead';

CREATE TABLE agents (
    id            TEXT PRIMARY KEY,
    instance      BLOB NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('available', 'gone')),
    capabilities  TEXT NOT NULL,
    capacity      INTEGER NOT NULL,
    labels        TEXT NOT NULL,
    registered_at INTEGER NOT NULL,
    seen_at       INTEGER NOT NULL
) STRICT;

-- AUTOINCREMENT, because receivers remember how far they are: no number may come twice.
CREATE TABLE messages (
    sequence        INTEGER PRIMARY KEY AUTOINCREMENT,
    id              BLOB NOT NULL UNIQUE,
    topic           TEXT NOT NULL,
    recipient       TEXT NOT NULL,
    sender          TEXT,
    kind            TEXT NOT NULL,
    body            TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    -- Acknowledged messages stay for a while without their body, so that a sender who never
    -- heard the answer can send again without a second delivery.
    acknowledged_at INTEGER
) STRICT;

CREATE INDEX messages_waiting ON messages (recipient, sequence) WHERE acknowledged_at IS NULL;
CREATE INDEX messages_over ON messages (acknowledged_at) WHERE acknowledged_at IS NOT NULL;

-- What the check of the store writes.
CREATE TABLE checks (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    times INTEGER NOT NULL,
    at    INTEGER NOT NULL
) STRICT;
