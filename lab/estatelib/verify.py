"""Check what the estate claims about a message with engines other than its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import authres
import authres.arc
import authres.dmarc
import dkim
import dns.resolver

from .hosts import Host
from .mailboxes import Delivery
from .places import AUTHSERV_ID, NAME_SERVER

_FEATURES = authres.FeatureContext(authres.arc, authres.dmarc)
_resolver = dns.resolver.Resolver(configure=False)
_resolver.nameservers = [NAME_SERVER]
_resolver.lifetime = 5

# Mail::DKIM has no command of its own for ARC; it reads the message from stdin and answers as JSON.
_MAIL_DKIM = r"""
use strict; use warnings; use JSON::PP; use Net::DNS; use Mail::DKIM::DNS;
use Mail::DKIM::Verifier; use Mail::DKIM::ARC::Verifier;
my ($what, $server) = @ARGV;
Mail::DKIM::DNS::resolver(Net::DNS::Resolver->new(nameservers => [$server], udp_timeout => 5));
my $verifier = $what eq "arc" ? Mail::DKIM::ARC::Verifier->new() : Mail::DKIM::Verifier->new();
binmode STDIN; local $/; my $message = <STDIN>; $message =~ s/\r?\n/\r\n/g;
$verifier->PRINT($message); $verifier->CLOSE;
print encode_json({result => $verifier->result, detail => $verifier->result_detail});
"""


@dataclass(frozen=True)
class Verdict:
    """The results of one Authentication-Results header; ``None`` where a method is not mentioned."""

    spf: str | None
    dkim: str | None
    dmarc: str | None
    arc: str | None
    text: str


@dataclass(frozen=True)
class ArcResult:
    """What a verifier says of an ARC chain."""

    cv: str  # "pass", "fail" or "none"
    instances: int
    detail: str


def auth_results(delivery: Delivery) -> Verdict:
    """Return the results the estate wrote on top of a message (RFC 8601); there must be exactly one such header."""
    ours = [
        (text, parsed)
        for text in delivery.headers("Authentication-Results")
        if (parsed := _parse(text)) and parsed.authserv_id == AUTHSERV_ID
    ]
    assert len(ours) == 1, f"expected one Authentication-Results of {AUTHSERV_ID}: {[text for text, _ in ours]}"
    text, parsed = ours[0]
    found: dict[str, str] = {}
    for result in parsed.results:
        if found.get(result.method) != "pass":  # one good signature of several is enough
            found[result.method] = result.result
    return Verdict(found.get("spf"), found.get("dkim"), found.get("dmarc"), found.get("arc"), text)


def _parse(text: str) -> authres.AuthenticationResultsHeader | None:
    try:
        return _FEATURES.parse(f"Authentication-Results: {text}")
    except authres.core.AuthResError:
        assert not text.startswith(AUTHSERV_ID), f"our Authentication-Results is not well-formed: {text}"
        return None


def arc_verify(delivery: Delivery, engine: str = "dkimpy") -> ArcResult:
    """Verify the ARC chain with ``dkimpy`` (here) or ``Mail::DKIM`` (in lab-world)."""
    instances = len(delivery.headers("ARC-Seal"))
    if engine == "dkimpy":
        cv, _, reason = dkim.arc_verify(delivery.raw, dnsfunc=_txt)
        return ArcResult(cv.decode() if cv else "none", instances, reason)
    answer = _mail_dkim(delivery, "arc")
    return ArcResult(answer["result"], instances, answer["detail"])


def dkim_verify(delivery: Delivery, engine: str = "dkimpy", signature: int = 0) -> bool:
    """Tell whether a DKIM signature is still valid: the topmost one, or for dkimpy the one counted from there."""
    if engine == "dkimpy":
        try:
            return dkim.DKIM(delivery.raw).verify(idx=signature, dnsfunc=_txt)
        except dkim.DKIMException:
            return False
    return _mail_dkim(delivery, "dkim")["result"] == "pass"


def _mail_dkim(delivery: Delivery, what: str) -> dict:
    text = delivery.raw.decode("utf-8")
    return json.loads(Host("world").run("perl", "-e", _MAIL_DKIM, what, NAME_SERVER, stdin=text))


def lookup(name: str, kind: str) -> list[str]:
    """Return the records the lab's name server publishes, as text without quotes; none is an empty list."""
    try:
        answer = _resolver.resolve(name, kind, search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    if kind == "TXT":
        return [b"".join(record.strings).decode() for record in answer]
    return [re.sub(r"\.$", "", record.to_text()) for record in answer]


def _txt(name: bytes | str, timeout: float = 5) -> bytes | None:
    """Answer dkimpy's key queries from the lab's name server."""
    found = lookup(name.decode() if isinstance(name, bytes) else name, "TXT")
    return found[0].encode() if found else None
