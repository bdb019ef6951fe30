-- Tasks that are for agents of one kind first, and for those of another after a while; and what
-- their holders say of how far they are.
ALTER TABLE tasks ADD COLUMN fallback TEXT;
ALTER TABLE tasks ADD COLUMN fall_ms INTEGER;
-- When it becomes one for the others.
ALTER TABLE tasks ADD COLUMN fall_at INTEGER;
ALTER TABLE tasks ADD COLUMN note TEXT;

CREATE INDEX tasks_falling ON tasks (fall_at) WHERE state = 'ready' AND fall_at IS NOT NULL;

-- Available agents without a free place. A plain heartbeat changes none of these columns.
CREATE INDEX agents_busy ON agents (id)
    WHERE state = 'available' AND (load >= capacity OR held >= capacity);
