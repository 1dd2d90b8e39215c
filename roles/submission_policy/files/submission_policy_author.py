"""Who a message says it is from, and whether its sender may say so (RFC 5322 §3.6.2, RFC 6409 §6.1, RFC 5321 §3.3).

Pure functions: no sockets, no files, no milter. Submitted mail is written by our own people's programs, so everything
that two readers could understand in two ways is refused rather than guessed at: one From with one plain address, no
source routes, no quoted local parts, no comments but one at the end, no encoded words that hide an address.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

Header = tuple[str, bytes]
"""Name and value of a header field as the MTA hands it over; lines of the value are joined by LF or CRLF."""

MAX_AUTHOR_BYTES = 2000
"""Longest From, Sender or Resent-From; RFC 5322 §2.1.1 allows lines of 998."""
MAX_ADDRESS = 254
"""RFC 5321 §4.5.3.1.3 with the brackets taken off."""

AUTHOR_NAMES = ("from", "sender", "resent-from", "resent-sender")
"""The fields that name somebody as author or sender; each must name an address of the one who sends."""

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = rf"{_ATEXT}+(?:\.{_ATEXT}+)*@{_LABEL}(?:\.{_LABEL})+"
_WHOLE_ADDRESS = re.compile(_ADDRESS)
# The display name: atoms (dots and 8-bit characters are common and harmless), quoted strings and blanks. Possessive, so
# that no input takes long.
_NAME = r'(?:[^\x00-\x08\x0a-\x1f\x7f()<>\[\]:;@\\,"]|"(?:[^\x00-\x08\x0a-\x1f\x7f"\\]|\\[\x20-\x7e])*+")*+'
_COMMENT = r"\([^\x00-\x08\x0a-\x1f\x7f()\\<>]*\)"
_MAILBOX = re.compile(
    rf"(?:(?P<plain>{_ADDRESS})|(?!\.)(?P<name>{_NAME})<(?P<angle>{_ADDRESS})>)[ \t]*(?P<comment>{_COMMENT})?"
)
_FOLD = re.compile(r"\r?\n(?=[ \t])")
_FIELD_NAME = re.compile(r"[!-9;-~]+")
_ENCODED_WORD = re.compile(r"=\?([^\s?]*)\?([^\s?]*)\?([^?]*)\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)[ \t]+(?==\?)")
# What somebody reads as an address, whatever a parser says.
_ADDRESS_LIKE = re.compile(r"[^\s<>()\[\]:;@,']+@[^\s<>()\[\]:;@,'.\u3002]+[.\u3002][^\s<>()\[\]:;@,']+")
_QUOTES = re.compile(r'\\(.)|"')
_TRICKS = frozenset("\u061c\u200b\u200e\u200f\u2028\u2029\u2060\ufeff") | {
    chr(code) for first, last in ((0x202A, 0x202E), (0x2066, 0x2069)) for code in range(first, last + 1)
}
"""Characters that nobody sees and that turn a text round or split it: no name needs them, a forger does."""


class Refusal(Exception):
    """The message is not taken. The text is for the sender, in plain words and in ASCII; `kind` is for the counter."""

    def __init__(self, kind: str, text: str, code: str = "5.7.1") -> None:
        super().__init__(text)
        self.kind = kind
        self.code = code
        """Enhanced status code, RFC 3463: 5.7.1 not allowed, 5.6.0 malformed."""


@dataclass(frozen=True)
class Permitted:
    """The addresses somebody may use: `addresses` one by one and `domains` as a whole, all in lower case."""

    addresses: frozenset[str]
    domains: frozenset[str]
    delimiter: str = "+"
    """Between an address and its extension (user+tag@); empty: there are no extensions."""

    @classmethod
    def of(cls, entries: Collection[str], delimiter: str = "+") -> Permitted:
        """From entries as the data model has them: `user@domain` and `@domain`."""
        lower = [entry.lower() for entry in entries]
        return cls(
            frozenset(entry for entry in lower if not entry.startswith("@")),
            frozenset(entry[1:] for entry in lower if entry.startswith("@")),
            delimiter,
        )

    def allows(self, address: str) -> bool:
        """Whether an address, in any case, is one of these."""
        local, _at, domain = address.lower().rpartition("@")
        if not local or "=?" in address:
            return False
        bare = local.split(self.delimiter, 1)[0] if self.delimiter else local
        return domain in self.domains or not self.addresses.isdisjoint((f"{local}@{domain}", f"{bare}@{domain}"))


def show(text: str, length: int = 80) -> str:
    """A sender's words for a reply or a log line: printable ASCII, no percent sign for libmilter to take, not long."""
    safe = "".join(char if " " <= char <= "~" and char != "%" else "?" for char in text)
    return safe if len(safe) <= length else safe[: length - 3] + "..."


def is_address(text: str) -> bool:
    """Whether a text is a plain address: dot-atom local part, at least two labels of ASCII."""
    if not _WHOLE_ADDRESS.fullmatch(text) or len(text) > MAX_ADDRESS or "=?" in text:
        return False
    local, _at, domain = text.rpartition("@")
    return len(local) <= 64 and not domain.rpartition(".")[2].isdigit()


