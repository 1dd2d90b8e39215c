"""A message as octets on the way to the mail system (RFC 5321), and what one member's copy has of its own in it.

A post to 10,000 members is written out once. Each copy is then the same octets with a few header lines between header
and body; nothing is parsed, copied or folded again. Nothing here knows Mailman.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from email.generator import BytesGenerator
from email.message import Message
from io import BytesIO

CRLF = b"\r\n"
END = b".\r\n"
_LARGE = 1 << 18
_STRAY = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_LEADING_DOT = re.compile(rb"(?m)^\.")


@dataclass(frozen=True)
class Copy:
    """A copy of a message: ``head`` up to the last header line, ``own`` lines, ``rest`` from the empty line on.

    All three end in CRLF; ``head`` and ``rest`` are dot-stuffed. ``size`` is the size before that.
    """

    head: bytes
    rest: bytes
    size: int
    own: bytes = b""

    def with_own(self, lines: bytes) -> Copy:
        """The same copy with header lines of its own; they end in CRLF and none begins with a dot."""
        return replace(self, own=lines)

    def pieces(self) -> Iterator[bytes]:
        """What is sent after the reply to DATA, with the final dot: in one piece, unless it is large."""
        if len(self.rest) < _LARGE:
            yield self.head + self.own + self.rest + END
            return
        yield self.head + self.own
        yield self.rest
        yield END

    def octets(self) -> bytes:
        """The copy as a whole, without dot-stuffing."""
        return re.sub(rb"(?m)^\.\.", b".", self.head + self.own + self.rest)

    def __len__(self) -> int:
        return self.size + len(self.own)


def written(message: Message) -> bytes:
    """The message as octets with CRLF, as ``smtplib.SMTP.send_message`` writes it: without Bcc and Resent-Bcc.

    Raises whatever ``email`` raises for a header that it cannot write.
    """
    shallow = copy(message)
    del shallow["Bcc"]
    del shallow["Resent-Bcc"]
    out = BytesIO()
    try:
        BytesGenerator(out, mangle_from_=False).flatten(shallow, linesep="\r\n")
    except (KeyError, LookupError, UnicodeError):
        # as_bytes() of Mailman's own class works around characters and character sets that email stumbles over.
        return mended(shallow.as_bytes())
    return out.getvalue()


def has_stray_line_ends(octets: bytes) -> bool:
    """Whether a CR or LF stands alone, which RFC 5321 §2.3.8 forbids and by which messages are smuggled."""
    return _STRAY.search(octets) is not None


def mended(octets: bytes) -> bytes:
    """The octets with every CR or LF that stands alone made a line end."""
    return _STRAY.sub(CRLF, octets)


def as_copy(octets: bytes) -> Copy:
    """A message, CRLF throughout, as a copy without own lines."""
    if not octets.endswith(CRLF):
        octets += CRLF
    # A message without header fields begins with the empty line, one without a body ends with its header.
    end = 0 if octets.startswith(CRLF) else octets.find(b"\r\n\r\n") + 2
    if end == 1:
        octets, end = octets + CRLF, len(octets)
    return Copy(_stuffed(octets[:end]), _stuffed(octets[end:]), len(octets))


def one_click(url: str, leave_address: str) -> bytes:
    """The two header fields of RFC 8058 §3.1: the https URI first, the mailto of RFC 2369 kept behind it."""
    for part in (url, leave_address):
        if not part.isascii() or any(character in part for character in " \t\r\n<>,"):
            raise ValueError(f"{part!r} cannot stand in List-Unsubscribe")
    return (
        f"List-Unsubscribe: <{url}>,\r\n <mailto:{leave_address}>\r\n"
        "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    ).encode()


def _stuffed(octets: bytes) -> bytes:
    return _LEADING_DOT.sub(b"..", octets) if octets.startswith(b".") or b"\n." in octets else octets
