"""Compose messages byte by byte, and sign or seal them with dkimpy (never with the engine under test)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from email.utils import formatdate

import dkim

SIGNED = [b"from", b"to", b"subject", b"date", b"message-id", b"mime-version", b"content-type"]


def new_message_id(domain: str) -> str:
    """Return a Message-ID nobody has used before."""
    return f"<{uuid.uuid4().hex}@{domain}>"


def message_id_of(message: bytes) -> str:
    """Return the (first) Message-ID of a message."""
    found = re.search(rb"^Message-ID:\s*(<.*?>)", message, re.MULTILINE | re.IGNORECASE)
    assert found, "the message has no Message-ID"
    return found.group(1).decode()


def compose(
    author: str,
    to: str,
    *,
    message_id: str,
    subject: str = "A word from outside",
    body: str = "Good morning,\r\n\r\nthe meeting is at ten.\r\n",
    headers: Iterable[str] = (),
) -> bytes:
    """Return a plain message (RFC 5322); ``headers`` are whole lines put on top."""
    lines = [
        *headers,
        f"From: {author}",
        f"To: {to}",
        f"Subject: {subject}",
        f"Date: {formatdate(localtime=False)}",
        f"Message-ID: {message_id}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "",
        body,
    ]
    return "\r\n".join(lines).encode()


def dkim_sign(message: bytes, domain: str, selector: str, key: bytes, length: bool = False) -> bytes:
    """Return the message with a DKIM-Signature (RFC 6376) on top."""
    signature = dkim.sign(
        message, selector.encode(), domain.encode(), key,
        canonicalize=(b"relaxed", b"relaxed"), include_headers=SIGNED, length=length,
    )  # fmt: skip
    return signature + message


def arc_seal(message: bytes, domain: str, selector: str, key: bytes, results: str) -> bytes:
    """Return the message with one more ARC set (RFC 8617) that claims ``results``, say "spf=pass; arc=none"."""
    identity = f"mx.{domain}"
    marked = f"Authentication-Results: {identity}; {results}\r\n".encode() + message
    headers = dkim.arc_sign(
        marked, selector.encode(), domain.encode(), key, identity.encode(), include_headers=SIGNED,
    )  # fmt: skip
    assert headers, "dkimpy did not seal"
    return b"".join(headers) + message
