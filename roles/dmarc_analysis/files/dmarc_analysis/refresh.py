"""Bring the summaries up to date: ``dma.refresh()`` in bounded steps, and what is known of new addresses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg

MAX_STEPS = 200  # of 60 days each; more is no backlog but a fault
MAX_ADDRESSES = 50_000  # in one run
SECONDS = 300  # for the look-up of them


def days(connection: psycopg.Connection) -> int:
    """Make the days that are stale, each step in a transaction of its own; returns how many were made."""
    made = 0
    for _ in range(MAX_STEPS):
        row = connection.execute("SELECT days_made, days_left FROM dma.refresh()").fetchone()
        done, left = row if row else (0, 0)
        made += done
        if not left:
            break
    return made


def addresses(connection: psycopg.Connection, python: Path) -> str:
    """Look new addresses up, and all of them again when the database is newer; returns a line for the log."""
    if not python.is_file():
        return f"{python} is not there: nothing is known about networks and their names"
    program = [str(python), "-I", "-B", str(Path(__file__).with_name("addresses.py"))]
    try:
        built = float(_run([*program, "--built"], ""))
        wanted = [
            address
            for (address,) in connection.execute(
                "SELECT host(a.ip) FROM dma.address a LEFT JOIN dma.ip_info i ON i.ip = a.ip"
                " WHERE i.looked_up IS NULL OR i.looked_up < to_timestamp(%s) LIMIT %s",
                [built, MAX_ADDRESSES],
            )
        ]
        if not wanted:
            return "no new addresses"
        found = list(_answers(_run(program, "\n".join(wanted))))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"the database of addresses could not be asked: {error}"
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO dma.ip_info (ip, asn, as_name, as_domain) VALUES (%s, %s, %s, %s) ON CONFLICT (ip) DO UPDATE"
            " SET asn = excluded.asn, as_name = excluded.as_name, as_domain = excluded.as_domain, looked_up = now()",
            found,
        )
    return f"{len(found)} addresses looked up"


def _run(command: list[str], given: str) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip() or f"exit status {done.returncode}")[-300:])
    return done.stdout


def _answers(text: str) -> Iterator[tuple[str, int | None, str | None, str | None]]:
    for line in text.splitlines():
        address, asn, name, domain = json.loads(line)
        yield address, asn, name, domain
