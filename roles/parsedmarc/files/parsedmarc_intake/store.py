"""The database. All of it may be away at any time; whoever asks then gets None and asks again later."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from parsedmarc_intake.places import Places

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)
#: Seconds between two tries to reach the database.
PAUSE = 5
COLUMNS = ("at", "kind", "reason", "message_id", "from_domain", "subject", "size", "mail")


class StoreError(Exception):
    """The database answers, and says no."""


class Store:
    """One connection that comes back by itself."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection: psycopg.Connection | None = None
        self._again = 0.0
        self._said = False

    def connection(self) -> psycopg.Connection | None:
        """A connection, or None while the database is away."""
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if time.monotonic() < self._again:
            return None
        try:
            # Here, so that mail is screened even where the driver is missing or broken.
            import psycopg

            self._connection = psycopg.connect(self.dsn, autocommit=True, options="-c statement_timeout=60s")
        except Exception as error:
            self._again = time.monotonic() + PAUSE
            if not self._said:
                log.warning("The database is away; reasons are kept in files meanwhile: %s", str(error).strip())
            self._said = True
            return None
        if self._said:
            log.warning("The database is back.")
        self._said = False
        return self._connection

    def run(self, query: str, values: tuple[Any, ...] | dict[str, Any] = ()) -> list[tuple[Any, ...]] | None:
        """Rows of a query (none for a statement); None while the database is away.

        Raises StoreError for what is not a matter of the connection.
        """
        connection = self.connection()
        if connection is None:
            return None
        import psycopg

        try:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            log.warning("The database went away: %s", str(error).strip())
            connection.close()
            self._connection = None
            return None
        except psycopg.Error as error:
            raise StoreError(str(error).strip()) from error

    def up(self) -> bool:
        """Whether it answers and takes what is written."""
        rows = self.run("select not pg_is_in_recovery()")
        return bool(rows and rows[0][0])

    def record(self, places: Places) -> int:
        """Write down what was set aside since; returns how many notes went in. What cannot go in waits."""
        done = 0
        for file in sorted(places.unrecorded.glob("*.json")):
            try:
                note = json.loads(file.read_text())
                values = tuple(note[name] for name in COLUMNS)
            except (OSError, ValueError, KeyError) as error:
                log.warning("The note %s cannot be read and is dropped: %s", file.name, error)
                file.unlink(missing_ok=True)
                continue
            try:
                rows = self.run(
                    f"insert into intake.set_aside ({', '.join(COLUMNS)}) values (%s, %s, %s, %s, %s, %s, %s, %s) "
                    "on conflict (mail, at) do nothing",
                    values,
                )
            except StoreError as error:
                log.error("The note %s cannot be stored: %s", file.name, error)
                continue
            if rows is None:
                break
            file.unlink(missing_ok=True)
            done += 1
        return done

    def released(self, mail: str) -> bool:
        """Note that an operator let a mail in; whether that is noted."""
        rows = self.run(
            "update intake.set_aside set released_at = now() where mail = %s and released_at is null", (mail,)
        )
        return rows is not None

    def has_report(self, key: tuple[str, str, int, int]) -> bool | None:
        """Whether an aggregate report is stored; None while the database is away."""
        rows = self.run(
            "select exists (select from public.dmarc_aggregate_report where report_id = %s and domain = %s "
            "and begin_date = to_timestamp(%s) and end_date = to_timestamp(%s))",
            key,
        )
        return None if rows is None else bool(rows[0][0])

    def has_tls_report(self, report_id: str) -> bool | None:
        """Whether a TLS report of that id is stored; None while the database is away."""
        rows = self.run("select exists (select from public.smtp_tls_report where report_id = %s)", (report_id,))
        return None if rows is None else bool(rows[0][0])

    def count(self, folders: Iterable[tuple[str, int, int, float | None]]) -> None:
        """Write down how many mails lie where: name, number, bytes, time of the oldest."""
        for name, number, size, oldest in folders:
            self.run(
                "insert into intake.folder (folder, messages, bytes, oldest, counted_at) "
                "values (%s, %s, %s, to_timestamp(%s), now()) on conflict (folder) do update set "
                "messages = excluded.messages, bytes = excluded.bytes, oldest = excluded.oldest, counted_at = now()",
                (name, number, size, oldest),
            )
