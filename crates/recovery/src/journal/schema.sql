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
    state       TEXT NOT NULL,
    first_sign  INTEGER NOT NULL,
    opened_at   INTEGER NOT NULL,
    restored_at INTEGER,
    closed_at   INTEGER,
    -- How often its recovery was begun anew.
    round       INTEGER NOT NULL DEFAULT 0,
    -- When people are asked, if otherwise than the plan says.
    ask         TEXT
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
    round      INTEGER NOT NULL DEFAULT 0,
    number     INTEGER NOT NULL,
    name       TEXT NOT NULL,
    status     TEXT NOT NULL,
    attempts   INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    detail     TEXT NOT NULL,
    output     TEXT NOT NULL,
    PRIMARY KEY (incident, round, number)
) STRICT;

-- Each change, with a hash over it and all before it.
CREATE TABLE IF NOT EXISTS entries (
    number  INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    about   TEXT NOT NULL,
    content TEXT NOT NULL,
    hash    BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS entries_about ON entries (about, number);
-- The controller asks for new ones several times a second.
CREATE INDEX IF NOT EXISTS entries_orders ON entries (number) WHERE kind = 'order';
