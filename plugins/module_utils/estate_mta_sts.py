"""MTA-STS policies of our domains (RFC 8461): the text that the web server gives out, and the id in DNS.

The id is made from the text, so a changed policy has a new id and nobody has to count.
"""

from __future__ import annotations

import hashlib

from estate_model import Domain, Estate

VERSION = "STSv1"
ID_DIGITS = 20  # of at most 32 letters and digits, RFC 8461 §3.1
#: How long a withdrawn policy may be kept, in seconds: short, so that nobody remembers it (RFC 8461 §8.3).
WITHDRAWN_MAX_AGE = 86400


def policy_host(domain: str) -> str:
    """The name of the web server that senders ask for the policy of ``domain`` (RFC 8461 §3.3)."""
    return f"mta-sts.{domain}"


def policy(domain: Domain | str, estate: Estate) -> tuple[str, str]:
    """The policy's text, lines ended by CRLF (RFC 8461 §3.2), and its id.

    A policy of mode ``none`` names no MX: it withdraws an earlier one.

    :param domain: a domain of the estate that has ``mta_sts``, or its name.
    :raises ValueError: when it has none, or the estate does not say which host serves the policies.
    """
    if isinstance(domain, str):
        domain = estate.domains[domain]
    if domain.mta_sts is None:
        raise ValueError(f"{domain.name} has no MTA-STS policy: estate_domains['{domain.name}'].mta_sts is not set")
    if estate.mta_sts is None:
        raise ValueError("estate_mta_sts names no host that serves the MTA-STS policies")
    withdrawn = domain.mta_sts == "none"
    lines = [f"version: {VERSION}", f"mode: {domain.mta_sts}"]
    lines += [] if withdrawn else [f"mx: {estate.hosts[gateway].fqdn}" for gateway in estate.gateways]
    lines.append(f"max_age: {min(estate.mta_sts.max_age, WITHDRAWN_MAX_AGE) if withdrawn else estate.mta_sts.max_age}")
    text = "".join(f"{line}\r\n" for line in lines)
    return text, hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def policies(estate: Estate) -> dict[str, str]:
    """Domain → policy text, of every domain that has one."""
    return {domain.name: policy(domain, estate)[0] for domain in estate.domains.values() if domain.mta_sts is not None}
