"""What to think of the answer to a dashboard's query. Nothing here talks to a database."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from grafana_dashboards.queries import Value


@dataclass
class Result:
    """One query: where it stands, what is wrong with it (empty: nothing), rows, and its times in milliseconds."""

    place: str
    problem: str
    rows: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def p95(self) -> float:
        """The time that 95 of 100 runs do not exceed."""
        ordered = sorted(self.times)
        return ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)] if ordered else math.nan


def something(value: Any) -> bool:
    """Whether a cell shows anything."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def judge(kind: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], may_be_empty: bool) -> str:
    """What is wrong with an answer; an empty text when nothing is."""
    cells = {name: [row[place] for row in rows] for place, name in enumerate(columns)}
    figures = {name: column for name, column in cells.items() if name != "time"}
    if kind in ("time_series", "annotation") and "time" not in cells:
        return f"has no column time: {', '.join(columns)}"
    if kind == "annotation" and "text" not in cells:
        return f"has no column text: {', '.join(columns)}"
    if not any(something(value) for column in figures.values() for value in column):
        return "" if may_be_empty else "shows nothing"
    if kind == "time_series":
        numbers = [
            name for name, column in figures.items() if any(isinstance(v, int | float | Decimal) for v in column)
        ]
        if not numbers:
            return "is a time series without a number"
    if kind in ("time_series", "annotation"):
        times = cells["time"]
        if not all(isinstance(when, int | float | Decimal | date | datetime) for when in times):
            return "has a time that is none"
        if times != sorted(times):
            return "is not in the order of time"
    return ""


def settings(opening: Mapping[str, Value], possible: Mapping[str, list[str]]) -> Iterator[dict[str, Value]]:
    """The opening view first, then each other single value of each variable."""
    yield dict(opening)
    for name, values in possible.items():
        for value in values:
            if opening[name] not in (value, [value]):
                yield {**opening, name: value if isinstance(opening[name], str) else [value]}
