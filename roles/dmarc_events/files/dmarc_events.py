#!/usr/bin/python3
"""Hand the DMARC events of this gateway over to the database of the analytics host, at least once.

The ARC milter writes one JSON object a line to ``<UTC hour>.<gateway>.<worker>.jsonl`` (docs/arc.md). A file whose hour
is over is sent in batches to ``dmarc_reports.take_events`` and deleted after the last of them is committed; sent again
after a kill it changes nothing, for the database knows each event by its ``id``. Then ``dmarc_reports.events_complete``
tells up to when nothing is missing, by which a day can be closed.

A line that the database could not store is set aside with its reason; the rest goes on. While the database is away the
files stay where they are, in a directory that the milter keeps below a size.

Exit status: 0 all is handed over, 75 (EX_TEMPFAIL) the database is away and there is time, 1 there is no more time
(the backlog is older or larger than it may be), 2 wrong usage, 78 (EX_CONFIG) the configuration is wrong.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

EX_TEMPFAIL, EX_CONFIG = 75, 78
FILE_NAME = re.compile(r"([0-9]{8}T[0-9]{2})\.[^/]+\.jsonl")
GRACE_SECONDS = 60
"""A worker may be about to write its last event of an hour."""
SLACK_SECONDS = 600
"""An event is written after its message's end, which may be later than the time it bears."""
BATCH_LINES = 2000
BATCH_OCTETS = 4_000_000
MAX_LINE = 1_000_000
POISON = ("22", "23", "54")
"""SQLSTATE classes that speak of a line's content: sent again, it would be refused again."""
SET_ASIDE_OCTETS = 16_000_000


@dataclass(frozen=True)
class Config:
    """The configuration file, TOML."""

    host: str
    port: int
    database: str
    user: str
    password_file: str
    ca_file: str
    gateway: str
    directory: str
    set_aside: str
    metrics_file: str
    max_octets: int
    warn_hours: float
    warn_share: float

    @classmethod
    def read(cls, path: Path) -> Config:
        """Raises OSError, and ValueError with the reason."""
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(cls)}
        if set(content) != known:
            raise ValueError(f"missing or unknown: {', '.join(sorted(set(content) ^ known))}")
        return cls(**content)


@dataclass
class Backlog:
    """What lies in the directory."""

    complete: list[Path] = field(default_factory=list)
    octets: int = 0
    oldest: float = 0.0
    """End of the oldest complete hour that is still here, in seconds; 0: none."""


def hour_of(name: str) -> float | None:
    """Begin of the hour that a file's name tells, in seconds; None: it is none of the milter's files."""
    found = FILE_NAME.fullmatch(name)
    if not found:
        return None
    try:
        return datetime.strptime(found[1], "%Y%m%dT%H").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def look(directory: Path, now: float) -> Backlog:
    """What is there, the oldest first; the size is that of everything, as the milter counts it.

    An hour that has not begun yet comes from a clock that was ahead: no worker writes to it now.
    """
    backlog = Backlog()
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                backlog.octets += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
            begin = hour_of(entry.name)
            if begin is None or not entry.is_file(follow_symlinks=False):
                continue
            if begin + 3600 + GRACE_SECONDS <= now or begin > now + GRACE_SECONDS:
                found.append((begin, entry.name))
    found.sort()
    backlog.complete = [directory / name for _, name in found]
    backlog.oldest = found[0][0] + 3600 if found else 0.0
    return backlog


def complete_until(now: float, oldest: float = 0.0) -> datetime:
    """Up to when nothing can be missing; ``oldest`` is the end of the oldest hour that had to stay, 0: none."""
    until = (now - GRACE_SECONDS) // 3600 * 3600
    if oldest:
        until = min(until, oldest - 3600)
    return datetime.fromtimestamp(until - SLACK_SECONDS, UTC)


