"""What the verification of DNS has found, as a table for people and as a document for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible.module_utils.dns_compare import Difference

#: Of the document's form; it changes when a field goes or means something else.
VERSION = 1
WIDTHS = {"record": 60, "expected": 44, "found": 44, "seen from": 34}


def table(differences: Sequence[Difference]) -> list[str]:
    """An aligned line for each difference under a heading; long values are cut, since the last column explains them."""
    if not differences:
        return []
    rows = [("record", "expected", "found", "seen from", "what to do")]
    rows += [
        (
            _cut(f"{one.name} {one.type}", WIDTHS["record"]),
            _cut(one.expected, WIDTHS["expected"]),
            _cut(one.found, WIDTHS["found"]),
            _cut(_places(one.seen_from), WIDTHS["seen from"]),
            one.todo,
        )
        for one in differences
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]).rstrip() for row in rows]


def _places(places: Sequence[str]) -> str:
    return ", ".join(places) if len(places) <= 2 else f"{places[0]} and {len(places) - 1} more"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def summary(differences: Sequence[Difference], records: int, domains: int, places: int) -> str:
    """The last line."""
    if not differences:
        return f"{records} records of {domains} domains agree, seen from {places} places."
    many = f"{len(differences)} differences" if len(differences) > 1 else "1 difference"
    return f"{many} in {records} records of {domains} domains, seen from {places} places."


def document(
    differences: Sequence[Difference],
    notes: Sequence[str],
    places: Sequence[str],
    counts: dict[str, Any],
    spf: dict[str, Any],
    included: dict[str, str],
) -> dict[str, Any]:
    """The document for machines; docs/dns-verify.md describes it."""
    return {
        "version": VERSION,
        **counts,
        "agrees": not differences,
        "places": list(places),
        "differences": [
            {
                "name": one.name,
                "type": one.type,
                "kind": one.kind,
                "expected": one.expected,
                "found": one.found,
                "seen_from": one.seen_from,
                "todo": one.todo,
            }
            for one in differences
        ],
        "notes": list(notes),
        "spf": spf,
        "spf_included": dict(sorted(included.items())),
    }
