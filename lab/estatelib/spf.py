"""Evaluate SPF (RFC 7208) with the lab's DNS, by another engine than the one that the estate uses."""

from __future__ import annotations

import ipaddress
import re

from .verify import lookup

RESULTS = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
MOST_LOOKUPS = 10  # RFC 7208 §4.6.4
_TERM = re.compile(r"([-+~?]?)([a-z0-9]+)(?:[:=]([^/]+(?:/\d+)?|[^/]*))?(/\d+)?(//\d+)?$", re.IGNORECASE)


def spf_check(address: str, domain: str) -> str:
    """The result for a client's address and the domain of the envelope sender (of HELO where it is null).

    "permerror" also for more than ten terms that cost a look-up. Macros, ``exists`` and ``ptr`` are not known: nothing
    that the lab publishes has them, and a ValueError says so if it ever does.
    """
    return _check(ipaddress.ip_address(address), domain, [0])


def _check(client: ipaddress.IPv4Address | ipaddress.IPv6Address, domain: str, lookups: list[int]) -> str:
    records = [text for text in lookup(domain, "TXT") if text == "v=spf1" or text.startswith("v=spf1 ")]
    if len(records) != 1:
        return "permerror" if records else "none"
    redirect = ""
    for term in records[0].split()[1:]:
        found = _TERM.match(term)
        if not found:
            raise ValueError(f"{domain}: cannot read the SPF term {term!r}")
        qualifier, name, value = found[1] or "+", found[2].lower(), found[3] or ""
        if name == "redirect":
            redirect = value
            continue
        if name in ("a", "mx", "include"):
            lookups[0] += 1
            if lookups[0] > MOST_LOOKUPS:
                return "permerror"
        if name == "all":
            matches = True
        elif name in ("ip4", "ip6"):
            matches = client in ipaddress.ip_network(value + (found[4] or ""), strict=False)
        elif name in ("a", "mx"):
            hosts = [value or domain]
            if name == "mx":
                hosts = [record.split()[1].rstrip(".") for record in lookup(value or domain, "MX")]
            kind = "A" if client.version == 4 else "AAAA"
            matches = any(str(client) == found for host in hosts for found in lookup(host, kind))
        elif name == "include":
            matches = _check(client, value, lookups) == "pass"
        else:
            raise ValueError(f"{domain}: the SPF term {term!r} is not known here")
        if matches:
            return RESULTS[qualifier]
    return _check(client, redirect, lookups) if redirect else "neutral"