def fault(line: bytes) -> str:
    """Why the database could not store a line; empty: it can."""
    if len(line) > MAX_LINE:
        return f"longer than {MAX_LINE} octets"
    if b"\0" in line:
        return "holds NUL"
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON: cut off or damaged"
    if not isinstance(content, dict):
        return "not a JSON object"
    try:
        uuid.UUID(content["id"])
    except (KeyError, AttributeError, TypeError, ValueError):
        return "no id"
    if type(content.get("time")) is not int or not 0 <= content["time"] < 253_402_300_800:
        return "no time"
    return ""


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their end; of one that is too long only as much as shows that."""
    while line := file.readline(MAX_LINE + 2):
        if line.endswith(b"\n"):
            yield line[:-1]
            continue
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def batches(file: BinaryIO, refuse: Callable[[bytes, str], None]) -> Iterator[list[str]]:
    """The events of a file, so many at a time that memory stays small; other lines are refused with a reason."""
    batch: list[str] = []
    octets = 0
    for line in lines_of(file):
        if not line:
            continue
        if reason := fault(line):
            refuse(line, reason)
            continue
        if batch and (len(batch) >= BATCH_LINES or octets + len(line) > BATCH_OCTETS):
            yield batch
            batch, octets = [], 0
        batch.append(line.decode("utf-8"))
        octets += len(line)
    if batch:
        yield batch


@dataclass
class Totals:
    """What this run did."""

    sent: int = 0
    new: int = 0
    set_aside: int = 0


class Refused:
    """The lines of one file that are no events, as many of them as there is room for."""

    def __init__(self) -> None:
        self.count = 0
        self.entries: list[bytes] = []
        self._room = SET_ASIDE_OCTETS

    def __call__(self, line: bytes, reason: str) -> None:
        self.count += 1
        entry = json.dumps({"reason": reason, "line": line.decode("utf-8", "backslashreplace")}).encode() + b"\n"
        if len(entry) <= self._room:
            self.entries.append(entry)
            self._room -= len(entry)


class AwayError(Exception):
    """The database takes nothing now; another time it may."""


class PoisonError(Exception):
    """The database cannot store something in this batch, and never will."""


class Receiver(Protocol):
    """What takes events. Both functions raise AwayError."""

    def take(self, lines: list[str]) -> int:
        """Store a batch whole or not at all; returns how many events are new. Raises PoisonError."""

    def complete(self, until: datetime) -> None:
        """All events before then have been handed over."""


def take(receiver: Receiver, batch: list[str], totals: Totals, refused: Refused) -> None:
    """Send one batch; a line that the database cannot store is found by halving."""
    try:
        totals.new += receiver.take(batch)
        totals.sent += len(batch)
    except PoisonError as error:
        if len(batch) == 1:
            refused(batch[0].encode("utf-8"), f"the database refuses it: {error}")
            return
        half = len(batch) // 2
        take(receiver, batch[:half], totals, refused)
        take(receiver, batch[half:], totals, refused)


def hand_over(path: Path, config: Config, receiver: Receiver, totals: Totals) -> None:
    """Send one file and delete it. Raises AwayError or OSError, and the file stays."""
    refused = Refused()

    def send_rest() -> bool:
        begin, before = file.tell(), refused.count
        for batch in batches(file, refused):
            take(receiver, batch, totals, refused)
        if refused.count > before:
            keep(Path(config.set_aside), path.name, refused.entries)
        return file.tell() > begin

    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        while send_rest():
            pass
        path.unlink(missing_ok=True)
        # A worker that looked at the file just before may have written to it just after.
        while send_rest():
            pass
    totals.set_aside += refused.count
    if refused.count:
        print(f"<4>{path.name}: {refused.count} lines are no events and lie in {config.set_aside}", file=sys.stderr)


def keep(directory: Path, name: str, entries: list[bytes]) -> None:
    """Write what was refused, the same file again after a kill; the oldest files make room."""
    replace(directory / name, b"".join(entries))
    used = 0
    for file in sorted(directory.iterdir(), reverse=True):
        used += file.stat().st_size
        if used > SET_ASIDE_OCTETS and file.name != name:
            file.unlink()


def replace(path: Path, content: bytes) -> None:
    """Write a file that is whole whenever it is read."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o644)
    temporary.rename(path)


class Database:
    """The analytics host's database. Neither the connection nor a statement waits for ever."""

    def __init__(self, config: Config) -> None:
        """Raises AwayError, and OSError where the password cannot be read."""
        import psycopg  # the handling of files is tested where there is no driver

        self._errors, self._gateway = psycopg.Error, config.gateway
        try:
            self._connection = psycopg.connect(
                host=config.host,
                port=config.port,
                dbname=config.database,
                user=config.user,
                password=Path(config.password_file).read_text(encoding="utf-8").rstrip("\n"),
                sslmode="verify-full",
                sslrootcert=config.ca_file,
                connect_timeout=10,
                keepalives_idle=20,
                keepalives_interval=10,
                keepalives_count=3,
                tcp_user_timeout=60_000,
                options="-c statement_timeout=120000",
                application_name="dmarc-events",
                autocommit=True,
            )
        except psycopg.Error as error:
            raise AwayError(self._reason(error)) from error

    @staticmethod
    def _reason(error: Exception) -> str:
        return " ".join(str(error).split()) or type(error).__name__

    def _call(self, statement: str, argument: object) -> int:
        try:
            row = self._connection.execute(statement, (self._gateway, argument)).fetchone()
        except self._errors as error:
            if (error.sqlstate or "")[:2] in POISON:
                raise PoisonError(error.diag.message_primary) from error
            raise AwayError(self._reason(error)) from error
        return row[0] if row and row[0] else 0

    def take(self, lines: list[str]) -> int:
        return self._call("SELECT dmarc_reports.take_events(%s, %s)", lines)

    def complete(self, until: datetime) -> None:
        self._call("SELECT dmarc_reports.events_complete(%s, %s)", until)

    def close(self) -> None:
        self._connection.close()


