"""The DMARC events that the gateways write for each message (docs/arc.md)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .places import GATEWAYS

if TYPE_CHECKING:
    from .estate import Estate

NEWEST = "find /var/spool/estate-dmarc -name '*.jsonl' -exec tail -qn 1000 {} +"


class Events:
    """The DMARC events written since this object was made."""

    def __init__(self, estate: Estate) -> None:
        self.estate = estate
        self.old = set(self._all())

    def _all(self) -> dict[str, dict]:
        events = {}
        for name in GATEWAYS:
            lines = self.estate.gateway(name).run("sh", "-c", NEWEST)
            events |= {event["id"]: event for event in map(json.loads, lines.splitlines())}
        return events

    def only(self, **wanted) -> dict:
        """Return the one new event whose fields have these values."""
        new = [event for identity, event in self._all().items() if identity not in self.old]
        found = [event for event in new if all(event[field] == value for field, value in wanted.items())]
        assert len(found) == 1, f"{len(found)} events with {wanted} among {new}"
        return found[0]
