"""From the events of one UTC day, over all gateways, to aggregate reports (RFC 9990, "DMARC Feedback").

Only what the DNS said when a message came counts: the policy is the event's, never a new look-up. A report must hold
data for one policy configuration, so a domain that changed its policy during the day gets one report for each, all for
the whole day ("Changes in Policy During Reporting Period"). One that shows more configurations than
`max_configurations` gets a single report with the last one and every row, which is allowed there too: nobody makes us
send a mail per message.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from estate_arc_policy import record_tags

from .events import Event, Override, Policy, Signature

DAY_SECONDS = 86_400
MAX_SIGNATURES = 100
"""No more signatures than this in a row (RFC 9990, "DKIM Signatures in Aggregate Reports")."""
MAX_CONFIGURATIONS = 8

DNS_FAILED = Override("other", "temporary DNS error while alignment was checked")


@dataclass(frozen=True)
class Published:
    """One policy configuration: what distinguishes reports of one domain on one day."""

    domain: str
    discovery_method: str
    p: str
    sp: str
    np: str
    adkim: str
    aspf: str
    testing: str
    fo: str

    @classmethod
    def of(cls, policy: Policy) -> Published:
        """The configuration of an event's policy; `fo` is cut down to the values that exist (RFC 9989 §4.7)."""
        options = dict.fromkeys(part.strip().lower() for part in record_tags(policy.record).get("fo", "0").split(":"))
        fo = ":".join(option for option in ("0", "1", "d", "s") if option in options) or "0"
        return cls(
            policy.domain, policy.discovery_method, policy.p, policy.sp, policy.np,
            policy.adkim, policy.aspf, policy.t, fo,
        )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What the messages of one record have in common."""

    source_ip: str
    disposition: str
    dkim: str
    spf: str
    reasons: tuple[Override, ...]
    header_from: str
    envelope_from: str
    envelope_to: str
    """Empty where a message went to several domains: a record names one, and a message is counted once."""
    dkim_results: tuple[tuple[str, str, str], ...]
    """Domain, selector, result."""
    spf_result: tuple[str, str, str] | None
    """Domain, scope, result."""

    def order(self) -> tuple[object, ...]:
        """The place of a row in its report."""
        address = ipaddress.ip_address(self.source_ip)
        return (
            address.version, int(address), self.header_from, self.envelope_from, self.envelope_to, self.disposition,
            self.dkim, self.spf, self.reasons, self.dkim_results, self.spf_result or (),
        )  # fmt: skip


@dataclass(frozen=True)
class Report:
    """One report: one policy domain, one configuration, one UTC day."""

    published: Published
    begin: int
    end: int
    """The last second of the day, as in the sample of RFC 9990."""
    rows: tuple[tuple[Row, int], ...]
    record: str
    """The domain's record as last seen with this configuration; its `rua` is where the report goes."""
    configurations: int = 1
    """More than one where the rows are of several."""

    @property
    def rua(self) -> str:
        """The `rua` tag, as published; empty without one."""
        return record_tags(self.record).get("rua", "")

    @property
    def messages(self) -> int:
        """How many messages the report counts."""
        return sum(count for _, count in self.rows)


@dataclass
class DayOfReports:
    """The reports of a day, and what is in none."""

    reports: list[Report] = field(default_factory=list)
    without_policy: int = 0
    """Messages whose author domain has no DMARC policy, or whose policy could not be looked up."""
    other_days: int = 0
    """Events of another day."""


@dataclass
class _Configuration:
    rows: Counter[Row]
    last: tuple[int, str]
    record: str


def day_bounds(day: date) -> tuple[int, int]:
    """The first and the last second of a UTC day."""
    begin = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    return begin, begin + DAY_SECONDS - 1


def aggregate(events: Iterable[Event], day: date, *, max_configurations: int = MAX_CONFIGURATIONS) -> DayOfReports:
    """Make the reports of one UTC day from events in any order, each given once; the same events give the same."""
    begin, end = day_bounds(day)
    result = DayOfReports()
    domains: dict[str, dict[Published, _Configuration]] = {}
    for event in events:
        if not begin <= event.time <= end:
            result.other_days += 1
            continue
        if event.policy is None:
            result.without_policy += 1
            continue
        published = Published.of(event.policy)
        found = domains.setdefault(published.domain, {})
        moment = (event.time, event.id)
        configuration = found.setdefault(published, _Configuration(Counter(), moment, event.policy.record))
        configuration.rows[row_of(event, event.policy)] += 1
        if moment > configuration.last:
            configuration.last, configuration.record = moment, event.policy.record
    for _, found in sorted(domains.items()):
        in_time = sorted(found.items(), key=lambda item: item[1].last)
        if len(in_time) > max_configurations:
            published, final = in_time[-1]
            rows: Counter[Row] = Counter()
            for _, configuration in in_time:
                rows.update(configuration.rows)
            result.reports.append(Report(published, begin, end, _sorted(rows), final.record, len(in_time)))
            continue
        result.reports.extend(
            Report(published, begin, end, _sorted(configuration.rows), configuration.record)
            for published, configuration in in_time
        )
    return result


def _sorted(rows: Counter[Row]) -> tuple[tuple[Row, int], ...]:
    return tuple(sorted(rows.items(), key=lambda item: item[0].order()))


def row_of(event: Event, policy: Policy) -> Row:
    """The row that an event counts in."""
    reasons = set(event.overrides)
    if event.dmarc == "temperror":
        # RFC 9990 wants a reason where alignment fails and the policy is not applied; nobody knows it failed
        reasons.add(DNS_FAILED)
    # "pass" stands for passing under a policy that asks for something (RFC 9990, ActionDispositionType)
    disposition = "none" if event.disposition == "pass" and policy.published == "none" else event.disposition
    return Row(
        source_ip=event.source_ip,
        disposition=disposition,
        dkim="pass" if any(signature.aligned for signature in event.dkim) else "fail",
        spf="pass" if event.spf is not None and event.spf.aligned else "fail",
        reasons=tuple(sorted(reasons)),
        header_from=event.header_from,
        envelope_from=event.envelope_from,
        envelope_to=event.envelope_to[0] if len(event.envelope_to) == 1 else "",
        dkim_results=_signatures(event),
        spf_result=(event.spf.domain, event.spf.scope, event.spf.result) if event.spf and event.spf.domain else None,
    )


def _signatures(event: Event) -> tuple[tuple[str, str, str], ...]:
    """Up to a hundred signatures, the telling ones first (RFC 9990); one without a readable `d=` is left out."""

    def rank(signature: Signature) -> tuple[int, str, str, str]:
        if signature.aligned:
            level = 0 if signature.domain == event.header_from else 1
        else:
            level = 2 if signature.result == "pass" else 3
        return level, signature.domain, signature.selector, signature.result

    named = sorted((signature for signature in event.dkim if signature.domain), key=rank)
    return tuple((one.domain, re.sub(r"\s+", " ", one.selector), one.result) for one in named[:MAX_SIGNATURES])
