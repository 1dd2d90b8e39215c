"""The DMARC policy that governs an author domain, found by tree walk (RFC 9989 §4.10).

Used by the milter of the gateways and by the list host, which rewrites From where a policy asks for it. No package but
the standard library: how names are looked up is the caller's choice (estate_arc_dns.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TxtLookup = Callable[[str], Sequence[bytes]]
"""Name → its TXT records; raises TemporaryDnsError."""

POLICIES = ("none", "quarantine", "reject")
MAX_WALK_LABELS = 8
MAX_RECORD = 4096

DOMAIN_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,250}[A-Za-z0-9_])?\Z")
"""A domain name of A-labels, without trailing dot; two dots in a row are looked for apart."""


class TemporaryDnsError(Exception):
    """A name could not be resolved now (time-out, SERVFAIL); another try may succeed."""


def normal_domain(domain: str) -> str:
    """Lower case, A-labels, no trailing dot; empty where the text is no domain name."""
    domain = domain.strip().rstrip(".").lower()
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError:
            return ""
    return domain if DOMAIN_NAME.match(domain) and ".." not in domain else ""


@dataclass(frozen=True)
class Record:
    """A DMARC policy record as published at `_dmarc.<domain>`; defaults filled in (RFC 9989 §4.7)."""

    domain: str
    text: str
    p: str
    sp: str
    np: str
    adkim: str = "r"
    aspf: str = "r"
    t: str = "n"
    psd: str = "u"
    usable: bool = True
    """False where p, sp or np is wrong and there is no rua: such a record asks for nothing."""


def is_record(text: str) -> bool:
    """Whether a TXT record speaks of DMARC (RFC 9989 §4.7: it starts with the version)."""
    return re.match(r"\s*v\s*=\s*DMARC1\s*(;|\Z)", text) is not None


def record_tags(text: str) -> dict[str, str]:
    """The tags of a DMARC record, names in lower case; the first of a name counts (RFC 9989 §4.7)."""
    tags: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), value.strip())
    return tags


def parse_record(domain: str, raw: bytes) -> Record | None:
    """Read one TXT record; None if it is not a DMARC record (it does not start with v=DMARC1)."""
    text = raw.decode("utf-8", "replace")
    if len(text) > MAX_RECORD or not is_record(text):
        return None
    tags = record_tags(text)
    wrong = any(tag in tags and tags[tag].lower() not in POLICIES for tag in ("p", "sp", "np")) or "p" not in tags
    if wrong:
        reported = re.match(r"[a-z][a-z0-9+.-]*:\S", tags.get("rua", ""), re.IGNORECASE) is not None
        p = sp = np = "none"
    else:
        reported = True
        p = tags["p"].lower()
        sp = tags.get("sp", p).lower()
        np = tags.get("np", sp).lower()

    def one_of(tag: str, allowed: str, default: str) -> str:
        value = tags.get(tag, default).lower()
        return value if len(value) == 1 and value in allowed else default

    return Record(
        domain, text.strip(), p, sp, np,
        one_of("adkim", "rs", "r"), one_of("aspf", "rs", "r"), one_of("t", "yn", "n"), one_of("psd", "ynu", "u"),
        reported,
    )  # fmt: skip


def find_record(domain: str, lookup: TxtLookup) -> Record | None:
    """The one DMARC record at a domain; several are none (RFC 9989 §4.10 step 2)."""
    records = [record for raw in lookup(f"_dmarc.{domain}") if (record := parse_record(domain, raw))]
    return records[0] if len(records) == 1 else None


def walk(domain: str, lookup: TxtLookup) -> list[Record]:
    """The DNS tree walk from a domain upwards: the records met, at most eight queries (RFC 9989 §4.10)."""
    labels = domain.split(".")
    targets = [labels, *(labels[cut:] for cut in range(max(1, len(labels) - MAX_WALK_LABELS + 1), len(labels)))]
    found = []
    for target in targets:
        record = find_record(".".join(target), lookup)
        if record:
            found.append(record)
            if record.psd in ("y", "n"):
                break
    return found


def organizational_domain(domain: str, records: Sequence[Record]) -> str:
    """Choose the organizational domain among the records of a walk from `domain` (RFC 9989 §4.10.2)."""
    for record in records:
        if record.psd == "n":
            return record.domain
        if record.psd == "y" and record.domain != domain:
            labels = domain.split(".")
            return ".".join(labels[-record.domain.count(".") - 2 :])
    if not records:
        return domain
    return min((record.domain for record in records), key=lambda name: name.count("."))


@dataclass(frozen=True)
class Policy:
    """The record that governs an author domain, and which of its tags applies."""

    record: Record
    applied: str
    """p, sp or np"""

    @property
    def published(self) -> str:
        """What the domain owner publishes for this author domain."""
        return str(getattr(self.record, self.applied))

    @property
    def requested(self) -> str:
        """What is asked for now: one level less in test mode (RFC 9989 §4.7, t=y)."""
        level = POLICIES.index(self.published)
        return POLICIES[max(0, level - 1)] if self.record.t == "y" else self.published


def discover(domain: str, lookup: TxtLookup, exists: Callable[[str], bool]) -> Policy | None:
    """Find the policy for an author domain (RFC 9989 §4.10.1). Raises TemporaryDnsError."""
    record = find_record(domain, lookup)
    if record is not None:
        return Policy(record, "p") if record.usable else None
    records = walk(domain, lookup)
    organization = organizational_domain(domain, records)
    by_domain = {record.domain: record for record in records}
    record = by_domain.get(organization) or next((record for record in records if record.psd == "y"), None)
    if record is None or not record.usable:
        return None
    # np differs from sp only for names that do not exist; three queries are saved where it does not matter
    applied = "np" if record.np != record.sp and not exists(domain) else "sp"
    return Policy(record, applied)


def aligned(identifier: str, author: str, mode: str, lookup: TxtLookup) -> bool:
    """Is an authenticated domain aligned with the author domain (RFC 9989 §4.10.2)? Raises TemporaryDnsError."""
    if not identifier or not author:
        return False
    if identifier == author:
        return True
    if mode == "s" or identifier.split(".")[-1] != author.split(".")[-1]:
        return False
    organization = organizational_domain(author, walk(author, lookup))
    if identifier != organization and not identifier.endswith("." + organization):
        return False
    return organizational_domain(identifier, walk(identifier, lookup)) == organization
