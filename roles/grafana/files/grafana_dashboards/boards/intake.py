"""Is the machinery well: reports in, events from the gateways, days closed."""

from __future__ import annotations

from grafana_dashboards import model as m

HOUR = 3600


def build() -> m.Json:
    return m.dashboard(
        "dmarc-intake",
        "DMARC: intake health",
        "Whether reports come in and are stored, and whether the gateways hand over their events.",
        [
            [
                m.stat(
                    "Intake now",
                    "Mails on their way to the database, and those that did not get there.",
                    """
                    SELECT waiting, oldest_waiting_seconds AS "oldest waiting", unsaved, poison, invalid,
                        set_aside AS "set aside", stored_last_day AS "stored in 24 h",
                        extract(epoch FROM now() - last_stored) AS "since the last one"
                    FROM intake.health LIMIT 1
                    """,
                    m.override(
                        "oldest waiting",
                        unit="s",
                        thresholds=m.thresholds((None, m.BLUE), (HOUR / 4, m.ORANGE), (HOUR / 2, m.VERMILION)),
                    ),
                    m.override("unsaved", thresholds=m.thresholds((None, m.BLUE), (1, m.ORANGE))),
                    m.override("poison", thresholds=m.thresholds((None, m.BLUE), (1, m.VERMILION))),
                    m.override(
                        "since the last one",
                        unit="s",
                        thresholds=m.thresholds((None, m.BLUE), (24 * HOUR, m.ORANGE), (72 * HOUR, m.VERMILION)),
                    ),
                ),
            ],
            [
                m.graph(
                    "Reports about us",
                    "Aggregate and TLS reports, by the day they are about.",
                    """
                    SELECT $__timeGroupAlias(day,'1d'), sum(aggregate) AS aggregate, sum(tls) AS "TLS" FROM (
                        SELECT (begin_date AT TIME ZONE 'UTC')::date AS day, count(*) AS aggregate, 0 AS tls
                        FROM dma.report WHERE $__timeFilter(begin_date) GROUP BY 1
                        UNION ALL
                        SELECT day, 0, sum(reports) FROM dma.tls_daily WHERE $__timeFilter(day) GROUP BY 1
                    ) AS counted GROUP BY 1 ORDER BY 1 LIMIT 2000
                    """,
                    {"aggregate": m.BLUE, "TLS": m.ORANGE},
                    width=14,
                ),
                m.table(
                    "Gateways",
                    "How far behind each gateway is with handing over its events.",
                    """
                    SELECT gateway, until AS "handed over until", lag_seconds AS behind
                    FROM dmarc_reports.survey_gateway ORDER BY lag_seconds DESC, 1 LIMIT 100
                    """,
                    m.override(
                        "behind",
                        unit="s",
                        thresholds=m.thresholds((None, m.BLUE), (HOUR, m.ORANGE), (6 * HOUR, m.VERMILION)),
                        custom__cellOptions={"type": "color-text"},
                    ),
                    width=10,
                ),
            ],
            [
                m.table(
                    "Folders",
                    "Every place in which a report may lie.",
                    """
                    SELECT folder, messages, bytes, oldest, counted_at AS counted
                    FROM intake.folder ORDER BY folder LIMIT 200
                    """,
                    m.count("messages"),
                    m.override("bytes", unit="bytes"),
                    width=12,
                ),
                m.table(
                    "Set aside, by reason",
                    "Mails that were not stored; docs/dmarc-intake.md says what to do about each reason.",
                    """
                    SELECT regexp_replace(folder, '^set-aside/', '') AS reason, messages, oldest
                    FROM intake.folder WHERE folder LIKE 'set-aside/%' OR folder IN ('unsaved', 'invalid')
                    ORDER BY messages DESC, 1 LIMIT 100
                    """,
                    m.trouble("messages"),
                    width=12,
                ),
            ],
            [
                m.table(
                    "Days of our own reports",
                    "Which days are closed, how complete they are, and what is left to send.",
                    """
                    SELECT day, closed_at AS closed, reason, events, reports, late, waiting + sending + handed AS open
                    FROM dmarc_reports.survey_day WHERE $__timeFilter(day) ORDER BY day DESC LIMIT 400
                    """,
                    m.count("events"),
                    m.trouble("late"),
                    m.trouble("open"),
                ),
            ],
        ],
        period="now-14d",
    )
