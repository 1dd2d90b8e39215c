-- What `dmarc-export` reads of the reports: the daily summary, with the policy that most reports of the day name.

CREATE OR REPLACE FUNCTION dma.export_reports(first_day date, last_day date)
RETURNS TABLE (
    day date, reporter text, policy_domain text, p text, sp text, np text, testing boolean,
    header_from text, envelope_domain text, ip text, country text, asn bigint, source_type text,
    spf_aligned boolean, dkim_aligned boolean, disposition text, forwarded boolean, overrides text, n bigint
)
LANGUAGE sql STABLE AS $$
    WITH policy AS (
        SELECT
            (r.begin_date AT TIME ZONE 'UTC')::date AS day,
            r.policy_domain,
            mode() WITHIN GROUP (ORDER BY r.p) AS p,
            mode() WITHIN GROUP (ORDER BY r.sp) AS sp,
            mode() WITHIN GROUP (ORDER BY r.np) AS np,
            mode() WITHIN GROUP (ORDER BY r.testing) AS testing
        FROM dma.report r
        WHERE r.begin_date >= first_day::timestamp AT TIME ZONE 'UTC'
          AND r.begin_date < (last_day + 1)::timestamp AT TIME ZONE 'UTC'
        GROUP BY 1, 2
    )
    SELECT
        d.day, d.reporter, d.policy_domain, y.p, y.sp, y.np, y.testing,
        d.header_from, d.envelope_domain, host(d.ip), d.country, d.asn, d.source_type,
        d.spf_aligned, d.dkim_aligned, d.disposition, d.forwarded, d.overrides, sum(d.n)::bigint
    FROM dma.daily d
    LEFT JOIN policy y ON y.day = d.day AND y.policy_domain = d.policy_domain
    WHERE d.day BETWEEN first_day AND last_day
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18
$$;
COMMENT ON FUNCTION dma.export_reports IS 'for dmarc-export alone: it hides addresses and names, this does not';
