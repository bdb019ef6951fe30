-- Messages that are of use for a while only, answers, and what could not be delivered.
ALTER TABLE messages
    ADD COLUMN expires_at  timestamptz,
    ADD COLUMN reply_to    text,
    ADD COLUMN in_reply_to uuid,
    -- How often its receiver has rejected it.
    ADD COLUMN rejections  integer NOT NULL DEFAULT 0;

CREATE INDEX messages_expiring ON messages (expires_at)
    WHERE expires_at IS NOT NULL AND acknowledged_at IS NULL;

-- What could not be delivered, and why.
CREATE TABLE dead_letters (
    id          uuid PRIMARY KEY,
    topic       text NOT NULL,
    recipient   text NOT NULL,
    sender      text,
    kind        text NOT NULL,
    body        text NOT NULL,
    reply_to    text,
    in_reply_to uuid,
    reason      text NOT NULL,
    created_at  timestamptz NOT NULL,
    died_at     timestamptz NOT NULL
);
CREATE INDEX dead_letters_by_time ON dead_letters (died_at);
