-- What the gateways hand over. Applied as role dmarc_reports, in one transaction with its neighbours, whenever one of
-- them changed: every statement can be repeated.
--
-- Taking events and closing a day exclude each other: take_events holds the shared lock of each day that its batch
-- touches, whoever closes a day takes the exclusive one. An event is thus in the day's reports or counted as late.

CREATE TABLE IF NOT EXISTS dmarc_reports.event (
    id uuid PRIMARY KEY,
    gateway text NOT NULL,
    day date NOT NULL,
    time timestamptz NOT NULL,
    line text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS event_day ON dmarc_reports.event (day);
COMMENT ON TABLE dmarc_reports.event IS 'DMARC events of the gateways (docs/arc.md), each once';
COMMENT ON COLUMN dmarc_reports.event.day IS 'UTC day of time';
COMMENT ON COLUMN dmarc_reports.event.line IS 'as the gateway wrote it';

CREATE TABLE IF NOT EXISTS dmarc_reports.set_aside (
    at timestamptz NOT NULL DEFAULT now(),
    gateway text NOT NULL,
    line text NOT NULL,
    reason text NOT NULL
);
CREATE INDEX IF NOT EXISTS set_aside_at ON dmarc_reports.set_aside (at);
COMMENT ON TABLE dmarc_reports.set_aside IS 'lines that are no events, each with its reason';

CREATE TABLE IF NOT EXISTS dmarc_reports.watermark (
    gateway text PRIMARY KEY,
    until timestamptz NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE dmarc_reports.watermark IS 'all events of a gateway before "until" have been handed over';

-- One batch, in the transaction of the caller; gives the number of new events. An event that is known is left as it is.
CREATE OR REPLACE FUNCTION dmarc_reports.take_events(gateway text, lines text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    one text;
    readable json;
    identity uuid;
    moment timestamptz;
    ids uuid[] := '{}';
    times timestamptz[] := '{}';
    good text[] := '{}';
    fresh integer;
BEGIN
    FOREACH one IN ARRAY lines LOOP
        BEGIN
            -- NUL and half characters, which strangers may put into selectors and records, are JSON but no text here;
            -- behind an even number of backslashes only, which stand for themselves
            readable := regexp_replace(one, '(?<!\\)((?:\\\\)*)\\u(?:0000|d[89a-f][0-9a-f]{2})', '\1?', 'gi')::json;
            identity := readable ->> 'id';
            moment := to_timestamp((readable ->> 'time')::double precision);
            IF identity IS NULL OR moment IS NULL OR NOT isfinite(moment) THEN
                RAISE data_exception USING MESSAGE = 'no id or no time';
            END IF;
            ids := ids || identity;
            times := times || moment;
            good := good || one;
        EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
            INSERT INTO dmarc_reports.set_aside (gateway, line, reason)
            VALUES (take_events.gateway, coalesce(one, ''), SQLERRM);
        END;
    END LOOP;
    PERFORM pg_advisory_xact_lock_shared(hashtext('dmarc_reports.day'), each.day - date '2000-01-01')
    FROM (SELECT DISTINCT taken::date AS day FROM unnest(times) AS taken ORDER BY 1) AS each;
    WITH new AS (
        INSERT INTO dmarc_reports.event (id, gateway, day, time, line)
        SELECT offered.id, take_events.gateway, offered.time::date, offered.time, offered.line
        FROM unnest(ids, times, good) AS offered (id, time, line)
        ORDER BY offered.id
        ON CONFLICT DO NOTHING
        RETURNING day
    ), late AS (
        UPDATE dmarc_reports.day AS closed SET late = closed.late + counted.n
        FROM (SELECT new.day, count(*) AS n FROM new GROUP BY 1) AS counted
        WHERE closed.day = counted.day
    )
    SELECT count(*) INTO fresh FROM new;
    RETURN fresh;
END
$$;

-- Never goes back: what was complete stays so. Nor beyond now, whatever the gateway's clock says.
CREATE OR REPLACE FUNCTION dmarc_reports.events_complete(gateway text, until timestamptz) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO dmarc_reports.watermark AS known (gateway, until) VALUES ($1, least($2, now()))
    ON CONFLICT (gateway) DO UPDATE SET until = greatest(known.until, excluded.until), at = now()
$$;

REVOKE ALL ON FUNCTION dmarc_reports.take_events(text, text[]), dmarc_reports.events_complete(text, timestamptz)
FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'dmarc_events') THEN
        GRANT USAGE ON SCHEMA dmarc_reports TO dmarc_events;
        GRANT EXECUTE ON FUNCTION dmarc_reports.take_events(text, text[]),
            dmarc_reports.events_complete(text, timestamptz) TO dmarc_events;
    END IF;
    -- dmarc-export (role dmarc_analysis) masks what it reads here.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'parsedmarc') THEN
        GRANT USAGE ON SCHEMA dmarc_reports TO parsedmarc;
        GRANT SELECT ON dmarc_reports.event TO parsedmarc;
    END IF;
END
$$;
