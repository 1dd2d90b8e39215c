-- The masked figures of the board: schema dma_public, and what the database role of the board may do. Run by psql as the
-- administrator, in one transaction that ends with COMMIT or, for a try, with ROLLBACK (:ending). Prints `changed` when
-- something is another than before. The views belong to the owner of the figures and are made anew each time.
--
-- What keeps a sender from being found (docs/noc-board.md says more):
--   * origin is shown only of cells with :min_sources addresses and :min_messages messages, and `other` is never one
--     cell alone, nor fewer addresses or messages than that: the smallest shown cells go into it until it is enough;
--   * origin is that of a whole week, by the reports that had come three days after its end. Weeks do not overlap and
--     no later report changes one, so that no difference of two publications is a cell of its own;
--   * counts are rounded to tens, words are the ones written here, domains are letters.
\set ON_ERROR_STOP on
SET TimeZone = 'UTC';
BEGIN;
SET LOCAL lock_timeout = '30s';
SET LOCAL client_min_messages = warning;

CREATE TEMPORARY VIEW board_state AS
SELECT coalesce(string_agg(line, e'\n' ORDER BY line), '') AS state FROM (
    SELECT c.relname || ' ' || coalesce(c.relacl::text, '') || ' ' || coalesce(c.reloptions::text, '') || ' '
        || c.relowner::regrole || CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) ELSE '' END AS line
    FROM pg_class c WHERE c.relnamespace = to_regnamespace('dma_public') AND c.relkind IN ('r', 'v')
    UNION ALL
    SELECT 'schema ' || coalesce(nspacl::text, '') FROM pg_namespace WHERE nspname = 'dma_public'
    UNION ALL
    SELECT 'role ' || setconfig::text FROM pg_db_role_setting WHERE setrole = to_regrole('noc_board')
) s;
SELECT state AS before FROM board_state \gset

ALTER ROLE noc_board SET statement_timeout = '10s';
ALTER ROLE noc_board SET default_transaction_read_only = on;
ALTER ROLE noc_board SET search_path = dma_public;

SET LOCAL ROLE parsedmarc;
CREATE SCHEMA IF NOT EXISTS dma_public;
GRANT USAGE ON SCHEMA dma_public TO noc_board;

-- Letters are given by lot and kept: their order says nothing about names or amounts.
CREATE TABLE IF NOT EXISTS dma_public.letter (
    domain text PRIMARY KEY,
    place integer NOT NULL UNIQUE
);
INSERT INTO dma_public.letter (domain, place)
SELECT d.name, (SELECT coalesce(max(place), 0) FROM dma_public.letter) + row_number() OVER (ORDER BY random())
FROM dma.domain d
WHERE NOT EXISTS (SELECT FROM dma_public.letter l WHERE l.domain = d.name);
\set new_letters :ROW_COUNT

DROP VIEW IF EXISTS dma_public.period, dma_public.totals, dma_public.daily, dma_public.domain, dma_public.origin,
    dma_public.survey, dma_public.source, dma_public.days;

-- A day is whole 36 hours after its end: by then nearly all receivers have reported.
CREATE VIEW dma_public.days WITH (security_barrier) AS
SELECT
    last_day - :days + 1 AS first_day,
    last_day,
    (date_trunc('week', utc - interval '3 days') - interval '7 days')::date AS week_first,
    (date_trunc('week', utc - interval '3 days') - interval '1 day')::date AS week_last
FROM (
    SELECT now() AT TIME ZONE 'UTC' AS utc, (now() AT TIME ZONE 'UTC' - interval '36 hours')::date - 1 AS last_day
) n;

CREATE VIEW dma_public.period WITH (security_barrier) AS
SELECT
    d.first_day, d.last_day, d.week_first, d.week_last,
    (SELECT max(f.day) FROM dma.daily_domain f WHERE f.day <= d.last_day) AS through,
    :min_sources AS min_sources, :min_messages AS min_messages
FROM dma_public.days d;

