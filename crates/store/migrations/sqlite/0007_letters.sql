-- Messages that are of use for a while only, answers, and what could not be delivered.
ALTER TABLE messages ADD COLUMN expires_at INTEGER;
ALTER TABLE messages ADD COLUMN reply_to TEXT;
ALTER TABLE messages ADD COLUMN in_reply_to BLOB;
-- How often its receiver has rejected it.
ALTER TABLE messages ADD COLUMN rejections INTEGER NOT NULL DEFAULT 0;

CREATE INDEX messages_expiring ON messages (expires_at)
    WHERE expires_at IS NOT NULL AND acknowledged_at IS NULL;

-- What could not be delivered, and why.
CREATE TABLE dead_letters (
    id          BLOB PRIMARY KEY,
    topic       TEXT NOT NULL,
    recipient   TEXT NOT NULL,
    sender      TEXT,
    kind        TEXT NOT NULL,
    body        TEXT NOT NULL,
    reply_to    TEXT,
    in_reply_to BLOB,
    reason      TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    died_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX dead_letters_by_time ON dead_letters (died_at);
