"""The postmaster's work on SPF: what to add, what to remove, what to decide, and whether a policy is ready."""

from __future__ import annotations

from grafana_dashboards import model as m
from grafana_dashboards.boards import shared

ADD_VERDICTS = {
    "add": m.BLUE,
    "add?": m.SKY,
    "leave?": m.YELLOW,
    "look": m.ORANGE,
    "envelope": m.GREY,
}
REMOVE_VERDICTS = {"remove": m.ORANGE, "keep": m.BLUE, "not enough data": m.GREY}
SUGGESTIONS = {"own?": m.BLUE, "provider?": m.SKY, "forwarder?": m.YELLOW, "spoof?": m.VERMILION}
#: Domains in From and of envelopes may be below a domain of the data model.
BELOW = "(domain IN (${domain:sqlstring}) OR NOT in_model)"


def build() -> m.Json:
    return m.dashboard(
        "dmarc-spf",
        "DMARC: SPF work",
        "Work lists for SPF and policies; playbooks/spf_senders.yml prints the same and proposes the record.",
        [
            [
                m.table(
                    "Published records",
                    "SPF records as DNS has them, against the limits of ten look-ups and two void ones.",
                    """
                    SELECT domain, lookups, void_lookups AS "void look-ups", problem, resolved, record
                    FROM dma.spf_record WHERE domain IN (${domain:sqlstring}) ORDER BY lookups DESC, 1 LIMIT 500
                    """,
                    m.trouble("lookups", 9, 11),
                    m.trouble("void look-ups", 2, 3),
                    m.override("problem", color=m.fixed(m.VERMILION), custom__cellOptions={"type": "color-text"}),
                    height=7,
                ),
            ],
            [
                m.table(
                    "To add",
                    "Addresses that sign for us but that SPF does not name, with a verdict for each.",
                    f"""
                    SELECT verdict, domain, host(ip) AS address, source_name AS name, as_name AS network, country,
                        n AS messages, dkim_pct AS "DKIM aligned", reporters, days, last_day AS "last day", kind,
                        label, reason
                    FROM dma.spf_to_add({m.DAYS}) WHERE {BELOW} ORDER BY n DESC LIMIT 300
                    """,
                    m.colored("verdict", ADD_VERDICTS, custom__width=90),
                    m.count("messages"),
                    m.percent("DKIM aligned"),
                    m.colored("kind", m.KINDS),
                    m.override("reason", custom__minWidth=250),
                    height=12,
                ),
            ],
            [
                m.table(
                    "To remove",
                    "Networks of the published records, with the aligned mail that came from each.",
                    f"""
                    SELECT verdict, domain, network::text AS network, via, aligned, total, last_day AS "last day",
                        reason
                    FROM dma.spf_to_remove({m.DAYS}) WHERE domain IN (${{domain:sqlstring}})
                    ORDER BY verdict = 'remove' DESC, aligned, domain, network LIMIT 300
                    """,
                    m.colored("verdict", REMOVE_VERDICTS, custom__width=110),
                    m.count("aligned"),
                    m.count("total"),
                    m.override("reason", custom__minWidth=250),
                    height=11,
                ),
            ],
            [
                m.table(
                    "Undecided sources",
                    "Busy addresses without a decision, with what the figures suggest.",
                    f"""
                    WITH busy AS (
                        SELECT ip, max(as_name) AS as_name, max(source_name) AS source_name, max(country) AS country,
                            sum(n) AS n, sum(n) FILTER (WHERE passed) AS passed, count(DISTINCT reporter) AS reporters,
                            bool_or(in_spf IS NOT NULL) AS in_spf
                        FROM dma.source
                        WHERE day > (now() AT TIME ZONE 'UTC')::date - {m.DAYS}
                            AND policy_domain IN (${{domain:sqlstring}}) AND kind IS NULL
                        GROUP BY ip ORDER BY sum(n) DESC LIMIT 300
                    )
                    SELECT host(b.ip) AS address, b.source_name AS name, b.as_name AS network, b.country,
                        b.n AS messages, coalesce(b.passed, 0) / b.n AS authenticated, b.reporters,
                        b.in_spf AS "in SPF", a.suggested, a.reason, a.first_day AS "first day"
                    FROM busy b LEFT JOIN dma.address a ON a.ip = b.ip
                    ORDER BY a.suggested IS NULL, b.n DESC LIMIT 300
                    """,
                    m.count("messages"),
                    m.share("authenticated"),
                    m.colored("suggested", SUGGESTIONS),
                    m.override("reason", custom__minWidth=250),
                    height=11,
                ),
            ],
            [shared.readiness("policy_domain IN (${domain:sqlstring})")],
            [
                m.table(
                    "Decisions",
                    "The postmaster's decisions about networks, and when mail last came from each.",
                    """
                    SELECT s.network::text AS network, s.kind, s.label, s.reviewed,
                        (SELECT max(a.last_day) FROM dma.address a WHERE a.ip <<= s.network) AS "last day"
                    FROM dma.sender s ORDER BY s.kind, s.network LIMIT 500
                    """,
                    m.colored("kind", m.KINDS),
                ),
            ],
        ],
        [m.DOMAINS_VARIABLE, m.DAYS_VARIABLE],
        picker=False,
    )
