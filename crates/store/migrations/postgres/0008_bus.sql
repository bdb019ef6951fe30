-- Messages that travel over a broker outside: a row is the outbox until it is delivered, and the
-- mailbox from then on.
ALTER TABLE messages
    -- Null while it waits in the outbox.
    ADD COLUMN delivered_at timestamptz;
UPDATE messages SET delivered_at = created_at;

CREATE INDEX messages_outbox ON messages (sequence) WHERE delivered_at IS NULL;
CREATE INDEX messages_outbox_of ON messages (recipient, sequence) WHERE delivered_at IS NULL;

-- Null when what came from a broker could not be read so far.
ALTER TABLE dead_letters ALTER COLUMN recipient DROP NOT NULL;

-- Which bus carries messages now, and who relays.
CREATE TABLE bus (
    one         integer PRIMARY KEY CHECK (one = 1),
    -- Whether messages wait for a relay, or are delivered as soon as they are there.
    relayed     boolean NOT NULL,
    state       text,
    wish        text,
    relay       text,
    relay_until timestamptz
) WITH (fillfactor = 50);
INSERT INTO bus (one, relayed) VALUES (1, false);
