"""The reports that we send, and what becomes of each of them."""

from __future__ import annotations

from grafana_dashboards import model as m

#: What a fate means, by colour: blue arrived, orange may still, vermilion the receiver's trouble, grey no mail was due.
FATES = {
    "taken": m.BLUE,
    "waiting": m.SKY,
    "deferred": m.YELLOW,
    "dns_temperror": m.YELLOW,
    "paused": m.ORANGE,
    "refused": m.VERMILION,
    "bounced_later": m.PURPLE,
    "excluded": m.GREY,
    "own": m.GREY,
}
NO_MAIL = (
    "('wrong_syntax', 'not_mailto', 'duplicate', 'too_many', 'excluded', 'own', 'not_authorised', 'overridden_wrongly')"
)
UNDER_WAY = "('waiting', 'deferred', 'dns_temperror')"


def build() -> m.Json:
    return m.dashboard(
        "dmarc-reports-out",
        "DMARC: our reports and their fate",
        "The daily reports that we owe to other domains, and what became of each.",
        [
            [
                m.stat(
                    "In this time",
                    "Deliveries of our reports; those that the receivers' records rule out are counted apart.",
                    f"""
                    SELECT coalesce(sum(deliveries) FILTER (WHERE fate = 'taken'), 0) AS taken,
                        sum(deliveries) FILTER (WHERE fate = 'taken')
                            / nullif(sum(deliveries) FILTER (WHERE fate NOT IN {NO_MAIL}), 0) AS "share taken",
                        coalesce(sum(deliveries) FILTER (WHERE fate IN {UNDER_WAY}), 0) AS "under way",
                        coalesce(sum(deliveries) FILTER (
                            WHERE fate <> 'taken' AND fate NOT IN {NO_MAIL} AND fate NOT IN {UNDER_WAY}
                        ), 0) AS failed,
                        coalesce(sum(deliveries) FILTER (WHERE fate IN {NO_MAIL}), 0) AS "no mail due"
                    FROM dmarc_reports.survey_daily WHERE $__timeFilter(day) LIMIT 1
                    """,
                    m.share("share taken", 0.9, 0.7),
                ),
            ],
            [
                m.graph(
                    "Deliveries by fate",
                    "One for each report and mailbox, by the day that the report is about.",
                    """
                    SELECT $__timeGroupAlias(day,'1d'), fate AS metric, sum(deliveries) AS value
                    FROM dmarc_reports.survey_daily WHERE $__timeFilter(day)
                    GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 20000
                    """,
                    FATES,
                    stacked=True,
                    width=14,
                ),
                m.table(
                    "Fates",
                    "How many deliveries ended in which way, and how many messages those reports counted.",
                    """
                    SELECT fate, sum(deliveries) AS deliveries, sum(messages) AS messages
                    FROM dmarc_reports.survey_daily WHERE $__timeFilter(day)
                    GROUP BY 1 ORDER BY 2 DESC LIMIT 50
                    """,
                    m.colored("fate", FATES),
                    m.count("deliveries"),
                    m.count("messages"),
                    width=10,
                ),
            ],
            [
                m.table(
                    "Domains that do not take reports",
                    "Where reports should go but do not arrive, with the last answer without its addresses.",
                    """
                    SELECT policy_domain AS domain, recipient_domain AS "reports go to", fate, deliveries,
                        first_day AS "first day", last_day AS "last day", last_reply AS "last answer"
                    FROM dmarc_reports.survey_domain
                    WHERE fate NOT IN ('taken', 'waiting', 'own', 'excluded', 'duplicate')
                        AND last_day >= $__timeFrom()::date
                    ORDER BY deliveries DESC, 1 LIMIT 500
                    """,
                    m.colored("fate", FATES),
                    m.count("deliveries"),
                    m.override("last answer", custom__minWidth=300),
                    height=12,
                ),
            ],
            [
                m.table(
                    "Paused",
                    "Domains that never take reports and get none until the day named.",
                    """
                    SELECT recipient_domain AS domain, failures, since, until, last_fate AS "last fate"
                    FROM dmarc_reports.survey_pause ORDER BY failures DESC, 1 LIMIT 500
                    """,
                    width=12,
                ),
                m.table(
                    "Days",
                    "Closed days with their events and reports, and what is still to be sent.",
                    """
                    SELECT day, closed_at AS closed, reason, events, reports, late, waiting, sending, handed, settled
                    FROM dmarc_reports.survey_day WHERE $__timeFilter(day) ORDER BY day DESC LIMIT 400
                    """,
                    m.count("events"),
                    m.trouble("late"),
                    m.trouble("waiting"),
                    width=12,
                ),
            ],
            [
                m.graph(
                    "What came back",
                    "Mails to the return paths of our reports, by what they were.",
                    """
                    SELECT $__timeGroupAlias(day,'1d'), kind AS metric, sum(mails) AS value
                    FROM dmarc_reports.survey_returned WHERE $__timeFilter(day)
                    GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 20000
                    """,
                    {"bounced_later": m.VERMILION, "confirmed": m.BLUE, "delayed": m.YELLOW, "delivered": m.SKY},
                    stacked=True,
                ),
                m.graph(
                    "Events and reports",
                    "Messages that our gateways looked at, by day.",
                    """
                    SELECT $__timeGroupAlias(day,'1d'), sum(events) AS events, sum(late) AS "too late for a report"
                    FROM dmarc_reports.survey_day WHERE $__timeFilter(day) GROUP BY 1 ORDER BY 1 LIMIT 2000
                    """,
                    {"events": m.BLUE, "too late for a report": m.VERMILION},
                ),
            ],
        ],
    )
