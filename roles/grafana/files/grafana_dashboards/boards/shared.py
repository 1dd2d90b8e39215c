"""Panels that several dashboards have. Each takes the condition on its rows."""

from __future__ import annotations

from grafana_dashboards import model as m

VERDICTS = {
    "ready": m.BLUE,
    "nearly": m.SKY,
    "decide about senders first": m.ORANGE,
    "fix own senders first": m.VERMILION,
    "not enough data": m.GREY,
}


def figures(chosen: str) -> m.Json:
    return m.stat(
        "In this time",
        "Messages that reporters saw with our domains in From, and what became of them.",
        f"""
        SELECT coalesce(sum(n), 0) AS messages, sum(n) FILTER (WHERE passed) / sum(n) AS authenticated,
            coalesce(sum(n) FILTER (WHERE NOT passed AND disposition = 'none'), 0) AS "not authenticated, delivered",
            coalesce(sum(n) FILTER (WHERE disposition IN ('quarantine', 'reject')), 0) AS "quarantined or rejected",
            coalesce(sum(n) FILTER (WHERE NOT passed AND kind IN ('own', 'provider')), 0) AS "own senders failing"
        FROM dma.daily_domain WHERE {chosen} LIMIT 1
        """,
        m.share("authenticated"),
        m.override("own senders failing", thresholds=m.thresholds((None, m.BLUE), (1, m.ORANGE))),
    )


def results(chosen: str) -> m.Json:
    """Dispositions ``pass`` (RFC 9990) and ``none`` both mean that nothing was done; dma has them as ``none``."""
    colors = {
        "authenticated": m.BLUE,
        "not authenticated, delivered": m.ORANGE,
        "quarantined": m.YELLOW,
        "rejected": m.VERMILION,
    }
    return m.graph(
        "Messages by result",
        "What receivers found and did, by day.",
        f"""
        SELECT $__timeGroupAlias(day,'1d'),
            coalesce(sum(n) FILTER (WHERE passed AND disposition = 'none'), 0) AS authenticated,
            coalesce(sum(n) FILTER (WHERE NOT passed AND disposition = 'none'), 0) AS "not authenticated, delivered",
            coalesce(sum(n) FILTER (WHERE disposition = 'quarantine'), 0) AS quarantined,
            coalesce(sum(n) FILTER (WHERE disposition = 'reject'), 0) AS rejected
        FROM dma.daily_domain WHERE {chosen} GROUP BY 1 ORDER BY 1 LIMIT 2000
        """,
        colors,
        stacked=True,
    )


def failing_kinds(chosen: str) -> m.Json:
    columns = ",\n".join(f"coalesce(sum(n) FILTER (WHERE kind = '{kind}'), 0) AS {kind}" for kind in m.KINDS)
    return m.graph(
        "Not authenticated, by kind of sender",
        "Failing mail by the postmaster's decisions about its source; only own and provider are ours to mend.",
        f"""
        SELECT $__timeGroupAlias(day,'1d'), {columns}
        FROM dma.daily_domain WHERE {chosen} AND NOT passed GROUP BY 1 ORDER BY 1 LIMIT 2000
        """,
        m.KINDS,
        stacked=True,
    )


def readiness(chosen: str) -> m.Json:
    return m.table(
        "Readiness for p=quarantine and p=reject",
        "Every domain seen in From, with what still fails and whether a stricter policy would hurt us.",
        f"""
        SELECT header_from AS "From domain", p, sp, np, n AS messages, pass_pct AS authenticated,
            quarantine_verdict AS "for quarantine", reject_verdict AS "for reject",
            own_failed AS own, provider_failed AS provider, forwarder_failed AS forwarder, spoof_failed AS spoof,
            unknown_failed AS unknown, undecided_failed AS undecided, reporters, days, reject_reason AS reason
        FROM dma.readiness({m.DAYS}) WHERE {chosen} ORDER BY n DESC LIMIT 500
        """,
        m.count("messages"),
        m.percent("authenticated"),
        m.colored("for quarantine", VERDICTS),
        m.colored("for reject", VERDICTS),
        m.trouble("own"),
        m.trouble("provider"),
        m.override("reason", custom__minWidth=250),
        height=10,
    )


def would_reject(chosen: str, *, width: int = m.COLUMNS) -> m.Json:
    return m.table(
        "What p=reject would have stopped",
        "Failing mail by sender and by the receivers' own reasons for letting it through.",
        f"""
        SELECT header_from AS "From domain", kind, nullif(overrides, '') AS overrides, n AS messages, sources,
            reporters, wanted, reason
        FROM dma.would_reject({m.DAYS}) WHERE {chosen} ORDER BY wanted DESC, n DESC LIMIT 200
        """,
        m.colored("kind", m.KINDS),
        m.count("messages"),
        m.override("reason", custom__minWidth=200),
        width=width,
    )
