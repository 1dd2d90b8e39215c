"""Our own Postfix's log followed in the journal, and all that is done about the reports' fate in a round.

Postfix names a mail's return path and queue identifier (`postfix/qmgr`) before anybody tries to deliver it, and each
return path belongs to one delivery. So every line of a delivery agent finds its delivery, with long queue identifiers
or short ones that are used again, and after a content filter that queues a mail anew. How far the journal is read is
committed together with what it said.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from psycopg.rows import class_row

from . import backoff, bounces, store, survey
from .fates import QUEUED, Entry, Track, apply, entries, given_up
from .settings import Settings
from .store import Connection
from .survey import get_state, set_state

log = logging.getLogger("dmarc-reports")

PROGRAMS = ("bounce", "discard", "error", "lmtp", "local", "pipe", "postsuper", "qmgr", "smtp", "virtual")
"""Postfix's programs whose lines matter; `error` is behind the transports error and retry."""
LINES_AT_A_TIME = 2000
LINES_A_ROUND = 200_000
GIVEN_UP_AFTER = timedelta(days=10)
"""Postfix gives up after five days (maximal_queue_lifetime)."""


class JournalError(Exception):
    """The journal cannot be read."""


def read_journal(syslog_name: str, *position: str) -> Iterator[Entry]:
    """The lines from a position on (`--after-cursor=…`, `--since=…`). Raises JournalError."""
    command = [
        "journalctl", "--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,SYSLOG_IDENTIFIER", *position,
        *(f"--identifier={syslog_name}/{program}" for program in PROGRAMS),
    ]  # fmt: skip
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise JournalError(f"journalctl: {error}") from error
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield from entries(process.stdout, syslog_name)
            complaint = process.stderr.read().decode("utf-8", "replace").strip()
        except GeneratorExit:
            process.kill()
            raise
    if process.returncode:
        raise JournalError(f"journalctl: {complaint or process.returncode}")


# --- the store


_TRACK = "SELECT id, recipient, queue_id, envelope_from, fate, dsn, reply FROM dmarc_reports.delivery "


@dataclass
class Book:
    """The deliveries that lines are matched to."""

    conn: Connection
    prefix: str
    """How the return paths of reports begin."""
    by_queue_id: dict[str, Track] = field(default_factory=dict)
    by_envelope: dict[str, Track | None] = field(default_factory=dict)

    def load(self) -> None:
        """Know every delivery that Postfix has and that is not settled."""
        with self.conn.cursor(row_factory=class_row(Track)) as cursor:
            for track in cursor.execute(_TRACK + "WHERE state IN ('sending', 'handed') AND envelope_from IS NOT NULL"):
                self._note(track)

    def _note(self, track: Track) -> None:
        self.by_envelope[track.envelope_from.lower()] = track
        if track.queue_id:
            self.by_queue_id[track.queue_id] = track

    def queued(self, envelope_from: str, queue_id: str) -> None:
        """Postfix has a mail with this return path under this identifier; the row may be younger than our list."""
        key = envelope_from.lower()
        if not key.startswith(self.prefix):
            self.by_queue_id.pop(queue_id, None)
            return
        if key not in self.by_envelope:
            with self.conn.cursor(row_factory=class_row(Track)) as cursor:
                found = cursor.execute(
                    _TRACK + "WHERE envelope_from = %s AND state IN ('sending', 'handed')", [envelope_from]
                ).fetchone()
            self.by_envelope[key] = found
        track = self.by_envelope[key]
        if track is None or track.settled_at is not None:
            self.by_queue_id.pop(queue_id, None)
        elif track.queue_id != queue_id or self.by_queue_id.get(queue_id) is not track:
            if track.queue_id is not None and self.by_queue_id.get(track.queue_id) is track:
                del self.by_queue_id[track.queue_id]
            track.queue_id, track.changed = queue_id, True
            self.by_queue_id[queue_id] = track

    def read(self, entry: Entry) -> None:
        """Take a line into account."""
        queue_id = entry.text.partition(":")[0]
        if entry.program == "qmgr" and (queued := QUEUED.match(entry.text)) and not queued["gone"]:
            self.queued(queued[2], queue_id)
            return
        track = self.by_queue_id.get(queue_id)
        if track is None:
            return
        apply(track, entry)
        if track.settled_at is not None:
            del self.by_queue_id[queue_id]
        elif track.queue_id != queue_id and track.queue_id:
            del self.by_queue_id[queue_id]
            self.by_queue_id[track.queue_id] = track

    def flush(self, cursor: str | None) -> int:
        """Write what has changed together with the place in the journal; gives how many deliveries were settled."""
        changed = [track for track in self.by_envelope.values() if track is not None and track.changed]
        with self.conn.transaction():
            for track in changed:
                self.conn.execute(
                    "UPDATE dmarc_reports.delivery SET queue_id = %s, fate = %s, dsn = %s, reply = %s, "
                    "state = CASE WHEN %s::timestamptz IS NULL THEN state ELSE 'settled' END, settled_at = %s, "
                    "handed_at = CASE WHEN %s::timestamptz IS NULL THEN handed_at ELSE coalesce(handed_at, sending_at) "
                    "END WHERE id = %s AND state <> 'settled'",
                    [
                        track.queue_id, track.fate, track.dsn, track.reply,
                        track.settled_at, track.settled_at, track.settled_at, track.id,
                    ],
                )  # fmt: skip
            if cursor is not None:
                set_state(self.conn, "journal", cursor)
        for track in changed:
            track.changed = False
        return sum(track.settled_at is not None for track in changed)


