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
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

import psycopg

EX_TEMPFAIL, EX_CONFIG = 75, 78
FILE_NAME = re.compile(r"(\d{8}T\d{2})\.[^/]+\.jsonl")
GRACE_SECONDS = 60
"""A worker may be about to write its last event of an hour."""
SLACK_SECONDS = 600
"""An event is written after its message's end, which may be later than the time it bears."""
BATCH_LINES = 2000
BATCH_OCTETS = 4_000_000
MAX_LINE = 1_000_000
SET_ASIDE_OCTETS = 16_000_000


@dataclass(frozen=True)
class Config:
    """The configuration file, TOML."""

    host: str
    port: int
    database: str
    user: str
    password: str
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
    """What is there, the oldest first."""
    backlog = Backlog()
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            begin = hour_of(entry.name)
            if begin is None or not entry.is_file(follow_symlinks=False):
                continue
            try:
                backlog.octets += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
            if begin + 3600 + GRACE_SECONDS <= now:
                found.append((begin, entry.name))
    found.sort()
    backlog.complete = [directory / name for _, name in found]
    backlog.oldest = found[0][0] + 3600 if found else 0.0
    return backlog


def complete_until(now: float) -> datetime:
    """Up to when nothing can be missing once every complete file is handed over."""
    return datetime.fromtimestamp((now - GRACE_SECONDS) // 3600 * 3600 - SLACK_SECONDS, UTC)


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


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file without their end; of one that is too long only as much as shows that."""
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 2):
            if line.endswith(b"\n"):
                yield line[:-1]
                continue
            yield line
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)


def batches(path: Path, refuse: Callable[[bytes, str], None]) -> Iterator[list[str]]:
    """The events of a file, so many at a time that memory stays small; other lines are refused with a reason."""
    batch: list[str] = []
    octets = 0
    for line in lines_of(path):
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


def hand_over(path: Path, config: Config, connection: psycopg.Connection, totals: Totals) -> None:
    """Send one file and delete it. Raises psycopg.Error, and the file stays."""
    refused: list[bytes] = []
    room = SET_ASIDE_OCTETS

    def refuse(line: bytes, reason: str) -> None:
        nonlocal room
        totals.set_aside += 1
        entry = json.dumps({"reason": reason, "line": line.decode("utf-8", "backslashreplace")}).encode() + b"\n"
        if len(entry) <= room:
            refused.append(entry)
            room -= len(entry)

    for batch in batches(path, refuse):
        with connection.transaction():
            row = connection.execute("SELECT dmarc_reports.take_events(%s, %s)", (config.gateway, batch)).fetchone()
        assert row is not None
        totals.sent += len(batch)
        totals.new += row[0]
    if refused:
        keep(Path(config.set_aside), path.name, refused)
        print(f"{path.name}: {len(refused)} lines are no events and lie in {config.set_aside}", file=sys.stderr)
    path.unlink()


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


def connect(config: Config) -> psycopg.Connection:
    """Raises psycopg.Error. Neither the connection nor a statement waits for ever."""
    return psycopg.connect(
        host=config.host,
        port=config.port,
        dbname=config.database,
        user=config.user,
        password=config.password,
        sslmode="verify-full",
        sslrootcert=config.ca_file,
        connect_timeout=10,
        keepalives_idle=20,
        tcp_user_timeout=60_000,
        options="-c statement_timeout=120000",
        application_name="dmarc-events",
        autocommit=True,
    )


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


def run(config: Config, now: float) -> int:
    """Hand over what is complete; returns the exit status."""
    directory, totals, trouble = Path(config.directory), Totals(), ""
    try:
        with connect(config) as connection:
            for path in look(directory, now).complete:
                try:
                    hand_over(path, config, connection, totals)
                except OSError as error:  # a full disk, for one; the others make room
                    trouble = str(error)
            if not trouble:
                until = complete_until(now)
                connection.execute("SELECT dmarc_reports.events_complete(%s, %s)", (config.gateway, until))
    except psycopg.Error as error:
        trouble = " ".join(str(error).split()) or type(error).__name__
    left = look(directory, now)
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
    if not trouble:
        return 0
    print(f"not handed over: {trouble}", file=sys.stderr)
    late = values["dmarc_events_backlog_oldest_seconds"] > config.warn_hours * 3600
    full = left.octets > config.warn_share * config.max_octets
    if late or full:
        hours = values["dmarc_events_backlog_oldest_seconds"] / 3600
        print(
            f"<3>{len(left.complete)} files of DMARC events wait for {hours:.0f} hours, {left.octets} octets of "
            f"{config.max_octets}: beyond that events are dropped",
            file=sys.stderr,
        )
        return 1
    return EX_TEMPFAIL


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
    return run(config, time.time())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
