-- dma.refresh() brings the summaries up to date. It re-makes the days of reports that it has not counted yet and of
-- reports that are gone, as a whole, so that it may run while parsedmarc writes: a report that is committed between
-- two of its statements is at worst counted once more, by the next refresh, with the same result. (Ids and stored_at
-- are given out before the commit, so neither of them could be a mark up to which all has been seen.)

CREATE OR REPLACE FUNCTION dma.last_address(network cidr) RETURNS inet
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN set_masklen(broadcast(network::inet), CASE family(network::inet) WHEN 4 THEN 32 ELSE 128 END);

-- What the figures of the last 90 days say about addresses that nobody has decided on; never a decision.
CREATE OR REPLACE FUNCTION dma.suggest_kinds() RETURNS void
LANGUAGE sql
-- All addresses are joined with all figures: a nested loop would be the square of their number.
SET enable_nestloop = off
BEGIN ATOMIC
    WITH figures AS MATERIALIZED (
        SELECT
            ip,
            sum(n) AS n,
            coalesce(sum(n) FILTER (WHERE dkim_aligned), 0) AS dkim,
            coalesce(sum(n) FILTER (WHERE spf_aligned), 0) AS spf,
            coalesce(sum(n) FILTER (WHERE forwarded), 0) AS forwarded,
            coalesce(sum(n) FILTER (WHERE envelope_domain IS NOT NULL), 0) AS envelope,
            count(DISTINCT reporter) AS reporters
        FROM dma.daily
        WHERE day >= (now() AT TIME ZONE 'UTC')::date - 90
        GROUP BY ip
    ),
    listed AS (
        SELECT ip, bool_and(via LIKE 'include:%') AS included FROM dma.address_spf GROUP BY ip
    ),
    signed AS (
        SELECT ip, dkim_domain, selector
        FROM dma.daily_dkim
        WHERE day >= (now() AT TIME ZONE 'UTC')::date - 90 AND ours AND result = 'pass'
        GROUP BY ip, dkim_domain, selector
    ),
    -- Keys of hosts that are ours for certain: mail signed by them began its way there.
    own_keys AS (
        SELECT s.dkim_domain, s.selector
        FROM signed s
        LEFT JOIN listed l ON l.ip = s.ip
        LEFT JOIN dma.address a ON a.ip = s.ip
        WHERE a.kind = 'own' OR a.kind IS NULL AND NOT l.included
        GROUP BY s.dkim_domain, s.selector
    ),
    keys AS (
        SELECT s.ip, bool_or(k.selector IS NOT NULL) AS own_key
        FROM signed s
        LEFT JOIN own_keys k ON k.dkim_domain = s.dkim_domain AND k.selector = s.selector
        GROUP BY s.ip
    ),
    neighbours AS (
        SELECT DISTINCT near FROM (
            SELECT network(set_masklen(l.ip, CASE family(l.ip) WHEN 4 THEN 24 ELSE 48 END)) AS near
            FROM listed l WHERE NOT l.included
            UNION ALL
            SELECT network(set_masklen(s.network::inet, CASE family(s.network::inet) WHEN 4 THEN 24 ELSE 48 END))
            FROM dma.sender s
            WHERE s.kind = 'own' AND masklen(s.network::inet) >= CASE family(s.network::inet) WHEN 4 THEN 24 ELSE 48 END
        ) n
    ),
    verdict AS (
        SELECT
            f.ip,
            CASE
                WHEN l.included THEN ARRAY['provider?', 'in an SPF record that ours includes']
                WHEN NOT l.included THEN ARRAY['own?', 'listed in our SPF record']
                WHEN f.forwarded * 10 >= f.n THEN ARRAY['forwarder?', 'receivers say that it forwards']
                WHEN n.near IS NOT NULL THEN ARRAY['own?', 'beside a host of ours']
                WHEN f.spf * 2 >= f.n THEN ARRAY['own?', 'passed by SPF until lately']
                WHEN f.dkim = 0 THEN ARRAY['spoof?', 'never authenticated']
                WHEN k.own_key AND f.dkim * 50 >= f.n * 49 AND f.envelope * 10 >= f.n * 9 AND f.reporters >= 5
                    THEN ARRAY['own?', 'signs with a key of ours, whoever reports']
                WHEN k.own_key THEN ARRAY['forwarder?', 'passes on what our hosts have signed']
                WHEN f.dkim * 10 >= f.n * 9 AND f.reporters >= 3
                    THEN ARRAY['provider?', 'signs for us with a key that our hosts do not use']
            END AS said
        FROM figures f
        LEFT JOIN listed l ON l.ip = f.ip
        LEFT JOIN keys k ON k.ip = f.ip
        LEFT JOIN neighbours n ON n.near = network(set_masklen(f.ip, CASE family(f.ip) WHEN 4 THEN 24 ELSE 48 END))
    )
    UPDATE dma.address a
    SET suggested = v.said[1], reason = v.said[2]
    FROM (SELECT b.ip, w.said FROM dma.address b LEFT JOIN verdict w ON w.ip = b.ip) v
    WHERE v.ip = a.ip AND (a.suggested IS DISTINCT FROM v.said[1] OR a.reason IS DISTINCT FROM v.said[2]);
    UPDATE dma.state SET suggested_on = (now() AT TIME ZONE 'UTC')::date;
