"""Where a report goes: the `rua` of a record, read and checked (RFC 9989 §4.7; RFC 9990, "Transport" and on).

Each address is either taken or set aside with a reason that the survey counts. An address outside the policy domain's
organization is used only where its own domain says so in the DNS, which may also put another of its addresses in the
place. How names are looked up is the caller's choice: `lookup` gives the TXT records of a name, none if there are
none, and raises TemporaryDnsError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from estate_arc_policy import (
    TemporaryDnsError,
    TxtLookup,
    is_record,
    normal_domain,
    organizational_domain,
    record_tags,
    walk,
)

MAX_ADDRESSES = 5
MAX_NAME = 253
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(.*)!([0-9]{1,18})([kmgt]?)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_ESCAPES = re.compile(r"([^%]|%[0-9A-Fa-f]{2})*", re.DOTALL)


class Reason(StrEnum):
    """Why an address gets no report."""

    WRONG_SYNTAX = "wrong_syntax"
    NOT_MAILTO = "not_mailto"
    DUPLICATE = "duplicate"
    TOO_MANY = "too_many"
    EXCLUDED = "excluded"
    OWN = "own"
    NOT_AUTHORISED = "not_authorised"
    OVERRIDDEN_WRONGLY = "overridden_wrongly"
    DNS_TEMPERROR = "dns_temperror"
    TOO_LARGE = "too_large"

    @property
    def temporary(self) -> bool:
        """Whether another try may succeed."""
        return self is Reason.DNS_TEMPERROR


@dataclass(frozen=True)
class Destination:
    """An address that takes reports: the local part as published, the domain in A-labels and lower case."""

    local: str
    domain: str
    max_bytes: int | None = None
    """The largest message it wants, encoded as it travels; None without a limit."""

    @property
    def address(self) -> str:
        """The address, as for RCPT TO."""
        return f"{self.local}@{self.domain}"


@dataclass(frozen=True)
class Refused:
    """An address that gets no report; `uri` is as published, cut to 200 characters."""

    uri: str
    reason: Reason
    detail: str
    destination: Destination | None = field(default=None, compare=False)
    """The address as read, where it could be read and was the first of its kind."""


@dataclass(frozen=True)
class Destinations:
    """What came of a `rua`."""

    taken: tuple[Destination, ...] = ()
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What this site adds. A domain stands for itself, one with a leading dot for all domains below it."""

    own: tuple[str, ...] = ()
    """Ours: no report about one of them goes to one of them."""
    excluded: tuple[str, ...] = ()
    """No report about these domains, and none to addresses in them."""
    max_addresses: int = MAX_ADDRESSES


def covered(domain: str, patterns: Iterable[str]) -> bool:
    """Whether a domain is named by `example.org`, or is below `.example.org`."""
    for pattern in patterns:
        name = normal_domain(pattern.removeprefix("."))
        if name and (domain.endswith(f".{name}") if pattern.startswith(".") else domain == name):
            return True
    return False


def parse_uri(text: str) -> Destination | Refused:
    """Read one address of a `rua` tag: `mailto:local@domain`, percent-encoded, with an optional size (`!10m`)."""

    def refuse(reason: Reason, detail: str) -> Refused:
        return Refused(text[:200], reason, detail)

    uri, limit = text.strip(), None
    if sized := _SIZE.fullmatch(uri):
        uri, limit = sized[1], int(sized[2]) * _UNITS[sized[3].lower()]
    scheme = _SCHEME.fullmatch(uri)
    if scheme is None:
        return refuse(Reason.WRONG_SYNTAX, "no URI: mailto: is missing")
    if scheme[1].lower() != "mailto":
        return refuse(Reason.NOT_MAILTO, f"{scheme[1].lower()}: is no way to send a report")
    # header fields behind a question mark (RFC 6068 §2) are the publisher's wish for a mail that a person writes
    path = scheme[2].partition("?")[0]
    if not _ESCAPES.fullmatch(path):
        return refuse(Reason.WRONG_SYNTAX, "wrong percent-encoding")
    try:
        address = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        return refuse(Reason.WRONG_SYNTAX, "percent-encoding of something that is not UTF-8")
    local, at, host = address.rpartition("@")
    if not at or not local or not host:
        return refuse(Reason.WRONG_SYNTAX, "no address")
    if not _DOT_ATOM.fullmatch(local) or len(local) > 64:
        return refuse(Reason.WRONG_SYNTAX, "local part that this program does not send to")
    domain = normal_domain(host) if host == host.strip() else ""
    if "." not in domain or any(not 0 < len(label) < 64 for label in domain.split(".")):
        return refuse(Reason.WRONG_SYNTAX, "no domain name behind the @")
    return Destination(local, domain, limit)


