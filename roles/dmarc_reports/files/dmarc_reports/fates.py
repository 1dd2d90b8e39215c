"""What became of a report: the words of Postfix and of receivers, and what they make of a delivery.

Fates follow the enhanced status code first (RFC 3463, RFC 5248), and the words of the answer where the code says too
little or where a large receiver uses it in its own way. A deferral is a fate for the time being: what was said last
decides when Postfix gives the mail up.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

MAX_REPLY = 400

# --- words and codes


class Rule(NamedTuple):
    """The first rule that fits gives the fate: both parts must fit where both are given."""

    fate: str
    codes: str = ""
    """Pattern of the enhanced code without its class: `2.2`."""
    words: str = ""


def _compiled(*rules: Rule) -> tuple[tuple[str, re.Pattern[str] | None, re.Pattern[str] | None], ...]:
    return tuple(
        (
            rule.fate,
            re.compile(rule.codes) if rule.codes else None,
            re.compile(rule.words, re.IGNORECASE) if rule.words else None,
        )
        for rule in rules
    )


LOCAL_RULES = _compiled(
    Rule("no_mx", words=r"^Domain \S+ does not accept mail|\(nullMX\)"),
    Rule("unreachable", words=r"Name service error for name=\S+ type=\w+: (Host not found, try again|Malformed)"),
    Rule("nxdomain", words=r"Name service error for name=\S+ type=\w+: Host not found"),
    Rule("no_mx", words=r"Name service error for name=\S+ type=\w+: Host found but no data record"),
    Rule("no_mx", words=r"^mail for \S+ loops back to myself|unable to find primary relay|numeric domain name"),
    Rule("no_mx", words=r"^(Unable to look up|unable to look up) host|no (usable|valid) (MX|mail exchanger)"),
    Rule("too_large", words=r"^message size \d+ exceeds size limit \d+ of server"),
    Rule(
        "tls",
        words=r"^TLS is required|^Cannot start TLS|Server certificate not (verified|trusted)|handshake failure"
        r"|^STARTTLS|no TLSA|^TLSA|non DNSSEC destination|^policy .*TLS|certificate verif|MTA-STS",
    ),
    Rule(
        "unreachable",
        words=r"^connect to \S+: |^lost connection with |^conversation with .* timed out|timed out while"
        r"|no route to host|network is unreachable|connection (refused|timed out|reset)",
    ),
    Rule("tls", codes=r"7\.[45]|7\.10"),
    Rule("no_mx", codes=r"1\.10"),
    Rule("nxdomain", codes=r"4\.4"),
    Rule("too_large", codes=r"3\.4"),
    Rule("unreachable", codes=r"4\.[1-3]"),
)
"""What our own Postfix says when no server has spoken."""

_FULL = (
    r"(mail|in)box (is |has been |was )?(currently |temporarily )?(full|exceeded)|over ?-?quota"
    r"|quota (is )?(exceeded|full)|exceed\w* (\w+ ){0,4}(quota|storage)|out of (storage|space)"
    r"|mailbox (size|quota|storage)|not enough (space|storage)|insufficient (disk|storage|space)|\boverquota\b"
)
_NOBODY = (
    r"(user|recipient|address|mailbox|account|alias)( name)?( address)?( is| was)? (unknown"
    r"|not (found|exist|known|listed)"
    r"|doesn'?t exist|does not exist|disabled|inactive|suspended|expired|invalid)"
    r"|(unknown|invalid|no such|not a (known|valid)|non-?existent|bad|inactive) (\w+ )?(user|recipient|address|mailbox"
    r"|account|local[ -]part)"
    r"|does(n'?t| not) (exist|have an? \S+ account|like recipient)|RecipientNotFound|RecipNotFound|no mailbox (here|by)"
    r"|account that you tried to reach (is|does)|mailbox unavailable|mailbox not found|not our customer"
    r"|recipient address rejected: access denied|user (doesn'?t|does not) (have|exist)|unrouteable address"
    r"|delivery error: dd this user"
)
_LARGE = (
    r"(message|mail|size|content)[^;]{0,40} (too (large|big)|exceed\w*[^;]{0,30}(size|limit|maximum))"
    r"|size limit (was )?exceeded|exceeds? (the )?(maximum|max\.?|fixed|allowed|message) (\w+ ){0,2}size"
    r"|too (large|big) message"
)
_TLS = (
    r"must issue (a )?STARTTLS|STARTTLS (is )?(required|first)"
    r"|(TLS|encryption|secure connection) (is )?(required|needed)"
    r"|require\w* (TLS|encryption|STARTTLS)|insecure connection"
)
_RELAY = (
    r"relay(ing)? (access )?(is )?(denied|not (permitted|allowed)|prohibited)|unable to relay|not permitted to relay"
    r"|we do not relay|relaying temporarily denied|domain (is )?not (hosted|served|configured|found) here"
    r"|(unknown|invalid) domain|rcpthosts|mail for \S+ is not accepted"
)
_SPAM = (
    r"\bspam|unsolicited|\bbulk\b|block(ed|list|ing)|black ?list|\bRBL\b|DNSBL|spamhaus|barracuda|reputation"
    r"|polic(y|ies)|\bDMARC\b|\bDKIM\b|\bSPF\b|authenticat|unauthenticated|banned|prohibited content"
    r"|content (was )?rejected|virus|malware|attachment|complaints|reverse (DNS|lookup)|\bPTR\b"
    r"|administrative(ly)? prohibit|not accepted .* sender"
)
_BUSY = r"gr[ea]y ?-?list|try (again )?later|too (many|fast|frequent|quickly)|rate (limit|is)"

REMOTE_RULES = _compiled(
    # codes that receivers use in a way of their own
    Rule(
        "no_mailbox",
        r"1\.10|4\.1|5\.0|7\.1|0\.0|3\.0",
        r"RecipNotFound|RecipientNotFound|recipient address rejected: access",
    ),
    Rule("mailbox_full", r"[124]\.\d+|7\.1|0\.0|3\.0|3\.1|5\.[02]", _FULL),
    Rule("no_mailbox", r"2\.[01]|4\.1|4\.4|5\.[0124]|7\.1|7\.0|0\.0|3\.0|3\.5", _NOBODY),
    Rule("tls", r"7\.\d+|5\.1|0\.0", _TLS),
    Rule("refused", r"7\.[01]|4\.[14]|1\.[28]|5\.0|0\.0", _RELAY),
    Rule("spam_policy", r"[234]\.\d+|5\.0|0\.0|1\.8", r"\bspam\b|spamhaus|blocklist|blacklist|DMARC|unsolicited"),
    # RFC 3463, RFC 5248 and the registry
    Rule("mailbox_full", r"2\.2$"),
    Rule("too_large", r"2\.3$|3\.4$"),
    Rule("no_mx", r"1\.10$"),
    Rule("nxdomain", r"1\.2$"),
    Rule("no_mailbox", r"1\.[1346]$|2\.1$|7\.17$"),
    Rule("tls", r"7\.[45]$|7\.1[01]$"),
    Rule("refused", r"7\.18$"),
    Rule("spam_policy", r"7\.\d+$|1\.8$"),
    Rule("expired", r"4\.7$"),
    Rule("unreachable", r"4\.[1-3]$"),
    # words alone
    Rule("mailbox_full", words=_FULL),
    Rule("no_mailbox", words=_NOBODY),
    Rule("too_large", words=_LARGE),
    Rule("tls", words=_TLS),
    Rule("refused", words=_RELAY),
    Rule("spam_policy", words=_SPAM),
)
"""What a receiver says."""

_TEMPORARY = frozenset({"mailbox_full", "no_mailbox", "too_large", "tls", "no_mx", "nxdomain"})
_SAID = re.compile(
    r"^host (?P<host>\S+?)\[[^\]]*\](?::\d+)? (?P<how>said|refused to talk to me): (?P<reply>.*?)"
    r"(?: \(in reply to [^)]*\))?$",
    re.DOTALL,
)
_NAME = re.compile(r"Name service error for name=(\S+)")
_SUSPENDED = re.compile(r"^(?:delivery temporarily suspended: )+")
_BASIC = re.compile(r"^([245]\d\d)(?=[ -]|$)")
_ENHANCED = re.compile(r"(?<![0-9.])([245]\.\d{1,3}\.\d{1,3})(?![0-9.]*\d)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


def short(text: str) -> str:
    """An answer without control characters and with a bounded length."""
    cleaned = " ".join(_CONTROL.sub(" ", text).split())
    return cleaned if len(cleaned) <= MAX_REPLY else cleaned[: MAX_REPLY - 1] + "…"


def enhanced_code(text: str) -> str | None:
    """The first enhanced status code in an answer."""
    found = _ENHANCED.search(text)
    return found[1] if found else None


def _first(
    rules: Iterable[tuple[str, re.Pattern[str] | None, re.Pattern[str] | None]], code: str, text: str
) -> str | None:
    for fate, codes, words in rules:
        if (codes is None or codes.match(code)) and (words is None or words.search(text)):
            return fate
    return None


def classify(dsn: str | None, text: str, *, remote: bool | None = None, domain: str | None = None) -> str:
    """The fate of a mail that was given up, by its last status code and answer.

    `text` is what Postfix has in brackets, or a diagnostic text. `remote` says whose words they are; None: Postfix's
    own where it does not name a host that said them. `domain` is the recipient's: if another name does not exist, that
    is the domain's mail server's.
    """
    text = _SUSPENDED.sub("", " ".join(text.split()))
    said = _SAID.match(text)
    if said is not None:
        text, remote = said["reply"], True
    elif remote is None:
        remote = bool(_BASIC.match(text))
    own_code = enhanced_code(text) if remote else None
    if own_code and (not dsn or dsn.endswith(".0.0")):
        dsn = own_code
    dsn = dsn or ""
    code = dsn.partition(".")[2] if re.fullmatch(r"[245]\.\d+\.\d+", dsn) else "0.0"
    basic = _BASIC.match(text)
    temporary = basic[1].startswith("4") if basic else dsn.startswith("4")
    if not remote:
        fate = _first(LOCAL_RULES, code, text) or ("expired" if temporary else "refused")
        name = _NAME.search(text)
        other = domain is not None and name is not None and name[1].lower() != domain.lower()
        return "no_mx" if fate == "nxdomain" and other else fate
    fate = _first(REMOTE_RULES, code, text)
    if fate is None and basic and basic[1] == "552" and own_code is None:
        fate = "too_large"
    if not temporary:
        return fate or "refused"
    if fate in _TEMPORARY and not re.search(_BUSY, text, re.IGNORECASE):
        return fate
    if fate == "spam_policy" and re.search(_SPAM, text, re.IGNORECASE) and not re.search(_BUSY, text, re.IGNORECASE):
        return fate
    return "expired"


# --- lines


@dataclass(frozen=True)
class Entry:
    """A line of the journal."""

    cursor: str
    at: datetime
    program: str
    """`smtp` of `postfix/smtp`."""
    text: str


QUEUED = re.compile(r"^([0-9A-Za-z]{5,24}): from=<([^>]*)>, (?:size=|status=(?P<gone>(?:force-)?expired))")
_RESULT = re.compile(
    r"^(?P<queue_id>[0-9A-Za-z]{5,24}): to=<(?P<to>[^>]*)>, (?:orig_to=<(?P<orig>[^>]*)>, )?relay=(?P<relay>[^,]*), "
    r"(?:[a-z_]+=[^,=]*, )*?dsn=(?P<dsn>[245]\.\d+\.\d+), status=(?P<status>[a-z-]+)(?: \((?P<reply>.*)\))?$",
    re.DOTALL,
)
_REMOVED = re.compile(r"^([0-9A-Za-z]{5,24}): removed$")
_AGAIN = re.compile(r"queued as ([0-9A-Za-z]{5,24})\b")
_RELAY_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+)\](?::\d+)?$")


@dataclass
class Track:
    """A delivery whose mail is in Postfix's hands."""

    id: int
    recipient: str
    queue_id: str | None
    envelope_from: str
    fate: str | None
    dsn: str | None
    reply: str | None
    settled_at: datetime | None = None
    changed: bool = False

    @property
    def domain(self) -> str:
        """The recipient's."""
        return self.recipient.rpartition("@")[2]

    def settle(self, fate: str | None, at: datetime) -> None:
        """The fate is known for good; None: it never will be."""
        self.fate, self.settled_at, self.changed = fate, at, True