CREATE VIEW dma_public.totals WITH (security_barrier) AS
SELECT
    coalesce(round(sum(n), -1), 0)::bigint AS messages,
    round(100.0 * coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n), 1) AS passed_pct,
    round(100.0 * coalesce(sum(n) FILTER (WHERE spf_aligned), 0) / sum(n), 1) AS spf_pct,
    round(100.0 * coalesce(sum(n) FILTER (WHERE dkim_aligned), 0) / sum(n), 1) AS dkim_pct,
    coalesce(round(sum(n) FILTER (WHERE NOT passed AND disposition <> 'none'), -1), 0)::bigint AS stopped,
    coalesce(round(sum(n) FILTER (WHERE NOT passed AND disposition = 'none'), -1), 0)::bigint AS failed
FROM dma.daily_domain f, dma_public.days d
WHERE f.day BETWEEN d.first_day AND d.last_day;

CREATE VIEW dma_public.daily WITH (security_barrier) AS
SELECT
    s.day::date AS day,
    coalesce(round(sum(f.n) FILTER (WHERE f.passed), -1), 0)::bigint AS passed,
    coalesce(round(sum(f.n) FILTER (WHERE NOT f.passed AND f.disposition <> 'none'), -1), 0)::bigint AS stopped,
    coalesce(round(sum(f.n) FILTER (WHERE NOT f.passed AND f.disposition = 'none'), -1), 0)::bigint AS failed
FROM dma_public.days d
CROSS JOIN LATERAL generate_series(d.first_day::timestamp, d.last_day::timestamp, interval '1 day') s (day)
LEFT JOIN dma.daily_domain f ON f.day = s.day::date
GROUP BY s.day;

-- The share alone, in whole per cent: with the amounts, one could tell from the totals which domain is left out.
CREATE VIEW dma_public.domain WITH (security_barrier) AS
SELECT
    CASE
        WHEN l.domain = ANY(string_to_array(:'named_domains', ',')) THEN l.domain
        WHEN l.place <= 26 THEN chr(64 + l.place)
        ELSE chr(64 + (l.place - 1) / 26) || chr(65 + (l.place - 1) % 26)
    END AS name,
    round(100.0 * coalesce(sum(f.n) FILTER (WHERE f.passed), 0) / sum(f.n))::integer AS passed_pct,
    row_number() OVER (ORDER BY l.place) AS place
FROM dma.daily_domain f
CROSS JOIN dma_public.days d
JOIN dma_public.letter l ON l.domain = f.policy_domain
WHERE f.day BETWEEN d.first_day AND d.last_day AND l.place <= 676
GROUP BY l.domain, l.place
HAVING sum(f.n) >= greatest(:min_messages, 100);

-- Where mail that failed in the week came from: each address once, in one country and one kind of network.
CREATE VIEW dma_public.source WITH (security_barrier) AS
SELECT
    r.ip,
    min(r.country) AS country,
    min(CASE lower(r.source_type)
        WHEN 'isp' THEN 'isp'
        WHEN 'web host' THEN 'web_host'
        WHEN 'email provider' THEN 'email_provider'
        WHEN 'email security' THEN 'email_security'
        WHEN 'iaas' THEN 'cloud'
        WHEN 'paas' THEN 'cloud'
        WHEN 'saas' THEN 'saas'
        WHEN 'msp' THEN 'it_service'
        WHEN 'mssp' THEN 'it_service'
        WHEN 'technology' THEN 'it_service'
        WHEN 'education' THEN 'education'
        WHEN 'science' THEN 'education'
        WHEN 'government' THEN 'government'
        WHEN 'marketing' THEN 'marketing'
        WHEN 'finance' THEN 'finance'
        WHEN 'healthcare' THEN 'healthcare'
        ELSE CASE WHEN r.source_type IS NULL THEN 'unknown' END
    END) AS network,
    sum(r.n) AS n
FROM dma_public.days d
JOIN dma.report p ON p.begin_date >= d.week_first - interval '32 days' AND p.begin_date < d.week_last + interval '2 days'
    AND p.stored_at >= d.week_first - interval '1 day' AND p.stored_at < d.week_last + interval '4 days'
JOIN dma.record r ON r.report_id = p.id
WHERE r.day BETWEEN d.week_first AND d.week_last AND NOT r.passed
GROUP BY r.ip;

