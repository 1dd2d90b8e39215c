"""The tables of `files/sql` as functions; all of the reports' SQL but the survey's is here (PostgreSQL, psycopg 3).

Connections are in autocommit: a statement is a transaction unless a function says otherwise.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, LiteralString, cast

import psycopg
from psycopg.rows import class_row, dict_row

from .aggregate import day_bounds
from .day import Due, Known, Line, Outcome, Planned, reports, spread
from .destinations import Destination
from .handover import Delivery
from .package import Frozen, Mail
from .report_xml import Form
from .settings import Settings

Connection = psycopg.Connection[tuple[Any, ...]]

AT_A_TIME = 500
"""Rows fetched or written at a time."""


_DELIVERIES = """
SELECT d.id, d.report_id, d.day, d.policy_domain, d.recipient, d.recipient_domain, d.attempts, d.dns_failures,
    d.checked_at, d.max_bytes, d.sending_at, d.envelope_from, r.rua
FROM dmarc_reports.delivery d JOIN dmarc_reports.report r USING (report_id)
"""


def connect(settings: Settings) -> Connection:
    """Open a connection. Raises psycopg.OperationalError."""
    return psycopg.connect(
        settings.database,
        autocommit=True,
        connect_timeout=10,
        application_name="dmarc-reports",
        options="-c TimeZone=UTC -c statement_timeout=15min",
    )


@contextmanager
def alone(conn: Connection, what: str) -> Iterator[bool]:
    """Whether nobody else does the same; nobody will until the end of the block, or of the connection."""
    key = f"dmarc_reports.{what}"
    row = conn.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [key]).fetchone()
    got = bool(row and row[0])
    try:
        yield got
    finally:
        if got and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(hashtext(%s))", [key])


# --- days


def known(conn: Connection) -> Known:
    """What is known about days; from an index, however many events there are."""
    closed = conn.execute("SELECT day FROM dmarc_reports.day").fetchall()
    with_events = conn.execute(
        """
        WITH RECURSIVE found AS (
            SELECT min(day) AS day FROM dmarc_reports.event
            UNION ALL
            SELECT (SELECT min(day) FROM dmarc_reports.event e WHERE e.day > found.day) FROM found
            WHERE found.day IS NOT NULL
        )
        SELECT day FROM found WHERE day IS NOT NULL AND day NOT IN (SELECT day FROM dmarc_reports.day)
        """
    ).fetchall()
    watermarks = conn.execute("SELECT gateway, until FROM dmarc_reports.watermark").fetchall()
    up_since = conn.execute("SELECT pg_postmaster_start_time()").fetchone()
    return Known(
        closed=frozenset(row[0] for row in closed),
        with_events=frozenset(row[0] for row in with_events),
        watermarks={name: until.astimezone(UTC) for name, until in watermarks},
        up_since=up_since[0] if up_since else datetime.now(UTC),
    )


def close(conn: Connection, settings: Settings, due: Due) -> Outcome | None:
    """Close a day, in one transaction: all of it, or nothing. None if somebody else has closed it.

    No event of the day is stored meanwhile: whoever stores events holds the same lock, shared.
    """
    outcome = Outcome()
    with conn.transaction():
        conn.execute(
            "SELECT pg_advisory_xact_lock(hashtext('dmarc_reports.day'), %s::date - date '2000-01-01')", [due.day]
        )
        new = conn.execute(
            "INSERT INTO dmarc_reports.day (day, reason, events, reports) VALUES (%s, %s, 0, 0) "
            "ON CONFLICT DO NOTHING RETURNING closed_at",
            [due.day, due.reason],
        ).fetchone()
        if new is None:
            return None
        made = _make(conn, settings, due.day, new[0], outcome) if due.reports else 0
        if not due.reports:
            row = conn.execute("SELECT count(*) FROM dmarc_reports.event WHERE day = %s", [due.day]).fetchone()
            outcome.events = row[0] if row else 0
        conn.execute(
            "UPDATE dmarc_reports.day SET events = %s, reports = %s, without_policy = %s, unreadable = %s "
            "WHERE day = %s",
            [outcome.events, made, outcome.without_policy, outcome.unreadable, due.day],
        )
    return outcome


def _make(conn: Connection, settings: Settings, day: date, now: datetime, outcome: Outcome) -> int:
    made = 0
    for report, rua, planned in reports(_lines(conn, day), day, settings, outcome):
        _keep(conn, report, day, rua, planned, now, settings.spread)
        made += 1
        if len(outcome.set_aside) >= AT_A_TIME:
            _put_aside(conn, outcome)
    _put_aside(conn, outcome)
    return made


def _lines(conn: Connection, day: date) -> Iterator[Line]:
    with conn.cursor(name="events_of_a_day") as cursor:
        cursor.itersize = AT_A_TIME
        cursor.execute(
            'SELECT dmarc_reports.policy_domain(line) COLLATE "C" AS domain, gateway, line FROM dmarc_reports.event '
            "WHERE day = %s ORDER BY domain NULLS FIRST, id",
            [day],
        )
        yield from cast("Iterator[Line]", cursor)


def _put_aside(conn: Connection, outcome: Outcome) -> None:
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO dmarc_reports.set_aside (at, gateway, line, reason) VALUES (now(), %s, %s, %s)",
            outcome.set_aside,
        )
    outcome.set_aside.clear()


def _keep(
    conn: Connection, report: Frozen, day: date, rua: str, planned: Iterable[Planned], now: datetime, over: timedelta
) -> None:
    conn.execute(
        "INSERT INTO dmarc_reports.report (report_id, day, policy_domain, form, messages, records, content, file_name, "
        "subject, rua) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            report.report_id, day, report.policy_domain, str(report.form), report.messages, report.records,
            report.content, report.file_name, report.subject, rua,
        ],
    )  # fmt: skip
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO dmarc_reports.delivery (report_id, day, policy_domain, recipient, recipient_domain, state, "
            "fate, reply, due_at, checked_at, max_bytes, settled_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    report.report_id, day, report.policy_domain, one.recipient, one.domain,
                    "waiting" if one.fate is None else "settled",
                    str(one.fate) if one.fate else None, one.detail or None,
                    now + spread(report.report_id, one.recipient, over),
                    now if one.checked else None, one.max_bytes, now if one.fate else None,
                )
                for one in planned
            ],
        )  # fmt: skip


# --- deliveries


def _deliveries(conn: Connection, condition: LiteralString, values: Iterable[Any]) -> list[Delivery]:
    with conn.cursor(row_factory=class_row(Delivery)) as cursor:
        return cursor.execute(_DELIVERIES + condition, list(values)).fetchall()


def due_deliveries(conn: Connection, limit: int) -> list[Delivery]:
    """Deliveries whose time has come, the longest due first."""
    return _deliveries(
        conn, "WHERE d.state = 'waiting' AND d.due_at <= now() ORDER BY d.due_at, d.id LIMIT %s", [limit]
    )


def cut_off(conn: Connection) -> list[Delivery]:
    """Deliveries of which nobody knows whether Postfix took them."""
    return _deliveries(conn, "WHERE d.state = 'sending' ORDER BY d.sending_at", [])


def siblings(conn: Connection, report_id: str) -> list[Delivery]:
    """The deliveries of a report that wait for a word of their domain."""
    return _deliveries(
        conn, "WHERE d.report_id = %s AND d.state = 'waiting' AND d.checked_at IS NULL ORDER BY d.id", [report_id]
    )


def mailboxes(conn: Connection, report_id: str) -> set[str]:
    """The mailboxes that get a report, or have got it."""
    rows = conn.execute(
        "SELECT recipient FROM dmarc_reports.delivery WHERE report_id = %s "
        "AND (state <> 'settled' OR envelope_from IS NOT NULL)",
        [report_id],
    )
    return {row[0] for row in rows.fetchall()}


def settle(conn: Connection, delivery_id: int, fate: str, reply: str, dsn: str | None = None) -> None:
    """End a delivery that becomes no mail."""
    conn.execute(
        "UPDATE dmarc_reports.delivery SET state = 'settled', fate = %s, reply = %s, dsn = %s, settled_at = now() "
        "WHERE id = %s AND state <> 'settled'",
        [fate, reply, dsn, delivery_id],
    )


def authorised(conn: Connection, delivery_id: int, to: Destination) -> None:
    """The domain wants the report, at this mailbox; it may be another one than was published."""
    conn.execute(
        "UPDATE dmarc_reports.delivery SET checked_at = now(), recipient = %s, recipient_domain = %s, max_bytes = %s "
        "WHERE id = %s",
        [to.address, to.domain, to.max_bytes, delivery_id],
    )


def add_mailbox(conn: Connection, like: Delivery, to: Destination) -> None:
    """A further mailbox that the domain named in place of the published one."""
    conn.execute(
        "INSERT INTO dmarc_reports.delivery (report_id, day, policy_domain, recipient, recipient_domain, max_bytes, "
        "checked_at) VALUES (%s, %s, %s, %s, %s, %s, now()) ON CONFLICT DO NOTHING",
        [like.report_id, like.day, like.policy_domain, to.address, to.domain, to.max_bytes],
    )


def ask_again(conn: Connection, delivery_id: int, after: timedelta, reply: str) -> None:
    """The DNS gave no answer; another try later."""
    conn.execute(
        "UPDATE dmarc_reports.delivery SET dns_failures = dns_failures + 1, due_at = now() + %s, reply = %s "
        "WHERE id = %s",
        [after, reply, delivery_id],
    )


def paused_until(conn: Connection, domain: str) -> datetime | None:
    """Until when nothing is sent to a domain."""
    row = conn.execute(
        "SELECT until FROM dmarc_reports.pause WHERE recipient_domain = %s AND until > now()", [domain]
    ).fetchone()
    return row[0] if row else None


def frozen(conn: Connection, report_id: str) -> Frozen | None:
    """A report as it was made; None if its content is no longer kept."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM dmarc_reports.report WHERE report_id = %s", [report_id]).fetchone()
    if row is None or row["content"] is None:
        return None
    begin, end = day_bounds(row["day"])
    return Frozen(
        row["report_id"], row["policy_domain"], begin, end, row["messages"], row["records"], Form(row["form"]),
        row["file_name"], row["subject"], bytes(row["content"]),
    )  # fmt: skip


