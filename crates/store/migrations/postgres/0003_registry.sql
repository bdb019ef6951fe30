-- Where an agent stands follows from what is known of it, in this one place. Who may be given
-- tasks is decided by one condition: state = 'available'.
ALTER TABLE agents
    ADD COLUMN version       text,
    ADD COLUMN gone          boolean NOT NULL DEFAULT false,
    -- An operator has ordered it to take nothing new.
    ADD COLUMN drained       boolean NOT NULL DEFAULT false,
    -- What it said of itself last.
    ADD COLUMN said          text NOT NULL DEFAULT 'available'
        CHECK (said IN ('available', 'draining', 'unhealthy')),
    -- It is given no tasks until then. Kept for a rule about tries that keep failing; nothing
    -- sets it yet.
    ADD COLUMN failing_until timestamptz,
    ADD COLUMN reason        text,
    -- Places taken: as it said itself, and leases as they were counted last.
    ADD COLUMN load          bigint NOT NULL DEFAULT 0,
    ADD COLUMN held          bigint NOT NULL DEFAULT 0,
    ADD COLUMN every_us      bigint NOT NULL DEFAULT 500000,
    ADD COLUMN expire_us     bigint NOT NULL DEFAULT 3000000,
    -- When the registry has to look at this row again. A heartbeat does not move it: whoever
    -- looks, and finds the agent alive, does. So heartbeats touch no index, and looking for the
    -- late touches only those that may be late.
    ADD COLUMN look_at       timestamptz NOT NULL DEFAULT now();

UPDATE agents SET gone = true WHERE state = 'gone';
ALTER TABLE agents DROP COLUMN state;
ALTER TABLE agents ADD COLUMN state text NOT NULL GENERATED ALWAYS AS (
    CASE WHEN gone THEN 'gone'
         WHEN drained OR said = 'draining' THEN 'draining'
         WHEN failing_until IS NOT NULL OR said = 'unhealthy' THEN 'unhealthy'
         ELSE 'available' END
) STORED;

-- None of these columns changes with a plain heartbeat.
CREATE INDEX agents_to_look_at ON agents (look_at);
CREATE INDEX agents_by_name ON agents (id COLLATE "C");
CREATE INDEX agents_by_state ON agents (state, id COLLATE "C");
CREATE INDEX agents_holding ON agents (id) WHERE held > 0;
CREATE INDEX agents_failing ON agents (failing_until) WHERE failing_until IS NOT NULL;

-- For looking agents up by what they can do. `free` is the number of free places of an agent
-- that may be given tasks, and -1 for all others.
CREATE TABLE agent_capabilities (
    capability text NOT NULL,
    agent      text NOT NULL,
    free       bigint NOT NULL,
    PRIMARY KEY (agent, capability)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.1);
CREATE INDEX agent_capabilities_by_name ON agent_capabilities (capability, agent COLLATE "C");
CREATE INDEX agent_capabilities_by_load
    ON agent_capabilities (capability, free DESC, agent COLLATE "C");

INSERT INTO agent_capabilities (capability, agent, free)
SELECT DISTINCT c.capability, a.id, CASE WHEN a.gone THEN -1 ELSE a.capacity END
FROM agents AS a CROSS JOIN LATERAL json_array_elements_text(a.capabilities::json) AS c (capability);

CREATE TABLE agent_labels (
    name  text NOT NULL,
    value text NOT NULL,
    agent text NOT NULL,
    PRIMARY KEY (agent, name)
);
CREATE INDEX agent_labels_by_value ON agent_labels (name, value, agent COLLATE "C");

INSERT INTO agent_labels (name, value, agent)
SELECT l.key, l.value, a.id
FROM agents AS a CROSS JOIN LATERAL json_each_text(a.labels::json) AS l (key, value);

-- Tries that failed in a row, by agent; the row goes with the first that succeeds. Almost always
-- empty, so that to look here costs a completion next to nothing.
CREATE TABLE agent_failures (
    agent     text PRIMARY KEY,
    instance  uuid NOT NULL,
    -- How many tasks, one that fails again and again counted once.
    tasks     bigint NOT NULL,
    last_task uuid NOT NULL,
    since     timestamptz NOT NULL
);
