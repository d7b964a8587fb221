-- Everything that Fulmar keeps in a PostgreSQL database. Run by every node that starts; whatever is there stays.
CREATE SCHEMA IF NOT EXISTS fulmar;

-- What tells this store from others.
CREATE TABLE IF NOT EXISTS fulmar.identity (identity text NOT NULL);

CREATE TABLE IF NOT EXISTS fulmar.sessions (
    function text NOT NULL,
    session text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (function, session)
);

CREATE TABLE IF NOT EXISTS fulmar.state (
    function text NOT NULL,
    session text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (function, session, key)
);

CREATE TABLE IF NOT EXISTS fulmar.answers (
    function text NOT NULL,
    session text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    record bytea NOT NULL,
    expires_unix_ms bigint NOT NULL,
    PRIMARY KEY (function, session, key)
);
CREATE INDEX IF NOT EXISTS answers_by_expiry ON fulmar.answers (expires_unix_ms);

CREATE TABLE IF NOT EXISTS fulmar.messages (
    function text NOT NULL,
    session text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    index bigint NOT NULL,
    message bytea NOT NULL,
    PRIMARY KEY (function, session, version, index)
);

-- Writes what came of an invocation if the session is as the invocation has seen it. Values that are null delete their
-- keys. Answers 0 (committed), 1 (conflict), or 2 with the record that
-- one of the idempotency keys has already.
CREATE OR REPLACE FUNCTION fulmar.commit(
    p_function text, p_session text, p_base bigint, p_after bigint, p_keys text[], p_values bytea[],
    p_messages bytea[], p_answer_keys text[], p_answers bytea[], p_expires_unix_ms bigint[], p_now_unix_ms bigint
) RETURNS TABLE (verdict integer, answer bytea) LANGUAGE plpgsql AS $$
DECLARE
    found_version bigint;
    found_answer bytea;
BEGIN
    -- One at a time for each session; what follows sees what the one before has committed.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_function || '/' || p_session, 0));
    SELECT a.record INTO found_answer FROM fulmar.answers a
        WHERE a.function = p_function AND a.session = p_session AND a.key = ANY (p_answer_keys)
            AND a.expires_unix_ms > p_now_unix_ms LIMIT 1;
    IF FOUND THEN
        RETURN QUERY SELECT 2, found_answer;
        RETURN;
    END IF;
    SELECT s.version INTO found_version FROM fulmar.sessions s
        WHERE s.function = p_function AND s.session = p_session;
    IF coalesce(found_version, 0) <> p_base THEN
        RETURN QUERY SELECT 1, NULL::bytea;
        RETURN;
    END IF;
    IF p_after <> p_base THEN
        INSERT INTO fulmar.sessions AS s (function, session, version) VALUES (p_function, p_session, p_after)
            ON CONFLICT (function, session) DO UPDATE SET version = excluded.version;
    END IF;
    DELETE FROM fulmar.state t USING unnest(p_keys, p_values) AS w (key, value)
        WHERE w.value IS NULL AND t.function = p_function AND t.session = p_session AND t.key = w.key;
    INSERT INTO fulmar.state AS t (function, session, key, value)
        SELECT p_function, p_session, w.key, w.value FROM unnest(p_keys, p_values) AS w (key, value)
            WHERE w.value IS NOT NULL
        ON CONFLICT (function, session, key) DO UPDATE SET value = excluded.value;
    INSERT INTO fulmar.messages (function, session, version, index, message)
        SELECT p_function, p_session, p_after, m.place - 1, m.message
            FROM unnest(p_messages) WITH ORDINALITY AS m (message, place);
    INSERT INTO fulmar.answers AS a (function, session, key, record, expires_unix_ms)
        SELECT p_function, p_session, k.key, k.record, k.expires
            FROM unnest(p_answer_keys, p_answers, p_expires_unix_ms) AS k (key, record, expires)
        ON CONFLICT (function, session, key)
        DO UPDATE SET record = excluded.record, expires_unix_ms = excluded.expires_unix_ms;
    RETURN QUERY SELECT 0, NULL::bytea;
END
$$;
