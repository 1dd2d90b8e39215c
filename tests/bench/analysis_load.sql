-- Fills parsedmarc's tables with `records` made-up records, always the same: two years, five domains, 60 reporters,
-- 40,000 addresses. Needs the tables of the roles parsedmarc and dmarc_analysis, both without reports.
--   psql -v records=1000000 -f analysis_load.sql
-- Days are counted back from today, so that "the last 90 days" are full. Nothing is summarised here: call
-- dma.refresh() until days_left is 0.
\set ON_ERROR_STOP on
\if :{?records}
\else
\set records 1000000
\endif
SET synchronous_commit = off;
SET TimeZone = 'UTC';
DO $$BEGIN PERFORM setseed(0.5); END$$;

INSERT INTO dma.domain SELECT unnest(ARRAY['example.org', 'sfc.example.org', 'ml.example.org', 'member.example.org',
    'closed.example.org']) ON CONFLICT DO NOTHING;
INSERT INTO dma.sender (network, kind, label) VALUES
    ('198.18.25.0/24', 'own', 'computing centre'), ('2001:db8:25::/48', 'own', 'computing centre'),
    ('203.0.113.0/26', 'provider', 'newsletter'), ('192.0.2.128/25', 'forwarder', 'alumni')
ON CONFLICT DO NOTHING;
INSERT INTO dma.spf_network (domain, network, via)
SELECT d, n::cidr, 'ip4'
FROM unnest(ARRAY['example.org', 'sfc.example.org', 'member.example.org']) d,
     unnest(ARRAY['198.18.25.11/32', '198.18.25.12/32', '198.18.25.13/32', '198.18.25.14/32', '198.18.26.0/24']) n
UNION ALL
SELECT 'example.org', ('100.64.' || g || '.0/24')::cidr, 'include:spf.example.com ip4' FROM generate_series(0, 99) g
ON CONFLICT DO NOTHING;

-- 0–19 our hosts, 20–119 providers, 120–719 forwarders, the rest forgers; the low numbers are the busy ones.
CREATE TEMPORARY TABLE made_address AS
SELECT
    g AS id,
    CASE
        WHEN g < 15 THEN ('198.18.25.' || 11 + g)::inet
        WHEN g < 20 THEN ('2001:db8:25::' || g)::inet
        WHEN g < 70 THEN ('203.0.113.' || g - 19)::inet
        WHEN g < 120 THEN ('100.64.' || g - 70 || '.25')::inet
        WHEN g < 220 THEN ('192.0.2.' || 128 + (g - 120))::inet
        WHEN g % 10 = 0 THEN ('2001:db8:' || to_hex(g) || '::25')::inet
        ELSE '11.0.0.0'::inet + (g::bigint * 7919 % 150000000)
    END AS ip,
    CASE WHEN g < 20 THEN 'own' WHEN g < 120 THEN 'provider' WHEN g < 720 THEN 'forwarder' ELSE 'spoof' END AS what,
    (ARRAY['JP', 'US', 'DE', 'FR', 'GB', 'CN', 'RU', 'BR', 'IN', 'VN', 'NL', 'KR', 'TW', 'AU', NULL])[
        CASE WHEN g < 20 THEN 1 ELSE 1 + (g * 31 % 15) END] AS country,
    CASE WHEN g % 5 < 3 THEN 'Network ' || g % 900 END AS source_name,
    (ARRAY['ISP', 'Web Host', 'Email Provider', 'SaaS', 'Education', NULL])[1 + g * 13 % 6] AS source_type,
    CASE WHEN g % 40 <> 0 THEN 64512 + g % 900 END AS asn
FROM generate_series(0, 39999) g;
CREATE UNIQUE INDEX ON made_address (id);

INSERT INTO dma.ip_info (ip, asn, as_name, as_domain)
SELECT ip, asn, 'Network ' || asn, 'as' || asn || '.example' FROM made_address ON CONFLICT DO NOTHING;

-- Eight records a report, on the average.
INSERT INTO public.dmarc_aggregate_report (
    org_name, org_email, report_id, begin_date, end_date, errors, domain, adkim, aspf, policy, subdomain_policy, pct,
    np, testing, stored_at
)
SELECT
    'Reporter ' || reporter, 'noreply@r' || reporter || '.example', 'made-' || g, day, day + interval '86399 seconds',
    '{}', domain, 'r', 'r', policy, policy, NULL, 'reject', 'n', day + interval '30 hours'
