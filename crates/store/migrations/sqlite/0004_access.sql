-- Who may come in. Only hashes of tokens are kept.
CREATE TABLE tokens (
    id           BLOB PRIMARY KEY,
    hash         BLOB NOT NULL UNIQUE,
    name         TEXT NOT NULL,
    role         TEXT NOT NULL CHECK (role IN ('viewer', 'agent', 'operator', 'admin')),
    agents       TEXT,
    created_by   TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER,
    revoked_at   INTEGER
) STRICT;

-- Grows with each revocation: who knows the number knows whether what it remembers of tokens
-- still holds.
CREATE TABLE access_generation (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    generation INTEGER NOT NULL
) STRICT;

INSERT INTO access_generation (one, generation) VALUES (1, 0);

-- What was done with privilege. Of an entry only the outcome changes, once.
CREATE TABLE audit (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    token      BLOB,
    actor_name TEXT,
    act        TEXT NOT NULL,
    object     TEXT NOT NULL,
    outcome    TEXT NOT NULL CHECK (outcome IN ('begun', 'done', 'failed', 'denied')),
    detail     TEXT,
    request_id TEXT,
    remote     TEXT
) STRICT;

CREATE INDEX audit_by_time ON audit (at);
