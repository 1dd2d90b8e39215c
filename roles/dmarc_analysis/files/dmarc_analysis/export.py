"""dmarc-export: events and reports of a period as CSV and Parquet that may be handed out, with their description.

Runs as the database role that owns the schema ``dma``. The export is written into a directory beside the wanted one,
checked against every address and name of the period, and renamed: it is complete, or it is not there.

Exit status: 0 done; 1 the check found something, nothing was written; 2 wrong use, or the database does not answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg

from dmarc_reports.events import EventError, parse_line

from . import export_files
from .export_files import Check, LeakError, Stage
from .export_mask import KEY_BYTES, Groups, Mask
from .export_tables import Rules, event_row, report_row

BATCH = 5_000
TEMPLATE = Path(__file__).resolve().parent.parent / "export" / "README.md"
LICENCE = r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}"


class UseError(Exception):
    """The command cannot do what was asked; the text says why and what to do."""


@dataclass(frozen=True)
class Period:
    """UTC days, both included."""

    first: date
    last: date


def make_key(path: Path | None) -> bytes:
    """A fresh key; with a path the key that is kept there, made at the first use."""
    if path is None:
        return secrets.token_bytes(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _kept_key(path)
    except OSError as error:
        raise UseError(f"{path}: {error.strerror}") from error
    key = secrets.token_bytes(KEY_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def _kept_key(path: Path) -> bytes:
    try:
        with path.open(encoding="ascii") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise UseError(f"{path}: others may read the key; chmod 600, and think about who has read it")
            text = file.read(2 * KEY_BYTES + 2).strip()
        key = bytes.fromhex(text)
    except OSError as error:
        raise UseError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UseError(f"{path}: no key of {2 * KEY_BYTES} hexadecimal digits") from error
    if len(key) != KEY_BYTES:
        raise UseError(f"{path}: no key of {2 * KEY_BYTES} hexadecimal digits")
    return key


@contextlib.contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """Give a directory beside ``target`` that becomes ``target`` when the block ends well, and vanishes if not."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UseError(f"{target}: is there already and not an empty directory")
    work = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        work.mkdir(mode=0o700)
    except OSError as error:
        raise UseError(f"{target.parent}: {error.strerror}") from error
    try:
        yield work
        for path in work.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o644)
        work.chmod(0o755)
        work.rename(target)
        parent = os.open(target.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def events(lines: Iterable[list[str]], stage: Stage, mask: Mask, rules: Rules) -> int:
    """Stage the events; returns how many lines could not be read."""
    unreadable = 0
    for batch in lines:
        rows = []
        for line in batch:
            try:
                rows.append(event_row(parse_line(line.encode("utf-8", "surrogateescape")), mask, rules))
            except EventError:
                unreadable += 1
        stage.write(rows)
    return unreadable


def export(database: Any, target: Path, period: Period, rules: Rules, key: bytes, *, kept: bool, licence: str,
           template: str, tables: Iterable[str] = ("events", "reports")) -> dict[str, int]:  # fmt: skip
    """Write the export to ``target``; returns the rows of each table. Raises UseError, LeakError, psycopg.Error."""
    mask = Mask(key, database.own_domains(), database.senders())
    counts: dict[str, int] = {}
    left_out = 0
    with whole_or_nothing(target) as work:
        for table in tables:
            groups = Groups(rules.k)
            with Stage(work, table) as stage:
                if table == "events":
                    left_out = events(database.event_lines(period), stage, mask, rules)
                else:
                    for batch in database.report_rows(period):
                        stage.write(report_row(row, mask, rules, groups) for row in batch)
            export_files.write(work, table, stage, groups.large())
            counts[table] = stage.rows
        check = Check(work, mask)
        for table, rows in counts.items():
            check.table(table, rows)
        about = {
            "from": period.first.isoformat(),
            "to": period.last.isoformat(),
            "created": f"{datetime.now(UTC).date().isoformat()}T00:00:00Z",
            "licence": licence,
            "key": "kept by the operator" if kept else "thrown away",
            "fingerprint": mask.fingerprint if kept else "",
            "left_out": left_out,
        }
        export_files.describe(work, template, rules, counts, about, check.coincidences)
        shutil.rmtree(work / ".spill", ignore_errors=True)
        for name in ("README.md", "datapackage.json"):
            check.text(work / name, export_files.vocabulary(template))
    return counts


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
