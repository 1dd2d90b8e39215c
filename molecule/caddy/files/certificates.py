"""Makes the certificates of the scenario: members' CA and clients, a chain for a site, the ACME server's own.

Usage: certificates.py DIRECTORY
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """A CA that signs with a key of its own."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self.builder(self.name, self.key, days=30)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # keyCertSign, cRLSign
        builder = builder.add_extension(usage, critical=True)
        own = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        builder = builder.add_extension(own, critical=False)
        self.pem = builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
        """A certificate that ends in so many days."""
        return x509.CertificateBuilder(
            self.name,
            name,
            key.public_key(),
            x509.random_serial_number(),
            NOW - datetime.timedelta(days=10),
            NOW + datetime.timedelta(days=days),
        )

    def issue(self, name: str, days: int = 30) -> bytes:
        """Key and certificate in one PEM text."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "WIDE, Members"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        builder = self.builder(subject, key, days)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return text + builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def main(directory: Path) -> None:
    """Writes all files; members.pem last, which says that they are complete."""
    directory.mkdir(parents=True, exist_ok=True)
    members, later, other, server = (Authority(name) for name in ("Members", "Members, next", "Other", "Servers"))
    files = {
        "valid.pem": members.issue("taro.example.org"),
        "second.pem": later.issue("jiro.example.org"),
        "expired.pem": members.issue("expired.example.org", days=-1),
        "other.pem": other.issue("taro.example.org"),
        "given.pem": server.issue("given.example.org"),
        "localhost.pem": server.issue("localhost"),
        "servers.pem": server.pem,
        "members.pem": members.pem + later.pem,
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
