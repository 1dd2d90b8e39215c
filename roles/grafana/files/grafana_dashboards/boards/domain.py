"""One domain in depth."""

from __future__ import annotations

from grafana_dashboards import model as m
from grafana_dashboards.boards import shared

OURS = "policy_domain = ${domain:sqlstring}"
CHOSEN = f"$__timeFilter(day) AND {OURS}"


def build() -> m.Json:
    return m.dashboard(
        "dmarc-domain",
        "DMARC: one domain",
        "One policy domain with its subdomains, senders, selectors and reporters.",
        [
            [
                shared.figures(CHOSEN) | {"gridPos": {"x": 0, "y": 0, "w": 18, "h": 4}},
                m.stat(
                    "Published policy",
                    "The policy that most reports of the newest ten days name.",
                    f"""
                    SELECT coalesce(mode() WITHIN GROUP (ORDER BY p), '?') AS p,
                        coalesce(mode() WITHIN GROUP (ORDER BY sp), '–') AS sp,
                        CASE WHEN mode() WITHIN GROUP (ORDER BY testing) THEN 'yes' ELSE 'no' END AS "test mode"
                    FROM dma.report
                    WHERE {OURS} AND begin_date > (SELECT max(begin_date) FROM dma.report
                        WHERE {OURS} AND begin_date > now() - interval '1 year') - interval '10 days' LIMIT 1
                    """,
                    m.override("p", mappings=m.values({"none": m.ORANGE, "quarantine": m.SKY, "reject": m.BLUE})),
                    width=6,
                    text=True,
                ),
            ],
            [shared.results(CHOSEN), shared.failing_kinds(CHOSEN)],
            [
                m.graph(
                    "Alignment",
                    "Share of each day's messages with aligned SPF, aligned DKIM, and either of them.",
                    f"""
                    SELECT $__timeGroupAlias(day,'1d'),
                        coalesce(sum(n) FILTER (WHERE spf_aligned), 0) / sum(n) AS "SPF",
                        coalesce(sum(n) FILTER (WHERE dkim_aligned), 0) / sum(n) AS "DKIM",
                        coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n) AS "DMARC"
                    FROM dma.daily_domain WHERE {CHOSEN} GROUP BY 1 ORDER BY 1 LIMIT 2000
                    """,
                    {"SPF": m.ORANGE, "DKIM": m.PURPLE, "DMARC": m.BLUE},
                    unit="percentunit",
                    maximum=1,
                ),
                m.table(
                    "Domains in From",
                    "The domain and what is below it, as authors' domains.",
                    f"""
                    SELECT header_from AS "From domain", sum(n) AS messages,
                        coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n) AS authenticated,
                        coalesce(sum(n) FILTER (WHERE NOT passed AND kind IN ('own', 'provider')), 0) AS "own failing",
                        coalesce(sum(n) FILTER (WHERE disposition <> 'none'), 0) AS stopped, max(day) AS "last day"
                    FROM dma.daily_domain WHERE {CHOSEN} GROUP BY 1 ORDER BY 2 DESC LIMIT 200
                    """,
                    m.count("messages"),
                    m.share("authenticated"),
                    m.trouble("own failing"),
                    m.count("stopped"),
                    width=12,
                ),
            ],
            [
                m.table(
                    "Senders",
                    "Networks that sent in the name of the domain.",
                    f"""
                    SELECT as_name AS network, source_name AS name, coalesce(kind, 'unknown') AS kind, label,
                        sum(n) AS messages, coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n) AS authenticated,
                        bool_or(in_spf IS NOT NULL) AS "in SPF", count(DISTINCT ip) AS addresses
                    FROM dma.source WHERE {CHOSEN} GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC LIMIT 200
                    """,
                    m.colored("kind", m.KINDS),
                    m.count("messages"),
                    m.share("authenticated"),
                    width=14,
                ),
                m.table(
                    "Reporters",
                    "Who reports about the domain, and how they see it.",
                    f"""
                    SELECT reporter, sum(n) AS messages,
                        coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n) AS authenticated,
                        coalesce(sum(n) FILTER (WHERE disposition <> 'none'), 0) AS stopped, max(day) AS "last day"
                    FROM dma.daily WHERE {CHOSEN} GROUP BY 1 ORDER BY 2 DESC LIMIT 200
                    """,
                    m.count("messages"),
                    m.share("authenticated"),
                    m.count("stopped"),
                    width=10,
                ),
            ],
            [shared.readiness(OURS)],
            [
                m.table(
                    "DKIM selectors",
                    "Keys in use, for the rotation; another domain's signature does not align.",
                    f"""
                    SELECT dkim_domain AS "signing domain", selector, ours, n AS messages, pass, fail,
                        ips AS addresses, last_day AS "last day", idle_days AS "days idle"
                    FROM dma.selectors({m.DAYS}) WHERE {OURS} ORDER BY ours DESC, n DESC LIMIT 200
                    """,
                    m.count("messages"),
                    m.count("pass"),
                    m.trouble("fail"),
                    width=12,
                ),
                shared.would_reject(OURS, width=12),
            ],
        ],
        [m.DOMAIN_VARIABLE, m.DAYS_VARIABLE],
        [m.policy_annotation()],
    )
