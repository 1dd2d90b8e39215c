"""What the gateways found out about a mail: Authentication-Results (RFC 8601) and the author's domain (RFC 5322).

Only the gateways can hand mail to this host, and they remove such fields of others that carry their name. So the first
field with their authserv-id is theirs; the ones below it, by whatever name, are anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.message import Message
from email.utils import getaddresses

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_RESULT = re.compile(r"^\s*dmarc\s*(?:/\s*1\s*)?=\s*([a-z]+)", re.IGNORECASE)
_HEADER_FROM = re.compile(r"\bheader\s*\.\s*from\s*=\s*([^\s;]+)", re.IGNORECASE)


def without_comments(value: str) -> str:
    """The field without its comments, which nest and may hold anything; quoted strings stay."""
    kept: list[str] = []
    depth = position = 0
    while position < len(value):
        character = value[position]
        if character == '"' and not depth:
            quoted = _QUOTED.match(value, position)
            if quoted:
                kept.append(quoted.group())
                position = quoted.end()
                continue
        if character == "\\" and depth:
            position += 2
            continue
        if character == "(":
            depth += 1
        elif character == ")" and depth:
            depth -= 1
            kept.append(" ")
        elif not depth:
            kept.append(character)
        position += 1
    return "".join(kept)


def statements(value: str) -> tuple[str, list[str]]:
    """authserv-id and the statements of one field; a semicolon within quotes divides nothing."""
    plain = without_comments(value)
    parts: list[str] = [""]
    position = 0
    while position < len(plain):
        quoted = _QUOTED.match(plain, position)
        if quoted:
            parts[-1] += quoted.group()
            position = quoted.end()
            continue
        if plain[position] == ";":
            parts.append("")
        else:
            parts[-1] += plain[position]
        position += 1
    identity = parts[0].strip().strip('"').split()
    return (identity[0].strip('"').lower() if identity else "", [part.strip() for part in parts[1:]])


def from_domains(message: Message) -> list[str]:
    """The domain of every author address, in lower case; an address without one gives an empty word."""
    fields = [str(value) for value in message.get_all("From", [])]
    return [address.rpartition("@")[2].lower().strip() if "@" in address else "" for _, address in getaddresses(fields)]


def problem(message: Message, authserv_id: str, accepted: frozenset[str] | Sequence[str]) -> str | None:
    """Why the mail is not believed to come from its author's domain; None if it is, or if that is waived.

    ``accepted`` names author domains whose reports are taken without a DMARC pass. They may then come from anybody.
    """
    if not authserv_id:
        return None
    domains = from_domains(message)
    if len(domains) != 1 or not domains[0]:
        return f"It has {len(domains)} author addresses; a report has one." if domains else "It has no author address."
    domain = domains[0]
    if domain in accepted:
        return None
    for value in message.get_all("Authentication-Results", []):
        identity, found = statements(str(value))
        if identity != authserv_id.lower():
            continue
        results = [(match.group(1).lower(), text) for text in found if (match := _RESULT.match(text))]
        if not results:
            return f"The gateway found no DMARC result for {domain}."
        for result, text in results:
            if result != "pass":
                return f"DMARC of the mail itself: {result} for {domain}."
            about = _HEADER_FROM.search(text)
            if about and about.group(1).strip('"').rpartition("@")[2].lower() != domain:
                return f"DMARC passed for {about.group(1)}, but the author is at {domain}."
        return None
    return f"It has no Authentication-Results of {authserv_id}, so it did not come through the gateways."
