"""What an SPF record costs the receiver who evaluates it, and whether it works at all (RFC 7208).

The walk is that of ``check_host`` for a sender that nothing matches: every mechanism is looked at, which is the dearest
way through the record.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_LOOKUPS = 10  # RFC 7208 §4.6.4
MAX_VOID = 2  # RFC 7208 §4.6.4
MAX_MX = 10  # addresses behind one mx, RFC 7208 §4.6.4
MAX_OCTETS = 450  # RFC 7208 §3.4: the answer shall fit into 512 octets
DEPTH = 20  # bounds the walk where a loop is not one of the same name
_MECHANISM = re.compile(r"^([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?:[:]([^/\s]+))?((?:/\d+)?(?://\d+)?)$", re.I)
_MODIFIER = re.compile(r"^([A-Za-z][A-Za-z0-9_.-]*)=(.*)$")

#: Name, type → records, or None where nothing can be said (no answer).
Lookup = Callable[[str, str], "tuple[str, ...] | None"]


@dataclass
class Cost:
    """What a record costs: look-ups, void look-ups (names without an answer), what is wrong, records included."""

    lookups: int = 0
    void: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    included: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Everything that makes receivers ignore or refuse the record, in plain sentences."""
        found = list(dict.fromkeys(self.problems))
        if self.lookups > MAX_LOOKUPS:
            found.append(f"it costs {self.lookups} look-ups, and receivers stop at {MAX_LOOKUPS} (permerror)")
        if len(self.void) > MAX_VOID:
            found.append(
                f"{len(self.void)} names in it do not exist ({', '.join(self.void)}), and receivers stop at"
                f" {MAX_VOID} (permerror)"
            )
        return found


def is_spf(record: str) -> bool:
    """Whether a TXT record is an SPF record (RFC 7208 §4.5)."""
    return record.lower() == "v=spf1" or record.lower().startswith("v=spf1 ")


def cost(domain: str, record: str, lookup: Lookup) -> Cost:
    """Walk through a record and all that it includes."""
    found = Cost()
    if len(record) > MAX_OCTETS:
        found.problems.append(f"it has {len(record)} octets; above {MAX_OCTETS} answers get too long for some")
    _walk(domain, record, lookup, found, (domain,))
    return found


def _walk(domain: str, record: str, lookup: Lookup, found: Cost, path: tuple[str, ...]) -> None:
    redirect, has_all = None, False
    for term in record.split()[1:]:
        modifier = _MODIFIER.match(term)
        if modifier:
            if modifier[1].lower() == "redirect":
                redirect = modifier[2]
            continue
        mechanism = _MECHANISM.match(term)
        if not mechanism:
            found.problems.append(f"{term} in the record of {domain} is no SPF term (permerror)")
            continue
        qualifier, kind, argument = mechanism[1], mechanism[2].lower(), mechanism[3]
        if kind in ("ip4", "ip6"):
            _check_network(domain, term, found)
        elif kind == "all":
            has_all = True
            if qualifier in ("", "+"):
                found.problems.append(f"{term} in the record of {domain} allows the whole world")
            break
        elif "%" in (argument or ""):
            found.lookups += 1
        elif kind == "include":
            _include(argument or domain, lookup, found, path)
        else:
            _mechanism(kind, argument or domain, lookup, found)
    if redirect and not has_all and "%" not in redirect:
        _include(redirect, lookup, found, path)


def _check_network(domain: str, term: str, found: Cost) -> None:
    kind, _, network = term.lstrip("+?~-").partition(":")
    try:
        version = ipaddress.ip_network(network, strict=False).version
    except ValueError:
        version = 0
    if kind.lower() != f"ip{version}":
        found.problems.append(f"{term} in the record of {domain} is no network (permerror)")


def _include(target: str, lookup: Lookup, found: Cost, path: tuple[str, ...]) -> None:
    target = target.lower().rstrip(".")
    found.lookups += 1
    if target in path:
        found.problems.append(f"it includes itself: {' → '.join((*path, target))} (permerror)")
        return
    if len(path) > DEPTH:
        return
    records = lookup(target, "TXT")
    if records is None:
        found.unknown.append(target)
        return
    if not records:
        found.void.append(target)
    spf = [record for record in records if is_spf(record)]
    if len(spf) != 1:
        found.problems.append(f"{target}, which it includes, has {len(spf) or 'no'} SPF records (permerror)")
        return
    found.included[target] = spf[0]
    _walk(target, spf[0], lookup, found, (*path, target))


def _mechanism(kind: str, target: str, lookup: Lookup, found: Cost) -> None:
    target = target.lower().rstrip(".")
    found.lookups += 1
    if kind == "ptr":
        found.problems.append("it uses ptr, which many receivers do not follow (RFC 7208 §5.5)")
        return
    types = ("MX",) if kind == "mx" else ("A",) if kind == "exists" else ("A", "AAAA")
    answers = [lookup(target, rtype) for rtype in types]
    if any(answer is None for answer in answers):
        found.unknown.append(target)
    elif not any(answers):
        found.void.append(target)
    elif kind == "mx" and len(answers[0] or ()) > MAX_MX:
        found.problems.append(f"mx:{target} has more than {MAX_MX} hosts (permerror)")