def begin_sending(conn: Connection, delivery_id: int, mail: Mail) -> bool:
    """Committed before Postfix gets the mail. False if the delivery waits no longer."""
    done = conn.execute(
        "UPDATE dmarc_reports.delivery SET state = 'sending', sending_at = now(), attempts = attempts + 1, "
        "envelope_from = %s, message_id = %s WHERE id = %s AND state = 'waiting'",
        [mail.envelope_from, mail.message_id, delivery_id],
    )
    return done.rowcount == 1


def handed(conn: Connection, delivery_id: int, queue_id: str | None, reply: str) -> None:
    """Postfix has taken the mail."""
    conn.execute(
        "UPDATE dmarc_reports.delivery SET state = 'handed', handed_at = now(), queue_id = %s, reply = %s "
        "WHERE id = %s AND state = 'sending'",
        [queue_id, reply, delivery_id],
    )


def wait_on(conn: Connection, delivery_id: int, after: timedelta, reply: str) -> None:
    """Postfix has not taken the mail; another try later."""
    conn.execute(
        "UPDATE dmarc_reports.delivery SET state = 'waiting', due_at = now() + %s, reply = %s "
        "WHERE id = %s AND state = 'sending'",
        [after, reply, delivery_id],
    )


def give_up_old(conn: Connection, days: int) -> int:
    """Settle what has waited for so many days that nobody wants it any more."""
    done = conn.execute(
        "UPDATE dmarc_reports.delivery SET state = 'settled', fate = 'expired', settled_at = now(), "
        "reply = coalesce(reply || '; ', '') || 'not sent in ' || %s || ' days' "
        "WHERE state = 'waiting' AND day < (now() AT TIME ZONE 'UTC')::date - %s",
        [str(days), days],
    )
    return done.rowcount


