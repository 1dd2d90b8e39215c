-- Views over parsedmarc's tables. Reports are input from strangers: what cannot be true is left out here, once for all.

CREATE OR REPLACE VIEW dma.report AS
SELECT
    r.id,
    r.report_id,
    left(regexp_replace(r.org_name, '[[:cntrl:]]', '', 'g'), 200) AS reporter,
    d.name AS policy_domain,
    CASE WHEN lower(r.policy) IN ('none', 'quarantine', 'reject') THEN lower(r.policy) END AS p,
    CASE WHEN lower(r.subdomain_policy) IN ('none', 'quarantine', 'reject') THEN lower(r.subdomain_policy) END AS sp,
    CASE WHEN lower(r.np) IN ('none', 'quarantine', 'reject') THEN lower(r.np) END AS np,
    coalesce(lower(r.testing) = 'y', false) AS testing,
    CASE WHEN lower(r.adkim) IN ('r', 's') THEN lower(r.adkim) END AS adkim,
    CASE WHEN lower(r.aspf) IN ('r', 's') THEN lower(r.aspf) END AS aspf,
    r.begin_date,
    r.end_date,
    r.stored_at
FROM public.dmarc_aggregate_report r
JOIN dma.domain d ON d.name = lower(rtrim(r.domain, '.'))
-- By the time of arrival, not of now: a summary must not depend on the day on which it is made.
WHERE r.begin_date BETWEEN r.stored_at - interval '3 years' AND r.stored_at + interval '1 day'
  AND r.end_date BETWEEN r.begin_date AND r.begin_date + interval '32 days';

CREATE OR REPLACE VIEW dma.record AS
SELECT
    c.id,
    r.id AS report_id,
    r.reporter,
    r.policy_domain,
    h.header_from,
    e.envelope_from,
    CASE WHEN EXISTS (
        SELECT FROM dma.domain o
        WHERE e.envelope_from = o.name OR right(e.envelope_from, length(o.name) + 1) = '.' || o.name
    ) THEN e.envelope_from END AS envelope_domain,
    r.p,
    r.sp,
    r.np,
    r.testing,
    t.at,
    (t.at AT TIME ZONE 'UTC')::date AS day,
    r.stored_at,
    c.source_ip_address AS ip,
    CASE WHEN c.source_country ~ '^[A-Za-z]{2}$' THEN upper(c.source_country) END AS country,
    c.source_reverse_dns AS ptr,
    c.source_name,
    c.source_type,
    i.asn,
    i.as_name,
    c.message_count::bigint AS n,
    coalesce(c.spf_aligned, false) AS spf_aligned,
    coalesce(c.dkim_aligned, false) AS dkim_aligned,
    coalesce(c.dmarc_passed, c.spf_aligned OR c.dkim_aligned, false) AS passed,
    CASE WHEN lower(c.disposition) IN ('quarantine', 'reject') THEN lower(c.disposition) ELSE 'none' END AS disposition,
    coalesce(v.forwarded, false) AS forwarded,
    coalesce(v.overrides, '{}') AS overrides
FROM public.dmarc_aggregate_record c
JOIN dma.report r ON r.id = c.report_id
CROSS JOIN LATERAL (SELECT coalesce(c.interval_begin, r.begin_date) AS at) t
CROSS JOIN LATERAL (
    SELECT lower(rtrim(coalesce(nullif(c.header_from, ''), r.policy_domain), '.')) AS header_from
) h
CROSS JOIN LATERAL (
    SELECT nullif(lower(rtrim(regexp_replace(c.envelope_from, '^.*@', ''), '.')), '') AS envelope_from
) e
LEFT JOIN LATERAL (
    SELECT
        array_agg(DISTINCT CASE
            WHEN lower(o.override_type) IN (
                'forwarded', 'local_policy', 'mailing_list', 'other', 'policy_test_mode', 'sampled_out',
                'trusted_forwarder'
            ) THEN lower(o.override_type)
            ELSE 'other'
        END) AS overrides,
        -- A local policy that went by a trusted ARC chain is what large receivers write for forwarded mail.
        bool_or(
            lower(o.override_type) IN ('forwarded', 'mailing_list', 'trusted_forwarder')
            OR lower(o.override_type) = 'local_policy' AND o.comment ~* 'arc=pass'
        ) AS forwarded
    FROM public.dmarc_aggregate_record_policy_override o
    WHERE o.record_id = c.id
) v ON true
LEFT JOIN dma.ip_info i ON i.ip = c.source_ip_address
WHERE c.message_count BETWEEN 1 AND 10000000
  AND c.source_ip_address IS NOT NULL
  AND t.at BETWEEN r.begin_date - interval '1 day' AND r.end_date + interval '1 day'
  -- The policy that is found for an author's domain is that of the domain or of one above it (RFC 9989 §4.10).
  AND (h.header_from = r.policy_domain OR right(h.header_from, length(r.policy_domain) + 1) = '.' || r.policy_domain)
  AND h.header_from ~ '^[[:alnum:]_]([[:alnum:]_.-]{0,251}[[:alnum:]])?$';

CREATE OR REPLACE VIEW dma.source AS
SELECT
    d.*,
    a.kind,
    a.label,
    a.suggested,
    s.network AS in_spf
FROM dma.daily d
LEFT JOIN dma.address a ON a.ip = d.ip
LEFT JOIN dma.address_spf s ON s.domain = coalesce(d.envelope_domain, d.policy_domain) AND s.ip = d.ip;

-- One row for each policy of a TLS report (RFC 8460) about a domain of ours.
CREATE OR REPLACE VIEW dma.tls_policy AS
SELECT
    p.id,
    (r.begin_date AT TIME ZONE 'UTC')::date AS day,
    d.name AS policy_domain,
    left(regexp_replace(coalesce(r.organization_name, ''), '[[:cntrl:]]', '', 'g'), 200) AS reporter,
    p.policy_type,
    p.successful_session_count::bigint AS ok,
    p.failed_session_count::bigint AS failed
FROM public.smtp_tls_policy p
JOIN public.smtp_tls_report r ON r.id = p.report_id
JOIN dma.domain d ON d.name = lower(rtrim(p.policy_domain, '.'))
WHERE r.begin_date BETWEEN r.stored_at - interval '3 years' AND r.stored_at + interval '1 day'
  AND r.end_date BETWEEN r.begin_date AND r.begin_date + interval '32 days'
  AND p.successful_session_count BETWEEN 0 AND 1000000000
  AND p.failed_session_count BETWEEN 0 AND 1000000000;

CREATE OR REPLACE VIEW dma.tls_failure AS
SELECT
    p.id AS policy_id,
    p.day,
    p.policy_domain,
    p.reporter,
    p.policy_type,
    left(regexp_replace(f.result_type, '[[:cntrl:]]', '', 'g'), 100) AS result_type,
    left(regexp_replace(lower(f.receiving_mx_hostname), '[[:cntrl:]]', '', 'g'), 255) AS mx,
    f.failed_session_count::bigint AS failed
FROM dma.tls_policy p
JOIN public.smtp_tls_failure_detail f ON f.policy_id = p.id
WHERE f.failed_session_count BETWEEN 1 AND 1000000000;

CREATE OR REPLACE VIEW dma.tls_daily AS
SELECT
    day, policy_domain, reporter, policy_type,
    sum(ok)::bigint AS ok, sum(failed)::bigint AS failed, count(*)::integer AS reports
FROM dma.tls_policy
GROUP BY day, policy_domain, reporter, policy_type;