def _decoded_word(match: re.Match[str]) -> str:
    """The text of one encoded word (RFC 2047 §2). Raises Refusal for one that cannot be read."""
    charset, encoding, text = match[1].partition("*")[0], match[2].lower(), match[3]
    try:
        if encoding == "b":
            octets = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        elif encoding == "q":
            octets = binascii.a2b_qp(text.encode("ascii"), header=True)
        else:
            raise ValueError(f"encoding {encoding}")
        try:
            return octets.decode(charset, "replace")
        except LookupError:
            return octets.decode("latin-1")  # unknown to us: look for ASCII only
    except (ValueError, UnicodeError, binascii.Error):
        raise Refusal("encoded", "a header field has an encoded word that cannot be read", "5.6.0") from None


def displayed(text: str) -> str:
    """A display name as its reader sees it: encoded words decoded, also where RFC 2047 §5 does not allow them."""
    found = _ENCODED_WORD.sub(_decoded_word, _BETWEEN_WORDS.sub(r"\1", text))
    if "=?" in found and _ENCODED_WORD.search(found):  # encoded twice: somebody decodes twice, too
        found = _ENCODED_WORD.sub(_decoded_word, found)
    return found


def _check_displayed(field: str, text: str, permitted: Permitted) -> None:
    seen = displayed(_QUOTES.sub(r"\1", text))
    if any((unicodedata.category(char) == "Cc" and char != "\t") or char in _TRICKS for char in seen):
        raise Refusal("encoded", f"{field} hides control characters in the name", "5.6.0")
    plain = unicodedata.normalize("NFKC", seen)
    for other in _ADDRESS_LIKE.findall(plain):
        if not permitted.allows(other.strip(".'`")):
            raise Refusal("display", f"{field} shows the address {show(other)} as name, which is not yours")


def parse_mailbox(field: str, value: bytes) -> tuple[str, str]:
    """The address in a field that must hold exactly one, and the words around it (display name, comment).

    Raises Refusal for whatever is not plainly one mailbox of RFC 5322 §3.4.
    """
    if len(value) > MAX_AUTHOR_BYTES:
        raise Refusal("syntax", f"{field} is longer than {MAX_AUTHOR_BYTES} bytes", "5.6.0")
    try:
        text = _FOLD.sub("", value.decode("utf-8")).strip(" \t")
    except UnicodeDecodeError:
        raise Refusal("syntax", f"{field} has 8-bit characters that are not UTF-8", "5.6.0") from None
    if not text:
        raise Refusal("syntax", f"{field} is empty", "5.6.0")
    match = _MAILBOX.fullmatch(text)
    address = match and (match["plain"] or match["angle"])
    if match is None or not address or not is_address(address):
        raise Refusal("syntax", f"{field} must hold exactly one plain address: Name <user@domain>", "5.6.0")
    return address, f"{match['name'] or ''} {match['comment'] or ''}".strip()


def check_header(headers: Sequence[Header], permitted: Permitted, who: str) -> str:
    """The author's address of a message that its sender may send; raises Refusal for any other message.

    :param headers: all fields of the header, in their order.
    :param permitted: the addresses of the one who sends.
    :param who: that one's name for the text of a refusal.
    """
    found: dict[str, list[bytes]] = {name: [] for name in AUTHOR_NAMES}
    for name, value in headers:
        if not _FIELD_NAME.fullmatch(name):
            raise Refusal("header", f"a header field has a malformed name: {show(name, 30)}", "5.6.0")
        if name.lower() in found:
            found[name.lower()].append(value)
    if len(found["from"]) != 1:
        count = len(found["from"])
        raise Refusal(
            "count", f"the message has {count or 'no'} From field{'s'[: count > 1]}; it must have one", "5.6.0"
        )
    if len(found["sender"]) > 1:
        raise Refusal("count", "the message has more than one Sender field", "5.6.0")
    author = ""
    for name in AUTHOR_NAMES:
        field = name.title()
        for value in found[name]:
            address, words = parse_mailbox(field, value)
            if not permitted.allows(address):
                raise Refusal("address", f"{who} may not send as {show(address)} ({field})")
            _check_displayed(field, words, permitted)
            author = author or address
    return author


def check_envelope_sender(sender: str, permitted: Permitted, who: str) -> None:
    """Raises Refusal unless the envelope sender is one of the sender's addresses, or empty.

    The null sender belongs to replies that must not be answered (RFC 3834 §3.3, RFC 8098 §3); who may send those is
    seen from From.
    """
    address = sender.removeprefix("<").removesuffix(">")
    if address and not (is_address(address) and permitted.allows(address)):
        raise Refusal("envelope", f"{who} may not send as {show(address)} (envelope sender)")


def has(headers: Sequence[Header], name: str) -> bool:
    """Whether a field of that name, any case, is there."""
    return any(field.lower() == name for field, _value in headers)
