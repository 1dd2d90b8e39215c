"""Small builders for Grafana's dashboard JSON (schema of ``@grafana/schema`` 13.2).

Everything is a plain dictionary, typed only where it helps the reader; whether the result is a dashboard is judged by
TypeScript against Grafana's own types and by the database (``prove.py``), not here.

Colours are those of Okabe and Ito, which people with any kind of colour blindness tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Json = dict[str, Any]

BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE, YELLOW, GREY = "#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#999999"

DATA_SOURCE: Json = {"type": "grafana-postgresql-datasource", "uid": "dmarc-pg"}
TAG = "dmarc"
SCHEMA_VERSION = 42
COLUMNS = 24  # of Grafana's grid

#: Kinds of senders, from ours to forgers.
KINDS = {"own": BLUE, "provider": SKY, "forwarder": YELLOW, "spoof": VERMILION, "unknown": GREY}

#: A tile of one transparent pixel in place of a map from somebody's tile server.
BLANK_TILE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def target(sql: str, kind: str = "table", ref: str = "A") -> Json:
    """A query; ``kind`` is ``table`` or ``time_series``."""
    return {
        "refId": ref,
        "datasource": DATA_SOURCE,
        "editorMode": "code",
        "format": kind,
        "rawQuery": True,
        "rawSql": "\n".join(line.strip() for line in sql.strip().splitlines()),
    }


def thresholds(*steps: tuple[float | None, str]) -> Json:
    """Colours from a value upwards; the first step has no value."""
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def fixed(color: str) -> Json:
    return {"mode": "fixed", "fixedColor": color}


def override(field: str, **properties: Any) -> Json:
    """What holds for one column: ``unit="percent"``, ``custom__width=120``, …; ``__`` stands for a dot."""
    return {
        "matcher": {"id": "byName", "options": field},
        "properties": [{"id": name.replace("__", "."), "value": value} for name, value in properties.items()],
    }


def values(colors: Mapping[str, str]) -> list[Json]:
    """A mapping that gives words their colour."""
    options = {word: {"color": color, "index": place} for place, (word, color) in enumerate(colors.items())}
    return [{"type": "value", "options": options}]


def colored(field: str, colors: Mapping[str, str], **more: Any) -> Json:
    """A column of words, each on its colour."""
    return override(field, mappings=values(colors), custom__cellOptions={"type": "color-text"}, **more)


def share(field: str, warn: float = 0.98, bad: float = 0.9) -> Json:
    """A column from 0 to 1, shown as a percentage: blue is good, then orange, then vermilion."""
    return override(
        field,
        unit="percentunit",
        decimals=1,
        thresholds=thresholds((None, VERMILION), (bad, ORANGE), (warn, BLUE)),
        custom__cellOptions={"type": "color-text"},
    )


def percent(field: str, warn: float = 98, bad: float = 90) -> Json:
    """A column from 0 to 100, shown as a percentage."""
    return override(
        field,
        unit="percent",
        decimals=1,
        thresholds=thresholds((None, VERMILION), (bad, ORANGE), (warn, BLUE)),
        custom__cellOptions={"type": "color-text"},
    )


def count(field: str, **more: Any) -> Json:
    return override(field, unit="locale", decimals=0, **more)


def trouble(field: str, warn: float = 1, bad: float | None = None) -> Json:
    """A count that should be nought."""
    steps: list[tuple[float | None, str]] = [(None, BLUE), (warn, ORANGE)]
    return count(
        field,
        thresholds=thresholds(*steps, *([(bad, VERMILION)] if bad is not None else [])),
        custom__cellOptions={"type": "color-text"},
    )


def link(field: str, board: str, variable: str, title: str) -> Json:
    """A column whose values lead to another dashboard."""
    url = f"/d/{board}?var-{variable}=${{__value.raw}}&${{__url_time_range}}"
    return override(field, links=[{"title": title, "url": url}])


def panel(kind: str, title: str, description: str, *, width: int, height: int, **fields: Any) -> Json:
    """A panel of any kind; its place is given by ``dashboard``."""
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
        **fields,
    }


def stat(title: str, description: str, sql: str, *overrides: Json, width: int = COLUMNS, text: bool = False) -> Json:
    """One query, one row; every column of it is a big figure (or a word)."""
    return panel(
        "stat",
        title,
        description,
        width=width,
        height=4,
        targets=[target(sql)],
        fieldConfig={
            "defaults": {
                "color": {"mode": "thresholds"},
                "unit": "short",
                "noValue": "–",
                "thresholds": thresholds((None, BLUE)),
            },
            "overrides": list(overrides),
        },
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "/.*/" if text else "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "value_and_name",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        },
    )


def table(title: str, description: str, sql: str, *overrides: Json, width: int = COLUMNS, height: int = 9) -> Json:
    """A table that can be sorted and filtered; one screen, not the world: the query has a LIMIT."""
    return panel(
        "table",
        title,
        description,
        width=width,
        height=height,
        targets=[target(sql)],
        fieldConfig={
            "defaults": {
                "color": {"mode": "thresholds"},
                "thresholds": thresholds((None, "text")),
                "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False},
            },
            "overrides": list(overrides),
        },
        options={"showHeader": True, "cellHeight": "sm", "frameIndex": 0, "enablePagination": True},
    )


def graph(
    title: str,
    description: str,
    sql: str,
    colors: Mapping[str, str] | None = None,
    *,
    unit: str = "short",
    stacked: bool = False,
    width: int = COLUMNS // 2,
    height: int = 9,
    maximum: float | None = None,
) -> Json:
    """A series for each column (or for each word of the column ``metric``), by day."""
    defaults: Json = {
        "color": {"mode": "palette-classic-by-name"},
        "unit": unit,
        "min": 0,
        "custom": {
            "drawStyle": "bars" if stacked else "line",
            "fillOpacity": 80 if stacked else 0,
            "lineWidth": 0 if stacked else 2,
            "lineInterpolation": "linear",
            "pointSize": 5,
            "showPoints": "never" if stacked else "auto",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        },
    }
    if maximum is not None:
        defaults["max"] = maximum
    return panel(
        "timeseries",
        title,
        description,
        width=width,
        height=height,
        interval="1d",
        targets=[target(sql, "time_series")],
        fieldConfig={
            "defaults": defaults,
            "overrides": [override(name, color=fixed(color)) for name, color in (colors or {}).items()],
        },
        options={
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def bars(title: str, description: str, sql: str, x: str, *, width: int = COLUMNS // 2, height: int = 9) -> Json:
    """Horizontal bars, one for each row."""
    return panel(
        "barchart",
        title,
        description,
        width=width,
        height=height,
        targets=[target(sql)],
        fieldConfig={
            "defaults": {
                "color": fixed(BLUE),
                "unit": "short",
                "custom": {"fillOpacity": 80, "lineWidth": 0},
            },
            "overrides": [override("not authenticated", color=fixed(VERMILION))],
        },
        options={
            "xField": x,
            "orientation": "horizontal",
            "barWidth": 0.8,
            "groupWidth": 0.8,
            "fullHighlight": False,
            "showValue": "auto",
            "stacking": "normal",
            "xTickLabelMaxLength": 30,
            "xTickLabelRotation": 0,
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
    )


def world(title: str, description: str, sql: str, color: str, *, width: int = COLUMNS // 2, height: int = 12) -> Json:
    """Circles on the countries; needs the columns ``country`` (ISO 3166 code) and ``messages``.

    Nothing comes from outside: outlines and the place of each country are files that Grafana itself serves.
    """
    return panel(
        "geomap",
        title,
        description,
        width=width,
        height=height,
        targets=[target(sql)],
        fieldConfig={
            "defaults": {
                "color": {"mode": "thresholds"},
                "unit": "short",
                "thresholds": thresholds((None, color)),
            },
            "overrides": [],
        },
        options={
            "view": {"id": "coords", "lat": 25, "lon": 10, "zoom": 1.3, "allLayers": True},
            "basemap": {
                "type": "xyz",
                "name": "Nothing from outside",
                "config": {"url": BLANK_TILE, "attribution": ""},
            },
            "layers": [
                {
                    "type": "geojson",
                    "name": "Countries",
                    "config": {
                        "src": "public/maps/countries.geojson",
                        "rules": [],
                        "style": {"color": {"fixed": GREY}, "opacity": 0.25, "lineWidth": 1},
                    },
                    "tooltip": False,
                },
                {
                    "type": "markers",
                    "name": "Messages",
                    "location": {"mode": "lookup", "lookup": "country", "gazetteer": "public/gazetteer/countries.json"},
                    "config": {
                        "showLegend": False,
                        "style": {
                            "size": {"field": "messages", "min": 4, "max": 30},
                            "color": {"fixed": color},
                            "opacity": 0.6,
                            "symbol": {"mode": "fixed", "fixed": "img/icons/marker/circle.svg"},
                        },
                    },
                    "tooltip": True,
                },
            ],
            "controls": {"showZoom": True, "mouseWheelZoom": False, "showAttribution": False},
            "tooltip": {"mode": "details"},
        },
    )


def query_variable(name: str, label: str, sql: str, *, multi: bool) -> Json:
    """A variable whose values come from the database."""
    query = target(sql, ref=f"variable-{name}")
    first: Json = {"current": {"selected": True, "text": ["All"], "value": ["$__all"]}} if multi else {}
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATA_SOURCE,
        "query": query,
        "definition": query["rawSql"],
        "refresh": 1,
        "sort": 0,
        "multi": multi,
        "includeAll": multi,
        "allowCustomValue": False,
        **first,
    }


def custom_variable(name: str, label: str, choices: Sequence[str], default: str | None = None) -> Json:
    """A variable with fixed values; without a default several may be chosen, and all are."""
    multi = default is None
    current = {"text": ["All"], "value": ["$__all"]} if multi else {"text": default, "value": default}
    options: list[Json] = [{"text": "All", "value": "$__all", "selected": True}] if multi else []
    options += [{"text": choice, "value": choice, "selected": choice == default} for choice in choices]
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "query": ",".join(choices),
        "multi": multi,
        "includeAll": multi,
        "allowCustomValue": False,
        "current": {"selected": True, **current},
        "options": options,
    }


DOMAIN = "SELECT name FROM dma.domain ORDER BY 1 LIMIT 1000"
DOMAINS_VARIABLE = query_variable("domain", "Domain", DOMAIN, multi=True)
DOMAIN_VARIABLE = query_variable(
    "domain",
    "Domain",
    """
    SELECT name FROM dma.domain
    LEFT JOIN (
        SELECT policy_domain AS name, sum(n) AS n FROM dma.daily_domain
        WHERE day > (now() AT TIME ZONE 'UTC')::date - 30 GROUP BY 1
    ) AS lately USING (name)
    ORDER BY n DESC NULLS LAST, name LIMIT 1000
    """,
    multi=False,
)
DAYS_VARIABLE = custom_variable("days", "Work lists: days", ["7", "14", "30", "60", "90", "180", "365"], "30")

#: The condition of the panels that follow the time range and the domain variable.
CHOSEN = "$__timeFilter(day) AND policy_domain IN (${domain:sqlstring})"
#: The argument of the work lists.
DAYS = "${days:sqlstring}::int"


def policy_annotation() -> Json:
    """Marks the day on which a domain's published policy changed, as the reporters saw it."""
    sql = """
        SELECT first_day::timestamptz AS "time", policy_domain || ': p=' || coalesce(previous_p, '?') || ' → p='
            || coalesce(p, '?') || CASE WHEN testing THEN ' (t=y)' ELSE '' END AS text, 'policy' AS tags
        FROM dma.policy_changes(400)
        WHERE $__timeFilter(first_day) AND policy_domain IN (${domain:sqlstring}) ORDER BY 1 LIMIT 100
    """
    return {
        "name": "Policy changes",
        "datasource": DATA_SOURCE,
        "enable": True,
        "iconColor": PURPLE,
        "target": target(sql, ref="Anno"),
    }


def dashboard(
    uid: str,
    title: str,
    description: str,
    rows: Iterable[Sequence[Json]],
    variables: Sequence[Json] = (),
    annotations: Sequence[Json] = (),
    *,
    period: str = "now-30d",
    picker: bool = True,
) -> Json:
    """A dashboard of rows of panels, one below the other; ids and places are given here."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        x = 0
        for item in row:
            grid = item["gridPos"]
            placed.append({**item, "id": len(placed) + 1, "gridPos": {**grid, "x": x, "y": y}})
            x += grid["w"]
        if x > COLUMNS:
            raise ValueError(f"{title}: the row of {row[0]['title']!r} is {x} columns wide; {COLUMNS} is all there is")
        y += max(item["gridPos"]["h"] for item in row)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "utc",
        "time": {"from": period, "to": "now"},
        "timepicker": {"hidden": not picker},
        "refresh": "",
        "links": [
            {
                "type": "dashboards",
                "title": "DMARC",
                "tags": [TAG],
                "asDropdown": True,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "tooltip": "The other dashboards, with the same domains and days",
                "url": "",
            }
        ],
        "annotations": {"list": list(annotations)},
        "templating": {"list": list(variables)},
        "panels": placed,
    }
