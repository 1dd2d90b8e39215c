"""Look at one mail and decide whether parsedmarc may have it.

Parts are taken in the order in which parsedmarc takes them: the first that unpacks to XML or JSON is the report. All
others are unpacked with the same limits, so that none hides behind a harmless one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from email import message_from_bytes
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

from parsedmarc_intake import authentication, report, unpack
from parsedmarc_intake.settings import Settings

#: A header of more bytes is not one of a report.
MAX_HEADER = 256 * 1024
#: Lines that look like header fields or boundaries; more would have the mail's parts fill the memory.
MAX_STRUCTURE = 50_000
_STRUCTURE = re.compile(rb"^(?:--|[!-9;=?-~][!-9;-~]{0,76}:)", re.MULTILINE)
_TEXT_FORM = "A message claiming to be from you has failed"

UNAUTHENTICATED = "unauthenticated"
TOO_LARGE = "too-large"
FAILURE = "failure-report"
#: Whatever a mail may be set aside for, with what an operator should know.
KINDS = {
    UNAUTHENTICATED: "the mail itself did not pass DMARC",
    TOO_LARGE: "the mail, or what comes out of it, is too large",
    report.TOO_MANY: "more records than can be stored in reasonable memory",
    report.HOSTILE: "a DOCTYPE, deep nesting: an attack",
    report.IMPLAUSIBLE: "figures or dates that cannot be true",
    report.NOT_A_REPORT: "neither an aggregate nor a TLS report",
    FAILURE: "a failure report (personal data), which this site does not take",
    "unexamined": "looking at it took too much time or memory, or failed",
    "invalid": "parsedmarc could not read it",
    "poison": "parsedmarc could not store it, again and again",
}


@dataclass(frozen=True)
class Verdict:
    """What is to become of a mail. ``kind`` None: it is let in."""

    kind: str | None
    reason: str = ""
    message_id: str = ""
    from_domain: str = ""
    subject: str = ""
    size: int = 0
    facts: report.Facts | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Verdict:
        """From JSON."""
        facts = values.get("facts")
        return cls(**values | {"facts": report.Facts(**facts) if facts else None})


def clean(text: object, length: int = 300) -> str:
    """A stranger's text for a log, a terminal or the database: no control characters, not too long."""
    shown = "".join(character if character.isprintable() else " " for character in str(text))
    return " ".join(shown.encode("utf-8", "replace").decode().split())[:length]


def _decoded(value: object) -> str:
    try:
        return str(make_header(decode_header(str(value))))
    except (MessageError, LookupError, ValueError):
        return str(value)


def _parts(message: Message) -> Iterator[Message]:
    return (part for part in message.walk() if part.get_content_maintype() != "multipart")


def _contents(part: Message) -> list[bytes]:
    """What a part may hold: as its encoding says, and as parsedmarc, which takes everything for base64, reads it."""
    payload = part.get_payload()
    if isinstance(payload, list):
        return []
    decoded = part.get_payload(decode=True)
    found = [decoded] if isinstance(decoded, bytes) else []
    if str(part.get("Content-Transfer-Encoding", "")).strip().lower() != "base64":
        with suppress(binascii.Error, ValueError):
            found.insert(0, base64.b64decode(str(payload).encode("ascii", "replace")))
    return found


def _is_packed(data: bytes) -> bool:
    return data.startswith((unpack.GZIP, unpack.ZIP))


class _Reader:
    """Reads one mail's parts."""

    def __init__(self, settings: Settings, now: float | None) -> None:
        self.settings = settings
        self.now = now
        self.left = settings.max_unpacked
        self.broken: str | None = None

    def look_into(self, data: bytes, as_tls: bool) -> report.Facts | None:
        """The report in some data; None if there is none. Raises Refused."""
        try:
            content = unpack.unpack(data, self.left)
        except unpack.TooLarge as error:
            raise report.Refused(TOO_LARGE, str(error)) from error
        except unpack.Unreadable as error:
            self.broken = self.broken or str(error)
            return None
        if _is_packed(data):
            self.left -= len(content)
        start = content[:4096].decode("utf-8", "ignore").replace("\0", "").lstrip("\ufeff \t\r\n")
        if not start and len(content) > 4096:
            start = content[:1_000_000].decode("utf-8", "ignore").lstrip()[:1]
        if _is_packed(content):
            self.broken = self.broken or "There is an archive in the archive."
            return None
        if start.startswith("{") or (as_tls and start):
            return report.tls(content, self.settings.max_records, self.now)
        if start.startswith("<"):
            return report.aggregate(content, self.settings.max_records, self.now)
        if _is_packed(data):
            self.broken = self.broken or "What is in the archive is neither XML nor JSON."
        return None

    def read(self, message: Message) -> report.Facts:
        """What the mail reports. Raises Refused."""
        found: report.Facts | None = None
        failure = False
        for part in _parts(message):
            kind = part.get_content_type().lower()
            if kind == "text/html":
                continue
            if kind == "message/feedback-report":
                failure = True
                continue
            if kind == "text/plain":
                failure = failure or _TEXT_FORM in str(part.get_payload())
                continue
            as_tls = kind.startswith("application/tlsrpt")
            for data in _contents(part):
                if found is not None and not _is_packed(data):
                    continue
                facts = self.look_into(data, as_tls)
                found = found or facts
        if found is not None:
            return found
        if failure:
            if not self.settings.failure_reports:
                raise report.Refused(
                    FAILURE, "It is a failure report: parts of somebody's mail. This site does not take them."
                )
            return report.Facts("failure")
        raise report.Refused(report.NOT_A_REPORT, self.broken or "No part of it is a DMARC or TLS report.")


def examine(path: Path, settings: Settings, *, authenticate: bool = True, now: float | None = None) -> Verdict:
    """Decide about the mail in a file. ``authenticate``: ask for a DMARC pass; an operator's release does not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    header = BytesHeaderParser().parsebytes(head)
    domains = authentication.from_domains(header)
    known = {
        "message_id": clean(header.get("Message-ID", "")),
        "from_domain": clean(domains[0]) if domains else "",
        "subject": clean(_decoded(header.get("Subject", ""))),
        "size": size,
    }
    if not head.strip():
        return Verdict(report.NOT_A_REPORT, "The mail is empty.", **known)
    if len(head) == MAX_HEADER and not re.search(rb"\r?\n\r?\n", head):
        return Verdict(report.NOT_A_REPORT, f"Its header has more than {MAX_HEADER} bytes.", **known)
    if authenticate:
        reason = authentication.problem(header, settings.authserv_id, settings.accept_unauthenticated)
        if reason:
            return Verdict(UNAUTHENTICATED, reason, **known)
    if size > settings.max_mail:
        return Verdict(TOO_LARGE, f"The mail has {size} bytes; {settings.max_mail} are allowed.", **known)
    data = path.read_bytes()
    if sum(1 for _ in _STRUCTURE.finditer(data)) > MAX_STRUCTURE:
        return Verdict(report.NOT_A_REPORT, "It has too many parts or header fields to be a report.", **known)
    message = message_from_bytes(data)
    del data
    try:
        return Verdict(None, facts=_Reader(settings, now).read(message), **known)
    except report.Refused as refused:
        return Verdict(refused.kind, clean(refused.reason), facts=refused.facts, **known)
