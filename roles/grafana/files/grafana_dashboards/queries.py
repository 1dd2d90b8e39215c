"""The queries of a dashboard as Grafana would send them to PostgreSQL.

Two steps, in Grafana's order: the browser puts in the variables (``$name``, ``${name}``, ``${name:format}``), then the
data source expands its macros (``$__timeFilter(column)``, …). Both follow Grafana 13: a macro's arguments end at the
first closing parenthesis, dates are RFC 3339 in UTC, several values become a list by the format's rules. Pure text:
nothing here talks to a database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Value = str | Sequence[str]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "M": 2629746, "y": 31556952}
_INTERVAL = re.compile(r"(\d+)(ms|[smhdwMy])")
_MACRO = re.compile(r"\$([_a-zA-Z0-9]+)\(([^)]*)\)")
_VARIABLE = re.compile(r"\$(?!__)(\w+)|\$\{(?!__)(\w+)(?::(\w+))?\}")
_GLOBAL = re.compile(r"\$__(\w+)|\$\{__(\w+)(?::\w+)?\}")


class QueryError(Exception):
    """Grafana would refuse the query, or show nothing; the message says why."""


@dataclass(frozen=True)
class TimeRange:
    """What the time picker says."""

    start: datetime
    end: datetime

    @property
    def literals(self) -> tuple[str, str]:
        first, last = (when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for when in (self.start, self.end))
        return f"'{first}'", f"'{last}'"


@dataclass(frozen=True)
class Query:
    """A query of a dashboard: where it stands, its text with variables and macros, and its format."""

    place: str
    sql: str
    format: str = "table"


def seconds(interval: str) -> float:
    """Length of an interval such as ``'1d'``."""
    found = _INTERVAL.fullmatch(interval.strip().strip("'\""))
    if not found:
        raise QueryError(f"{interval} is no interval")
    return int(found[1]) * _UNITS[found[2]]


def panels(board: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All panels, those within rows too."""
    for panel in board.get("panels", []):
        yield panel
        yield from panels(panel)


def variable_query(variable: Mapping[str, Any]) -> str | None:
    """The SQL of a query variable, in any of the forms that Grafana knows."""
    if variable["type"] != "query":
        return None
    query = variable["query"]
    return query if isinstance(query, str) else query.get("rawSql") or query.get("query")


def queries(board: Mapping[str, Any]) -> Iterator[Query]:
    """Every query of panels and annotations (those of variables: ``variable_query``)."""
    for panel in panels(board):
        for target in panel.get("targets", []):
            place = f"{board['uid']}: {panel['title']}, {target['refId']}"
            yield Query(place, target["rawSql"], target["format"])
    for note in board.get("annotations", {}).get("list", []):
        if sql := note.get("target", {}).get("rawSql"):
            yield Query(f"{board['uid']}: annotation {note['name']}", sql, "annotation")


def quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def formatted(value: Value, style: str | None, multi: bool) -> str:
    """A variable's value as Grafana writes it into the query.

    Without a style, PostgreSQL's data source quotes values of variables that allow several, and only doubles quotation
    marks in others.
    """
    several = [value] if isinstance(value, str) else list(value)
    if style in ("sqlstring", "singlequote") or (style is None and multi):
        return ",".join(map(quoted, several))
    if style is None:
        return several[0].replace("'", "''")
    if style in ("raw", "csv"):
        return ",".join(several)
    raise QueryError(f"the format {style} is not used here")


def with_variables(sql: str, values: Mapping[str, Value], multi: frozenset[str] = frozenset()) -> str:
    """Put in the variables. ``multi``: names of those that allow several values."""

    def put(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in values:
            raise QueryError(f"there is no variable {name}")
        return formatted(values[name], found[3], name in multi)

    return _VARIABLE.sub(put, sql)


def with_macros(sql: str, times: TimeRange, step: float = 86400) -> str:
    """Expand the macros; ``step`` is ``$__interval`` in seconds."""
    start, end = times.literals
    sql = re.sub(r"\$(__interval_ms|\{__interval_ms\})", str(int(step * 1000)), sql)
    sql = re.sub(r"\$(__interval|\{__interval\})", f"{int(step)}s", sql)

    def expand(found: re.Match[str]) -> str:
        name, arguments = found[1], [argument.strip() for argument in found[2].split(",")]
        column = arguments[0]
        if name in ("__timeFrom", "__timeTo"):
            return start if name == "__timeFrom" else end
        if not column:
            raise QueryError(f"${name} needs a column")
        match name:
            case "__timeFilter":
                return f"{column} BETWEEN {start} AND {end}"
            case "__time":
                return f'{column} AS "time"'
            case "__timeEpoch":
                return f'extract(epoch from {column}) AS "time"'
            case "__timeGroup" | "__timeGroupAlias":
                if len(arguments) < 2:
                    raise QueryError(f"${name} needs a column and an interval")
                width = f"{seconds(arguments[1]):g}"
                # Grafana's own rule: a comma directly behind the macro makes it the column "time".
                alias = name.endswith("Alias") or sql[found.end() : found.end() + 1] == ","
                return f"floor(extract(epoch from {column})/{width})*{width}" + (' AS "time"' if alias else "")
            case "__unixEpochFilter":
                return f"{column} >= {int(times.start.timestamp())} AND {column} <= {int(times.end.timestamp())}"
            case _:
                raise QueryError(f"there is no macro ${name}")

    sql = _MACRO.sub(expand, sql)
    if left := _GLOBAL.search(sql):
        raise QueryError(f"{left[0]} is unknown, or is a macro without parentheses")
    return sql


def expanded(
    query: str, values: Mapping[str, Value], times: TimeRange, multi: frozenset[str] = frozenset(), step: float = 86400
) -> str:
    """The SQL that PostgreSQL gets."""
    return with_macros(with_variables(query, values, multi), times, step)


_RELATIVE = re.compile(r"now-(\d+)([smhdwMy])")


def default_range(board: Mapping[str, Any], now: datetime) -> TimeRange:
    """The time range with which a dashboard opens (``now-30d`` to ``now``)."""
    found = _RELATIVE.fullmatch(board["time"]["from"])
    if not found or board["time"]["to"] != "now":
        raise QueryError(f"{board['time']} is no time range that is known here")
    return TimeRange(datetime.fromtimestamp(now.timestamp() - int(found[1]) * _UNITS[found[2]], UTC), now)
