-- Work lists. Every function looks at the last `days` days of the summaries, and says in words why it says so.

DROP FUNCTION IF EXISTS dma.spf_to_add(integer);
CREATE FUNCTION dma.spf_to_add(days integer) RETURNS TABLE (
    domain text, in_model boolean, ip inet, source_name text, asn bigint, as_name text, country text, n bigint,
    dkim_pct numeric, reporters integer, days integer, first_day date, last_day date, kind text, label text,
    suggested text, verdict text, reason text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH signing AS (
        SELECT DISTINCT d.ip FROM dma.daily d
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1 AND d.dkim_aligned AND NOT d.spf_aligned
    ),
    seen AS MATERIALIZED (
        SELECT
            coalesce(d.envelope_domain, d.header_from) AS domain,
            d.envelope_domain IS NOT NULL AS ours,
            d.ip,
            max(d.source_name) AS source_name,
            max(d.asn) AS asn,
            max(d.as_name) AS as_name,
            max(d.country) AS country,
            sum(d.n)::bigint AS n,
            sum(d.n) FILTER (WHERE d.dkim_aligned) AS dkim,
            count(DISTINCT d.reporter)::integer AS reporters,
            count(DISTINCT d.day)::integer AS days,
            min(d.day) AS first_day,
            max(d.day) AS last_day
        FROM dma.daily d
        JOIN signing s ON s.ip = d.ip
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1 AND NOT d.spf_aligned
        GROUP BY 1, 2, 3
        HAVING bool_or(d.dkim_aligned)
    )
    SELECT
        s.domain, o.name IS NOT NULL, s.ip, s.source_name, s.asn, s.as_name, s.country, s.n,
        round(100.0 * s.dkim / s.n, 1), s.reporters, s.days, s.first_day, s.last_day, a.kind, a.label, a.suggested,
        v.verdict,
        CASE v.verdict
            WHEN 'envelope' THEN 'the envelope sender is not ours: an entry in our record would not help'
            WHEN 'add' THEN 'decided: ' || a.kind || ', ' || a.label
            WHEN 'look' THEN 'the figures do not say what it is'
            ELSE a.reason
        END || CASE WHEN o.name IS NULL THEN '; ' || s.domain || ' is not in the data model' ELSE '' END
    FROM seen s
    LEFT JOIN dma.domain o ON o.name = s.domain
    LEFT JOIN dma.address a ON a.ip = s.ip
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN NOT s.ours THEN 'envelope'
            WHEN a.kind IN ('own', 'provider') THEN 'add'
            WHEN a.suggested IN ('own?', 'provider?') THEN 'add?'
            WHEN a.suggested = 'forwarder?' THEN 'leave?'
            ELSE 'look'
        END AS verdict
    ) v
    WHERE a.kind IS DISTINCT FROM 'forwarder' AND a.kind IS DISTINCT FROM 'spoof'
      AND NOT EXISTS (SELECT FROM dma.address_spf f WHERE f.domain = s.domain AND f.ip = s.ip)
    ORDER BY s.domain, array_position(ARRAY['add', 'add?', 'look', 'envelope', 'leave?'], v.verdict), s.n DESC, s.ip;
END;

DROP FUNCTION IF EXISTS dma.spf_to_remove(integer);
CREATE FUNCTION dma.spf_to_remove(days integer) RETURNS TABLE (
    domain text, network cidr, via text, aligned bigint, total bigint, last_day date, verdict text, reason text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH mail AS MATERIALIZED (
        SELECT d.envelope_domain AS domain, d.ip, sum(d.n) FILTER (WHERE d.spf_aligned) AS aligned, sum(d.n) AS total
        FROM dma.daily d
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1 AND d.envelope_domain IS NOT NULL
          AND EXISTS (SELECT FROM dma.address_spf s WHERE s.domain = d.envelope_domain AND s.ip = d.ip)
        GROUP BY 1, 2
    ),
    basis AS (
        SELECT d.envelope_domain AS domain, count(DISTINCT d.day) AS days, count(DISTINCT d.reporter) AS reporters
        FROM dma.daily d
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1 AND d.spf_aligned
        GROUP BY 1
    ),
    networks AS (
        SELECT
            f.domain, f.network, f.via,
            coalesce(sum(m.aligned), 0)::bigint AS aligned,
            coalesce(sum(m.total), 0)::bigint AS total
        FROM dma.spf_network f
        LEFT JOIN mail m ON m.domain = f.domain AND m.ip <<= f.network::inet
        GROUP BY 1, 2, 3
    )
    SELECT
        n.domain, n.network, n.via, n.aligned, n.total,
        (
            SELECT max(d.day)
            FROM dma.address_spf s
            JOIN dma.daily d ON d.ip = s.ip AND d.spf_aligned AND d.envelope_domain = s.domain
            WHERE s.domain = n.domain AND s.ip <<= n.network::inet AND n.aligned = 0
        ),
        v.verdict,
        CASE v.verdict
            WHEN 'keep' THEN n.aligned || ' messages passed by it'
            WHEN 'remove' THEN 'nothing passed by it in ' || $1 || ' days'
            ELSE coalesce(b.days, 0) || ' days and ' || coalesce(b.reporters, 0)
                || ' reporters with mail that passed SPF for the domain; 14 and 3 are needed'
        END
    FROM networks n
    LEFT JOIN basis b ON b.domain = n.domain
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN n.aligned > 0 THEN 'keep'
            WHEN b.days >= 14 AND b.reporters >= 3 THEN 'remove'
            ELSE 'not enough data'
        END AS verdict
    ) v
    ORDER BY n.domain, array_position(ARRAY['remove', 'not enough data', 'keep'], v.verdict), n.network;