def follow(conn: Connection, settings: Settings) -> int:
    """Read the journal from where it was left; gives how many deliveries were settled. Raises JournalError."""
    book = Book(conn, f"{settings.sender.bounce_mailbox}+".lower())
    book.load()
    cursor = get_state(conn, "journal")
    row = conn.execute(
        "SELECT min(coalesce(sending_at, handed_at)) FROM dmarc_reports.delivery WHERE state IN ('sending', 'handed')"
    ).fetchone()
    since = (row[0] if row and row[0] else datetime.now(UTC)) - timedelta(minutes=1)
    from_time = f"--since=@{int(since.timestamp())}"
    try:
        return _follow(book, settings, f"--after-cursor={cursor}" if cursor else from_time)
    except JournalError as error:
        if not cursor or "cursor" not in str(error):
            raise
        log.warning("%s: the journal is another one than before; it is read since the oldest open hand-over", error)
        conn.execute("DELETE FROM dmarc_reports.survey_state WHERE name = 'journal'")
        return _follow(book, settings, from_time)


def _follow(book: Book, settings: Settings, position: str) -> int:
    settled, number, cursor = 0, 0, None
    for number, entry in enumerate(read_journal(settings.syslog_name, position), 1):
        book.read(entry)
        cursor = entry.cursor
        if number % LINES_AT_A_TIME == 0:
            settled += book.flush(cursor)
        if number >= LINES_A_ROUND:
            break
    return settled + book.flush(cursor)


def sweep(conn: Connection) -> int:
    """Settle what Postfix must have given up long ago, though no line says so."""
    with conn.cursor(row_factory=class_row(Track)) as cursor:
        old = cursor.execute(_TRACK + "WHERE state = 'handed' AND handed_at < now() - %s", [GIVEN_UP_AFTER]).fetchall()
    for track in old:
        given_up(track, datetime.now(UTC), "the mail log says nothing about it")
    book = Book(conn, "", by_envelope={track.envelope_from: track for track in old})
    return book.flush(None)


def main(conn: Connection, settings: Settings) -> None:
    """Follow the journal, read what came back, pause who never takes a report, write the month's text if it is time."""
    with store.alone(conn, "settle") as got:
        if not got:
            log.warning("another process looks after the reports' fate")
            return
        changed = 0
        try:
            changed += follow(conn, settings)
        except JournalError as error:
            log.error("%s", error)
        changed += sweep(conn)
        changed += bounces.read(conn, settings)
        if changed:
            log.info("%d reports have got a fate", changed)
        backoff.run(conn, settings)
        survey.monthly(conn, settings)
