-- What tests/bench/analysis_load.sql does not have: SPF look-ups, a reporter that fell silent, a network that is new,
-- and the intake's folders. Run as parsedmarc, after it.
INSERT INTO dma.spf_record (domain, record, lookups, void_lookups, problem) VALUES
    ('example.org', 'v=spf1 ip4:198.18.25.0/24 include:spf.example.com -all', 1, 0, NULL),
    ('sfc.example.org', 'v=spf1 mx include:a.example.com include:b.example.com -all', 11, 0, 'needs 11 look-ups; 10 are allowed')
ON CONFLICT DO NOTHING;

INSERT INTO dma.ip_info (ip, asn, as_name, as_domain) VALUES
    ('203.0.113.200', 4200000001, 'A new network', 'new.example.com') ON CONFLICT DO NOTHING;

WITH report AS (
    INSERT INTO public.dmarc_aggregate_report
        (org_name, report_id, begin_date, end_date, domain, adkim, aspf, policy, subdomain_policy, testing, stored_at)
    SELECT name, name || day, day, day + interval '86399 seconds', 'example.org', 'r', 'r', 'none', 'none', 'n',
        day + interval '30 hours'
    FROM (
        SELECT 'Silent now' AS name, date_trunc('day', now(), 'UTC') - make_interval(days => g) AS day
        FROM generate_series(10, 40) g
        UNION ALL
        SELECT 'Reporter 1', date_trunc('day', now(), 'UTC') - make_interval(days => g) FROM generate_series(3, 5) g
    ) days
    RETURNING id, org_name, begin_date
)
INSERT INTO public.dmarc_aggregate_record
    (report_id, interval_begin, source_ip_address, source_country, source_name, source_type, message_count, spf_aligned,
     dkim_aligned, dmarc_passed, disposition, header_from, envelope_from)
SELECT id, begin_date, CASE org_name WHEN 'Silent now' THEN '198.18.25.11' ELSE '203.0.113.200' END::inet, 'JP',
    'A network', 'ISP', 40, org_name = 'Silent now', true, true, 'pass', 'example.org', 'example.org'
FROM report;

INSERT INTO intake.folder (folder, messages, bytes, oldest) VALUES
    ('incoming', 1, 4711, now() - interval '1 minute'), ('waiting', 2, 9000, now() - interval '2 minutes'),
    ('unsaved', 0, 0, NULL), ('invalid', 1, 100, now() - interval '3 days'),
    ('set-aside/poison', 1, 1200, now() - interval '1 day'),
    ('set-aside/unauthenticated', 3, 30000, now() - interval '2 days'), ('archive', 500, 5000000, now() - interval '80 days')
ON CONFLICT DO NOTHING;
SELECT * FROM dma.refresh(1000);
