"""All our domains on one page."""

from __future__ import annotations

from grafana_dashboards import model as m
from grafana_dashboards.boards import shared


def build() -> m.Json:
    return m.dashboard(
        "dmarc-domains",
        "DMARC: domains",
        "How the world authenticates mail in the name of our domains, and which of them are ready for a policy.",
        [
            [shared.figures(m.CHOSEN)],
            [shared.results(m.CHOSEN), shared.failing_kinds(m.CHOSEN)],
            [
                m.table(
                    "Domains",
                    "Messages by policy domain; the name leads to its own dashboard.",
                    f"""
                    SELECT policy_domain AS domain, sum(n) AS messages,
                        sum(n) FILTER (WHERE passed) / sum(n) AS authenticated,
                        sum(n) FILTER (WHERE spf_aligned) / sum(n) AS "SPF aligned",
                        sum(n) FILTER (WHERE dkim_aligned) / sum(n) AS "DKIM aligned",
                        coalesce(sum(n) FILTER (WHERE NOT passed AND kind IN ('own', 'provider')), 0) AS "own failing",
                        coalesce(sum(n) FILTER (WHERE disposition = 'quarantine'), 0) AS quarantined,
                        coalesce(sum(n) FILTER (WHERE disposition = 'reject'), 0) AS rejected, max(day) AS "last day"
                    FROM dma.daily_domain WHERE {m.CHOSEN} GROUP BY 1 ORDER BY 2 DESC LIMIT 500
                    """,
                    m.link("domain", "dmarc-domain", "domain", "This domain alone"),
                    m.count("messages"),
                    m.share("authenticated"),
                    m.share("SPF aligned"),
                    m.share("DKIM aligned"),
                    m.trouble("own failing"),
                    m.count("quarantined"),
                    m.count("rejected"),
                    width=14,
                ),
                m.graph(
                    "Authenticated, by domain",
                    "Share of each day's messages that passed DMARC, for the ten domains with most mail.",
                    f"""
                    WITH busy AS (
                        SELECT policy_domain FROM dma.daily_domain WHERE {m.CHOSEN}
                        GROUP BY 1 ORDER BY sum(n) DESC LIMIT 10
                    )
                    SELECT $__timeGroupAlias(day,'1d'), policy_domain AS metric,
                        coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n) AS value
                    FROM dma.daily_domain JOIN busy USING (policy_domain) WHERE {m.CHOSEN}
                    GROUP BY 1, 2 ORDER BY 1 LIMIT 20000
                    """,
                    unit="percentunit",
                    maximum=1,
                    width=10,
                ),
            ],
            [shared.readiness("policy_domain IN (${domain:sqlstring})")],
            [
                shared.would_reject("policy_domain IN (${domain:sqlstring})", width=14),
                m.table(
                    "Policy changes",
                    "Days on which most reporters first saw another policy in DNS.",
                    """
                    SELECT first_day AS day, policy_domain AS domain, previous_p AS before, p, sp, np, testing
                    FROM dma.policy_changes(400) WHERE policy_domain IN (${domain:sqlstring})
                    ORDER BY 1 DESC LIMIT 100
                    """,
                    width=10,
                ),
            ],
            [
                m.graph(
                    "Reporting organisations",
                    "How many organisations reported about each day.",
                    f"""
                    SELECT $__timeGroupAlias(day,'1d'), count(DISTINCT reporter) AS reporters
                    FROM dma.daily WHERE {m.CHOSEN} GROUP BY 1 ORDER BY 1 LIMIT 2000
                    """,
                    {"reporters": m.BLUE},
                    width=10,
                ),
                m.table(
                    "Silent reporters",
                    "Organisations that reported on ten days or more of the last sixty and on none of the last three.",
                    """
                    SELECT reporter, days_seen AS "days seen", n AS messages, last_day AS "last day",
                        silent_days AS "days silent"
                    FROM dma.silent_reporters() ORDER BY 3 DESC LIMIT 100
                    """,
                    m.count("messages"),
                    width=14,
                ),
            ],
        ],
        [m.DOMAINS_VARIABLE, m.DAYS_VARIABLE],
        [m.policy_annotation()],
    )