# --- keeping house


def tidy(conn: Connection, settings: Settings) -> dict[str, int]:
    """Drop what is no longer needed: nothing of an open day, no report that has not been taken by Postfix."""
    statements: dict[str, tuple[LiteralString, int]] = {
        "events": (
            "DELETE FROM dmarc_reports.event e USING dmarc_reports.day d WHERE e.day = d.day "
            "AND d.day < (now() AT TIME ZONE 'UTC')::date - %s AND d.closed_at < now() - interval '1 day'",
            settings.keep_events_days,
        ),
        "lines set aside": (
            "DELETE FROM dmarc_reports.set_aside WHERE at < now() - %s * interval '1 day'",
            settings.keep_events_days,
        ),
        "contents": (
            "UPDATE dmarc_reports.report r SET content = NULL WHERE content IS NOT NULL "
            "AND day < (now() AT TIME ZONE 'UTC')::date - %s AND NOT EXISTS (SELECT FROM dmarc_reports.delivery d "
            "WHERE d.report_id = r.report_id AND d.state IN ('waiting', 'sending'))",
            settings.keep_content_days,
        ),
        "reports": (
            "DELETE FROM dmarc_reports.report r WHERE day < (now() AT TIME ZONE 'UTC')::date - %s "
            "AND NOT EXISTS (SELECT FROM dmarc_reports.delivery d "
            "WHERE d.report_id = r.report_id AND d.state IN ('waiting', 'sending'))",
            settings.keep_reports_days,
        ),
    }
    return {what: conn.execute(statement, [days]).rowcount for what, (statement, days) in statements.items()}


def xml(conn: Connection, report_id: str) -> bytes | None:
    """A report's XML; None if it is not kept."""
    report = frozen(conn, report_id)
    return gzip.decompress(report.content) if report else None