def here(relay: str) -> bool:
    """Whether a relay, as Postfix logs it, is this very host."""
    found = _RELAY_ADDRESS.search(relay)
    try:
        return found is not None and ipaddress.ip_address(found[1]).is_loopback
    except ValueError:
        return False


def concerns(result: re.Match[str], track: Track) -> bool:
    """Whether a line is about this recipient; a short queue identifier may have another mail by now."""
    wanted = track.recipient.lower()
    return wanted in (result["to"].lower(), (result["orig"] or "").lower())


def apply(track: Track, entry: Entry) -> None:
    """What a line says about a delivery that is not settled and has its queue identifier."""
    if track.settled_at is not None:
        return
    if result := _RESULT.match(entry.text):
        if result["queue_id"] != track.queue_id or not concerns(result, track):
            return
        reply = result["reply"] or ""
        again = _AGAIN.search(reply)
        if result["status"] == "sent" and here(result["relay"]) and again:
            track.queue_id, track.changed = again[1], True
            return
        track.dsn, track.reply, track.changed = result["dsn"], short(reply), True
        match result["status"]:
            case "sent" if entry.program == "discard":
                track.settle(None, entry.at)
            case "sent":
                track.settle("taken", entry.at)
            case "bounced" | "undeliverable" | "expired":
                track.settle(classify(track.dsn, reply, domain=track.domain), entry.at)
            case "deferred":
                track.fate = "deferred"
        return
    if (queued := QUEUED.match(entry.text)) and queued["gone"] and queued[1] == track.queue_id:
        given_up(track, entry.at, "expired")
    elif (removed := _REMOVED.match(entry.text)) and removed[1] == track.queue_id:
        given_up(track, entry.at, "removed from our queue without a result")


def given_up(track: Track, at: datetime, why: str) -> None:
    """There will be no more tries: what was said last decides."""
    if track.fate == "deferred":
        track.settle(classify(track.dsn, track.reply or "", domain=track.domain), at)
    elif why == "expired":
        track.reply = track.reply or "expired in our queue"
        track.settle("expired", at)
    else:
        track.reply = why
        track.settle(None, at)


def entries(lines: Iterable[bytes], syslog_name: str) -> Iterator[Entry]:
    """Journal lines in JSON, one a line; what cannot be read is left out."""
    for line in lines:
        try:
            item: dict[str, Any] = json.loads(line)
            text = item["MESSAGE"]
            if isinstance(text, list):
                text = bytes(text).decode("utf-8", "replace")
            at = datetime.fromtimestamp(int(item["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
            identifier = str(item.get("SYSLOG_IDENTIFIER", ""))
            if isinstance(text, str) and identifier.startswith(f"{syslog_name}/"):
                yield Entry(str(item["__CURSOR"]), at, identifier.rpartition("/")[2], text)
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            continue
