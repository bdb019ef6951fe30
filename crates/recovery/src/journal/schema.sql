CREATE TABLE IF NOT EXISTS meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS incidents (
    id          TEXT PRIMARY KEY,
    scenario    TEXT NOT NULL,
    severity    TEXT NOT NULL,
    component   TEXT NOT NULL,
    cause       TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('open', 'recovered', 'failed', 'refused', 'false-alarm')),
    first_sign  INTEGER NOT NULL,
    opened_at   INTEGER NOT NULL,
    restored_at INTEGER,
    closed_at   INTEGER
) STRICT;
-- One incident per cause.
CREATE UNIQUE INDEX IF NOT EXISTS open_incident ON incidents (scenario, component) WHERE state = 'open';

CREATE TABLE IF NOT EXISTS evidence (
    incident TEXT NOT NULL REFERENCES incidents (id),
    at       INTEGER NOT NULL,
    text     TEXT NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS steps (
    incident   TEXT NOT NULL REFERENCES incidents (id),
    number     INTEGER NOT NULL,
    name       TEXT NOT NULL,
    status     TEXT NOT NULL CHECK (status IN ('started', 'done', 'skipped', 'failed', 'refused')),
    attempts   INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    detail     TEXT NOT NULL,
    output     TEXT NOT NULL,
    PRIMARY KEY (incident, number)
) STRICT;
