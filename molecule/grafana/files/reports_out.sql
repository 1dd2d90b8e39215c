-- Thirty days of our own reports with every fate that there is. Run as dmarc_reports.
INSERT INTO dmarc_reports.day (day, closed_at, reason, events, reports, late)
SELECT (now() AT TIME ZONE 'UTC')::date - g, now() - make_interval(days => g - 1),
    CASE g WHEN 4 THEN 'gateways missing: mail-gw2.example.org' ELSE 'complete' END, 5000 + g, 30, CASE g WHEN 4 THEN 7 ELSE 0 END
FROM generate_series(1, 40) g ON CONFLICT DO NOTHING;

INSERT INTO dmarc_reports.report (report_id, day, policy_domain, form, messages, records, file_name, subject, rua)
SELECT day || '-' || g, day, 'r' || g || '.example.net', 'rfc9990', 10 * g, g, 'f', 's', 'mailto:dmarc@r' || g || '.example.net'
FROM dmarc_reports.day, generate_series(1, 25) g ON CONFLICT DO NOTHING;

INSERT INTO dmarc_reports.delivery
    (report_id, day, policy_domain, recipient, recipient_domain, state, fate, reply, attempts, envelope_from)
SELECT r.report_id, r.day, r.policy_domain, 'dmarc@' || r.policy_domain, r.policy_domain,
    CASE WHEN f.fate IN ('deferred') THEN 'handed' ELSE 'settled' END, f.fate,
    CASE WHEN f.fate = 'taken' THEN '250 2.0.0 taken' ELSE '550 5.1.1 <dmarc@' || r.policy_domain || '> no' END, 1,
    'dmarc-reports+' || r.report_id || '@rua.example.org'
FROM dmarc_reports.report r
CROSS JOIN LATERAL (
    SELECT (ARRAY['taken', 'deferred', 'refused', 'bounced_later', 'no_mx', 'nxdomain', 'mailbox_full', 'no_mailbox',
        'too_large', 'spam_policy', 'tls', 'unreachable', 'expired', 'wrong_syntax', 'not_mailto', 'duplicate',
        'too_many', 'excluded', 'own', 'not_authorised', 'overridden_wrongly', 'dns_temperror', 'paused'])[
        substring(r.policy_domain FROM 'r(\d+)')::int] AS fate
) f
ON CONFLICT DO NOTHING;

INSERT INTO dmarc_reports.pause (recipient_domain, failures, since, until, last_fate) VALUES
    ('r5.example.net', 9, now() - interval '9 days', now() + interval '5 days', 'no_mx') ON CONFLICT DO NOTHING;
INSERT INTO dmarc_reports.watermark (gateway, until, at) VALUES
    ('mail-gw1.example.org', now() - interval '1 minute', now()), ('mail-gw2.example.org', now() - interval '2 hours', now())
ON CONFLICT DO NOTHING;
INSERT INTO dmarc_reports.returned (file, at, kind)
SELECT 'f' || g, now() - make_interval(days => g), (ARRAY['bounced_later', 'confirmed', 'auto_reply'])[1 + g % 3]
FROM generate_series(1, 20) g ON CONFLICT DO NOTHING;