METRICS = {
    "dmarc_events_backlog_files": ("gauge", "Complete files of DMARC events that are not yet handed over."),
    "dmarc_events_backlog_bytes": ("gauge", "Size of all files of DMARC events on this gateway."),
    "dmarc_events_backlog_oldest_seconds": ("gauge", "Age of the oldest hour that is not yet handed over."),
    "dmarc_events_sent_total": ("counter", "Events handed over, counted again where a run was interrupted."),
    "dmarc_events_new_total": ("counter", "Events that the database did not know."),
    "dmarc_events_set_aside_total": ("counter", "Lines that were no events."),
    "dmarc_events_last_run_timestamp_seconds": ("gauge", "When the program last ran."),
    "dmarc_events_last_success_timestamp_seconds": ("gauge", "When all was last handed over."),
}


def known_metrics(path: Path) -> dict[str, float]:
    """The values of the last run; what cannot be read counts from zero."""
    values = dict.fromkeys(METRICS, 0.0)
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name in values:
                values[name] = float(value)
    except (OSError, ValueError):
        pass
    return values


def exposition(values: dict[str, float]) -> bytes:
    """The metrics in Prometheus' text format."""
    lines = []
    for name, (kind, text) in METRICS.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {values[name]!r}"]
    return ("\n".join(lines) + "\n").encode("ascii")


def run(
    config: Config,
    connect: Callable[[Config], AbstractContextManager[Receiver]] = lambda config: closing(Database(config)),
    clock: Callable[[], float] = time.time,
) -> int:
    """Hand over what is complete; returns the exit status."""
    directory, totals, trouble, left = Path(config.directory), Totals(), "", Backlog()
    now = clock()
    try:
        with connect(config) as receiver:
            for path in look(directory, now).complete:
                try:
                    hand_over(path, config, receiver, totals)
                except OSError as error:  # a full disk, for one; the others make room
                    trouble = str(error)
            until = complete_until(now, look(directory, now).oldest)
            receiver.complete(until)
    except (AwayError, PoisonError, OSError) as error:
        trouble = str(error)
    now = clock()
    try:
        left = look(directory, now)
    except OSError as error:
        trouble = trouble or str(error)
    values = known_metrics(Path(config.metrics_file))
    values["dmarc_events_backlog_files"] = len(left.complete)
    values["dmarc_events_backlog_bytes"] = left.octets
    values["dmarc_events_backlog_oldest_seconds"] = max(0.0, now - left.oldest) if left.oldest else 0.0
    values["dmarc_events_sent_total"] += totals.sent
    values["dmarc_events_new_total"] += totals.new
    values["dmarc_events_set_aside_total"] += totals.set_aside
    values["dmarc_events_last_run_timestamp_seconds"] = now
    if not trouble:
        values["dmarc_events_last_success_timestamp_seconds"] = now
    try:
        replace(Path(config.metrics_file), exposition(values))
    except OSError as error:
        trouble = trouble or str(error)
    if totals.sent:
        print(f"{totals.sent} events handed over, {totals.new} of them new")
    hours = values["dmarc_events_backlog_oldest_seconds"] / 3600
    urgent = hours > config.warn_hours or left.octets > config.warn_share * config.max_octets
    if urgent:
        print(
            f"<3>{len(left.complete)} files of DMARC events wait, the oldest for {hours:.0f} hours; {left.octets} of "
            f"{config.max_octets} octets are used: beyond that events are dropped",
            file=sys.stderr,
        )
    if not trouble:
        return 0
    print(f"<4>not handed over: {trouble}", file=sys.stderr)
    return 1 if urgent else EX_TEMPFAIL


def main(arguments: list[str]) -> int:
    """Run once."""
    if len(arguments) != 1:
        print("usage: dmarc_events.py CONFIG", file=sys.stderr)
        return 2
    try:
        config = Config.read(Path(arguments[0]))
    except (OSError, ValueError, TypeError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return EX_CONFIG
    return run(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
