"""The From, Reply-To and Cc of a post whose From must be rewritten (list action ``munge_from`` or ``wrap_message``).

Which field gets what is as in stock Mailman (``mailman/handlers/dmarc.py``): From names the author "via" the list and
carries the list's address; the author's address goes to Reply-To, or to Cc where replies go to the list. Written anew
because the stock code raises – and thereby shunts the post – on a name that the list's character set does not know, on
an unknown character set and on broken base64, lets line breaks out of an encoded name into the header, and makes
encoded words longer than the 75 characters of RFC 2047 §2. Names are encoded in UTF-8 here.

For the same reasons Mailman reads From and Subject in several other places through the decoder of this module, which
shows what cannot be decoded as it stands, instead of raising.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping
from email.errors import HeaderParseError
from email.header import Header, decode_header, make_header
from email.utils import formataddr, getaddresses
from importlib import import_module
from typing import Any

MAX_NAME = 200
DECODING = (
    "mailman.chains.headers",
    "mailman.commands.eml_membership",
    "mailman.email.message",
    "mailman.handlers.subject_prefix",
    "mailman.rest.post_moderation",
    "mailman.runners.command",
    "mailman.utilities.string",
)
"""Modules of Mailman that decode header fields with `decode_header` and mostly expect no error."""

log = logging.getLogger("mailman.error")

_ADDRESS_TAIL = re.compile(r"@([^ .]+\.)+[^ .]+$")


def fragments_of(text: object) -> list[tuple[str | bytes, str | None]]:
    """What `email.header.decode_header` gives, but for every text and so that `make_header` takes it. Never raises."""
    try:
        fragments = decode_header(text)  # type: ignore[arg-type]
        str(make_header(fragments))
    except (HeaderParseError, LookupError, ValueError):
        return [(readable(str(text)), None)]
    return fragments


def readable(text: str) -> str:
    """A header field's text with its encoded words decoded as well as they can be. Never raises."""
    parts = []
    try:
        fragments = decode_header(text)
    except (HeaderParseError, ValueError):
        fragments = [(text, None)]
    for fragment, charset in fragments:
        if isinstance(fragment, str):
            parts.append(fragment)
            continue
        try:
            parts.append(fragment.decode(charset or "latin-1", "replace"))
        except (LookupError, ValueError):
            parts.append(fragment.decode("latin-1"))
    return "".join("\ufffd" if 0xD800 <= ord(char) <= 0xDFFF else char for char in "".join(parts))


def plain_name(text: str) -> str:
    """A display name as people read it: encoded words decoded, on one line, of bounded length. Never raises."""
    spaced = (" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in readable(text))
    return " ".join("".join(spaced).split())[:MAX_NAME].strip()


def mailbox(name: str, address: str) -> str:
    """``name <address>`` for a header field: encoded words in UTF-8 of at most 75 characters (RFC 2047 §2)."""
    if not name:
        return address
    if name.isascii():
        return formataddr((name, address))
    words = Header(name, "utf-8", header_name="Reply-To", maxlinelen=76).encode()
    fits = len(words) - words.rfind("\n") + len(address) < 70
    return f"{words}{' ' if fits else chr(10) + ' '}<{address}>"


def mailboxes(fields: Iterable[object]) -> list[tuple[str, str]]:
    """Name and address of each mailbox in address fields; none with an address that is not ASCII."""
    found = getaddresses([str(field) for field in fields])
    return [(plain_name(name), address) for name, address in found if "@" in address and address.isascii()]


def author_of(mlist: Any, msg: Any, msgdata: Mapping[str, Any]) -> tuple[str, str]:
    """Name (perhaps empty) and address of the one author; the envelope's sender where there is not exactly one."""
    authors = mailboxes(msg.get_all("from", []))
    return authors[0] if len(authors) == 1 else ("", str(msgdata.get("original_sender") or ""))


def shown_name(mlist: Any, name: str, email: str) -> str:
    """The name to show for an author: his own, else the one he gave as a member, else his address without domain."""
    if not name:
        member = mlist.members.get_member(email) or mlist.nonmembers.get_member(email)
        name = plain_name(member.display_name or "") if member else ""
    # no second domain in From: filters take it for a forgery
    return _ADDRESS_TAIL.sub("---", name or email)


def via(realname: str, mlist: Any) -> str:
    """ "Author via List", in the list's language."""
    try:
        from mailman.core.i18n import _

        with _.using(mlist.preferred_language.code):
            return str(_("${realname} via ${mlist.display_name}"))
    except Exception:
        log.exception("%s: no translation of the rewritten From", mlist.fqdn_listname)
        return f"{realname} via {mlist.display_name}"


def rewritten_headers(mlist: Any, msg: Any, msgdata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The header fields that replace those of the post (or go into the wrapper), by name."""
    name, email = author_of(mlist, msg, msgdata)
    display_name = plain_name(via(shown_name(mlist, name, email), mlist))
    values = [("From", mailbox(display_name, mlist.posting_address))]
    replies_to_author = mlist.reply_goes_to_list.name == "no_munging"
    add_to, other = ("Reply-To", "Cc") if replies_to_author else ("Cc", "Reply-To")
    present = [str(field) for field in msg.get_all(add_to, [])]
    others = mailboxes(present)
    addresses = [mailbox(*pair) for pair in others]
    if email and email not in [address for _, address in others]:
        addresses.append(mailbox(name, email))
    if present and not others and all(field.isascii() for field in present):
        # a field that cannot be read is nothing we may drop
        addresses[:0] = [" ".join(field.split()) for field in present if field.strip()]
    if addresses:
        values.append((add_to, ", ".join(addresses)))
    if mlist.dmarc_mitigate_action.name == "wrap_message" and msg.get(other) is not None:
        values.append((other, msg.get(other)))
    return values


def install(settings: Mapping[str, str] | None = None) -> None:
    """Put our header fields into Mailman's handler. Once per process; a further call does no harm."""
    from mailman.handlers import dmarc as stock

    stock_headers = getattr(stock.munged_headers, "stock", stock.munged_headers)

    def munged_headers(mlist: Any, msg: Any, msgdata: dict[str, Any]) -> list[tuple[str, str]]:
        for attempt in (rewritten_headers, stock_headers):
            try:
                return list(attempt(mlist, msg, msgdata))
            except Exception:
                log.exception("%s: From could not be rewritten with the author's name", mlist.fqdn_listname)
        sender = str(msgdata.get("original_sender") or "")
        return [("From", mlist.posting_address), *([("Reply-To", sender)] if sender.isascii() and sender else [])]

    munged_headers.stock = stock_headers  # type: ignore[attr-defined]
    stock.munged_headers = munged_headers
    for name in DECODING:
        import_module(name).decode_header = fragments_of  # type: ignore[attr-defined]
