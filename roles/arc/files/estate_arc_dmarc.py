"""DMARC as RFC 9989 defines it, for the record only: one event per message, from which aggregate reports are made.

rspamd decides what happens to a message. It finds organizational domains by the Public Suffix List, and its own report
data loses results; so the raw SPF and DKIM results are taken from its Authentication-Results and the rest is worked
out here: the policy record by tree walk (RFC 9989 §4.10), alignment, the policy asked for, and what was done instead.
An event holds domains, never a local part of an address, except inside the domain owner's own published record.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from estate_arc_chain import AuthenticationResults, Header, Trust, author_domain
from estate_arc_policy import Policy, TemporaryDnsError, TxtLookup, aligned, discover, normal_domain


@dataclass(frozen=True)
class Envelope:
    """What SMTP said: addresses and names as received, the client's address, and our own name."""

    gateway: str
    source_ip: str
    helo: str
    sender: str
    recipients: tuple[str, ...]


def address_domain(address: str) -> str:
    """The domain of an envelope address; empty for the null sender and for what is no address."""
    _, at, domain = address.strip().removeprefix("<").removesuffix(">").rpartition("@")
    return normal_domain(domain) if at else ""


def author_of(headers: Sequence[Header], results: AuthenticationResults) -> str:
    """The author domain: that of the From field; what rspamd names only where the field cannot be read here.

    rspamd writes the domain whose policy it found into `header.from`, which is another one for mail of a subdomain.
    """
    claimed = results.of("dmarc")
    return author_domain(headers) or (normal_domain(claimed[0].properties.get("header.from", "")) if claimed else "")


def _spf(results: AuthenticationResults, envelope: Envelope) -> dict[str, Any] | None:
    found = results.of("spf")
    if not found:
        return None
    properties = found[0].properties
    sender = properties.get("smtp.mailfrom", "")
    domain = normal_domain(sender.rpartition("@")[2]) or address_domain(envelope.sender)
    if domain and address_domain(envelope.sender):
        return {"domain": domain, "scope": "mfrom", "result": found[0].result, "aligned": False}
    helo = normal_domain(properties.get("smtp.helo", "").rpartition("@")[2]) or domain or normal_domain(envelope.helo)
    return {"domain": helo, "scope": "helo", "result": found[0].result, "aligned": False}


def _dkim(results: AuthenticationResults) -> list[dict[str, Any]]:
    signatures = []
    for result in results.of("dkim")[:100]:
        domain = result.properties.get("header.d") or result.properties.get("header.i", "").rpartition("@")[2]
        if domain:
            selector = result.properties.get("header.s", "")
            # rspamd says none where there is no key; none is for mail without a signature (RFC 6376 §6.1.2, RFC 8601)
            said = "permerror" if result.result == "none" else result.result
            signatures.append({"domain": normal_domain(domain), "selector": selector, "result": said, "aligned": False})
    return signatures


def build_event(
    envelope: Envelope,
    author: str,
    results: AuthenticationResults,
    *,
    lookup: TxtLookup,
    exists: Callable[[str], bool],
    arc: str,
    trust: Trust,
    quarantined: bool,
    now: float,
) -> dict[str, Any]:
    """The DMARC event of one accepted message; fields in docs/arc.md.

    `author` is the From domain, `results` rspamd's, `arc` none, pass or fail, `quarantined` whether it is marked.
    Never raises for a DNS failure: `dns` says "temperror" then, and what could not be found out is missing.
    """
    spf, dkim = _spf(results, envelope), _dkim(results)
    claimed = results.of("dmarc")
    policy: Policy | None = None
    dns = "ok"
    try:
        policy = discover(author, lookup, exists)
        if policy is not None:
            if spf and spf["result"] == "pass":
                spf["aligned"] = aligned(spf["domain"], author, policy.record.aspf, lookup)
            for signature in dkim:
                if signature["result"] == "pass":
                    signature["aligned"] = aligned(signature["domain"], author, policy.record.adkim, lookup)
    except TemporaryDnsError:
        dns = "temperror"
    passed = any(item["aligned"] for item in (*dkim, *([spf] if spf else [])))
    if policy is None:
        outcome = "none" if dns == "ok" else "temperror"
    else:
        outcome = "pass" if passed else ("fail" if dns == "ok" else "temperror")
    disposition, overrides = _disposition(policy, outcome, trust, quarantined=quarantined)
    return {
        "version": 1,
        "id": str(uuid.uuid4()),
        "time": int(now),
        "gateway": envelope.gateway,
        "source_ip": envelope.source_ip,
        "helo": normal_domain(envelope.helo),
        "envelope_from": address_domain(envelope.sender),
        "envelope_to": sorted({domain for address in envelope.recipients if (domain := address_domain(address))}),
        "header_from": author,
        "dns": dns,
        "policy": policy and _policy_fields(policy),
        "spf": spf,
        "dkim": dkim,
        "dmarc": outcome,
        "rspamd_dmarc": claimed[0].result if claimed else None,
        "disposition": disposition,
        "overrides": overrides,
        "arc": {"result": arc, "trusted": trust.trusted, "dmarc": trust.dmarc},
    }


