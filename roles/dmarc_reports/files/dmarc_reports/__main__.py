"""Daily DMARC aggregate reports (RFC 9990): closes days, makes and sends their reports, keeps account of their fate.

    dmarc-reports serve              all of it, for ever (the service)
    dmarc-reports close              close every day that is due
    dmarc-reports send               send what is due
    dmarc-reports settle             see what became of the mails that were sent
    dmarc-reports tidy               drop what is older than it is to be kept
    dmarc-reports status             what is done and what waits
    dmarc-reports show REPORT-ID     a report's XML
    dmarc-reports survey YYYY-MM     what became of a month's reports, as a text
    dmarc-reports check              whether the configuration can be used

Exit status: 0 done, 1 something went wrong, 2 wrong usage or configuration, 75 the database does not answer.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from . import day, store
from .send import send
from .settings import CONFIG, Settings, SettingsError
from .store import Connection

log = logging.getLogger("dmarc-reports")

ROUND = 60.0
"""Seconds from one round of the service to the next."""
TIDY = 3600.0


def close(conn: Connection, settings: Settings) -> int:
    """Close every day that is due, each in a transaction of its own; gives how many."""
    count = 0
    due = day.due(store.known(conn), datetime.now(UTC), settings.gateways, settings.wait, settings.catch_up_days)
    for one in due:
        outcome = store.close(conn, settings, one)
        if outcome is None:
            continue
        count += 1
        log.info(
            "%s is closed (%s): %d events, %d of them without a policy, %d lines set aside",
            one.day, one.reason, outcome.events, outcome.without_policy, outcome.unreadable,
        )  # fmt: skip
    return count


def tidy(conn: Connection, settings: Settings) -> None:
    """Drop what is older than it is to be kept."""
    dropped = {what: number for what, number in store.tidy(conn, settings).items() if number}
    if dropped:
        log.info("dropped: %s", ", ".join(f"{number} {what}" for what, number in dropped.items()))


def settle(conn: Connection, settings: Settings) -> None:
    """See what became of the mails that were handed over."""
    from . import journal

    journal.main(conn, settings)


def status(conn: Connection, settings: Settings) -> None:
    """Print what is done and what waits."""
    from . import bounces

    for name, until, at in conn.execute("SELECT gateway, until, at FROM dmarc_reports.watermark ORDER BY 1"):
        print(f"gateway {name}: events until {until:%Y-%m-%d %H:%M} are here, as it said at {at:%Y-%m-%d %H:%M}")
    query = """
        SELECT y.day, y.reason, y.events, y.reports, y.late, y.unreadable,
            count(*) FILTER (WHERE state = 'waiting'), count(*) FILTER (WHERE state = 'sending'),
            count(*) FILTER (WHERE state = 'handed'), count(*) FILTER (WHERE state = 'settled')
        FROM dmarc_reports.day y LEFT JOIN dmarc_reports.delivery d USING (day)
        WHERE y.day > (now() AT TIME ZONE 'UTC')::date - 15 GROUP BY y.day ORDER BY y.day
    """
    print("day         events  reports  late  set aside  waiting  sending  handed  settled  closed because")
    for date, reason, events, reports, late, aside, *states in conn.execute(query):
        waiting, sending, handed, settled = states
        print(
            f"{date}  {events:>6}  {reports:>7}  {late:>4}  {aside:>9}  {waiting:>7}  {sending:>7}  {handed:>6}  "
            f"{settled:>7}  {reason}"
        )
    for line in bounces.status(settings):
        print(line)


def serve(settings: Settings) -> int:
    """Do everything that is due, round after round, until told to stop."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    tidied = float("-inf")
    while not stop.is_set():
        began = time.monotonic()
        steps: dict[str, Callable[[Connection], object]] = {
            "closing days": lambda conn: close(conn, settings),
            "sending": lambda conn: send(conn, settings, seconds=ROUND, pause=stop.wait),
            "settling": lambda conn: settle(conn, settings),
        }
        if began - tidied >= TIDY:
            steps["tidying"] = lambda conn: tidy(conn, settings)
        for what, step in steps.items():
            if stop.is_set():
                break
            try:
                with store.connect(settings) as conn:
                    step(conn)
                if what == "tidying":
                    tidied = began
            except psycopg.OperationalError as error:
                log.error("%s: the database: %s", what, " ".join(str(error).split()))
            except Exception:
                log.exception("%s: an error of this program; the other work goes on", what)
        stop.wait(max(1.0, ROUND - (time.monotonic() - began)))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="dmarc-reports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "close", "send", "settle", "tidy", "status", "check"):
        commands.add_parser(name)
    commands.add_parser("show").add_argument("report_id")
    commands.add_parser("survey").add_argument("month")
    options = parser.parse_args(arguments)
    in_journal = "JOURNAL_STREAM" in os.environ
    logging.basicConfig(level=logging.INFO, format="%(message)s" if in_journal else "%(levelname)s %(message)s")
    try:
        settings = Settings.read(options.config)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if options.command == "check":
        return 0
    if options.command == "serve":
        return serve(settings)
    try:
        with store.connect(settings) as conn:
            return _once(conn, settings, options)
    except psycopg.OperationalError as error:
        print(f"the database: {' '.join(str(error).split())}", file=sys.stderr)
        return 75


def _once(conn: Connection, settings: Settings, options: argparse.Namespace) -> int:
    match options.command:
        case "close":
            print(f"{close(conn, settings)} days closed")
        case "send":
            print(f"{send(conn, settings)} mails handed over" if settings.enabled else "sending is switched off")
        case "settle":
            settle(conn, settings)
        case "tidy":
            tidy(conn, settings)
        case "status":
            status(conn, settings)
        case "show":
            document = store.xml(conn, options.report_id)
            if document is None:
                print(f"there is no report {options.report_id}, or its content is no longer kept", file=sys.stderr)
                return 1
            sys.stdout.buffer.write(document)
        case "survey":
            from . import survey

            return survey.main(conn, settings, options.month)
    return 0


if __name__ == "__main__":
    sys.exit(main())
