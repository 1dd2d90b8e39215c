#!/usr/bin/env python3
"""Write the figures of the board: from the views of the schema ``dma_public`` to one small JSON file.

Runs as the system's user ``noc_board``, whose database role may read these views and nothing else. One transaction is
one picture. What is written is checked against what may be there (known keys, numbers, dates, ISO 3166-1 codes, known
words, single letters); anything else, above all what looks like an address or a name, is refused: then the file stays
as it is, the exit status is 1 and the board turns red when its figures get old.

    noc_board_export.py --database dmarc --out /srv/noc-board/stats.json [--named-domain example.org …]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

_NETWORKS = """
isp web_host email_provider email_security cloud saas it_service education government marketing finance healthcare
unknown
"""
_COUNTRIES = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC
CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD
GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH
KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW
MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC
SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY
UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW
"""
NETWORKS = frozenset(_NETWORKS.split())
COUNTRIES = frozenset(_COUNTRIES.split())  # ISO 3166-1, and XK
DAY = re.compile(r"20\d\d-[01]\d-[0-3]\d")
MOMENT = re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\dZ")
LETTER = re.compile(r"[A-Z]{1,2}")
LARGEST = 2**53 - 1  # what JavaScript counts exactly


class Refused(Exception):
    """Something is in the figures that may not be shown. The message never repeats it: the journal is read by more."""


def read(connection: psycopg.Connection) -> dict[str, Any]:
    """All figures, as of one moment."""

    def rows(query: str) -> list[dict[str, Any]]:
        cursor = connection.execute(query)
        names = [column.name for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    period = rows("SELECT * FROM dma_public.period")[0]
    origin = rows("SELECT dimension, code, messages FROM dma_public.origin ORDER BY messages DESC, code")
    survey = rows("SELECT taken, waiting, not_taken, taken_pct FROM dma_public.survey")
    figures: dict[str, Any] = {
        "version": 1,
        "generated": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **{
            key: period[key]
            for key in ("first_day", "last_day", "through", "week_first", "week_last", "min_sources", "min_messages")
        },
        "totals": rows("SELECT * FROM dma_public.totals")[0],
        "daily": rows("SELECT day, passed, stopped, failed FROM dma_public.daily ORDER BY day"),
        "domains": rows("SELECT name, passed_pct FROM dma_public.domain ORDER BY place"),
        "survey": survey[0] if survey else None,
    }
    for dimension, key in (("country", "countries"), ("network", "networks")):
        cells = [row for row in origin if row["dimension"] == dimension]
        figures[key] = [{"code": row["code"], "messages": row["messages"]} for row in cells if row["code"]]
        figures[f"{key}_other"] = sum(row["messages"] for row in cells if not row["code"])
    return json.loads(json.dumps(figures, default=_plain))


def _plain(value: object) -> object:
    """Dates as ISO 8601, decimals as numbers."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(type(value).__name__)


def check(figures: Any, named_domains: frozenset[str] = frozenset()) -> None:
    """Let pass what may be shown.

    :param figures: what :func:`read` gave.
    :param named_domains: domains that the site shows by name.
    :raises Refused: at the first thing that may not.
    """

    def count(value: object) -> bool:
        return type(value) is int and 0 <= value <= LARGEST

    def share(value: object) -> bool:
        return value is None or (type(value) in (int, float) and 0 <= value <= 100)

    def day(value: object) -> bool:
        return isinstance(value, str) and bool(DAY.fullmatch(value))

    def day_or_none(value: object) -> bool:
        return value is None or day(value)

    def moment(value: object) -> bool:
        return isinstance(value, str) and bool(MOMENT.fullmatch(value))

    def domain(value: object) -> bool:
        return isinstance(value, str) and (value in named_domains or bool(LETTER.fullmatch(value)))

    def nothing(value: object) -> bool:
        return value is None

    survey = {"taken": count, "waiting": count, "not_taken": count, "taken_pct": share}
    without_survey = isinstance(figures, dict) and figures.get("survey") is None
    shape = {
        "version": count,
        "generated": moment,
        "first_day": day,
        "last_day": day,
        "through": day_or_none,
        "week_first": day,
        "week_last": day,
        "min_sources": count,
        "min_messages": count,
        "totals": {
            "messages": count,
            "passed_pct": share,
            "spf_pct": share,
            "dkim_pct": share,
            "stopped": count,
            "failed": count,
        },
        "daily": [{"day": day, "passed": count, "stopped": count, "failed": count}],
        "domains": [{"name": domain, "passed_pct": share}],
        "survey": nothing if without_survey else survey,
        "countries": [{"code": lambda code: isinstance(code, str) and code in COUNTRIES, "messages": count}],
        "countries_other": count,
        "networks": [{"code": lambda code: isinstance(code, str) and code in NETWORKS, "messages": count}],
        "networks_other": count,
    }
    _match(figures, shape, "")


def _match(value: Any, shape: Any, place: str) -> None:
    """Compare recursively: a dict has exactly these keys, a list any number of such elements, a function decides."""
    if isinstance(shape, dict):
        if not isinstance(value, dict) or set(value) != set(shape):
            raise Refused(f"{place or 'the whole'} does not have the keys that it should have")
        for key, inner in shape.items():
            _match(value[key], inner, f"{place}.{key}".lstrip("."))
    elif isinstance(shape, list):
        if not isinstance(value, list) or len(value) > 1000:
            raise Refused(f"{place} is no list, or too long")
        for number, element in enumerate(value):
            _match(element, shape[0], f"{place}[{number}]")
    elif not shape(value):
        raise Refused(f"{place} is something that may not be shown")


def write(figures: dict[str, Any], out: Path) -> None:
    """Replace the file as a whole; a reader sees the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=".stats-")
    try:
        with open(handle, "w", encoding="ascii") as file:
            json.dump(figures, file, separators=(",", ":"))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main(arguments: list[str] | None = None) -> int:
    import psycopg  # of the system, where the program runs; what is checked above needs no database

    parser = argparse.ArgumentParser(description="Write the figures of the board.")
    parser.add_argument("--database", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--named-domain", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        with psycopg.connect(
            dbname=options.database, connect_timeout=10, options="-c statement_timeout=10s -c TimeZone=UTC"
        ) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            figures = read(connection)
        check(figures, frozenset(options.named_domain))
        write(figures, options.out)
    except (psycopg.Error, Refused, OSError) as error:
        print(f"The figures stay as they are: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