END;

CREATE OR REPLACE FUNCTION dma.refresh(max_days integer DEFAULT 60) RETURNS TABLE (days_made integer, days_left integer)
LANGUAGE plpgsql
AS $$
DECLARE
    names text;
    known timestamptz;
    batch date[];
    made date[];
    touched inet[];
    dropped inet[];
    listed bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('dma.refresh'));

    -- Which days have changed?
    SELECT coalesce(string_agg(name, ' ' ORDER BY name), '') INTO names FROM dma.domain;
    IF names IS DISTINCT FROM (SELECT domains FROM dma.state) THEN
        INSERT INTO dma.stale_day SELECT DISTINCT day, true FROM dma.counted
        ON CONFLICT (day) DO UPDATE SET records = true;
        UPDATE dma.state SET domains = names;
    END IF;
    WITH new AS (
        INSERT INTO dma.counted
        SELECT r.id, d.day
        FROM public.dmarc_aggregate_report r
        CROSS JOIN LATERAL (
            SELECT (r.begin_date AT TIME ZONE 'UTC')::date AS day
            UNION
            SELECT (c.interval_begin AT TIME ZONE 'UTC')::date
            FROM public.dmarc_aggregate_record c
            WHERE c.report_id = r.id AND c.interval_begin IS NOT NULL
        ) d
        WHERE NOT EXISTS (SELECT FROM dma.counted k WHERE k.report = r.id)
        RETURNING counted.day
    ),
    gone AS (
        DELETE FROM dma.counted k
        WHERE NOT EXISTS (SELECT FROM public.dmarc_aggregate_report r WHERE r.id = k.report)
        RETURNING k.day
    )
    INSERT INTO dma.stale_day
    SELECT day, true FROM (SELECT day FROM new UNION SELECT day FROM gone) u
    ON CONFLICT (day) DO UPDATE SET records = true;

    -- The days from their records, the newest first.
    batch := ARRAY(SELECT s.day FROM dma.stale_day s WHERE s.records ORDER BY s.day DESC LIMIT max_days);
    WITH old AS (DELETE FROM dma.daily d WHERE d.day = ANY(batch) RETURNING d.ip)
    SELECT coalesce(array_agg(DISTINCT ip), '{}') INTO dropped FROM old;
    DELETE FROM dma.daily_dkim d WHERE d.day = ANY(batch);
    -- OFFSET 0 keeps the planner to the order day, report, record, each by its index: it takes the records for far
    -- fewer than they are, and would at times go through all of them.
    WITH v AS MATERIALIZED (
        SELECT r.*
        FROM dma.counted k
        CROSS JOIN LATERAL (
            SELECT o.* FROM dma.record o WHERE o.report_id = k.report AND o.day = k.day OFFSET 0
        ) r
        WHERE k.day = ANY(batch)
    ),
    signed AS (
        INSERT INTO dma.daily_dkim
        SELECT
            v.day, v.policy_domain, v.ip, s.dkim_domain, s.selector,
            EXISTS (
                SELECT FROM dma.domain o
                WHERE s.dkim_domain = o.name OR right(s.dkim_domain, length(o.name) + 1) = '.' || o.name
            ),
            s.result, sum(v.n)
        FROM v
        JOIN public.dmarc_aggregate_record_dkim g ON g.record_id = v.id
        CROSS JOIN LATERAL (
            SELECT
                left(lower(rtrim(regexp_replace(g.domain, '[[:cntrl:]]', '', 'g'), '.')), 253) AS dkim_domain,
                left(regexp_replace(coalesce(g.selector, ''), '[[:cntrl:]]', '', 'g'), 200) AS selector,
                CASE
                    WHEN lower(g.result) IN ('pass', 'fail', 'policy', 'neutral', 'temperror', 'permerror')
                        THEN lower(g.result)
                    ELSE 'none'
                END AS result
        ) s
        WHERE s.dkim_domain <> ''
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ),
    new AS (
        INSERT INTO dma.daily
        SELECT
            v.day, v.policy_domain, v.header_from, v.envelope_domain, v.ip, v.reporter, v.country, v.source_name,
            v.source_type, v.asn, v.as_name, v.spf_aligned, v.dkim_aligned, v.passed, v.disposition, v.forwarded,
            array_to_string(v.overrides, ','), sum(v.n), count(*)
        FROM v
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17
        RETURNING daily.ip
    )
    SELECT coalesce(array_agg(DISTINCT ip), '{}') INTO touched FROM new;

    -- After a great change the planner must not go by what was there before.
    IF cardinality(batch) > 20 OR (SELECT reltuples < 0 FROM pg_class WHERE oid = 'dma.daily'::regclass) THEN
        ANALYZE dma.counted, dma.daily, dma.daily_dkim;
    END IF;

    -- The list of addresses, in which networks are then looked up by its index.
    DELETE FROM dma.address a
    WHERE a.ip = ANY(dropped) AND NOT EXISTS (SELECT FROM dma.daily d WHERE d.ip = a.ip);
    INSERT INTO dma.address (ip, first_day, last_day)
    SELECT u.ip, min(d.day), max(d.day)
    FROM (SELECT unnest(touched) AS ip UNION SELECT unnest(dropped)) u
    JOIN dma.daily d ON d.ip = u.ip
    GROUP BY u.ip
    ON CONFLICT (ip) DO UPDATE SET first_day = excluded.first_day, last_day = excluded.last_day
    WHERE (address.first_day, address.last_day) IS DISTINCT FROM (excluded.first_day, excluded.last_day);

    IF cardinality(batch) > 20 OR (SELECT reltuples < 0 FROM pg_class WHERE oid = 'dma.address'::regclass) THEN
        ANALYZE dma.address, dma.spf_network, dma.sender;
    END IF;

    WITH found AS (
        SELECT DISTINCT ON (f.domain, a.ip) f.domain, a.ip, f.network, f.via
        FROM dma.spf_network f
        JOIN dma.address a ON a.ip >= f.network::inet AND a.ip <= dma.last_address(f.network)
        ORDER BY f.domain, a.ip, masklen(f.network::inet) DESC
    ),
    lost AS (
        DELETE FROM dma.address_spf s
        WHERE NOT EXISTS (SELECT FROM found f WHERE f.domain = s.domain AND f.ip = s.ip)
    )
    INSERT INTO dma.address_spf SELECT domain, ip, network, via FROM found
    ON CONFLICT (domain, ip) DO UPDATE SET network = excluded.network, via = excluded.via
    WHERE (address_spf.network, address_spf.via) IS DISTINCT FROM (excluded.network, excluded.via);
    GET DIAGNOSTICS listed = ROW_COUNT;

    WITH decided AS (
        SELECT DISTINCT ON (a.ip) a.ip, s.kind, s.label
        FROM dma.sender s
        JOIN dma.address a ON a.ip >= s.network::inet AND a.ip <= dma.last_address(s.network)
        ORDER BY a.ip, masklen(s.network::inet) DESC
    ),
    changed AS (
        UPDATE dma.address a
        SET kind = n.kind, label = n.label
        FROM (SELECT b.ip, d.kind, d.label FROM dma.address b LEFT JOIN decided d ON d.ip = b.ip) n
        WHERE n.ip = a.ip AND (a.kind IS DISTINCT FROM n.kind OR a.label IS DISTINCT FROM n.label)
        RETURNING a.ip
    )
    INSERT INTO dma.stale_day
    SELECT DISTINCT d.day, false FROM dma.daily d JOIN changed c ON c.ip = d.ip
    ON CONFLICT (day) DO NOTHING;

    -- Addresses of which more has become known since they were counted.
    SELECT max(looked_up) INTO known FROM dma.ip_info;
    IF known > (SELECT ip_info_at FROM dma.state) THEN
        UPDATE dma.daily d
        SET asn = i.asn, as_name = i.as_name
        FROM dma.ip_info i
        WHERE i.ip = d.ip
          AND i.looked_up > (SELECT ip_info_at - interval '1 hour' FROM dma.state)
          AND (d.asn IS DISTINCT FROM i.asn OR d.as_name IS DISTINCT FROM i.as_name);
        UPDATE dma.state SET ip_info_at = known;
    END IF;

    -- The small summary follows from the large one.
    made := ARRAY(
        SELECT s.day FROM dma.stale_day s
        WHERE s.day = ANY(batch) OR NOT s.records ORDER BY s.day DESC LIMIT max_days
    );
    DELETE FROM dma.daily_domain d WHERE d.day = ANY(made);
    INSERT INTO dma.daily_domain
    SELECT
        d.day, d.policy_domain, d.header_from, coalesce(a.kind, 'unknown'), d.country, d.source_type, d.spf_aligned,
        d.dkim_aligned, d.passed, d.disposition, d.forwarded, sum(d.n), count(DISTINCT d.ip)
    FROM dma.daily d
    LEFT JOIN dma.address a ON a.ip = d.ip
    WHERE d.day = ANY(made)
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11;
    DELETE FROM dma.stale_day s WHERE s.day = ANY(made);
    -- What was made from its records and did not fit into the limit lacks only its kinds.
    UPDATE dma.stale_day s SET records = false WHERE s.day = ANY(batch);

    SELECT count(*) INTO days_left FROM dma.stale_day;
    days_made := cardinality(made);
    IF days_left = 0 AND (
        days_made > 0 OR listed > 0 OR (SELECT suggested_on <> (now() AT TIME ZONE 'UTC')::date FROM dma.state)
    ) THEN
        PERFORM dma.suggest_kinds();
    END IF;
    UPDATE dma.state SET refreshed_at = now();
    RETURN NEXT;
END;
$$;