CREATE VIEW dma_public.origin WITH (security_barrier) AS
WITH source AS MATERIALIZED (
    SELECT * FROM dma_public.source
),
cell AS (
    SELECT 'country' AS dimension, country AS code, sum(n) AS n, count(*) AS sources FROM source GROUP BY country
    UNION ALL
    SELECT 'network', network, sum(n), count(*) FROM source GROUP BY network
),
judged AS (
    SELECT *, coalesce(code IS NOT NULL AND n >= :min_messages AND sources >= :min_sources, false) AS enough FROM cell
),
-- Hidden cells first, then the others from the smallest on; what `other` would be if it ended here.
ranked AS (
    SELECT
        *,
        row_number() OVER w AS place,
        sum(n) OVER w AS other_n,
        sum(sources) OVER w AS other_sources,
        count(*) FILTER (WHERE NOT enough) OVER (PARTITION BY dimension) AS hidden,
        count(*) OVER (PARTITION BY dimension) AS cells
    FROM judged
    WINDOW w AS (PARTITION BY dimension ORDER BY enough, n, code ROWS UNBOUNDED PRECEDING)
),
cut AS (
    SELECT
        dimension,
        CASE
            WHEN max(hidden) = 0 THEN 0
            ELSE coalesce(
                min(place) FILTER (
                    WHERE place >= greatest(hidden, 2) AND other_n >= :min_messages AND other_sources >= :min_sources
                ),
                max(cells)
            )
        END AS last_hidden
    FROM ranked
    GROUP BY dimension
)
SELECT r.dimension, CASE WHEN r.place > c.last_hidden THEN r.code END AS code, round(sum(r.n), -1)::bigint AS messages
FROM ranked r
JOIN cut c ON c.dimension = r.dimension
GROUP BY 1, 2;

-- What became of the reports that we owe to others; empty where they are not made here.
SELECT to_regclass('dmarc_reports.survey_daily') IS NOT NULL AS have_survey \gset
\if :have_survey
CREATE VIEW dma_public.survey WITH (security_barrier) AS
SELECT
    coalesce(round(sum(s.deliveries) FILTER (WHERE s.fate = 'taken'), -1), 0)::bigint AS taken,
    coalesce(round(sum(s.deliveries) FILTER (WHERE s.fate IN ('waiting', 'deferred', 'dns_temperror', 'paused')), -1), 0)::bigint
        AS waiting,
    coalesce(round(sum(s.deliveries) FILTER (
        WHERE s.fate NOT IN ('taken', 'waiting', 'deferred', 'dns_temperror', 'paused')
    ), -1), 0)::bigint AS not_taken,
    round(100.0 * coalesce(sum(s.deliveries) FILTER (WHERE s.fate = 'taken'), 0) / nullif(sum(s.deliveries) FILTER (
        WHERE s.fate NOT IN ('waiting', 'deferred', 'dns_temperror', 'paused')
    ), 0), 1) AS taken_pct
FROM dmarc_reports.survey_daily s, dma_public.days d
WHERE s.day BETWEEN d.first_day AND d.last_day AND s.fate NOT IN ('own', 'excluded', 'duplicate')
HAVING count(*) > 0;
\else
CREATE VIEW dma_public.survey WITH (security_barrier) AS
SELECT 0::bigint AS taken, 0::bigint AS waiting, 0::bigint AS not_taken, 0::numeric AS taken_pct WHERE false;
\endif

GRANT SELECT ON dma_public.period, dma_public.totals, dma_public.daily, dma_public.domain, dma_public.origin,
    dma_public.survey TO noc_board;

RESET ROLE;

-- What else the role could read would make all this vain.
SELECT coalesce(string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid::regclass::text), '') AS too_much
FROM pg_class c
WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f')
  AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
  AND has_schema_privilege('noc_board', c.relnamespace, 'USAGE') AND has_any_column_privilege('noc_board', c.oid, 'SELECT')
  AND NOT (c.relnamespace = 'dma_public'::regnamespace AND c.relkind = 'v'
           AND c.relname IN ('period', 'totals', 'daily', 'domain', 'origin', 'survey')) \gset
SELECT set_config('board.too_much', :'too_much', true) AS too_much \gset
DO $$
BEGIN
    IF current_setting('board.too_much') <> '' THEN
        RAISE EXCEPTION 'noc_board may read more than the board shows: %', current_setting('board.too_much')
        USING HINT = 'It must be one of the guests of the database, not of its readers (role postgresql).';
    END IF;
END
$$;

SELECT state <> :'before' OR :new_letters > 0 AS is_changed FROM board_state \gset
DROP VIEW board_state;
\if :is_changed
\echo changed
\endif
:ending;
