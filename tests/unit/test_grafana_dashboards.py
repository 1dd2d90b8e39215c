"""The dashboards as code: what each of them keeps to, and that the files in the repository are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from grafana_dashboards import model
from grafana_dashboards.__main__ import main, texts
from grafana_dashboards.boards import BOARDS
from grafana_dashboards.queries import panels, queries, variable_query

ROLE = Path(__file__).resolve().parents[2] / "roles/grafana"
ALL = [build() for build in BOARDS]
ALL_QUERIES = [query for board in ALL for query in queries(board)]
# Okabe and Ito's colours, and the theme's own for text.
COLORS = {"#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#999999", "text"}
RELATION = re.compile(r"\b(?:FROM|JOIN)\s+((?:\w+\.)?\w+)(\()?")

each_board = pytest.mark.parametrize("board", ALL, ids=lambda board: board["uid"])
each_query = pytest.mark.parametrize("query", ALL_QUERIES, ids=lambda query: query.place)


def words(value, key):
    """All values of a key, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            yield from words(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from words(inner, key)


def test_files_in_the_repository_are_what_the_code_says():
    present = {path.name: path.read_text(encoding="utf-8") for path in (ROLE / "files/dashboards").iterdir()}
    assert present == texts(), "run: python3 -m grafana_dashboards dashboards (in roles/grafana/files)"


def test_a_difference_is_told_and_a_left_over_file_is_removed(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    (tmp_path / "dmarc-old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "dmarc-spf.json").write_text("{}", encoding="utf-8")
    capsys.readouterr()
    assert main([str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().out.split() == ["dmarc-old.json", "dmarc-spf.json"]
    assert main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(texts())


def test_every_subject_has_its_dashboard():
    assert [board["uid"] for board in ALL] == [
        "dmarc-domains",
        "dmarc-domain",
        "dmarc-sources",
        "dmarc-spf",
        "dmarc-tls",
        "dmarc-reports-out",
        "dmarc-intake",
    ]


@each_board
def test_dashboard_cannot_be_changed_by_hand_and_leads_to_the_others(board):
    assert board["editable"] is False
    assert board["tags"] == ["dmarc"]
    assert [(link["type"], link["tags"], link["includeVars"]) for link in board["links"]] == [
        ("dashboards", ["dmarc"], True)
    ]


@each_board
def test_every_panel_says_in_one_sentence_what_it_shows(board):
    for panel in panels(board):
        sentence = panel["description"]
        assert panel["title"]
        assert re.fullmatch(r"[A-Z].{15,140}\.", sentence), panel["title"]
        assert ". " not in sentence, panel["title"]


@each_board
def test_panels_have_their_own_place_and_number(board):
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(board["panels"]) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < model.COLUMNS
        taken |= cells


@each_board
def test_colours_are_told_apart_by_everybody(board):
    found = set(words(board["panels"], "color")) | set(words(board["panels"], "fixedColor"))
    assert {color for color in found if color != "thresholds"} <= COLORS


@each_board
def test_overrides_name_columns_that_the_query_has(board):
    for panel in panels(board):
        sql = panel["targets"][0]["rawSql"]
        for item in panel["fieldConfig"]["overrides"]:
            name = item["matcher"]["options"]
            if (panel["type"] == "timeseries" and " AS metric" in sql) or panel["type"] == "barchart":
                continue  # named by values
            assert re.search(rf'\b{re.escape(name)}\b|"{re.escape(name)}"', sql), (panel["title"], name)


@each_board
def test_nothing_comes_from_outside(board):
    text = texts()[f"{board['uid']}.json"].replace(model.BLANK_TILE, "")
    assert re.findall(r"(?:https?:)?//[\w.-]+", text) == []
    for panel in panels(board):
        if panel["type"] == "geomap":
            assert panel["options"]["basemap"]["config"]["url"].startswith("data:")
            assert all(
                place.startswith(("public/", "img/"))
                for place in [
                    *words(panel["options"]["layers"], "src"),
                    *words(panel["options"]["layers"], "gazetteer"),
                ]
            )


def test_sources_have_a_map_of_all_and_one_of_failing_mail():
    board = next(board for board in ALL if board["uid"] == "dmarc-sources")
    maps = [panel for panel in panels(board) if panel["type"] == "geomap"]
    assert len(maps) == 2
    for panel in maps:
        markers = panel["options"]["layers"][-1]
        assert markers["location"] == {
            "mode": "lookup",
            "lookup": "country",
            "gazetteer": "public/gazetteer/countries.json",
        }
        assert markers["config"]["style"]["size"]["field"] == "messages"


@each_query
def test_query_is_bounded(query):
    assert re.search(r"\bLIMIT \d+$", query.sql), query.place


@each_query
def test_query_sees_nothing_but_the_views(query):
    known = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    functions = {signature.partition("(")[0] for signature in known["__grafana_functions"]}
    named = {name for name, _ in RELATION.findall(re.sub(r"extract\([^)]*\)", "", query.sql, flags=re.IGNORECASE))}
    here = set(re.findall(r"(?:WITH|,)\s*(\w+) AS \(", query.sql)) | set(re.findall(r"\) AS (\w+)", query.sql))
    assert {name for name in named if "." in name} <= set(known["__grafana_views"]) | functions
    assert {name for name in named if "." not in name} <= here


def test_the_role_checks_no_view_that_no_dashboard_shows():
    known = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    text = " ".join([query.sql for query in ALL_QUERIES] + [model.DOMAIN, model.DOMAIN_VARIABLE["definition"]])
    for name in known["__grafana_views"]:
        assert re.search(rf"\b{re.escape(name)}\b(?!\()", text), name
    for name in known["__grafana_functions"]:
        assert name.partition("(")[0] + "(" in text, name


@each_query
def test_single_records_are_not_summed_over_joins(query):
    """A sum over a join counts a message once for each partner; only joins on a key of one row are used."""
    joins = re.findall(r"JOIN (\w+(?:\.\w+)?)", query.sql)
    assert set(joins) <= {"busy", "dma.address"}, query.place


@each_query
def test_nothing_is_read_as_stopped_because_it_is_not_none(query):
    """RFC 9990's ``pass`` is no other disposition: schema dma has it as none, and nothing here looks past dma."""
    assert "'pass'" not in query.sql
    assert "dma.record" not in query.sql


@each_board
def test_variables_are_put_in_quoted(board):
    names = {variable["name"] for variable in board["templating"]["list"]}
    for query in queries(board):
        used = re.findall(r"\$\{(\w+)(:\w+)?\}|\$(?!__)(\w+)", query.sql)
        assert {name or bare for name, _, bare in used} <= names
        assert all(style == ":sqlstring" for _, style, _ in used), query.place


@each_board
def test_every_variable_is_used(board):
    text = " ".join(query.sql for query in queries(board))
    for variable in board["templating"]["list"]:
        assert f"${{{variable['name']}" in text, variable["name"]
        if sql := variable_query(variable):
            assert re.search(r"LIMIT \d+$", sql)


def test_a_row_that_is_too_wide_is_refused():
    panel = model.table("Wide", "A table that takes all the room there is.", "SELECT 1 LIMIT 1")
    with pytest.raises(ValueError, match="48 columns wide"):
        model.dashboard("x", "X", "X.", [[panel, panel]])
