"""Which UTC days are to be closed, and what a day's lines become: reports, and who shall get them.

A day is closed when every gateway has handed over all its events of that day, or when waiting for one has taken too
long. Nothing here asks the DNS: an outside address is noted as one whose domain is still to be asked, so that no
transaction waits for a name server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain, groupby

from estate_arc_policy import TemporaryDnsError

from .aggregate import DAY_SECONDS, aggregate
from .destinations import Reason, Rules, covered, resolve
from .events import Event, EventError, parse_line
from .package import Frozen, freeze
from .report_xml import Form
from .settings import Settings

RETURN = timedelta(hours=2)
"""After PostgreSQL was away the gateways get this long to hand over what they kept, even if a day is overdue."""
LONGEST_GAP = 400
"""Days; an older gap is a wrong clock's, not an outage."""


@dataclass(frozen=True)
class Known:
    """What the store knows about days."""

    closed: frozenset[date]
    with_events: frozenset[date]
    """Days that have events and are not closed."""
    watermarks: Mapping[str, datetime]
    """Gateway → all its events before this moment are here."""
    up_since: datetime
    """When PostgreSQL came up: before, no gateway could hand over anything."""


@dataclass(frozen=True)
class Due:
    """A day that can be closed now."""

    day: date
    reason: str
    reports: bool = True
    """False for a day that is too old for reports."""


def end_of(day: date) -> datetime:
    """The moment after the last of a UTC day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)


def due(known: Known, now: datetime, gateways: Iterable[str], wait: timedelta, catch_up_days: int) -> list[Due]:
    """The days to close, oldest first. Every day since the first one known is closed, even one without events."""
    today = now.astimezone(UTC).date()
    oldest = today - timedelta(days=catch_up_days)
    gap = {day for day in known.closed if oldest - timedelta(days=LONGEST_GAP) < day < oldest}
    too_old = {day for day in known.with_events if day < oldest}
    if gap:
        last = max(gap)
        too_old |= {last + timedelta(days=number) for number in range(1, (oldest - last).days)}
    result = [Due(day, f"older than {catch_up_days} days: no reports", reports=False) for day in sorted(too_old)]
    seen = {*known.closed, *known.with_events, *(moment.astimezone(UTC).date() for moment in known.watermarks.values())}
    first = min((max(day, oldest) for day in seen if day >= oldest or day in gap), default=today)
    for number in range((today - first).days):
        day = first + timedelta(days=number)
        if day in known.closed:
            continue
        end = end_of(day)
        missing = sorted({name for name in gateways if name not in known.watermarks or known.watermarks[name] < end})
        if not missing:
            result.append(Due(day, "complete"))
        elif now >= max(end + wait, known.up_since + min(wait, RETURN)):
            result.append(Due(day, f"gateways missing: {', '.join(missing)}"))
        else:
            break
    return result


@dataclass(frozen=True)
class Planned:
    """A delivery as it begins: one that waits, or one that is settled before it began."""

    recipient: str
    """A mailbox; the address as published where there is no mail."""
    domain: str | None
    fate: Reason | None = None
    detail: str = ""
    checked: bool = False
    """Whether no more needs to be asked: the address is in the policy domain itself."""
    max_bytes: int | None = None


def _ask_later(name: str) -> tuple[bytes, ...]:
    raise TemporaryDnsError(name)


def plan(policy_domain: str, rua: str, rules: Rules) -> list[Planned]:
    """What can be said about the addresses of a `rua` without the DNS."""
    found = resolve(policy_domain, rua, _ask_later, rules)
    planned = [Planned(one.address, one.domain, checked=True, max_bytes=one.max_bytes) for one in found.taken]
    for refused in found.refused:
        one = refused.destination
        if one is not None and refused.reason is Reason.DNS_TEMPERROR:
            planned.append(Planned(one.address, one.domain, max_bytes=one.max_bytes))
        else:
            domain = one.domain if one is not None else None
            planned.append(Planned(refused.uri.strip(), domain, refused.reason, refused.detail))
    return planned


def spread(report_id: str, recipient: str, over: timedelta) -> timedelta:
    """When after the closing of its day a report is due: always the same, and evenly over the time given."""
    digest = hashlib.sha256(f"{report_id}\0{recipient}".encode()).digest()
    return timedelta(seconds=int.from_bytes(digest[:8]) % max(1, int(over.total_seconds())))


@dataclass
class Outcome:
    """What came of a day's lines so far."""

    events: int = 0
    without_policy: int = 0
    unwanted: int = 0
    """Reports that are not made, since no address was published."""
    set_aside: list[tuple[str, str, str]] = field(default_factory=list)
    """Gateway, line, reason; whoever reads the reports empties it now and then."""
    unreadable: int = 0

    def put_aside(self, gateway: str, line: str, reason: str) -> None:
        """Note what is in no report."""
        self.set_aside.append((gateway, line, reason))
        self.unreadable += 1


Line = tuple[str | None, str, str]
"""The policy domain as the store reads it (none: no policy, or nothing it can read), the gateway, the line."""


def _events(lines: Iterable[Line], day: date, outcome: Outcome) -> Iterator[tuple[str | None, Event]]:
    begin = end_of(day).timestamp() - DAY_SECONDS
    for key, gateway, line in lines:
        try:
            event = parse_line(line.encode("utf-8").strip())
            if not begin <= event.time < begin + DAY_SECONDS:
                raise EventError(f"its time is not on {day}")
            if key is not None and (event.policy is None or event.policy.domain != key):
                raise EventError(f"its policy domain was read as {key[:80]!r} before")
        except EventError as error:
            outcome.put_aside(gateway, line, str(error))
            continue
        outcome.events += 1
        yield key, event


def reports(
    lines: Iterable[Line], day: date, settings: Settings, outcome: Outcome
) -> Iterator[tuple[Frozen, str, list[Planned]]]:
    """The reports of a day, each with the `rua` it follows and its deliveries, and in `outcome` what is in none.

    The lines are ordered by policy domain, those without one first, so that only one domain's rows are in memory.
    Some of those may have a policy all the same, in a line that only we can read: they wait for their domain.
    """
    strays: dict[str, list[Event]] = {}
    for key, group in groupby(_events(lines, day, outcome), key=lambda item: item[0]):
        events = (event for _, event in group)
        if key is not None:
            yield from _of_domain(key, chain(strays.pop(key, ()), events), day, settings, outcome)
            continue
        for event in events:
            if event.policy is None:
                outcome.without_policy += 1
            else:
                strays.setdefault(event.policy.domain, []).append(event)
    for domain in sorted(strays):
        yield from _of_domain(domain, strays[domain], day, settings, outcome)


def _of_domain(
    domain: str, events: Iterable[Event], day: date, settings: Settings, outcome: Outcome
) -> Iterator[tuple[Frozen, str, list[Planned]]]:
    for report in aggregate(events, day).reports:
        if not report.rua.strip():
            outcome.unwanted += 1
            continue
        planned = plan(domain, report.rua, settings.rules)
        form = form_for(domain, planned, settings.rfc7489_receivers)
        yield freeze(report, settings.sender, form), report.rua, planned


def form_for(policy_domain: str, planned: Iterable[Planned], old: Iterable[str]) -> Form:
    """The old form where the site says so about the policy domain or one that takes its reports."""
    domains = {policy_domain, *(one.domain for one in planned if one.fate is None and one.domain)}
    return Form.RFC7489 if any(covered(domain, old) for domain in domains) else Form.RFC9990
