"""What the exporter lets out: figures of a known shape, and nothing that could be somebody."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import noc_board_export as export

GOOD: dict[str, Any] = {
    "version": 1,
    "generated": "2026-11-25T01:07:00Z",
    "first_day": "2026-10-24",
    "last_day": "2026-11-22",
    "through": "2026-11-22",
    "week_first": "2026-11-09",
    "week_last": "2026-11-15",
    "min_sources": 3,
    "min_messages": 20,
    "totals": {"messages": 1230, "passed_pct": 64.4, "spf_pct": 60, "dkim_pct": None, "stopped": 10, "failed": 0},
    "daily": [{"day": "2026-11-22", "passed": 1220, "stopped": 10, "failed": 0}],
    "domains": [{"name": "A", "passed_pct": 99}, {"name": "example.org", "passed_pct": 12}],
    "survey": {"taken": 10, "waiting": 0, "not_taken": 0, "taken_pct": 100},
    "countries": [{"code": "JP", "messages": 120}],
    "countries_other": 0,
    "networks": [{"code": "isp", "messages": 120}],
    "networks_other": 10,
}
NAMED = frozenset({"example.org"})


def changed(place: str, value: object) -> dict[str, Any]:
    """Good figures but for one place, as ``daily.0.day``."""
    figures = copy.deepcopy(GOOD)
    *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
    inner: Any = figures
    for part in path:
        inner = inner[part]
    inner[last] = value
    return figures


def test_good_figures_pass():
    export.check(GOOD, NAMED)
    export.check(changed("survey", None), NAMED)
    export.check(changed("through", None), NAMED)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("domains.0.name", "sfc.example.org"),
        ("domains.0.name", "192.0.2.1"),
        ("domains.0.name", "ABC"),
        ("domains.0.name", "A\n"),
        ("domains.0.passed_pct", 101),
        ("countries.0.code", "QQ"),
        ("countries.0.code", "JP\n"),
        ("countries.0.code", None),
        ("countries.0.code", ["JP"]),
        ("networks.0.code", "Yamada Taro Home Network"),
        ("networks.0.messages", "120"),
        ("networks.0.messages", True),
        ("networks.0.messages", 1.5),
        ("networks.0.messages", -10),
        ("networks.0.messages", 2**53),
        ("totals.messages", None),
        ("totals.passed_pct", float("nan")),
        ("totals.reporter", "Tanaka"),
        ("daily.0.day", "2026-11-22 taro"),
        ("daily.0.ip", "2001:db8::1"),
        ("generated", "now"),
        ("comment", "ichiro@example.com"),
        ("survey.recipient", "example.com"),
        ("survey", "none"),
        ("daily", {"day": "2026-11-22"}),
        ("countries", [{"code": "JP", "messages": 20}] * 1001),
    ],
)
def test_anything_else_is_refused_without_repeating_it(place, value):
    with pytest.raises(export.Refused) as refused:
        export.check(changed(place, value), NAMED)
    assert str(value) not in str(refused.value) or len(str(value)) < 5


@pytest.mark.parametrize("key", sorted(GOOD))
def test_what_is_missing_is_refused(key):
    figures = copy.deepcopy(GOOD)
    del figures[key]
    with pytest.raises(export.Refused):
        export.check(figures, NAMED)


def test_a_domain_by_name_only_where_the_site_says_so():
    with pytest.raises(export.Refused):
        export.check(GOOD)


@pytest.mark.parametrize("figures", [None, [], "figures", 1])
def test_figures_that_are_none_are_refused(figures):
    with pytest.raises(export.Refused):
        export.check(figures)


@given(st.text(min_size=3))
def test_no_text_gets_through_in_any_place(text):
    for place in ("domains.0.name", "countries.0.code", "networks.0.code", "daily.0.day", "generated", "through"):
        if text in export.NETWORKS:
            continue
        with pytest.raises(export.Refused):
            export.check(changed(place, text))


def test_file_is_replaced_as_a_whole_and_readable_by_the_web_server(tmp_path):
    out = tmp_path / "stats.json"
    out.write_text("old")
    export.write(GOOD, out)
    assert json.loads(out.read_text()) == GOOD
    assert out.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


def test_full_disk_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    out = tmp_path / "stats.json"
    out.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export.write(GOOD, out)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]
