"""What is remembered of each sender: recipients of the last day, signs of a break-out, and who is blocked.

One SQLite file is the only truth, so a restart or a kill loses no count, and the operator's command works on the same
rows as the daemon. Recipients are kept in minutes, and a window counts its oldest minute in full: in no 3,600 seconds
is more let through than the limit. Recipients of messages that are still coming in are held in memory only; a message
that never ends costs nothing.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

HOUR, DAY = 3600, 86400
SIGNS = ("limit", "unknown", "networks")
"""Signs of a break-out: messages refused over the limit, recipients that do not exist, networks of clients."""

_TABLES = """
CREATE TABLE IF NOT EXISTS sent (
    login TEXT NOT NULL, minute INTEGER NOT NULL, recipients INTEGER NOT NULL, PRIMARY KEY (login, minute)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signs (
    login TEXT NOT NULL, sign TEXT NOT NULL, what TEXT NOT NULL, time REAL NOT NULL, PRIMARY KEY (login, sign, what)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocked (
    login TEXT PRIMARY KEY, time REAL NOT NULL, sign TEXT NOT NULL, detail TEXT NOT NULL, told INTEGER NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Limits:
    """Recipients in an hour and in a day; 0 is no limit."""

    hour: int
    day: int


@dataclass(frozen=True)
class Blocked:
    """A login that may not send until it is released. `time` is seconds since 1970."""

    login: str
    time: float
    sign: str
    detail: str


@dataclass(frozen=True)
class Usage:
    """Recipients that were accepted in the last hour and in the last day."""

    hour: int
    day: int


class State:
    """The counts. Safe to use from many threads; other processes may use the same file."""

    def __init__(self, path: str, thresholds: dict[str, int], clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the file. Raises sqlite3.Error.

        :param thresholds: sign → how many different ones within an hour are a break-out; 0: never.
        """
        self._thresholds = thresholds
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._pruned = 0.0
        self._db = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
        # a killed process loses nothing that was committed; a power cut may lose the last second
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _usage(self, login: str, now: float) -> Usage:
        row = self._db.execute(
            "SELECT coalesce(sum(CASE WHEN minute >= ? THEN recipients END), 0), coalesce(sum(recipients), 0)"
            " FROM sent WHERE login = ? AND minute >= ?",
            (int(now - HOUR) // 60, login, int(now - DAY) // 60),
        ).fetchone()
        return Usage(*row)

    def usage(self, login: str) -> Usage:
        """What was accepted."""
        with self._lock:
            return self._usage(login, self._clock())

    def _is_blocked(self, login: str) -> bool:
        return self._db.execute("SELECT 1 FROM blocked WHERE login = ?", (login,)).fetchone() is not None

    def is_blocked(self, login: str) -> bool:
        """Whether a login may not send."""
        with self._lock:
            return self._is_blocked(login)

    def hold(self, login: str, limits: Limits) -> str:
        """Set one recipient aside, to be charged or given back; "" or the window whose limit forbids it."""
        with self._lock:
            used, held = self._usage(login, self._clock()), self._held.get(login, 0)
            for window, count, limit in (("hour", used.hour, limits.hour), ("day", used.day, limits.day)):
                if limit and count + held + 1 > limit:
                    return window
            self._held[login] = held + 1
            return ""

    def give_back(self, login: str, recipients: int) -> None:
        """The message came to nothing."""
        with self._lock:
            self._let_go(login, recipients)

    def _let_go(self, login: str, recipients: int) -> None:
        left = self._held.get(login, 0) - recipients
        if left > 0:
            self._held[login] = left
        else:
            self._held.pop(login, None)

    def charge(self, login: str, recipients: int) -> bool:
        """The message is accepted: its recipients count from now on. False: the login was blocked meanwhile."""
        with self._transaction():
            if self._is_blocked(login):
                self._let_go(login, recipients)
                return False
            now = self._clock()
            self._db.execute(
                "INSERT INTO sent VALUES (?, ?, ?)"
                " ON CONFLICT (login, minute) DO UPDATE SET recipients = recipients + excluded.recipients",
                (login, int(now) // 60, recipients),
            )
            if now - self._pruned > HOUR:
                self._pruned = now
                self._db.execute("DELETE FROM sent WHERE minute < ?", (int(now - DAY) // 60,))
                self._db.execute("DELETE FROM signs WHERE time <= ?", (now - HOUR,))
            self._let_go(login, recipients)
        return True

    def note(self, login: str, sign: str, what: str) -> Blocked | None:
        """Note a sign of a break-out; the login's block when this was one too many.

        :param what: tells signs of a kind apart: a recipient, a network, a message. Kept as a digest where it is a
            person's address.
        """
        threshold = self._thresholds.get(sign, 0)
        if not threshold:
            return None
        if sign == "unknown":
            what = hashlib.blake2b(what.lower().encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
        with self._transaction():
            if self._is_blocked(login):
                return None
            now = self._clock()
            self._db.execute(
                "INSERT INTO signs VALUES (?, ?, ?, ?)"
                " ON CONFLICT (login, sign, what) DO UPDATE SET time = excluded.time",
                (login, sign, what, now),
            )
            rows = self._db.execute(
                "SELECT what FROM signs WHERE login = ? AND sign = ? AND time > ? ORDER BY time DESC LIMIT 1000",
                (login, sign, now - HOUR),
            ).fetchall()
            if len(rows) < threshold:
                return None
            used = self._usage(login, now)
            detail = {
                "limit": f"{len(rows)} messages refused over the limit within an hour",
                "unknown": f"{len(rows)} recipients that do not exist within an hour",
                "networks": f"sent from {len(rows)} networks within an hour: {', '.join(row[0] for row in rows[:20])}",
            }[sign]
            detail += f"; {used.hour} recipients accepted in the last hour, {used.day} in the last day"
            return self._block(login, sign, detail, now)

    def _block(self, login: str, sign: str, detail: str, now: float) -> Blocked:
        self._db.execute("INSERT OR IGNORE INTO blocked VALUES (?, ?, ?, ?, 0)", (login, now, sign, detail))
        return Blocked(login, now, sign, detail)

    def block(self, login: str, detail: str) -> None:
        """Block by the operator's hand, who need not be told."""
        with self._transaction():
            self._block(login, "operator", detail, self._clock())
            self._db.execute("UPDATE blocked SET told = 1 WHERE login = ? AND sign = 'operator'", (login,))

    def release(self, login: str) -> bool:
        """Let a login send again, with a clean record; False when it was not blocked."""
        with self._transaction():
            found = self._is_blocked(login)
            for table in ("blocked", "signs", "sent"):
                self._db.execute(f"DELETE FROM {table} WHERE login = ?", (login,))
        return found

    def blocked(self, untold: bool = False) -> list[Blocked]:
        """Who is blocked, the oldest first; only those of whom the postmaster has not been told, if asked."""
        with self._lock:
            rows = self._db.execute(
                "SELECT login, time, sign, detail FROM blocked WHERE told <= ? ORDER BY time", (0 if untold else 1,)
            ).fetchall()
        return [Blocked(*row) for row in rows]

    def told(self, blocks: list[Blocked]) -> None:
        """The postmaster has been told of these."""
        with self._transaction():
            self._db.executemany(
                "UPDATE blocked SET told = 1 WHERE login = ? AND time = ?", [(item.login, item.time) for item in blocks]
            )

    def senders(self) -> list[tuple[str, Usage]]:
        """Everybody who sent something in the last day, the busiest first."""
        with self._lock:
            now = self._clock()
            logins = self._db.execute(
                "SELECT login FROM sent WHERE minute >= ? GROUP BY login ORDER BY sum(recipients) DESC, login",
                (int(now - DAY) // 60,),
            ).fetchall()
            return [(login, self._usage(login, now)) for (login,) in logins]
