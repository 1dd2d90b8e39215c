"""Who has had a post already: one line for each recipient that the mail system accepted, beside the queue file.

Mailman's out runner forgets whom it has served when it is killed, and then serves everybody again. The record
``<queue file>.sent`` is written after each acceptance and read when the same queue file comes up again, so that only
those are sent twice whose acceptance was under way at that moment. It goes when its queue file goes.

A line is an address and LF. The write needs no flush to outlive the process; a power failure may lose the last second,
and those members then get the post twice.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

SUFFIX = ".sent"
_FLUSH_EVERY = 1.0


class Progress:
    """The record of one queue file. Safe to write from several threads."""

    def __init__(self, path: Path | None) -> None:
        """Read the record at ``path``; None: nothing is recorded (a delivery that does not come from a queue file)."""
        self.accepted: set[str] = set()
        #: Neither accepted nor refused when the last attempt ended: the mail system was away, or the runner stops.
        self.untried: set[str] = set()
        self._path = path
        self._torn = False
        self._file = -1
        self._flushed = 0.0
        self._lock = threading.Lock()
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
                self.accepted.update(lines)
                # Cut off in the middle of a line: it names nobody.
                self._torn = last != ""

    def add(self, recipients: Iterable[str]) -> None:
        """Record recipients as served. Raises OSError when that cannot be written."""
        recipients = list(recipients)
        with self._lock:
            self.accepted.update(recipients)
            if self._path is None:
                return
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o660)
            lines = "".join(f"{recipient}\n" for recipient in recipients).encode()
            os.write(self._file, b"\n" + lines if self._torn else lines)
            self._torn = False
            if (now := time.monotonic()) - self._flushed > _FLUSH_EVERY:
                os.fdatasync(self._file)
                self._flushed = now

    def close(self) -> None:
        """Close the file; the record stays."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def record_of(queue_directory: str | Path, filebase: str) -> Path:
    """Where the record of a queue file lies."""
    return Path(queue_directory, filebase + SUFFIX)


def sweep(queue_directory: str | Path, older_than: float = 86400) -> None:
    """Remove records whose queue file is gone, left by a crash between the two; ``older_than`` in seconds."""
    for path in Path(queue_directory).glob(f"*{SUFFIX}"):
        queue_file = path.with_suffix("")
        # A file base is "time+digest" and has a dot of its own in the time.
        if any(queue_file.with_name(queue_file.name + end).exists() for end in (".pck", ".bak")):
            continue
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
