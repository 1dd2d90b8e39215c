"""TLS reports (RFC 8460): do others reach us by TLS, and if not, why."""

from __future__ import annotations

from grafana_dashboards import model as m

LIST = f"FROM dma.tls({m.DAYS}) WHERE policy_domain IN (${{domain:sqlstring}})"


def build() -> m.Json:
    return m.dashboard(
        "dmarc-tls",
        "DMARC: TLS reports",
        "How other mail systems reach ours by TLS, from their reports.",
        [
            [
                m.stat(
                    "In this time",
                    "Sessions that senders reported about our MX hosts.",
                    f"""
                    SELECT coalesce(sum(ok), 0) AS "TLS as it should be", coalesce(sum(failed), 0) AS failed,
                        sum(ok) / nullif(sum(ok) + sum(failed), 0) AS success, count(DISTINCT reporter) AS reporters
                    FROM dma.tls_daily WHERE {m.CHOSEN} LIMIT 1
                    """,
                    m.share("success", 0.999, 0.98),
                    m.override("failed", thresholds=m.thresholds((None, m.BLUE), (1, m.ORANGE))),
                ),
            ],
            [
                m.graph(
                    "Sessions",
                    "Sessions with TLS as it should be, and failed ones, by day.",
                    f"""
                    SELECT $__timeGroupAlias(day,'1d'), sum(ok) AS ok, sum(failed) AS failed
                    FROM dma.tls_daily WHERE {m.CHOSEN} GROUP BY 1 ORDER BY 1 LIMIT 2000
                    """,
                    {"ok": m.BLUE, "failed": m.VERMILION},
                    stacked=True,
                ),
                m.graph(
                    "Success, by kind of policy",
                    "Share of sessions without failure, for MTA-STS, DANE and no policy.",
                    f"""
                    SELECT $__timeGroupAlias(day,'1d'), coalesce(policy_type, 'not known') AS metric,
                        sum(ok) / nullif(sum(ok) + sum(failed), 0) AS value
                    FROM dma.tls_daily WHERE {m.CHOSEN} GROUP BY 1, 2 ORDER BY 1 LIMIT 5000
                    """,
                    {"sts": m.BLUE, "tlsa": m.PURPLE, "no-policy-found": m.ORANGE},
                    unit="percentunit",
                    maximum=1,
                ),
            ],
            [
                m.table(
                    "Failures by reason and MX",
                    "What senders could not do, and at which of our hosts.",
                    f"""
                    SELECT policy_domain AS domain, result_type AS reason, mx AS "MX", policy_type AS policy,
                        sum(failed) AS failed, count(DISTINCT reporter) AS reporters, max(last_day) AS "last day"
                    {LIST} AND failed > 0 GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC LIMIT 200
                    """,
                    m.trouble("failed"),
                    width=14,
                ),
                m.table(
                    "Reporters",
                    "Who sends TLS reports about us.",
                    f"""
                    SELECT reporter, sum(ok) AS ok, sum(failed) AS failed,
                        sum(ok) / nullif(sum(ok) + sum(failed), 0) AS success, max(last_day) AS "last day"
                    {LIST} GROUP BY 1 ORDER BY 2 DESC LIMIT 200
                    """,
                    m.count("ok"),
                    m.trouble("failed"),
                    m.share("success", 0.999, 0.98),
                    width=10,
                ),
            ],
        ],
        [m.DOMAINS_VARIABLE, m.DAYS_VARIABLE],
    )