def parse_rua(rua: str, max_addresses: int = MAX_ADDRESSES) -> Destinations:
    """Read a `rua` tag: addresses in the order given, each once, no more than `max_addresses`."""
    taken: dict[str, Destination] = {}
    refused: list[Refused] = []
    for text in rua.split(",") if rua.strip() else ():
        found = parse_uri(text)
        if isinstance(found, Refused):
            refused.append(found)
        elif found.address in taken:
            refused.append(Refused(text[:200], Reason.DUPLICATE, "named twice; the first counts"))
        elif len(taken) >= max_addresses:
            refused.append(Refused(text[:200], Reason.TOO_MANY, f"more than {max_addresses} addresses"))
        else:
            taken[found.address] = found
    return Destinations(tuple(taken.values()), tuple(refused))


def _refusal(destination: Destination, reason: Reason, detail: str) -> Refused:
    return Refused(f"mailto:{destination.address}"[:200], reason, detail, destination)


def same_organization(policy_domain: str, destination: str, lookup: TxtLookup) -> bool:
    """Whether two domains have one organizational domain (RFC 9989 §4.10.2). Raises TemporaryDnsError."""
    if policy_domain == destination:
        return True
    if policy_domain.split(".")[-1] != destination.split(".")[-1]:
        return False
    organization = organizational_domain(policy_domain, walk(policy_domain, lookup))
    return organizational_domain(destination, walk(destination, lookup)) == organization


def authorise(policy_domain: str, destination: Destination, lookup: TxtLookup) -> Destinations:
    """Ask an outside destination whether it wants reports about a domain. Raises TemporaryDnsError.

    Gives the destination itself, the addresses that its domain names instead, or why it gets nothing.
    """

    def refuse(reason: Reason, detail: str) -> Destinations:
        return Destinations(refused=(_refusal(destination, reason, detail),))

    name = f"{policy_domain}._report._dmarc.{destination.domain}"
    if len(name) > MAX_NAME:
        return refuse(Reason.NOT_AUTHORISED, "the name to ask for is longer than the DNS allows")
    records = sorted(raw.decode("utf-8", "replace") for raw in lookup(name))
    records = [record for record in records if is_record(record)]
    if not records:
        return refuse(Reason.NOT_AUTHORISED, f"no v=DMARC1 at {name}")
    overriding = [rua for record in records if (rua := record_tags(record).get("rua"))]
    if not overriding:
        return Destinations((destination,))
    found = parse_rua(overriding[0])
    if any(other.domain != destination.domain for other in found.taken):
        return refuse(Reason.OVERRIDDEN_WRONGLY, f"{name} names an address of another domain")
    if not found.taken:
        return refuse(Reason.OVERRIDDEN_WRONGLY, f"{name} names no address that can be used")
    return found


def resolve(policy_domain: str, rua: str, lookup: TxtLookup, rules: Rules | None = None) -> Destinations:
    """Decide who gets the report about a domain. Never raises for the DNS: such an address is set aside for later."""
    rules = rules or Rules()
    parsed = parse_rua(rua, rules.max_addresses)
    taken: dict[str, Destination] = {}
    refused = list(parsed.refused)
    for destination in parsed.taken:
        if covered(policy_domain, rules.excluded) or covered(destination.domain, rules.excluded):
            refused.append(_refusal(destination, Reason.EXCLUDED, "excluded here"))
            continue
        if covered(policy_domain, rules.own) and covered(destination.domain, rules.own):
            refused.append(_refusal(destination, Reason.OWN, "a report about us to us"))
            continue
        try:
            if same_organization(policy_domain, destination.domain, lookup):
                found = Destinations((destination,))
            else:
                found = authorise(policy_domain, destination, lookup)
        except TemporaryDnsError as error:
            refused.append(_refusal(destination, Reason.DNS_TEMPERROR, f"no answer from the DNS: {error}"))
            continue
        refused.extend(found.refused)
        for one in found.taken:
            if one.address in taken:
                refused.append(_refusal(destination, Reason.DUPLICATE, f"{one.address} gets it already"))
            elif len(taken) >= rules.max_addresses:
                refused.append(_refusal(destination, Reason.TOO_MANY, f"more than {rules.max_addresses} addresses"))
            else:
                taken[one.address] = one
    return Destinations(tuple(taken.values()), tuple(refused))
