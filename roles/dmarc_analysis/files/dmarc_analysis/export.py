"""dmarc-export: events and reports of a period as CSV and Parquet that may be handed out, with their description.

Runs as the database role that owns the schema ``dma``. The export is written into a directory beside the wanted one,
checked against every address and name of the period, and renamed: it is complete, or it is not there.

Exit status: 0 done; 1 the check found something, nothing was written; 2 wrong use, or the database does not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psycopg

from .export_files import LeakError
from .export_run import Period, UseError, export, make_key
from .export_tables import Rules

BATCH = 5_000
TEMPLATE = Path(__file__).resolve().parent.parent / "export" / "README.md"
LICENCE = r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}"


class Database:
    """One snapshot of events, reports and the postmaster's data."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.execute("SET TIME ZONE 'UTC'")

    def own_domains(self) -> list[str]:
        """Domains that get a pseudonym of their own kind."""
        return [name for (name,) in self._connection.execute("SELECT name FROM dma.domain")]

    def senders(self) -> list[tuple[str, str]]:
        """What the postmaster decided: network, kind."""
        return list(self._connection.execute("SELECT network::text, kind FROM dma.sender"))

    def _batches(self, name: str, query: str, period: Period) -> Iterator[list[Any]]:
        with self._connection.cursor(name) as cursor:
            cursor.execute(query, {"first": period.first, "last": period.last})
            while batch := cursor.fetchmany(BATCH):
                yield batch

    def event_lines(self, period: Period) -> Iterator[list[str]]:
        """The events' lines, some thousand at a time."""
        query = "SELECT line FROM dmarc_reports.event WHERE day BETWEEN %(first)s AND %(last)s"
        for batch in self._batches("events", query, period):
            yield [line for (line,) in batch]

    def report_rows(self, period: Period) -> Iterator[list[list[Any]]]:
        """The reports' daily sums, some thousand at a time."""
        # one JSON value a row: taking 19 values out of a result one by one takes five times as long
        query = "SELECT row_to_json(r)::text FROM dma.export_reports(%(first)s, %(last)s) r"
        for batch in self._batches("reports", query, period):
            yield [list(json.loads(row).values()) for (row,) in batch]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="dmarc-export", description="Anonymised DMARC events and reports.")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="made by the command; may be there if empty")
    parser.add_argument("--from", dest="first", type=date.fromisoformat, required=True, metavar="DAY")
    parser.add_argument("--to", dest="last", type=date.fromisoformat, required=True, metavar="DAY", help="included")
    parser.add_argument("--only", choices=("events", "reports"), help="one table instead of both")
    parser.add_argument("--key", type=Path, metavar="FILE",
                        help="keep the key here, so that exports join; made if it is not there")  # fmt: skip
    parser.add_argument("--hours", type=int, choices=(1, 2, 3, 4, 6, 8, 12, 24), default=1,
                        help="round the times of events down to so many hours")  # fmt: skip
    parser.add_argument("--k", type=int, default=5, metavar="N",
                        help="country and network only where N sources share them")  # fmt: skip
    parser.add_argument("--small", type=int, default=5, metavar="N", help="no counts below N")
    parser.add_argument("--without-as", action="store_true", help="no autonomous systems and kinds of network")
    parser.add_argument("--licence", default="not-licensed", metavar="NAME",
                        help="terms of use, an SPDX identifier such as CC-BY-4.0")  # fmt: skip
    parser.add_argument("--database", default="dbname=dmarc", metavar="CONNECTION", help="libpq connection string")
    given = parser.parse_args(words)
    if given.first > given.last:
        parser.error("--from is after --to")
    if given.k < 2 or given.small < 2:
        parser.error("--k and --small are at least 2")
    if not re.fullmatch(LICENCE, given.licence):
        parser.error("--licence is a short name, such as CC-BY-4.0")
    return given


def _stop(*_: object) -> None:
    raise SystemExit(143)


def main() -> int:
    """Run the command."""
    given = arguments()
    signal.signal(signal.SIGTERM, _stop)
    os.umask(0o077)
    rules = Rules(given.hours, given.k, given.small, not given.without_as)
    started = time.monotonic()
    try:
        target = Path(os.path.abspath(given.directory))
        template = TEMPLATE.read_text(encoding="utf-8")
        key = make_key(given.key)
        with psycopg.connect(given.database, client_encoding="utf8") as connection:
            counts = export(
                Database(connection), target, Period(given.first, given.last), rules, key, kept=given.key is not None,
                licence=given.licence, template=template, tables=[given.only] if given.only else ("events", "reports"),
            )  # fmt: skip
    except UseError as error:
        print(f"dmarc-export: {error}", file=sys.stderr)
        return 2
    except psycopg.Error as error:
        print(f"dmarc-export: database: {str(error).strip()}", file=sys.stderr)
        return 2
    except LeakError as error:
        print(f"dmarc-export: nothing was written: {error}", file=sys.stderr)
        return 1
    told = ", ".join(f"{rows} {table}" for table, rows in counts.items())
    print(f"{given.directory}: {told}; {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
