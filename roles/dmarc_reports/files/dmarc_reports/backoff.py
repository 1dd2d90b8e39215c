"""Domains that never take a report are left alone for a while: one week, then two, four and eight.

What counts is a run of failures of mails that really went out, however they failed, without one success in between,
and over several days. After a pause the next reports are tried; one that is taken ends it, one that fails begins a
longer one. Trouble of our own and mails that are still being tried never count.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from .settings import Settings

if TYPE_CHECKING:
    from .store import Connection

log = logging.getLogger("dmarc-reports")

FAILURES = (
    "bounced_later", "expired", "mailbox_full", "no_mailbox", "no_mx", "nxdomain", "refused", "spam_policy", "tls",
    "unreachable",
)  # fmt: skip
"""Not `too_large`, which is one report's trouble."""
FIRST_WEEKS = 1
MOST_WEEKS = 8
FORGET = timedelta(weeks=26)
"""A domain that nothing was sent to for so long after its pause begins anew."""
LOOK_BACK_DAYS = 120


@dataclass(frozen=True)
class Run:
    """What a domain did since it took a report last."""

    recipient_domain: str
    failures: int
    first_day: date
    last_day: date
    last_fate: str
    since_pause: int
    """Failures of mails that were handed over after the last pause."""


@dataclass(frozen=True)
class Pause:
    """A domain's last pause, over or not."""

    since: datetime
    until: datetime
    weeks: int


def decide(run: Run, last: Pause | None, now: datetime, failures: int, days: int) -> Pause | None:
    """The pause to begin now; None if there is nothing to change."""
    if last is not None:
        if last.until > now or not run.since_pause:
            return None
        weeks = min(MOST_WEEKS, last.weeks * 2)
        return Pause(last.since, now + timedelta(weeks=weeks), weeks)
    if run.failures < failures or (run.last_day - run.first_day).days + 1 < days:
        return None
    return Pause(now, now + timedelta(weeks=FIRST_WEEKS), FIRST_WEEKS)


def run(conn: Connection, settings: Settings) -> None:
    """End pauses by success, begin and prolong others."""
    over = conn.execute(
        "DELETE FROM dmarc_reports.pause p WHERE until < now() - %s OR EXISTS (SELECT FROM dmarc_reports.delivery d "
        "WHERE d.recipient_domain = p.recipient_domain AND d.fate = 'taken' AND d.settled_at > p.since) "
        "RETURNING recipient_domain",
        [FORGET],
    ).fetchall()
    for (domain,) in over:
        log.info("%s has taken a report, or was not written to for long: no pause is left of it", domain)
    runs = conn.execute(
        """
        WITH recent AS (
            SELECT * FROM dmarc_reports.delivery
            WHERE state = 'settled' AND handed_at IS NOT NULL AND day > current_date - %(back)s
        ), taken AS (
            SELECT recipient_domain, max(settled_at) AS at FROM recent WHERE fate = 'taken' GROUP BY 1
        )
        SELECT d.recipient_domain, count(*) AS failures, min(d.day) AS first_day, max(d.day) AS last_day,
            (array_agg(d.fate ORDER BY d.settled_at DESC, d.id DESC))[1] AS last_fate,
            count(*) FILTER (WHERE d.handed_at >= p.until) AS since_pause
        FROM recent d
        LEFT JOIN taken t USING (recipient_domain)
        LEFT JOIN dmarc_reports.pause p USING (recipient_domain)
        WHERE d.fate = ANY(%(failures)s) AND (t.at IS NULL OR d.settled_at > t.at)
        GROUP BY d.recipient_domain
        """,
        {"failures": list(FAILURES), "back": LOOK_BACK_DAYS},
    ).fetchall()
    row = conn.execute("SELECT now()").fetchone()
    assert row is not None
    known = {
        domain: Pause(since, until, weeks)
        for domain, since, until, weeks in conn.execute(
            "SELECT recipient_domain, since, until, weeks FROM dmarc_reports.pause"
        )
    }
    for one in (Run(*found) for found in runs):
        pause = decide(one, known.get(one.recipient_domain), row[0], settings.pause_failures, settings.pause_days)
        if pause is None:
            continue
        conn.execute(
            "INSERT INTO dmarc_reports.pause (recipient_domain, failures, since, until, last_fate, weeks) "
            "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (recipient_domain) DO UPDATE SET failures = "
            "excluded.failures, until = excluded.until, last_fate = excluded.last_fate, weeks = excluded.weeks",
            [one.recipient_domain, one.failures, pause.since, pause.until, one.last_fate, pause.weeks],
        )
        log.info(
            "%s takes no reports (%d failures since %s, the last one: %s): nothing is sent to it before %s",
            one.recipient_domain, one.failures, one.first_day, one.last_fate, pause.until.date(),
        )  # fmt: skip
