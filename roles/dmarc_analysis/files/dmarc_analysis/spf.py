"""Which networks an SPF record lets send, and what reading it costs (RFC 7208).

:func:`expand` follows ``include`` and ``redirect`` to the end, as a receiver does for a client that matches nothing, so
that look-ups are those of the worst case (§4.6.4).  What depends on the message (macros, ``exists``, ``ptr``) cannot be
written as networks and is told as a problem.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Protocol

MAX_LOOKUPS = 10  # RFC 7208 §4.6.4
MAX_VOID_LOOKUPS = 2
MAX_MX_NAMES = 10
MAX_QUERIES = 200  # of ours, for one domain: a chain without end ends here

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TERM = re.compile(r"([+?~-]?)([a-z][a-z0-9]*)(?:([:/])(.*))?", re.IGNORECASE | re.DOTALL)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)", re.IGNORECASE | re.DOTALL)
_NAME = re.compile(r"(?=.{1,253}\.?$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{1,63}\.?", re.IGNORECASE)
_LENGTHS = re.compile(r"(.*?)(?:/([0-9]{1,2}))?(?://([0-9]{1,3}))?")


class TemporaryError(Exception):
    """DNS gave no answer that can be relied on; what was known before still holds."""


class Resolver(Protocol):
    """The questions to DNS. An empty answer means NXDOMAIN or no such record; no answer is a TemporaryError."""

    def txt(self, name: str) -> list[str]:
        """The TXT records, the strings of each put together."""

    def addresses(self, name: str) -> list[str]:
        """A and AAAA."""

    def mx(self, name: str) -> list[str]:
        """The hosts of the MX records."""


@dataclass
class Expansion:
    """What became of a domain's record. ``via`` is the way to a network: ``ip4``, ``include:spf.example.com ip4``."""

    domain: str
    record: str | None = None
    networks: dict[Network, str] = field(default_factory=dict)
    includes: dict[str, int] = field(default_factory=dict)  # of the record itself: look-ups that each costs
    lookups: int = 0
    void_lookups: int = 0
    problems: list[str] = field(default_factory=list)
    queries: int = 0

    @property
    def problem(self) -> str | None:
        """Everything that is wrong, in one sentence after the other; None: nothing."""
        return "; ".join(dict.fromkeys(self.problems)) or None


class _Stop(Exception):
    """Too many questions: the rest is left unread."""


def expand(domain: str, resolver: Resolver) -> Expansion:
    """Expand the SPF record of ``domain``.

    :raises TemporaryError: when DNS could not be asked to the end.
    """
    found = Expansion(domain.lower().rstrip("."))
    try:
        found.record = _record(found, resolver, found.domain, "")
        if found.record is not None:
            _read(found, resolver, found.domain, found.record, (), [found.domain], passes=True)
    except _Stop:
        found.problems.append(f"more than {MAX_QUERIES} questions to DNS: the rest was not read")
    if found.lookups > MAX_LOOKUPS:
        found.problems.append(f"{found.lookups} look-ups, and receivers stop at {MAX_LOOKUPS} (RFC 7208 §4.6.4)")
    if found.void_lookups > MAX_VOID_LOOKUPS:
        found.problems.append(
            f"{found.void_lookups} look-ups without an answer, and receivers stop at {MAX_VOID_LOOKUPS}"
        )
    return found


def _count(found: Expansion, number: int = 1) -> None:
    found.queries += number
    if found.queries > MAX_QUERIES:
        raise _Stop


