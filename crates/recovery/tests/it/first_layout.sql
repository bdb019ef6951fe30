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
INSERT INTO meta VALUES ('running', 'no'), ('cluster', '{"version":7,"epoch":3,"primary":null,"created":true,"synchronous":null,"complete":null,"followers":[],"stopped":null,"former":null}');
INSERT INTO incidents VALUES ('0199a2c0-0000-7000-8000-000000000001', 'postgres-primary', 'P0', 'postgres-0', 'it does not answer', 'failed', 1000, 2000, NULL, 9000);
INSERT INTO evidence VALUES ('0199a2c0-0000-7000-8000-000000000001', 2500, 'seen then');
INSERT INTO steps VALUES ('0199a2c0-0000-7000-8000-000000000001', 0, 'confirm', 'done', 1, 2100, 2200, 'lost', '{"former":"postgres-0"}');
INSERT INTO steps VALUES ('0199a2c0-0000-7000-8000-000000000001', 1, 'fence', 'failed', 3, 2300, 2400, 'no proof', 'null');
