"""Where mail in our name comes from: map, graphs and tables."""

from __future__ import annotations

from grafana_dashboards import model as m

CHOSEN = f"{m.CHOSEN} AND kind IN (${{kind:sqlstring}})"
CHOSEN_SOURCES = f"{m.CHOSEN} AND coalesce(kind, 'unknown') IN (${{kind:sqlstring}})"


def countries(condition: str) -> str:
    return f"""
        SELECT country, sum(n) AS messages, coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n) AS authenticated
        FROM dma.daily_domain WHERE {CHOSEN} AND country IS NOT NULL{condition}
        GROUP BY 1 ORDER BY 2 DESC LIMIT 300
    """


def by_kind() -> str:
    columns = ",\n".join(f"coalesce(sum(n) FILTER (WHERE kind = '{kind}'), 0) AS {kind}" for kind in m.KINDS)
    return f"""
        SELECT $__timeGroupAlias(day,'1d'), {columns}
        FROM dma.daily_domain WHERE {CHOSEN} GROUP BY 1 ORDER BY 1 LIMIT 2000
    """


def build() -> m.Json:
    return m.dashboard(
        "dmarc-sources",
        "DMARC: sources",
        "Where mail in our name comes from, by country, network and address.",
        [
            [
                m.world(
                    "Where it comes from",
                    "All messages by country of the sending address (IP data by IPinfo, CC BY-SA 4.0).",
                    countries(""),
                    m.BLUE,
                ),
                m.world(
                    "Where failing mail comes from",
                    "Messages that did not pass DMARC, by country of the sending address.",
                    countries(" AND NOT passed"),
                    m.VERMILION,
                ),
            ],
            [
                m.graph(
                    "Messages by kind of sender",
                    "All mail by the postmaster's decisions about its source.",
                    by_kind(),
                    m.KINDS,
                    stacked=True,
                ),
                m.bars(
                    "Countries",
                    "The twenty countries with most messages.",
                    f"""
                    SELECT coalesce(country, '–') AS country,
                        coalesce(sum(n) FILTER (WHERE passed), 0) AS authenticated,
                        coalesce(sum(n) FILTER (WHERE NOT passed), 0) AS "not authenticated"
                    FROM dma.daily_domain WHERE {CHOSEN} GROUP BY 1 ORDER BY sum(n) DESC LIMIT 20
                    """,
                    "country",
                    width=6,
                ),
                m.bars(
                    "Kinds of network",
                    "What sort of organisation the sending network belongs to.",
                    f"""
                    SELECT coalesce(source_type, 'not known') AS type,
                        coalesce(sum(n) FILTER (WHERE passed), 0) AS authenticated,
                        coalesce(sum(n) FILTER (WHERE NOT passed), 0) AS "not authenticated"
                    FROM dma.daily_domain WHERE {CHOSEN} GROUP BY 1 ORDER BY sum(n) DESC LIMIT 20
                    """,
                    "type",
                    width=6,
                ),
            ],
            [
                m.table(
                    "New sources",
                    "Networks that sent in our name in the last days and never before.",
                    f"""
                    SELECT policy_domain AS domain, asn AS "AS", as_name AS network, source_name AS name, country,
                        ips AS addresses, host(example) AS example, n AS messages, passed AS authenticated,
                        first_day AS "first day", coalesce(kind, suggested, 'unknown') AS kind
                    FROM dma.new_sources({m.DAYS}) WHERE policy_domain IN (${{domain:sqlstring}})
                    ORDER BY n DESC LIMIT 200
                    """,
                    m.override("AS", unit="none"),
                    m.count("messages"),
                    m.count("authenticated"),
                    m.colored("kind", m.KINDS),
                ),
            ],
            [
                m.table(
                    "Networks",
                    "Autonomous systems with most messages.",
                    f"""
                    SELECT asn AS "AS", as_name AS network, count(DISTINCT ip) AS addresses, sum(n) AS messages,
                        coalesce(sum(n) FILTER (WHERE passed), 0) / sum(n) AS authenticated,
                        coalesce(sum(n) FILTER (WHERE NOT passed), 0) AS failing
                    FROM dma.source WHERE {CHOSEN_SOURCES} GROUP BY 1, 2 ORDER BY 4 DESC LIMIT 100
                    """,
                    m.override("AS", unit="none"),
                    m.count("messages"),
                    m.share("authenticated"),
                    m.count("failing"),
                    width=10,
                ),
                m.table(
                    "Addresses",
                    "Sending addresses with most messages.",
                    f"""
                    WITH busy AS (
                        SELECT ip, policy_domain, max(country) AS country, max(as_name) AS as_name,
                            max(source_name) AS source_name, max(kind) AS kind, max(label) AS label,
                            max(suggested) AS suggested, sum(n) AS n, sum(n) FILTER (WHERE passed) AS passed,
                            bool_or(spf_aligned) AS spf, bool_or(dkim_aligned) AS dkim,
                            bool_or(in_spf IS NOT NULL) AS in_spf
                        FROM dma.source WHERE {CHOSEN_SOURCES}
                        GROUP BY 1, 2 ORDER BY sum(n) DESC LIMIT 500
                    )
                    SELECT host(ip) AS address, policy_domain AS domain, country, as_name AS network,
                        source_name AS name, coalesce(kind, suggested, 'unknown') AS kind, label, n AS messages,
                        coalesce(passed, 0) / n AS authenticated, spf AS "SPF", dkim AS "DKIM", in_spf AS "in SPF"
                    FROM busy ORDER BY n DESC LIMIT 500
                    """,
                    m.colored("kind", m.KINDS),
                    m.count("messages"),
                    m.share("authenticated"),
                    width=14,
                ),
            ],
        ],
        [
            m.DOMAINS_VARIABLE,
            m.custom_variable("kind", "Kind of sender", list(m.KINDS)),
            m.DAYS_VARIABLE,
        ],
    )