FROM (
    SELECT
        g,
        1 + floor(60 * random() ^ 2)::integer AS reporter,
        date_trunc('day', now()) - make_interval(days => 2 + floor(728 * random())::integer) AS day,
        (ARRAY['example.org', 'example.org', 'example.org', 'sfc.example.org', 'sfc.example.org', 'ml.example.org',
            'member.example.org', 'closed.example.org'])[1 + floor(8 * random())::integer] AS domain
    FROM generate_series(1, greatest(:records / 8, 1)) g
) r
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN domain = 'closed.example.org' THEN 'reject'
        WHEN domain IN ('sfc.example.org', 'ml.example.org') AND day > now() - interval '60 days' THEN 'quarantine'
        ELSE 'none'
    END AS policy
) p;

CREATE TEMPORARY TABLE made_report AS
SELECT id, domain, begin_date, row_number() OVER (ORDER BY id) - 1 AS place
FROM public.dmarc_aggregate_report WHERE report_id LIKE 'made-%';
CREATE UNIQUE INDEX ON made_report (place);
ANALYZE made_report;
ANALYZE made_address;

CREATE TEMPORARY TABLE made_record AS
SELECT
    nextval('public.dmarc_aggregate_record_id_seq') AS id,
    r.id AS report, r.begin_date, r.domain, a.id AS address, a.ip, a.country, a.source_name, a.source_type, w.what,
    m.luck, m.name_luck,
    -- Ours is listed in SPF up to number 3, a provider from 70 on.
    w.what = 'own' AND a.id < 4 OR w.what = 'provider' AND a.id >= 70 AND r.domain = 'example.org' AS listed,
    1 + floor(CASE w.what WHEN 'spoof' THEN 3 WHEN 'own' THEN 60 ELSE 15 END * m.size ^ 4)::integer AS n
FROM (
    SELECT
        floor((SELECT count(*) FROM made_report) * random())::bigint AS place,
        CASE
            WHEN mix < 0.40 THEN floor(20 * pick ^ 2)
            WHEN mix < 0.55 THEN 20 + floor(100 * pick ^ 2)
            WHEN mix < 0.70 THEN 120 + floor(600 * pick ^ 2)
            ELSE 720 + floor(39280 * pick ^ 1.3)
        END::integer AS address,
        luck, name_luck, size
    FROM (
        SELECT random() AS mix, random() AS pick, random() AS luck, random() AS name_luck, random() AS size
        FROM generate_series(1, :records)
    ) d
) m
JOIN made_report r ON r.place = m.place
JOIN made_address a ON a.id = m.address
CROSS JOIN LATERAL (SELECT CASE r.domain WHEN 'closed.example.org' THEN 'spoof' ELSE a.what END AS what) w;

INSERT INTO public.dmarc_aggregate_record (
    id, report_id, interval_begin, interval_end, source_ip_address, source_country, source_name, source_type,
    message_count, spf_aligned, dkim_aligned, dmarc_passed, disposition, policy_dkim, policy_spf, header_from,
    envelope_from
)
SELECT
    m.id, m.report, m.begin_date, m.begin_date + interval '86399 seconds', m.ip, m.country, m.source_name,
    m.source_type, m.n, s.spf, s.dkim, s.spf OR s.dkim,
    CASE
        WHEN s.spf OR s.dkim OR m.domain IN ('example.org', 'member.example.org') THEN 'none'
        WHEN m.domain = 'closed.example.org' THEN 'reject'
        ELSE 'quarantine'
    END,
    CASE WHEN s.dkim THEN 'pass' ELSE 'fail' END, CASE WHEN s.spf THEN 'pass' ELSE 'fail' END,
    CASE
        WHEN m.what <> 'spoof' OR m.name_luck < 0.8 THEN m.domain
        WHEN m.name_luck < 0.95 THEN 'mail.' || m.domain
        ELSE 'h' || m.address % 300 || '.' || m.domain
    END,
    CASE
        WHEN m.what = 'own' OR m.what = 'provider' AND m.address % 2 = 0 OR s.spf THEN m.domain
        WHEN m.what = 'forwarder' AND m.address % 3 > 0 THEN m.domain
        ELSE 'h' || m.address || '.example.com'
    END
