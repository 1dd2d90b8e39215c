"""DMARC events of the gateways, one JSON object a line, read and checked (docs/arc.md says what the fields mean).

Events travel at least once, so the reader drops what it has seen. A line that is no event is set aside with its reason
and never stops the rest: a report that is wrong in one row is worse than one that lacks it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from estate_arc_policy import POLICIES, normal_domain

VERSION = 1
MAX_LINE = 1_000_000
LAST_SECOND = 253_402_300_799
"""The end of the year 9999."""

DKIM_RESULTS = ("none", "pass", "fail", "policy", "neutral", "temperror", "permerror")
"""RFC 8601 §2.7.1"""
SPF_RESULTS = ("none", "pass", "fail", "softfail", "policy", "neutral", "temperror", "permerror")
"""RFC 8601 §2.7.2"""
DISPOSITIONS = ("none", "pass", "quarantine", "reject")
OVERRIDES = ("local_policy", "mailing_list", "other", "policy_test_mode", "trusted_forwarder")
"""RFC 9990, "Policy Override Reason"."""


class EventError(ValueError):
    """A line is no event; the text says why, in plain words."""


@dataclass(frozen=True)
class Policy:
    """The DMARC record that governed a message when it came, defaults filled in."""

    domain: str
    record: str
    discovery_method: str
    p: str
    sp: str
    np: str
    adkim: str
    aspf: str
    t: str
    applied: str
    """p, sp or np"""
    requested: str
    """What was asked for, one level less in test mode."""

    @property
    def published(self) -> str:
        """What the record says for this author domain, test mode or not."""
        return str(getattr(self, self.applied))


@dataclass(frozen=True)
class Spf:
    """The SPF result of a message; the domain is empty where HELO was no domain name."""

    domain: str
    scope: str
    result: str
    aligned: bool


@dataclass(frozen=True)
class Signature:
    """One DKIM result of a message; the domain is empty where `d=` was no domain name."""

    domain: str
    selector: str
    result: str
    aligned: bool


@dataclass(frozen=True, order=True)
class Override:
    """Why the disposition is not what the policy asked for."""

    type: str
    comment: str


@dataclass(frozen=True)
class Event:
    """What one gateway found out about one message."""

    id: str
    """The deduplication key: a UUID, lower case."""
    time: int
    """Seconds, UTC."""
    gateway: str
    source_ip: str
    helo: str
    envelope_from: str
    """Empty for the null sender."""
    envelope_to: tuple[str, ...]
    header_from: str
    dns: str
    policy: Policy | None
    spf: Spf | None
    dkim: tuple[Signature, ...]
    dmarc: str
    disposition: str
    overrides: tuple[Override, ...]


@dataclass(frozen=True)
class SetAside:
    """A line that is no event."""

    line: bytes
    reason: str


def parse_line(line: bytes) -> Event:
    """Read and check one line. Raises EventError."""
    if len(line) > MAX_LINE:
        raise EventError(f"longer than {MAX_LINE} octets")
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EventError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise EventError("not JSON: cut off or damaged") from error
    if not isinstance(content, dict):
        raise EventError("not a JSON object")
    if _field(content, "version", int) != VERSION:
        raise EventError(f"version {content['version']!r}, this program reads {VERSION}")
    policy = content.get("policy")
    spf = content.get("spf")
    event = Event(
        id=_uuid(_field(content, "id", str)),
        time=_field(content, "time", int),
        gateway=_field(content, "gateway", str),
        source_ip=_address(_field(content, "source_ip", str)),
        helo=_domain(content, "helo", empty=True),
        envelope_from=_domain(content, "envelope_from", empty=True),
        envelope_to=tuple(sorted({_name("envelope_to", item) for item in _field(content, "envelope_to", list)})),
        header_from=_domain(content, "header_from"),
        dns=_choice(content, "dns", ("ok", "temperror")),
        policy=None if policy is None else _policy(_field(content, "policy", dict)),
        spf=None if spf is None else _spf(_field(content, "spf", dict)),
        dkim=tuple(_signature(_object("dkim", item)) for item in _field(content, "dkim", list)),
        dmarc=_choice(content, "dmarc", ("none", "pass", "fail", "temperror")),
        disposition=_choice(content, "disposition", DISPOSITIONS),
        overrides=tuple(_override(_object("overrides", item)) for item in _field(content, "overrides", list)),
    )
    _check_sense(event)
    return event


def _check_sense(event: Event) -> None:
    """Fields that contradict each other would make a report say something false."""
    if not 0 < event.time <= LAST_SECOND:
        raise EventError(f"time {event.time} is no moment of our age")
    results = [*event.dkim, *([event.spf] if event.spf else [])]
    if any(item.aligned and item.result != "pass" for item in results):
        raise EventError("aligned without having passed")
    passed = any(item.aligned for item in results)
    if passed and event.policy is None:
        raise EventError("aligned without a policy")
    if passed != (event.dmarc == "pass"):
        raise EventError(f"dmarc {event.dmarc!r} contradicts the alignment")
    if (event.dmarc == "pass") != (event.disposition == "pass"):
        raise EventError(f"disposition {event.disposition!r} contradicts dmarc {event.dmarc!r}")
    if event.policy is not None and event.dmarc == "none":
        raise EventError("dmarc 'none' though there is a policy")
    if event.policy is None and (event.dmarc == "fail" or event.disposition != "none"):
        raise EventError("judged without a policy")
    if event.dmarc == "temperror" and event.dns == "ok":
        raise EventError("dmarc 'temperror' though the DNS answered")


def _field(content: dict[str, Any], name: str, kind: type) -> Any:
    if name not in content:
        raise EventError(f"{name} is missing")
    value = content[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise EventError(f"{name} is not of type {kind.__name__}")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EventError(f"{name} holds something other than objects")
    return value


def _choice(content: dict[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = _field(content, name, str)
    if value not in choices:
        raise EventError(f"{name} is {value[:40]!r}, not one of {', '.join(choices)}")
    return str(value)


def _name(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value or normal_domain(value) != value:
        raise EventError(f"{field} is no domain name: {str(value)[:80]!r}")
    return value


def _domain(content: dict[str, Any], name: str, *, empty: bool = False) -> str:
    value = _field(content, name, str)
    return "" if empty and value == "" else _name(name, value)


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise EventError(f"id is no UUID: {text[:80]!r}") from error


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise EventError(f"source_ip is no address: {text[:80]!r}") from error
    if "%" in text:
        raise EventError(f"source_ip has a zone: {text[:80]!r}")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _policy(content: dict[str, Any]) -> Policy:
    return Policy(
        domain=_domain(content, "domain"),
        record=_field(content, "record", str),
        discovery_method=_choice(content, "discovery_method", ("psl", "treewalk")),
        p=_choice(content, "p", POLICIES),
        sp=_choice(content, "sp", POLICIES),
        np=_choice(content, "np", POLICIES),
        adkim=_choice(content, "adkim", ("r", "s")),
        aspf=_choice(content, "aspf", ("r", "s")),
        t=_choice(content, "t", ("y", "n")),
        applied=_choice(content, "applied", ("p", "sp", "np")),
        requested=_choice(content, "requested", POLICIES),
    )


def _spf(content: dict[str, Any]) -> Spf:
    return Spf(
        domain=_domain(content, "domain", empty=True),
        scope=_choice(content, "scope", ("mfrom", "helo")),
        result=_choice(content, "result", SPF_RESULTS),
        aligned=_field(content, "aligned", bool),
    )


def _signature(content: dict[str, Any]) -> Signature:
    return Signature(
        domain=_domain(content, "domain", empty=True),
        selector=_field(content, "selector", str),
        result=_choice(content, "result", DKIM_RESULTS),
        aligned=_field(content, "aligned", bool),
    )


def _override(content: dict[str, Any]) -> Override:
    return Override(type=_choice(content, "type", OVERRIDES), comment=_field(content, "comment", str))


class Reader:
    """Reads lines from any number of gateways and files; each event comes out once."""

    def __init__(self) -> None:
        self.set_aside: list[SetAside] = []
        self.duplicates = 0
        """Lines that were there before and are dropped: normal where lines travel at least once."""
        self._seen: dict[bytes, bytes] = {}

    def events(self, lines: Iterable[bytes]) -> Iterator[Event]:
        """The events in these lines that no earlier line had; blank lines are passed over."""
        for line in lines:
            text = line.strip()
            if not text:
                continue
            try:
                event = parse_line(text)
                if self._is_new(event):
                    yield event
                else:
                    self.duplicates += 1
            except EventError as error:
                self.set_aside.append(SetAside(line, str(error)))

    def _is_new(self, event: Event) -> bool:
        key = uuid.UUID(event.id).bytes
        digest = hashlib.blake2b(repr(event).encode("utf-8", "backslashreplace"), digest_size=8).digest()
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = digest
            return True
        if known != digest:
            raise EventError(f"id {event.id} was there before with another content")
        return False
