"""Makes the certificates of the scenario: a CA, mail hosts, policy hosts, and the digest for the TLSA record.

Usage: certificates.py DIRECTORY
"""

from __future__ import annotations

import datetime
import hashlib
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
SIGNED = ("both", "wrong", "mixed", "sts", "tlsafail", "unusable")
UNSIGNED = ("sts", "testing", "none", "clear", "untrusted", "mismatch", "insecuremx")
POLICY_HOSTS = [
    *(f"mta-sts.{name}.s.example.net" for name in SIGNED),
    *(f"mta-sts.{name}.u.example.net" for name in UNSIGNED),
]

CA_USAGE = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


def subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(names: list[str], issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> tuple[bytes, bytes]:
    """Key and certificate in one PEM text, and the key's SubjectPublicKeyInfo; without an issuer self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, signer = issuer or (subject(names[0]), key)
    builder = (
        x509.CertificateBuilder(
            name,
            subject(names[0]),
            key.public_key(),
            x509.random_serial_number(),
            NOW,
            NOW + datetime.timedelta(days=30),
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False)
        # Python 3.13 verifies strictly: RFC 5280 §4.2.1.1
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return text + builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM), public


def main(directory: Path) -> None:
    """Writes all files; ca.crt last, which says that they are complete."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = subject("CA of the scenario mta-sts")
    authority = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), NOW, NOW + datetime.timedelta(days=30)
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(CA_USAGE, critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    dane, public = certificate(["mx-dane.s.example.net"], None)
    files = {
        "dane.pem": dane,
        "good.pem": certificate(["mx-good.s.example.net", "mx-good.u.example.net"], (name, key))[0],
        "untrusted.pem": certificate(["mx-untrusted.u.example.net"], None)[0],
        # one for each: of sites with the same certificate Caddy serves only the first
        **{f"{host}.pem": certificate([host], (name, key))[0] for host in POLICY_HOSTS},
        "tlsa": hashlib.sha256(public).hexdigest().encode(),
        "ca.crt": authority,
    }
    for file, content in files.items():
        (directory / file).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