FROM made_record m
CROSS JOIN LATERAL (
    SELECT
        m.listed AND m.luck > 0.02 AS spf,
        m.luck < CASE m.what
            WHEN 'own' THEN 0.985 WHEN 'provider' THEN 0.97 WHEN 'forwarder' THEN 0.7 ELSE 0
        END AS dkim
) s;

INSERT INTO public.dmarc_aggregate_record_dkim (record_id, domain, selector, result)
SELECT
    m.id,
    CASE WHEN m.what = 'spoof' THEN 'h' || m.address || '.example.com' ELSE m.domain END,
    CASE
        WHEN m.what = 'provider' THEN 'p' || m.address % 10
        WHEN m.what = 'spoof' THEN 'default'
        WHEN m.begin_date < now() - interval '200 days' THEN '2025b'
        ELSE '2026a'
    END,
    CASE
        WHEN m.what = 'spoof'
            OR m.luck < CASE m.what WHEN 'own' THEN 0.985 WHEN 'provider' THEN 0.97 ELSE 0.7 END THEN 'pass'
        ELSE 'fail'
    END
FROM made_record m
WHERE m.what <> 'spoof' OR m.name_luck < 0.2;

INSERT INTO public.dmarc_aggregate_record_spf (record_id, domain, scope, result)
SELECT m.id, m.domain, 'mfrom', CASE WHEN m.listed AND m.luck > 0.02 THEN 'pass' ELSE 'fail' END FROM made_record m;

INSERT INTO public.dmarc_aggregate_record_policy_override (record_id, override_type, comment)
SELECT
    m.id,
    CASE WHEN m.name_luck < 0.2 THEN 'forwarded' WHEN m.name_luck < 0.3 THEN 'mailing_list' ELSE 'local_policy' END,
    CASE WHEN m.name_luck >= 0.3 THEN 'arc=pass' END
FROM made_record m
WHERE m.what = 'forwarder' AND m.name_luck < 0.4
UNION ALL
SELECT m.id, 'policy_test_mode', NULL FROM made_record m WHERE m.what = 'spoof' AND m.name_luck > 0.99;

-- TLS reports (RFC 8460): one for every 50 records.
INSERT INTO public.smtp_tls_report (organization_name, begin_date, end_date, report_id, stored_at)
SELECT
    'Reporter ' || 1 + floor(20 * random())::integer, day, day + interval '86399 seconds', 'made-' || g,
    day + interval '30 hours'
FROM (
    SELECT g, date_trunc('day', now()) - make_interval(days => 2 + floor(728 * random())::integer) AS day
    FROM generate_series(1, greatest(:records / 50, 1)) g
) t;
INSERT INTO public.smtp_tls_policy (
    report_id, policy_domain, policy_type, successful_session_count, failed_session_count
)
SELECT
    r.id, (ARRAY['example.org', 'sfc.example.org', 'ml.example.org'])[1 + r.id % 3],
    (ARRAY['sts', 'tlsa', 'no-policy-found'])[1 + r.id / 3 % 3], 1 + floor(500 * random() ^ 3)::integer,
    CASE WHEN r.id % 20 = 0 THEN 3 ELSE 0 END
FROM public.smtp_tls_report r WHERE r.report_id LIKE 'made-%';
INSERT INTO public.smtp_tls_failure_detail (policy_id, result_type, failed_session_count, receiving_mx_hostname)
SELECT
    p.id, (ARRAY['certificate-expired', 'starttls-not-supported', 'validation-failure'])[1 + p.id / 20 % 3], 2,
    'mail-gw' || 1 + p.id / 20 % 2 || '.example.org'
FROM public.smtp_tls_policy p
JOIN public.smtp_tls_report r ON r.id = p.report_id
WHERE r.report_id LIKE 'made-%' AND p.failed_session_count > 0;

DROP TABLE made_address, made_report, made_record;
ANALYZE public.dmarc_aggregate_report, public.dmarc_aggregate_record, public.dmarc_aggregate_record_dkim,
    public.dmarc_aggregate_record_policy_override, public.smtp_tls_report, public.smtp_tls_policy,
    public.smtp_tls_failure_detail, dma.ip_info;
