"""Queries as Grafana sends them, and the judgement on what comes back."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grafana_dashboards import queries as q
from grafana_dashboards import verdict

TIMES = q.TimeRange(datetime(2026, 10, 26, 1, 2, 3, tzinfo=UTC), datetime(2026, 11, 25, tzinfo=UTC))
START, END = "'2026-10-26T01:02:03Z'", "'2026-11-25T00:00:00Z'"


@pytest.mark.parametrize(
    ("macro", "sql"),
    [
        ("$__timeFilter(day)", f"day BETWEEN {START} AND {END}"),
        ("$__timeFrom()::date", f"{START}::date"),
        ("$__timeTo()", END),
        ("$__time(at)", 'at AS "time"'),
        ("$__timeEpoch(at)", 'extract(epoch from at) AS "time"'),
        ("$__timeGroupAlias(day,'1d')", 'floor(extract(epoch from day)/86400)*86400 AS "time"'),
        ("$__timeGroup(day, '1h') AS t", "floor(extract(epoch from day)/3600)*3600 AS t"),
        ("$__timeGroup(day,'1d'), x", 'floor(extract(epoch from day)/86400)*86400 AS "time", x'),
        ("$__timeGroupAlias(at,$__interval)", 'floor(extract(epoch from at)/86400)*86400 AS "time"'),
        ("${__interval_ms}", "86400000"),
        ("$__unixEpochFilter(t)", "t >= 1792976523 AND t <= 1795564800"),
    ],
)
def test_macros_are_those_of_the_data_source(macro, sql):
    assert q.with_macros(macro, TIMES) == sql


@pytest.mark.parametrize(
    "wrong",
    [
        "$__timeFiltr(day)",
        "$__timeFilter()",
        "$__timeGroup(day)",
        "$__timeGroup(day,'1 day')",
        "$__timeFilter",
        "${__from}",
        # Grafana ends the arguments at the first closing parenthesis, and so does this.
        "$__timeFilter(lower(x), y)$__oops",
    ],
)
def test_what_grafana_would_refuse_is_refused(wrong):
    with pytest.raises(q.QueryError):
        q.with_macros(wrong, TIMES)


def test_arguments_end_at_the_first_parenthesis_as_in_grafana():
    assert q.with_macros("$__timeFilter(lower(x))", TIMES) == f"lower(x BETWEEN {START} AND {END})"


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("IN (${domain:sqlstring})", "IN ('a','o''b')"),
        ("IN ($domain)", "IN ('a','o''b')"),
        ("${days:sqlstring}::int", "'30'::int"),
        ("$days", "30"),
        ("${days}", "30"),
        ("${domain:csv}", "a,o'b"),
        ("$__timeFilter(day)", "$__timeFilter(day)"),
    ],
)
def test_variables_become_values(text, sql):
    assert q.with_variables(text, {"domain": ["a", "o'b"], "days": "30"}, frozenset(["domain"])) == sql


@pytest.mark.parametrize("text", ["$nobody", "${domain:glob}"])
def test_unknown_variables_and_formats_are_refused(text):
    with pytest.raises(q.QueryError):
        q.with_variables(text, {"domain": ["a"]})


@given(st.lists(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), min_size=1))
def test_no_value_gets_out_of_its_quotes(values):
    text = q.formatted(values, "sqlstring", multi=True)
    inner = text.replace("''", "")
    assert inner.startswith("'") or text.startswith("''")
    assert inner.count("'") % 2 == 0
    assert text.count("'") == 2 * len(values) + 2 * sum(value.count("'") for value in values)


def test_queries_of_rows_and_annotations_are_found():
    target = {"refId": "A", "rawSql": "SELECT 1", "format": "table"}
    board = {
        "uid": "x",
        "panels": [{"title": "Row", "panels": [{"title": "Inner", "targets": [target]}]}],
        "annotations": {"list": [{"name": "Note", "target": target}, {"name": "None"}]},
    }
    assert [(query.place, query.format) for query in q.queries(board)] == [
        ("x: Inner, A", "table"),
        ("x: annotation Note", "annotation"),
    ]


def test_the_opening_time_range_is_relative():
    now = datetime(2026, 11, 25, tzinfo=UTC)
    assert q.default_range({"time": {"from": "now-14d", "to": "now"}}, now).start == now - timedelta(days=14)
    with pytest.raises(q.QueryError):
        q.default_range({"time": {"from": "yesterday", "to": "now"}}, now)


@pytest.mark.parametrize(
    ("kind", "columns", "rows", "problem"),
    [
        ("table", ["a", "b"], [(None, 1)], ""),
        ("table", ["a"], [], "shows nothing"),
        ("table", ["a", "b"], [(None, None)], "shows nothing"),
        ("time_series", ["time", "n"], [(Decimal(86400), 1), (Decimal(172800), None)], ""),
        ("time_series", ["time", "n"], [(1, None)], "shows nothing"),
        ("time_series", ["day", "n"], [(1, 1)], "has no column time: day, n"),
        ("time_series", ["time", "n"], [(1, "many")], "is a time series without a number"),
        ("time_series", ["time", "n"], [("today", 1)], "has a time that is none"),
        ("time_series", ["time", "n"], [(2, 1), (1, 1)], "is not in the order of time"),
        ("annotation", ["time", "text"], [(date(2026, 11, 1), "p=reject")], ""),
        ("annotation", ["time", "words"], [(date(2026, 11, 1), "p=reject")], "has no column text: time, words"),
    ],
)
def test_judgement(kind, columns, rows, problem):
    assert verdict.judge(kind, columns, rows, may_be_empty=False) == problem


def test_an_empty_answer_is_no_problem_where_it_may_be_empty():
    assert verdict.judge("table", ["a"], [], may_be_empty=True) == ""
    assert verdict.judge("time_series", ["a"], [], may_be_empty=True) == "has no column time: a"


def test_each_single_value_is_tried_besides_the_opening_view():
    tried = list(verdict.settings({"domain": ["a", "b"], "days": "30"}, {"domain": ["a", "b"], "days": ["7", "30"]}))
    assert tried == [
        {"domain": ["a", "b"], "days": "30"},
        {"domain": ["a"], "days": "30"},
        {"domain": ["b"], "days": "30"},
        {"domain": ["a", "b"], "days": "7"},
    ]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_95_of_100_runs_are_not_slower_than_the_95th_percentile(times):
    result = verdict.Result("x", "", times=times)
    assert result.p95 in times
    assert sum(time <= result.p95 for time in times) >= 0.95 * len(times)