def _policy_fields(policy: Policy) -> dict[str, str]:
    record = policy.record
    return {
        "domain": record.domain,
        "record": record.text,
        "discovery_method": "treewalk",
        "p": record.p,
        "sp": record.sp,
        "np": record.np,
        "adkim": record.adkim,
        "aspf": record.aspf,
        "t": record.t,
        "psd": record.psd,
        "applied": policy.applied,
        "requested": policy.requested,
    }


def _disposition(
    policy: Policy | None, outcome: str, trust: Trust, *, quarantined: bool
) -> tuple[str, list[dict[str, str]]]:
    """What was done with an accepted message, and why it differs from what was asked (RFC 9990 §3.1.1.5 ff.)."""
    if outcome == "pass":
        return "pass", []
    if policy is None or outcome != "fail":
        return "none", []
    overrides = []
    if policy.requested != policy.published:
        overrides.append({"type": "policy_test_mode", "comment": ""})
    done = "quarantine" if quarantined and policy.requested != "none" else "none"
    if done != policy.requested:
        if trust.trusted and trust.dmarc == "pass":
            overrides.append({"type": "trusted_forwarder", "comment": "ARC"})
        elif done == "quarantine":
            overrides.append({"type": "local_policy", "comment": "not refused on p=reject alone (RFC 9989 7.4)"})
        else:
            overrides.append({"type": "local_policy", "comment": ""})
    return done, overrides


class EventSpool:
    """Appends events to a file per worker and hour, `<UTC hour>.<worker>.jsonl`, below a size for the whole directory.

    Each event is one write(2) of one line, so that a killed worker leaves whole lines. There is no fsync: after a crash
    of the whole machine the last half minute may be missing, which costs a report a few rows and mail nothing.
    """

    CHECK_SECONDS = 10.0

    def __init__(self, directory: str, worker: str, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        """`max_bytes` is for all files in the directory together, whoever wrote them."""
        self._directory, self._worker, self._max_bytes, self._clock = directory, worker, max_bytes, clock
        self._lock = threading.Lock()
        self._descriptor, self._hour = -1, ""
        self._room, self._checked = 0, float("-inf")
        self.used = 0

    def write(self, event: dict[str, Any]) -> bool:
        """Append one event; False where the directory is full or broken. Never raises, never waits for a disk."""
        line = json.dumps(event, ensure_ascii=True, separators=(",", ":")).encode("ascii", "replace") + b"\n"
        with self._lock:
            try:
                return self._append(line)
            except OSError:
                self._close()
                return False

    def _append(self, line: bytes) -> bool:
        now = self._clock()
        if not 0 <= now - self._checked < self.CHECK_SECONDS:
            self.used = directory_bytes(self._directory)
            self._room, self._checked = self._max_bytes - self.used, now
        if len(line) > self._room:
            return False
        hour = time.strftime("%Y%m%dT%H", time.gmtime(now))
        if hour != self._hour or self._descriptor < 0:
            self._close()
            path = os.path.join(self._directory, f"{hour}.{self._worker}.jsonl")
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._hour = hour
        size = os.fstat(self._descriptor)
        if size.st_nlink == 0:  # the reader has taken the file away
            self._close()
            return self._append(line)
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, size.st_size)
            return False
        self._room -= len(line)
        return True

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._hour = -1, ""


def directory_bytes(directory: str) -> int:
    """Size of the files in a directory; one that goes away meanwhile counts nothing."""
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return total
