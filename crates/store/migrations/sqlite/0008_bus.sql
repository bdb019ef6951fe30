-- Messages that travel over a broker outside: a row is the outbox until it is delivered, and the
-- mailbox from then on.
-- Null while it waits in the outbox.
ALTER TABLE messages ADD COLUMN delivered_at INTEGER;
UPDATE messages SET delivered_at = created_at;

CREATE INDEX messages_outbox ON messages (sequence) WHERE delivered_at IS NULL;
CREATE INDEX messages_outbox_of ON messages (recipient, sequence) WHERE delivered_at IS NULL;

-- What could not be delivered, anew, because SQLite cannot take away a NOT NULL.
CREATE TABLE letters (
    id          BLOB PRIMARY KEY,
    topic       TEXT NOT NULL,
    -- Null when what came from a broker could not be read so far.
    recipient   TEXT,
    sender      TEXT,
    kind        TEXT NOT NULL,
    body        TEXT NOT NULL,
    reply_to    TEXT,
    in_reply_to BLOB,
    reason      TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    died_at     INTEGER NOT NULL
) STRICT;
INSERT INTO letters SELECT * FROM dead_letters;
DROP TABLE dead_letters;
ALTER TABLE letters RENAME TO dead_letters;
CREATE INDEX dead_letters_by_time ON dead_letters (died_at);

-- Which bus carries messages now, and who relays.
CREATE TABLE bus (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    -- Whether messages wait for a relay, or are delivered as soon as they are there.
    relayed     INTEGER NOT NULL,
    state       TEXT,
    wish        TEXT,
    relay       TEXT,
    relay_until INTEGER
) STRICT;
INSERT INTO bus (one, relayed) VALUES (1, 0);