END;

DROP FUNCTION IF EXISTS dma.readiness(integer);
CREATE FUNCTION dma.readiness(days integer) RETURNS TABLE (
    policy_domain text, header_from text, p text, sp text, np text, n bigint, pass_pct numeric, failed bigint,
    own_failed bigint, provider_failed bigint, forwarder_failed bigint, spoof_failed bigint, unknown_failed bigint,
    undecided_failed bigint, reporters integer, days integer, quarantine_verdict text, quarantine_reason text,
    reject_verdict text, reject_reason text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH published AS (
        SELECT DISTINCT ON (r.policy_domain) r.policy_domain, r.p, r.sp, r.np
        FROM (
            SELECT q.policy_domain, q.p, q.sp, q.np, count(*) AS reports
            FROM dma.report q
            WHERE q.begin_date > now() - interval '10 days'
            GROUP BY 1, 2, 3, 4
        ) r
        ORDER BY r.policy_domain, r.reports DESC
    ),
    basis AS (
        SELECT
            d.policy_domain, d.header_from,
            count(DISTINCT d.reporter)::integer AS reporters, count(DISTINCT d.day)::integer AS days
        FROM dma.daily d
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1
        GROUP BY 1, 2
    ),
    sources AS (
        SELECT
            d.policy_domain, d.header_from,
            -- An address in our SPF record is ours to answer for, whether it was decided on or not.
            coalesce(
                a.kind,
                CASE WHEN s.via LIKE 'include:%' THEN 'provider' WHEN s.via IS NOT NULL THEN 'own' END,
                CASE WHEN d.forwarded THEN 'forwarder' ELSE 'unknown' END
            ) AS kind,
            d.ip,
            sum(d.n) AS n,
            coalesce(sum(d.n) FILTER (WHERE d.passed), 0) AS passed
        FROM dma.daily d
        LEFT JOIN dma.address a ON a.ip = d.ip
        LEFT JOIN dma.address_spf s ON s.domain = d.policy_domain AND s.ip = d.ip
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1
        GROUP BY 1, 2, 3, 4
    ),
    figures AS (
        SELECT
            s.policy_domain, s.header_from,
            sum(s.n)::bigint AS n,
            sum(s.passed)::bigint AS passed,
            coalesce(sum(s.n - s.passed) FILTER (WHERE s.kind = 'own'), 0)::bigint AS own,
            coalesce(sum(s.n - s.passed) FILTER (WHERE s.kind = 'provider'), 0)::bigint AS provider,
            coalesce(sum(s.n - s.passed) FILTER (WHERE s.kind = 'forwarder'), 0)::bigint AS forwarder,
            coalesce(sum(s.n - s.passed) FILTER (WHERE s.kind = 'spoof'), 0)::bigint AS spoof,
            coalesce(sum(s.n - s.passed) FILTER (WHERE s.kind = 'unknown'), 0)::bigint AS unknown,
            coalesce(sum(s.n - s.passed) FILTER (WHERE s.kind = 'unknown' AND s.passed > 0), 0)::bigint AS undecided,
            count(*) FILTER (WHERE s.kind = 'unknown' AND s.passed BETWEEN 1 AND s.n - 1) AS undecided_sources
        FROM sources s
        GROUP BY 1, 2
    ),
    judged AS (
        SELECT
            f.*, b.reporters, b.days,
            f.passed + f.own + f.provider + f.forwarder + f.undecided AS wanted,
            CASE
                WHEN b.days < 14 OR b.reporters < 3 THEN 'not enough data'
                WHEN f.own + f.provider + f.undecided = 0 THEN 'ready'
                WHEN (f.own + f.provider + f.undecided) * 200
                    < f.passed + f.own + f.provider + f.forwarder + f.undecided THEN 'nearly'
                WHEN f.own + f.provider >= f.undecided THEN 'fix own senders first'
                ELSE 'decide about senders first'
            END AS verdict
        FROM figures f
        JOIN basis b ON b.policy_domain = f.policy_domain AND b.header_from = f.header_from
    ),
    reasoned AS (
        SELECT
            j.*,
            CASE j.verdict
                WHEN 'not enough data' THEN
                    j.days || ' days and ' || j.reporters || ' reporters in the period; 14 and 3 are needed'
                WHEN 'ready' THEN
                    CASE
                        WHEN j.wanted = 0 THEN 'no mail of ours: all that came was forged'
                        ELSE 'all mail of ' || 'our own hosts and providers passed'
                    END
                ELSE
                    concat_ws(
                        ', ',
                        CASE WHEN j.own > 0 THEN j.own || ' messages of our own hosts failed' END,
                        CASE WHEN j.provider > 0 THEN j.provider || ' messages of providers failed' END,
                        CASE
                            WHEN j.undecided > 0 THEN
                                j.undecided || ' messages failed from ' || j.undecided_sources
                                || ' addresses that also send good mail and are not decided on'
                        END
                    ) || CASE WHEN j.verdict = 'nearly' THEN ': less than 0.5 % of what is wanted' ELSE '' END
            END AS reason,
            j.verdict = 'ready' AND j.forwarder * 100 > j.wanted AS loses_forwards
        FROM judged j
    )
    SELECT
        r.policy_domain, r.header_from, p.p, p.sp, p.np, r.n, round(100.0 * r.passed / r.n, 1), r.n - r.passed,
        r.own, r.provider, r.forwarder, r.spoof, r.unknown, r.undecided, r.reporters, r.days,
        r.verdict, r.reason,
        CASE WHEN r.loses_forwards THEN 'nearly' ELSE r.verdict END,
        CASE
            WHEN r.loses_forwards THEN
                'forwarders and lists would lose ' || r.forwarder || ' messages, '
                || round(100.0 * r.forwarder / r.wanted, 1) || ' % of what is wanted'
            ELSE r.reason
        END
    FROM reasoned r
    LEFT JOIN published p ON p.policy_domain = r.policy_domain
    ORDER BY r.policy_domain, r.n DESC, r.header_from
    LIMIT 5000;
END;

DROP FUNCTION IF EXISTS dma.new_sources(integer);
CREATE FUNCTION dma.new_sources(days integer) RETURNS TABLE (
    policy_domain text, asn bigint, as_name text, source_name text, country text, ips integer, example inet, n bigint,
    passed bigint, first_day date, last_day date, kind text, suggested text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    -- A source is an autonomous system, or an address whose system is not known.
    WITH lately AS MATERIALIZED (
        SELECT
            d.policy_domain, d.asn, CASE WHEN d.asn IS NULL THEN d.ip END AS lone,
            max(d.as_name) AS as_name, max(d.source_name) AS source_name, max(d.country) AS country,
            count(DISTINCT d.ip)::integer AS ips, min(d.ip) AS example, sum(d.n)::bigint AS n,
            coalesce(sum(d.n) FILTER (WHERE d.passed), 0)::bigint AS passed,
            min(d.day) AS first_day, max(d.day) AS last_day, max(a.kind) AS kind, max(a.suggested) AS suggested
        FROM dma.daily d
        LEFT JOIN dma.address a ON a.ip = d.ip
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1
        GROUP BY 1, 2, 3
        HAVING sum(d.n) >= 20
    )
    SELECT
        l.policy_domain, l.asn, l.as_name, l.source_name, l.country, l.ips, l.example, l.n, l.passed, l.first_day,
        l.last_day, l.kind, l.suggested
    FROM lately l
    WHERE CASE
        WHEN l.asn IS NULL THEN NOT EXISTS (
            SELECT FROM dma.daily d
            WHERE d.ip = l.lone AND d.policy_domain = l.policy_domain
              AND d.day <= (now() AT TIME ZONE 'UTC')::date - $1
        )
        ELSE NOT EXISTS (
            SELECT FROM dma.daily d
            WHERE d.policy_domain = l.policy_domain AND d.asn = l.asn
              AND d.day <= (now() AT TIME ZONE 'UTC')::date - $1
        )
    END
    ORDER BY l.policy_domain, l.n DESC
    LIMIT 5000;
END;

DROP FUNCTION IF EXISTS dma.silent_reporters();
CREATE FUNCTION dma.silent_reporters() RETURNS TABLE (
    reporter text, days_seen integer, n bigint, last_day date, silent_days integer
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    -- Ten days or more in sixty, and none of the last three whole days.
    SELECT
        d.reporter, count(DISTINCT d.day)::integer, sum(d.n)::bigint, max(d.day),
        (now() AT TIME ZONE 'UTC')::date - max(d.day)
    FROM dma.daily d
    WHERE d.day > (now() AT TIME ZONE 'UTC')::date - 60
    GROUP BY d.reporter
    HAVING count(DISTINCT d.day) >= 10 AND max(d.day) < (now() AT TIME ZONE 'UTC')::date - 3
    ORDER BY sum(d.n) DESC;
END;

DROP FUNCTION IF EXISTS dma.selectors(integer);
CREATE FUNCTION dma.selectors(days integer) RETURNS TABLE (
    policy_domain text, dkim_domain text, selector text, ours boolean, n bigint, pass bigint, fail bigint, ips integer,
    first_day date, last_day date, idle_days integer
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        d.policy_domain, d.dkim_domain, d.selector, d.ours, sum(d.n)::bigint,
        coalesce(sum(d.n) FILTER (WHERE d.result = 'pass'), 0)::bigint,
        coalesce(sum(d.n) FILTER (WHERE d.result <> 'pass'), 0)::bigint,
        count(DISTINCT d.ip)::integer, min(d.day), max(d.day), (now() AT TIME ZONE 'UTC')::date - max(d.day)
    FROM dma.daily_dkim d
    WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1
    GROUP BY 1, 2, 3, 4
    ORDER BY d.policy_domain, d.ours DESC, sum(d.n) DESC
    LIMIT 5000;
END;

DROP FUNCTION IF EXISTS dma.would_reject(integer);
CREATE FUNCTION dma.would_reject(days integer) RETURNS TABLE (
    policy_domain text, header_from text, kind text, overrides text, n bigint, sources integer, reporters integer,
    last_day date, wanted boolean, reason text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH failing AS (
        SELECT
            d.policy_domain, d.header_from,
            coalesce(
                a.kind,
                CASE WHEN s.via LIKE 'include:%' THEN 'provider' WHEN s.via IS NOT NULL THEN 'own' END,
                CASE WHEN d.forwarded THEN 'forwarder' ELSE 'unknown' END
            ) AS kind,
            d.overrides,
            d.forwarded,
            sum(d.n)::bigint AS n,
            count(DISTINCT d.ip)::integer AS sources,
            count(DISTINCT d.reporter)::integer AS reporters,
            max(d.day) AS last_day
        FROM dma.daily d
        LEFT JOIN dma.address a ON a.ip = d.ip
        LEFT JOIN dma.address_spf s ON s.domain = d.policy_domain AND s.ip = d.ip
        WHERE d.day > (now() AT TIME ZONE 'UTC')::date - $1 AND NOT d.passed
        GROUP BY 1, 2, 3, 4, 5
    )
    SELECT
        f.policy_domain, f.header_from, f.kind, f.overrides, f.n, f.sources, f.reporters, f.last_day,
        f.kind IN ('own', 'provider', 'forwarder') OR f.forwarded,
        CASE
            WHEN f.kind = 'own' THEN 'our own hosts'
            WHEN f.kind = 'provider' THEN 'providers that send for us'
            WHEN 'mailing_list' = ANY(string_to_array(f.overrides, ',')) THEN 'mailing lists, by the receiver''s word'
            WHEN f.forwarded THEN 'forwarded mail, by the receiver''s word'
            WHEN f.kind = 'forwarder' THEN 'forwarders'
            WHEN f.kind = 'spoof' THEN 'forgeries'
            WHEN 'policy_test_mode' = ANY(string_to_array(f.overrides, ','))
                THEN 'unknown, let through by our test mode'
            WHEN f.overrides <> '' THEN 'unknown, let through by the receiver'
            ELSE 'unknown, most likely forgeries'
        END
    FROM failing f
    ORDER BY 9 DESC, f.n DESC, f.policy_domain, f.header_from
    LIMIT 5000;
END;

DROP FUNCTION IF EXISTS dma.policy_changes(integer);
CREATE FUNCTION dma.policy_changes(days integer) RETURNS TABLE (
    policy_domain text, p text, sp text, np text, testing boolean, first_day date, last_day date, reporters integer,
    reports bigint, previous_p text
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    -- The policy of a day is what most reporters saw; one that lies changes nothing.
    WITH votes AS (
        SELECT
            (r.begin_date AT TIME ZONE 'UTC')::date AS day, r.policy_domain, r.p, r.sp, r.np, r.testing,
            count(DISTINCT r.reporter)::integer AS reporters, count(*) AS reports
        FROM dma.report r
        WHERE r.begin_date > now() - make_interval(days => $1 + 60)
        GROUP BY 1, 2, 3, 4, 5, 6
    ),
    daily AS (
        SELECT DISTINCT ON (v.policy_domain, v.day) v.*
        FROM votes v
        ORDER BY v.policy_domain, v.day, v.reporters DESC, v.reports DESC, v.p, v.sp, v.np, v.testing
    ),
    marked AS (
        SELECT
            d.*,
            lag(d.p) OVER w AS before,
            count(*) OVER w AS place,
            (d.p, d.sp, d.np, d.testing) IS DISTINCT FROM
                (lag(d.p) OVER w, lag(d.sp) OVER w, lag(d.np) OVER w, lag(d.testing) OVER w) AS changed
        FROM daily d
        WINDOW w AS (PARTITION BY d.policy_domain ORDER BY d.day)
    ),
    runs AS (
        SELECT m.*, count(*) FILTER (WHERE m.changed) OVER (PARTITION BY m.policy_domain ORDER BY m.day) AS run
        FROM marked m
    )
    SELECT
        r.policy_domain, r.p, r.sp, r.np, r.testing, min(r.day), max(r.day), max(r.reporters), sum(r.reports)::bigint,
        max(r.before) FILTER (WHERE r.changed)
    FROM runs r
    GROUP BY r.policy_domain, r.run, r.p, r.sp, r.np, r.testing
    HAVING min(r.place) > 1 AND min(r.day) > (now() AT TIME ZONE 'UTC')::date - $1
    ORDER BY min(r.day) DESC, r.policy_domain;
END;

DROP FUNCTION IF EXISTS dma.tls(integer);
CREATE FUNCTION dma.tls(days integer) RETURNS TABLE (
    policy_domain text, reporter text, policy_type text, result_type text, mx text, ok bigint, failed bigint,
    reports integer, first_day date, last_day date
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH policies AS MATERIALIZED (
        SELECT p.* FROM dma.tls_policy p WHERE p.day > (now() AT TIME ZONE 'UTC')::date - $1
    ),
    failures AS MATERIALIZED (
        SELECT f.* FROM dma.tls_failure f WHERE f.day > (now() AT TIME ZONE 'UTC')::date - $1
    ),
    rows AS (
        SELECT
            p.policy_domain, p.reporter, p.policy_type, 'ok' AS result_type, NULL::text AS mx, p.ok,
            0::bigint AS failed, p.day
        FROM policies p
        WHERE p.ok > 0
        UNION ALL
        SELECT
            f.policy_domain, f.reporter, f.policy_type, coalesce(f.result_type, 'unexplained'), f.mx, 0, f.failed,
            f.day
        FROM failures f
        UNION ALL
        SELECT
            p.policy_domain, p.reporter, p.policy_type, 'unexplained', NULL, 0, p.failed - coalesce(g.failed, 0),
            p.day
        FROM policies p
        LEFT JOIN (
            SELECT f.policy_id, sum(f.failed)::bigint AS failed FROM failures f GROUP BY f.policy_id
        ) g ON g.policy_id = p.id
        WHERE p.failed > coalesce(g.failed, 0)
    )
    SELECT
        r.policy_domain, r.reporter, r.policy_type, r.result_type, r.mx, sum(r.ok)::bigint, sum(r.failed)::bigint,
        count(*)::integer, min(r.day), max(r.day)
    FROM rows r
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY r.policy_domain, sum(r.failed) DESC, sum(r.ok) DESC, r.reporter
    LIMIT 5000;
END;
