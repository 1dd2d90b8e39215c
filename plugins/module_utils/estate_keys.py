"""Public halves of DKIM and ARC keys, in the form in which DNS wants them (RFC 6376 §3.6.1, RFC 8463 §3)."""

from __future__ import annotations

import base64
import hashlib
import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

MINIMUM_BITS = 2048


def public_key(pem: str, *, thorough: bool = False) -> str:
    """The base64 text of the tag ``p=`` for a private key.

    :param pem: an unencrypted private key in PEM (RSA of at least 2048 bits, or Ed25519).
    :param thorough: whether an RSA key's numbers are proven to fit together, too; that takes 50 ms.
    :raises ValueError: in plain words, when the text is no such key; never quotes the key.
    """
    try:
        key = load_pem_private_key(pem.strip().encode(), password=None, unsafe_skip_rsa_key_validation=not thorough)
    except TypeError:
        raise ValueError("the private key is protected by a passphrase; store it without one (Ansible Vault)") from None
    except (ValueError, AttributeError, UnsupportedAlgorithm):
        raise ValueError(
            "the text is no private key in PEM; it must begin with '-----BEGIN PRIVATE KEY-----' or"
            " '-----BEGIN RSA PRIVATE KEY-----' and be complete"
        ) from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MINIMUM_BITS:
            raise ValueError(f"the RSA key has {key.key_size} bits; at least {MINIMUM_BITS} are required")
        der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        der = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    else:
        raise ValueError("DKIM and ARC know RSA and Ed25519 keys only; make one by 'openssl genrsa 2048'")
    return base64.b64encode(der).decode()


def key_type(public: str) -> str:
    """``rsa`` or ``ed25519`` for the base64 text of a public key (an Ed25519 key is exactly 32 bytes).

    :raises ValueError: when the text is not base64 of either.
    """
    try:
        raw = base64.b64decode(public, validate=True)
    except ValueError:
        raise ValueError("not base64") from None
    if len(raw) == 32:
        return "ed25519"
    if raw[:1] == b"\x30" and len(raw) > 200:
        return "rsa"
    raise ValueError("neither an RSA key of at least 2048 bits nor an Ed25519 key")


def tls_key_digests(pem: str) -> list[str]:
    """The data of TLSA records ``3 1 1`` for private keys: SHA-256 of each SubjectPublicKeyInfo (RFC 6698).

    :param pem: unencrypted private keys in PEM, with or without their certificates.
    :raises ValueError: in plain words, when there is none or one cannot be read; never quotes a key.
    """
    found = re.findall(r"-----BEGIN (?:\w+ )?PRIVATE KEY-----.+?-----END (?:\w+ )?PRIVATE KEY-----", pem, re.DOTALL)
    if not found:
        raise ValueError("the text has no unencrypted private key in PEM")
    try:
        keys = [load_pem_private_key(one.encode(), password=None) for one in found]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise ValueError("a private key in the text is incomplete, or protected by a passphrase") from None
    ders = [key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys]
    return [hashlib.sha256(der).hexdigest() for der in ders]
