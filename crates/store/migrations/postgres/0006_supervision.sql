-- Tasks that are for agents of one kind first, and for those of another after a while; and what
-- their holders say of how far they are.
ALTER TABLE tasks
    ADD COLUMN fallback text,
    ADD COLUMN fall_ms  bigint,
    -- When it becomes one for the others.
    ADD COLUMN fall_at  timestamptz,
    ADD COLUMN note     text;

CREATE INDEX tasks_falling ON tasks (fall_at) WHERE state = 'ready' AND fall_at IS NOT NULL;

ALTER TABLE tasks_done
    ADD COLUMN fallback text,
    ADD COLUMN fall_ms  bigint;

-- Available agents without a free place. A plain heartbeat changes none of these columns.
CREATE INDEX agents_busy ON agents (id COLLATE "C")
    WHERE state = 'available' AND greatest(load, held) >= capacity;
