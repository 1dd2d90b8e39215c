"""Other people's mail systems, for the tests of the ARC milter: they compose, and seal with dkimpy."""

from __future__ import annotations

import base64
import functools

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

MESSAGE = (
    b"From: A Uthor <author@example.com>\r\nTo: reader@example.org\r\nSubject: A question\r\n"
    b"Date: Tue, 24 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\nShall we meet at ten?\r\n"
)
RESULTS = b"spf=pass smtp.mailfrom=example.com; dmarc=pass header.from=example.com"


@functools.cache
def key_pair(bits: int = 1024) -> tuple[bytes, bytes]:
    """A private key in PEM and its key record."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def lookup(name: str) -> bytes | None:
    """DNS: every domain but nokey.example has the same key."""
    return None if "nokey.example" in name else key_pair()[1]


def dkimpy_lookup(name: bytes, timeout: int = 5) -> bytes | None:
    """The same for dkimpy."""
    return lookup(name.decode().rstrip("."))


def seal(message: bytes, domain: str, results: bytes = RESULTS, arc: str = "none") -> bytes:
    """The message with one more ARC set on top, made by dkimpy; `arc` is what its maker says of the chain before."""
    field = b"Authentication-Results: mx.%s; %s; arc=%s\r\n" % (domain.encode(), results, arc.encode())
    lines = dkim.arc_sign(field + message, b"sel", domain.encode(), key_pair()[0], b"mx." + domain.encode())
    assert lines, "dkimpy did not seal"
    return b"".join(lines) + message


def chain_of(*domains: str, message: bytes = MESSAGE, results: bytes = RESULTS) -> bytes:
    """A message sealed by one domain after the other."""
    for number, domain in enumerate(domains):
        message = seal(message, domain, results, "pass" if number else "none")
    return message
