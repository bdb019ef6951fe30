-- Where an agent stands follows from what is known of it, in this one place. Who may be given
-- tasks is decided by one condition: state = 'available'.
ALTER TABLE agents RENAME TO old_agents;

CREATE TABLE agents (
    id            TEXT PRIMARY KEY,
    instance      BLOB NOT NULL,
    capabilities  TEXT NOT NULL,
    capacity      INTEGER NOT NULL,
    labels        TEXT NOT NULL,
    version       TEXT,
    registered_at INTEGER NOT NULL,
    seen_at       INTEGER NOT NULL,
    gone          INTEGER NOT NULL DEFAULT 0,
    -- An operator has ordered it to take nothing new.
    drained       INTEGER NOT NULL DEFAULT 0,
    -- What it said of itself last.
    said          TEXT NOT NULL DEFAULT 'available'
        CHECK (said IN ('available', 'draining', 'unhealthy')),
    -- It is given no tasks until then. Kept for a rule about tries that keep failing; nothing
    -- sets it yet.
    failing_until INTEGER,
    reason        TEXT,
    -- Places taken: as it said itself, and leases as they were counted last.
    load          INTEGER NOT NULL DEFAULT 0,
    held          INTEGER NOT NULL DEFAULT 0,
    every_us      INTEGER NOT NULL DEFAULT 500000,
    expire_us     INTEGER NOT NULL DEFAULT 3000000,
    -- When the registry has to look at this row again. A heartbeat does not move it: whoever
    -- looks, and finds the agent alive, does. So heartbeats touch no index, and looking for the
    -- late touches only those that may be late.
    look_at       INTEGER NOT NULL,
    state         TEXT NOT NULL GENERATED ALWAYS AS (
        CASE WHEN gone THEN 'gone'
             WHEN drained OR said = 'draining' THEN 'draining'
             WHEN failing_until IS NOT NULL OR said = 'unhealthy' THEN 'unhealthy'
             ELSE 'available' END
    ) STORED
) STRICT;

INSERT INTO agents (id, instance, capabilities, capacity, labels, registered_at, seen_at, gone,
    look_at)
SELECT id, instance, capabilities, capacity, labels, registered_at, seen_at, state = 'gone',
    seen_at
FROM old_agents;
DROP TABLE old_agents;

CREATE INDEX agents_to_look_at ON agents (look_at);
CREATE INDEX agents_by_state ON agents (state, id);
CREATE INDEX agents_holding ON agents (id) WHERE held > 0;
CREATE INDEX agents_failing ON agents (failing_until) WHERE failing_until IS NOT NULL;

-- For looking agents up by what they can do. `free` is the number of free places of an agent
-- that may be given tasks, and -1 for all others.
CREATE TABLE agent_capabilities (
    capability TEXT NOT NULL,
    agent      TEXT NOT NULL,
    free       INTEGER NOT NULL,
    PRIMARY KEY (agent, capability)
) STRICT, WITHOUT ROWID;
CREATE INDEX agent_capabilities_by_name ON agent_capabilities (capability, agent);
CREATE INDEX agent_capabilities_by_load ON agent_capabilities (capability, free DESC, agent);

INSERT INTO agent_capabilities (capability, agent, free)
SELECT DISTINCT c.value, a.id, iif(a.gone, -1, a.capacity)
FROM agents AS a, json_each(a.capabilities) AS c;

CREATE TABLE agent_labels (
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    agent TEXT NOT NULL,
    PRIMARY KEY (agent, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX agent_labels_by_value ON agent_labels (name, value, agent);

INSERT INTO agent_labels (name, value, agent)
SELECT l.key, l.value, a.id FROM agents AS a, json_each(a.labels) AS l;

-- Tries that failed in a row, by agent; the row goes with the first that succeeds. Almost always
-- empty, so that to look here costs a completion next to nothing.
CREATE TABLE agent_failures (
    agent     TEXT PRIMARY KEY,
    instance  BLOB NOT NULL,
    -- How many tasks, one that fails again and again counted once.
    tasks     INTEGER NOT NULL,
    last_task BLOB NOT NULL,
    since     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
