"""The words of the data model one by one: domain names, mail addresses, selectors, IP addresses.

Each ``…_fault`` function answers with the reason why a value is not allowed, in plain words, or None when it is.
The rules are narrower than the standards on purpose (RFC 1035, RFC 5321, RFC 6376): everything in one spelling, so that
the values compare, and nothing that needs quoting in Postfix's maps.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LOCAL_PART = re.compile(r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


def is_local_part(value: Any) -> bool:
    """Whether ``value`` is the part of a mail address before the @, in lower case and without quotes."""
    return isinstance(value, str) and len(value) <= 64 and bool(_LOCAL_PART.fullmatch(value))


def domain_name_fault(name: Any) -> str | None:
    """Why ``name`` cannot stand in the model as a domain name; None when it can."""
    if not isinstance(name, str) or not name:
        return "a domain name is needed"
    if not name.isascii():
        return "write internationalised names as A-labels (xn--…)"
    if name != name.lower():
        return f"write domain names in lower case: {name.lower()}"
    if name.endswith("."):
        return "write domain names without the last dot"
    if any(char.isspace() for char in name):
        return "a domain name holds no spaces"
    labels = name.split(".")
    if len(labels) < 2:
        return "a full domain name with at least two labels is needed"
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "labels are 1 to 63 letters, digits and hyphens, joined by dots, 253 characters at most"
    if labels[-1].isdigit():
        return "the last label of a domain name is no number"
    return None


def address_fault(address: Any) -> str | None:
    """Why ``address`` is no mail address that the model can hold; None when it is one."""
    if not isinstance(address, str):
        return "a mail address local@domain is needed"
    local, at, domain = address.rpartition("@")
    if not at or not local:
        return "a mail address local@domain is needed"
    if local != local.lower():
        return "write local parts in lower case (Postfix looks them up that way)"
    if not is_local_part(local):
        return "the part before @ is at most 64 letters, digits and !#$%&'*+/=?^_`{|}~-. without quotes"
    fault = domain_name_fault(domain)
    return f"its domain is wrong: {fault}" if fault else None


def selector_fault(selector: Any) -> str | None:
    """Why a DKIM selector is malformed (RFC 6376 §3.1); None when it is well-formed."""
    if not isinstance(selector, str):
        return "a selector is text; put it in quotes"
    if not all(_LABEL.fullmatch(label) for label in selector.split(".")):
        return "a selector is lower-case letters, digits and hyphens, for example 2026a"
    return None


def is_ip(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def is_network(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(ipaddress.ip_network(value))
    except ValueError:
        return False
