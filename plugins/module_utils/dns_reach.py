"""What hosts really show to those who connect: their greeting, the key of their certificate, their policies.

Follows RFC 5321 §4.2 (greeting), RFC 3207 (STARTTLS), RFC 7672 §3.1.1 (the digest of a key) and RFC 8461 §3.3.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

IMPLICIT_TLS = (465,)
MOST_OCTETS = 256 * 1024
MOST_LINES = 60
MOST_IN_LINE = 2048


@dataclass(frozen=True)
class Greeting:
    """What an SMTP server shows: the name it greets with, the SHA-256 of its TLS key in hexadecimal, or why not."""

    name: str = ""
    digest: str = ""
    problem: str = ""


def greeting(name: str, address: str, port: int, timeout: float) -> Greeting:
    """Connect to an SMTP port and see; the certificate is not judged, only its key is read.

    :param name: the host's name, which clients of DANE ask for in TLS (RFC 7672 §8.1).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    greets = ""
    try:
        with socket.create_connection((address, port), timeout) as plain:
            if port in IMPLICIT_TLS:
                with context.wrap_socket(plain, server_hostname=name) as channel:
                    digest = _digest(channel)
                    greets = _greeting_name(_reply(channel, "220"))
                    _quit(channel)
                return Greeting(greets, digest)
            greets = _greeting_name(_reply(plain, "220"))
            plain.sendall(b"EHLO dns-verify.invalid\r\n")
            if "STARTTLS" not in [line[4:].strip().upper() for line in _reply(plain, "250")]:
                return Greeting(greets, problem="offers no STARTTLS")
            plain.sendall(b"STARTTLS\r\n")
            _reply(plain, "220")
            with context.wrap_socket(plain, server_hostname=name) as channel:
                digest = _digest(channel)
                _quit(channel)
                return Greeting(greets, digest)
    except (OSError, ValueError) as error:
        return Greeting(greets, problem=_words(error))


def _reply(channel: socket.socket, code: str) -> list[str]:
    """The lines of one reply (RFC 5321 §4.2.1). Nothing is read ahead, so that TLS can begin behind it.

    :raises ValueError: when the reply is another one, or no reply.
    """
    lines: list[str] = []
    for _ in range(MOST_LINES):
        line = bytearray()
        while not line.endswith(b"\n"):
            octet = channel.recv(1)
            if not octet or len(line) > MOST_IN_LINE:
                raise ValueError("hangs up" if not octet else "an endless line instead of a reply")
            line += octet
        lines.append(line.decode("ascii", "replace").rstrip())
        if lines[-1][3:4] != "-":
            break
    if not lines[-1].startswith(code):
        raise ValueError(f"answers {lines[-1][:80]!r}")
    return lines


def _quit(channel: socket.socket) -> None:
    """Take leave, so that the server's log has nothing to say; what it answers does not matter any more."""
    with contextlib.suppress(OSError, ValueError):
        channel.sendall(b"QUIT\r\n")
        _reply(channel, "221")


def _greeting_name(lines: list[str]) -> str:
    words = lines[-1][4:].split()
    return words[0].lower() if words else ""


def _digest(channel: object) -> str:
    der = channel.getpeercert(binary_form=True) if isinstance(channel, ssl.SSLSocket) else None
    if not der:
        return ""
    key = x509.load_der_x509_certificate(der).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@dataclass(frozen=True)
class Page:
    """What an https URL gives: text, its media type, or why there is none."""

    text: str = ""
    media_type: str = ""
    problem: str = ""


class _Connection(http.client.HTTPSConnection):
    """HTTPS to a name at an address that was looked up elsewhere."""

    def __init__(self, host: str, address: str, port: int, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._address, self._tls = address, context

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


def fetch(host: str, address: str, path: str, timeout: float, ca_file: str | None, port: int = 443) -> Page:
    """Fetch a page with a valid certificate and without following redirects (RFC 8461 §3.3)."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
        connection = _Connection(host, address, port, timeout, context)
        try:
            connection.request("GET", path, headers={"User-Agent": "dns-verify"})
            answer = connection.getresponse()
            body = answer.read(MOST_OCTETS + 1)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Page(problem=_words(error))
    if answer.status != 200:
        return Page(problem=f"the web server answers {answer.status} {answer.reason}")
    if len(body) > MOST_OCTETS:
        return Page(problem=f"the page has more than {MOST_OCTETS} octets")
    media_type = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    return Page(body.decode("utf-8", "replace"), media_type)


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
