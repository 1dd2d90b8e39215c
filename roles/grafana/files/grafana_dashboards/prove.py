"""Run every query of the dashboards on a real database, as Grafana's role would.

``python3 -m grafana_dashboards.prove [--dsn DSN] [--days N] [--rounds N] [--may-be-empty] DASHBOARD.json …``

The session is read-only with Grafana's time limit. A query fails on any error of the database, where it shows nothing
(no row, or nothing but NULL; unless ``--may-be-empty``), as a time series without the columns ``time`` and a number,
as an annotation without ``time`` and ``text``, and where it fills its LIMIT of variables. Every value of ``days`` and
every single domain are tried besides "All". With ``--rounds`` each query of the default view is repeated and timed.
The last line is ``N passed, N failed``; exit status 1 when one failed. ``--json`` prints all results for programs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from grafana_dashboards import queries as q
from grafana_dashboards.verdict import Result, judge, settings

TIMEOUT = "30s"


def choices(board: Mapping[str, Any], database: psycopg.Connection) -> tuple[dict[str, q.Value], dict[str, list[str]]]:
    """The values with which the dashboard opens, and all that each variable can have."""
    opening: dict[str, q.Value] = {}
    possible: dict[str, list[str]] = {}
    for variable in board.get("templating", {}).get("list", []):
        name = variable["name"]
        if sql := q.variable_query(variable):
            found = [str(row[0]) for row in database.execute(sql).fetchall()]
            if not found:
                raise q.QueryError(f"the variable {name} has no values")
        else:
            found = str(variable["query"]).split(",")
        possible[name] = found
        current = variable.get("current", {}).get("value")
        if variable.get("multi"):
            opening[name] = found
        else:
            opening[name] = current if isinstance(current, str) and current in found else found[0]
    return opening, possible


def run(database: psycopg.Connection, sql: str) -> tuple[list[str], list[Any], float]:
    """Columns, rows, and milliseconds until the last row is here."""
    begun = time.perf_counter()
    cursor = database.execute(sql)
    rows = cursor.fetchall()
    return [column.name for column in cursor.description or ()], rows, (time.perf_counter() - begun) * 1000


def prove(
    board: Mapping[str, Any],
    database: psycopg.Connection,
    *,
    now: datetime,
    days: int | None = None,
    rounds: int = 1,
    may_be_empty: bool = False,
    every_value: bool = True,
) -> Iterator[Result]:
    """Run a dashboard; ``days`` replaces its own time range."""
    multi = frozenset(v["name"] for v in board.get("templating", {}).get("list", []) if v.get("multi"))
    times = q.TimeRange(now - timedelta(days=days), now) if days else q.default_range(board, now)
    try:
        opening, possible = choices(board, database)
    except (psycopg.Error, q.QueryError) as error:
        yield Result(f"{board['uid']}: variables", str(error).splitlines()[0])
        return
    found = list(q.queries(board))
    for turn, values in enumerate(settings(opening, possible) if every_value else [opening]):
        for query in found:
            if turn and not any(f"${{{name}" in query.sql for name in values if values[name] != opening[name]):
                continue
            result = Result(query.place, "")
            if turn:
                result.place += ", " + ", ".join(
                    f"{name}={value}" for name, value in values.items() if value != opening[name]
                )
            try:
                sql = q.expanded(query.sql, values, times, multi)
                for _ in range(rounds if not turn else 1):
                    columns, rows, took = run(database, sql)
                    result.times.append(took)
                result.rows = len(rows)
                # A single domain or a short time may well have nothing of a kind.
                result.problem = judge(query.format, columns, rows, may_be_empty or bool(turn))
            except (psycopg.Error, q.QueryError) as error:
                result.problem = str(error).splitlines()[0]
            yield result


def connect(dsn: str) -> psycopg.Connection:
    """A session as Grafana's: read-only, limited in time, each query its own transaction, UTC."""
    database = psycopg.connect(dsn, autocommit=True)
    database.execute("SET default_transaction_read_only = on")
    database.execute(f"SET statement_timeout = '{TIMEOUT}'")
    database.execute("SET TimeZone = 'UTC'")
    return database


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="grafana_dashboards.prove", description="Runs every query of the dashboards.")
    parser.add_argument("files", nargs="+", type=Path, metavar="DASHBOARD.json")
    parser.add_argument("--dsn", default="", help="where and as whom; a password comes by PGPASSFILE or PGPASSWORD")
    parser.add_argument("--days", type=int, help="look at so many days, whatever the dashboard says")
    parser.add_argument("--rounds", type=int, default=1, help="repeat each query and tell its 95th percentile")
    parser.add_argument("--limit", type=float, help="milliseconds that the 95th percentile may not exceed")
    parser.add_argument("--may-be-empty", action="store_true", help="a query that shows nothing is no failure")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    results: list[Result] = []
    with connect(options.dsn) as database:
        for path in options.files:
            board = json.loads(path.read_text(encoding="utf-8"))
            results += prove(
                board,
                database,
                now=datetime.now(UTC),
                days=options.days,
                rounds=options.rounds,
                may_be_empty=options.may_be_empty,
                every_value=options.rounds == 1,
            )
    for result in results:
        if not result.problem and options.limit and result.p95 > options.limit:
            result.problem = f"takes {result.p95:.0f} ms; {options.limit:.0f} are allowed"
    failed = sum(bool(result.problem) for result in results)
    if options.json:
        print(json.dumps([asdict(result) | {"p95": result.p95} for result in results]))
    else:
        for result in results:
            verdict = "FAILED" if result.problem else "ok"
            print(f"{verdict:6} {result.place:75} {result.rows:6} rows {result.p95:8.1f} ms  {result.problem}")
        print(f"{len(results) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
