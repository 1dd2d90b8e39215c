"""One export from beginning to end: key, work directory, both tables, check, description.

Where the rows come from is the caller's business; no database is known here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Protocol

from dmarc_reports.events import EventError, parse_line

from . import export_files
from .export_files import Check, Stage
from .export_mask import KEY_BYTES, Groups, Mask
from .export_tables import Rules, event_row, report_row


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
    work = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise UseError(f"{target}: is there already and not an empty directory")
        work.mkdir(mode=0o700)
    except OSError as error:
        raise UseError(f"{error.filename}: {error.strerror}") from error
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


class Source(Protocol):
    """Where the rows come from: always the same ones while an export is made."""

    def own_domains(self) -> list[str]:
        """Domains that get a pseudonym of their own kind."""

    def senders(self) -> list[tuple[str, str]]:
        """What the postmaster decided: network, kind."""

    def event_lines(self, period: Period) -> Iterable[list[str]]:
        """The events' lines, some thousand at a time."""

    def report_rows(self, period: Period) -> Iterable[list[list[Any]]]:
        """The lines of ``dma.export_reports``, some thousand at a time."""


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


def export(source: Source, target: Path, period: Period, rules: Rules, key: bytes, *, kept: bool, licence: str,
           template: str, tables: Iterable[str] = ("events", "reports")) -> dict[str, int]:  # fmt: skip
    """Write the export to ``target``; returns the rows of each table. Raises UseError and LeakError."""
    mask = Mask(key, source.own_domains(), source.senders())
    counts: dict[str, int] = {}
    left_out = 0
    with whole_or_nothing(target) as work:
        for table in tables:
            groups = Groups(rules.k)
            with Stage(work, table) as stage:
                if table == "events":
                    left_out = events(source.event_lines(period), stage, mask, rules)
                else:
                    for batch in source.report_rows(period):
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
            check.text(work / name, export_files.vocabulary(template, about))
    return counts