def _record(found: Expansion, resolver: Resolver, name: str, where: str) -> str | None:
    """The one SPF record of ``name`` (RFC 7208 §4.5)."""
    _count(found)
    answers = resolver.txt(name)
    if where and not answers:
        found.void_lookups += 1
    records = [text for text in answers if text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")]
    if len(records) == 1:
        return records[0]
    found.problems.append(
        f"{name} has {len(records) or 'no'} SPF record{'s' if records else ''}" + (f" ({where})" if where else "")
    )
    return None


def _read(
    found: Expansion,
    resolver: Resolver,
    name: str,
    record: str,
    via: tuple[str, ...],
    chain: list[str],
    passes: bool,
) -> None:
    """Read one record; ``passes`` says whether what it lets pass is let pass by the first record too."""
    redirect: str | None = None
    ended = False
    for term in record.split()[1:]:
        if modifier := _MODIFIER.fullmatch(term):
            if modifier[1].lower() == "redirect":
                if redirect is not None:
                    found.problems.append(f"{name}: redirect stands there twice")
                redirect = modifier[2]
            continue
        match = _TERM.fullmatch(term)
        if not match:
            found.problems.append(f"{name}: {term[:80]!r} is no SPF term")
            continue
        if ended:  # RFC 7208 §5.1: mechanisms after "all" are never tested
            continue
        qualifier, mechanism, sign, value = match[1] or "+", match[2].lower(), match[3], match[4]
        good = passes and qualifier == "+"
        if mechanism == "all":
            ended = True
            if good and not via:
                found.problems.append(f"{name}: +all lets everybody send")
            elif good:
                found.problems.append(f"{' '.join(via)}: +all lets everybody send")
        elif mechanism in ("ip4", "ip6"):
            _literal(found, name, term, mechanism, value if sign == ":" else None, via, good)
        elif mechanism in ("a", "mx"):
            _hosts(found, resolver, name, term, mechanism, sign, value, via, good)
        elif mechanism == "include":
            _follow(found, resolver, name, "include", value if sign == ":" else None, via, chain, good)
        elif mechanism in ("exists", "ptr"):
            found.lookups += 1
            if good:
                found.problems.append(f"{name}: {term[:80]} depends on the message and cannot be written as networks")
        else:
            found.problems.append(f"{name}: {term[:80]!r} is no SPF term")
    if redirect is not None and not ended:
        _follow(found, resolver, name, "redirect", redirect, via, chain, passes)


def _literal(
    found: Expansion, name: str, term: str, mechanism: str, value: str | None, via: tuple[str, ...], good: bool
) -> None:
    """``ip4`` and ``ip6``."""
    try:
        kind = ipaddress.IPv4Network if mechanism == "ip4" else ipaddress.IPv6Network
        network = kind(value or "", strict=False)
    except ValueError:
        found.problems.append(f"{name}: {term[:80]!r} is no network")
        return
    if good:
        found.networks.setdefault(network, " ".join((*via, mechanism)))


def _hosts(
    found: Expansion,
    resolver: Resolver,
    name: str,
    term: str,
    mechanism: str,
    sign: str | None,
    value: str | None,
    via: tuple[str, ...],
    good: bool,
) -> None:
    """``a`` and ``mx``, with their prefix lengths (RFC 7208 §5.3, §5.4)."""
    found.lookups += 1
    text = value if sign == ":" else f"/{value}" if sign == "/" else ""
    if "%" in (text or ""):
        found.problems.append(f"{name}: {term[:80]} has macros and cannot be written as networks")
        return
    lengths = _LENGTHS.fullmatch(text or "")
    target = (lengths[1] if lengths else "") or (name if sign != ":" else "")
    if not lengths or not _NAME.fullmatch(target) or int(lengths[2] or 0) > 32 or int(lengths[3] or 0) > 128:
        found.problems.append(f"{name}: {term[:80]!r} is no SPF term")
        return
    hosts = [target]
    if mechanism == "mx":
        _count(found)
        hosts = resolver.mx(target)
        if len(hosts) > MAX_MX_NAMES:
            found.problems.append(f"{name}: {target} has {len(hosts)} MX hosts, and receivers stop at {MAX_MX_NAMES}")
            hosts = hosts[:MAX_MX_NAMES]
    addresses: list[str] = []
    for host in hosts:
        _count(found)
        addresses += resolver.addresses(host)
    if not addresses:
        # One for the term, though a receiver asks for one family only and may count a family that is not there.
        found.void_lookups += 1
    how = mechanism if sign != ":" else f"{mechanism}:{target}"
    for address in addresses if good else []:
        one = ipaddress.ip_address(address)
        length = (lengths[2] or 32) if one.version == 4 else (lengths[3] or 128)
        found.networks.setdefault(ipaddress.ip_network(f"{one}/{length}", strict=False), " ".join((*via, how)))


def _follow(
    found: Expansion,
    resolver: Resolver,
    name: str,
    how: str,
    value: str | None,
    via: tuple[str, ...],
    chain: list[str],
    passes: bool,
) -> None:
    """``include`` and ``redirect``."""
    found.lookups += 1
    before = found.lookups
    target = (value or "").lower().rstrip(".")
    if "%" in target:
        found.problems.append(f"{name}: {how} of {target[:80]} has macros and cannot be written as networks")
    elif not _NAME.fullmatch(target):
        found.problems.append(f"{name}: {how} of {target[:80]!r} is no domain")
    elif target in chain:
        found.problems.append(f"{' → '.join([*chain, target])} goes round in a circle")
    else:
        record = _record(found, resolver, target, f"{how} in {name}")
        if record is not None:
            _read(found, resolver, target, record, (*via, f"{how}:{target}"), [*chain, target], passes)
        if how == "include" and not via:
            found.includes[target] = found.lookups - before + 1
