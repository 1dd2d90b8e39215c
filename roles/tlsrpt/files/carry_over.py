"""Close a day that ended while the collector was down, as it does itself at midnight: ``carry_over.py DATABASE``.

The collector (tlsrpt-reporter 0.6.0) moves its database to ``DATABASE.yesterday`` when it sees the UTC date change. One
that was down then would go on in the old file, and that day's figures would be in no report. Run before it starts.
"""

from __future__ import annotations

import datetime
import sqlite3
import sys
from pathlib import Path


def main(database: Path, today: datetime.date) -> None:
    """Move the database away when its newest day is over; nothing else is touched."""
    if not database.exists():
        return
    with sqlite3.connect(database) as connection:
        try:
            newest = connection.execute("SELECT max(day) FROM finalresults").fetchone()[0]
        except sqlite3.DatabaseError as error:
            print(f"{database}: {error}; the collector will say more", file=sys.stderr)
            return
        yesterday = (today - datetime.timedelta(days=1)).isoformat()
        if not newest or newest >= today.isoformat():
            return
        connection.execute("DELETE FROM daystatus")
        connection.execute("INSERT INTO daystatus (daycomplete) VALUES (?)", (yesterday,))
        tables = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
        version = connection.execute("SELECT version, installdate, purpose FROM dbversion").fetchone()
    connection.close()
    # A collector that finds no database makes two, the second in the place of the day that is to be kept.
    new = database.with_name(database.name + ".new")
    new.unlink(missing_ok=True)
    with sqlite3.connect(new) as fresh:
        for table in tables:
            fresh.execute(table)
        fresh.execute("INSERT INTO dbversion (version, installdate, purpose) VALUES (?, ?, ?)", version)
    fresh.close()
    database.replace(f"{database}.yesterday")
    new.replace(database)
    print(f"{newest} ended while the collector was down: its figures are kept for the report")


if __name__ == "__main__":
    main(Path(sys.argv[1]), datetime.datetime.now(datetime.UTC).date())
