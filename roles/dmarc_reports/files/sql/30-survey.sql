-- The survey: what became of each report. Applied with its neighbours, as they are: every statement can be repeated.

ALTER TABLE dmarc_reports.pause ADD COLUMN IF NOT EXISTS weeks int NOT NULL DEFAULT 1;
COMMENT ON COLUMN dmarc_reports.pause.weeks IS 'length of the last pause; the next one is twice as long, at most eight';

CREATE TABLE IF NOT EXISTS dmarc_reports.survey_state (
    name text PRIMARY KEY,
    value text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE dmarc_reports.survey_state IS 'how far the journal is read (name journal), and which monthly texts are done (name survey YYYY-MM)';

CREATE TABLE IF NOT EXISTS dmarc_reports.returned (
    file text PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    kind text NOT NULL CHECK (kind IN (
        'bounced_later', 'confirmed', 'delayed', 'delivered', 'auto_reply', 'answer', 'set_aside'
    )),
    delivery_id bigint REFERENCES dmarc_reports.delivery (id) ON DELETE SET NULL,
    reason text
);
CREATE INDEX IF NOT EXISTS returned_at ON dmarc_reports.returned (at);
CREATE INDEX IF NOT EXISTS returned_delivery ON dmarc_reports.returned (delivery_id) WHERE delivery_id IS NOT NULL;
COMMENT ON TABLE dmarc_reports.returned IS 'mails that came back to a return path of ours, one row for each file: so that none counts twice';

-- Nobody but the postmaster sees whom we write to.
CREATE OR REPLACE FUNCTION dmarc_reports.without_addresses(text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT regexp_replace($1, '[^][[:space:]<>()"'',;:=]+(@|%40)', '…\1', 'gi')
$$;

CREATE OR REPLACE VIEW dmarc_reports.survey_daily AS
SELECT d.day, coalesce(d.fate, CASE d.state WHEN 'settled' THEN 'unknown' ELSE 'waiting' END) AS fate,
    count(*) AS deliveries, sum(r.messages) AS messages
FROM dmarc_reports.delivery d JOIN dmarc_reports.report r USING (report_id)
GROUP BY 1, 2;
COMMENT ON VIEW dmarc_reports.survey_daily IS 'waiting: nothing is known yet; unknown: nothing will be known any more';

CREATE OR REPLACE VIEW dmarc_reports.survey_domain AS
SELECT policy_domain, coalesce(recipient_domain, '') AS recipient_domain,
    coalesce(fate, CASE state WHEN 'settled' THEN 'unknown' ELSE 'waiting' END) AS fate,
    count(*) AS deliveries, min(day) AS first_day, max(day) AS last_day,
    dmarc_reports.without_addresses((array_agg(reply ORDER BY day DESC, id DESC))[1]) AS last_reply
FROM dmarc_reports.delivery
GROUP BY 1, 2, 3;

CREATE OR REPLACE VIEW dmarc_reports.survey_pause AS
SELECT recipient_domain, failures, since, until, last_fate FROM dmarc_reports.pause WHERE until > now();

CREATE OR REPLACE VIEW dmarc_reports.survey_day AS
SELECT y.day, y.closed_at, y.reason, y.events, y.reports, y.late,
    count(d.id) FILTER (WHERE d.state = 'waiting') AS waiting, count(d.id) FILTER (WHERE d.state = 'sending') AS sending,
    count(d.id) FILTER (WHERE d.state = 'handed') AS handed, count(d.id) FILTER (WHERE d.state = 'settled') AS settled
FROM dmarc_reports.day y LEFT JOIN dmarc_reports.delivery d USING (day)
GROUP BY y.day;

CREATE OR REPLACE VIEW dmarc_reports.survey_gateway AS
SELECT gateway, until, extract(epoch FROM now() - until) AS lag_seconds FROM dmarc_reports.watermark;

CREATE OR REPLACE VIEW dmarc_reports.survey_returned AS
SELECT (at AT TIME ZONE 'UTC')::date AS day, kind, count(*) AS mails FROM dmarc_reports.returned GROUP BY 1, 2;

DO $$
DECLARE
    reader text;
BEGIN
    FOR reader IN SELECT rolname FROM pg_roles WHERE rolname IN ('grafana', 'parsedmarc') LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA dmarc_reports TO %I', reader);
        EXECUTE format(
            'GRANT SELECT ON dmarc_reports.survey_daily, dmarc_reports.survey_domain, dmarc_reports.survey_pause, '
            'dmarc_reports.survey_day, dmarc_reports.survey_gateway, dmarc_reports.survey_returned TO %I', reader
        );
    END LOOP;
END
$$;
