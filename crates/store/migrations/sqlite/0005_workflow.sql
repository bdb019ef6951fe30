-- Texts of definitions by their digest; workflows share them.
CREATE TABLE workflow_definitions (
    digest TEXT PRIMARY KEY,
    json   TEXT NOT NULL
) STRICT;

-- Those that are registered. Name and version never change their meaning.
CREATE TABLE workflow_names (
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    digest     TEXT NOT NULL REFERENCES workflow_definitions,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT;

CREATE TABLE workflows (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          BLOB NOT NULL UNIQUE,
    -- The workflow that the first one of its family is.
    root        BLOB NOT NULL,
    parent      BLOB,
    digest      TEXT NOT NULL REFERENCES workflow_definitions,
    name        TEXT NOT NULL,
    version     INTEGER NOT NULL,
    state       TEXT NOT NULL,
    key         TEXT UNIQUE,
    head        TEXT NOT NULL,
    input       TEXT NOT NULL,
    output      TEXT,
    revision    INTEGER NOT NULL,
    -- When to look at it if nothing happens.
    wake_at     INTEGER,
    created_at  INTEGER NOT NULL,
    changed_at  INTEGER NOT NULL,
    finished_at INTEGER,
    expires_at  INTEGER
) STRICT;

CREATE INDEX workflows_by_state ON workflows (state, seq);
CREATE INDEX workflows_by_name ON workflows (name, seq);
CREATE INDEX workflows_by_digest ON workflows (digest);
CREATE INDEX workflows_by_root ON workflows (root);
CREATE INDEX workflows_by_parent ON workflows (parent) WHERE parent IS NOT NULL;
CREATE INDEX workflows_due ON workflows (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX workflows_changed ON workflows (changed_at, id);
CREATE INDEX workflows_expiry ON workflows (expires_at) WHERE expires_at IS NOT NULL;

-- Steps that have begun, and their items; a step itself has the item -1.
CREATE TABLE workflow_steps (
    workflow BLOB NOT NULL,
    step     TEXT NOT NULL,
    item     INTEGER NOT NULL,
    state    TEXT NOT NULL,
    run      INTEGER NOT NULL,
    -- The order of completion, of what can be undone.
    ord      INTEGER,
    child    BLOB,
    meta     TEXT NOT NULL,
    value    TEXT,
    input    TEXT,
    output   TEXT,
    PRIMARY KEY (workflow, step, item)
) STRICT, WITHOUT ROWID;

CREATE INDEX workflow_items_pending ON workflow_steps (workflow, step, item)
    WHERE state = 'pending' AND item >= 0;
CREATE INDEX workflow_steps_alone ON workflow_steps (workflow, step) WHERE item = -1;
CREATE INDEX workflow_items_completed ON workflow_steps (workflow, step, ord)
    WHERE state = 'completed' AND item >= 0 AND ord IS NOT NULL;

-- What workflows were told and have not taken note of, beside `workflow_events`.
CREATE TABLE workflow_words (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow BLOB NOT NULL,
    word     TEXT NOT NULL
) STRICT;

CREATE INDEX workflow_words_by_workflow ON workflow_words (workflow, seq);

CREATE TABLE workflow_signals (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow   BLOB NOT NULL,
    id         TEXT,
    name       TEXT NOT NULL,
    payload    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    taken_by   TEXT,
    UNIQUE (workflow, id)
) STRICT;

CREATE INDEX workflow_signals_open ON workflow_signals (workflow, seq) WHERE taken_by IS NULL;
