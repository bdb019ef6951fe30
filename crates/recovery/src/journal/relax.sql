-- The tables of the first layout named the states that were allowed. There are more now, and the
-- program itself keeps to them. Nor did they know recoveries that were begun anew.
CREATE TABLE relaxed_incidents (
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
    round       INTEGER NOT NULL DEFAULT 0,
    ask         TEXT
) STRICT;
INSERT INTO relaxed_incidents
SELECT id, scenario, severity, component, cause, state, first_sign, opened_at, restored_at, closed_at, 0, NULL
FROM incidents ORDER BY rowid;
DROP TABLE incidents;
ALTER TABLE relaxed_incidents RENAME TO incidents;
CREATE UNIQUE INDEX open_incident ON incidents (scenario, component) WHERE state = 'open';

CREATE TABLE relaxed_steps (
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
INSERT INTO relaxed_steps
SELECT incident, 0, number, name, status, attempts, started_at, ended_at, detail, output
FROM steps ORDER BY rowid;
DROP TABLE steps;
ALTER TABLE relaxed_steps RENAME TO steps;
