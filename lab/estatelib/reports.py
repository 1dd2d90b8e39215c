"""Have the DMARC reports of an earlier day made and sent, from what the gateways saw just now."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from .estate import Estate
from .events import Events
from .places import GATEWAYS

# Runs on a gateway: a finished file of events, which belongs to whom the others belong.
_KEEP = (
    "import os, sys\n"
    "path = sys.argv[1]\n"
    "open(path, 'w').write(sys.stdin.read())\n"
    "os.chown(path, os.stat(os.path.dirname(path)).st_uid, -1)\n"
)


def report_sql(estate: Estate, query: str) -> list[list[str]]:
    """The rows of a query on the analytics host."""
    text = estate.host("analytics").run("psql", "-XAtU", "postgres", "-F", "\t", "dmarc", "-c", query)
    return [line.split("\t") for line in text.splitlines()]


def a_closed_day() -> date:
    """A day that every gateway has handed over completely, whatever the hour."""
    return datetime.now(UTC).date() - timedelta(days=2)


def events_of(estate: Estate, sender: str, gateways: Iterable[str], to: str = "alice@example.org") -> list[dict]:
    """One message of an outside domain through each of the gateways, and what they remember of them."""
    found = []
    for name in gateways:
        events = Events(estate)
        assert estate.world(sender).hand_over(to, gateway=name).reply.code == 250
        found.append(events.only(header_from=sender, envelope_to=["example.org"]))
    return found


def event_of_day(event: dict, day: date, domain: str = "", rua: str = "") -> dict:
    """The event as if it were of that day, of another policy domain and with another ``rua`` where they are given."""
    policy = event["policy"]
    if domain:
        policy = policy | {"domain": domain}
    if rua:
        policy = policy | {"record": f"v=DMARC1; p={policy['p']}; rua={rua}"}
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return event | {"id": str(uuid.uuid4()), "time": int(noon.timestamp()), "policy": policy}


def report_day(estate: Estate, events: list[dict], day: date, domain: str = "", rua: str = "") -> list[list[str]]:
    """Have the gateways' events reported as if they were of that day, and forget what was there of it.

    Gives identifier, policy domain and number of messages of each report.
    """
    analytics = estate.host("analytics")
    for table in ("report", "day", "event"):
        report_sql(estate, f"DELETE FROM dmarc_reports.{table} WHERE day = '{day}'")
    with analytics.service("dmarc-reports").stopped():  # it would close the day between two gateways
        for name in GATEWAYS:
            own = [event for event in events if event["gateway"].split(".")[0] == name]
            if own:
                lines = "".join(json.dumps(event_of_day(event, day, domain, rua)) + "\n" for event in own)
                path = f"/var/spool/estate-dmarc/{day:%Y%m%d}T12.{name}.test.jsonl"
                estate.gateway(name).run("python3", "-c", _KEEP, path, stdin=lines)
            estate.gateway(name).run("systemctl", "start", "dmarc-events.service")
        for step in ("close", "send"):
            analytics.run("dmarc-reports", step)
    columns = "report_id, policy_domain, messages"
    return report_sql(estate, f"SELECT {columns} FROM dmarc_reports.report WHERE day = '{day}'")
