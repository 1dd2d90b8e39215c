"""Checks of the secrets that a site keeps in its vault; a message names the variable and never shows the value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from estate_keys import public_key

WHERE = "keep it in the inventory's group_vars/all/vault.yml, encrypted by ansible-vault (docs/data-model.md)"
SHORTEST_SECRET = 16


def problems(values: Mapping[str, Any], needed: list[str]) -> list[str]:
    """What is wrong with the secrets of one host.

    :param values: the secrets that are set, by variable name.
    :param needed: the names of those that the host's roles use.
    """
    found = []
    for name in needed:
        value = values.get(name)
        if isinstance(value, list) and value and name.endswith("_secret"):
            # Several: the first is in use, the others are still recognised until they expire.
            found += [problem for one in value for problem in problems({name: one}, [name])]
        elif isinstance(value, Mapping) and value and name.endswith("_private_keys"):
            for key, one in value.items():
                single = name.removesuffix("s")
                found += [
                    problem.replace(single, f"{name}[{key!r}]", 1) for problem in problems({single: one}, [single])
                ]
        elif isinstance(value, Mapping) and name.endswith("_passwords"):
            # Hashes, which the role of their daemon looks into.
            found += [f"{name}[{key!r}] is no text." for key, one in value.items() if not isinstance(one, str)]
        elif value is None or (isinstance(value, str) and not value.strip()):
            found.append(f"{name} is not set: {WHERE}.")
        elif not isinstance(value, str):
            found.append(f"{name} is no text but of type {type(value).__name__}: {WHERE}.")
        else:
            fault = _check_for(name)(value)
            if fault:
                found.append(f"{name} cannot be used: {fault}; {WHERE}.")
    return found


def _check_for(name: str) -> Callable[[str], str | None]:
    if name.endswith("_private_key"):
        return _private_key_fault
    if name.endswith("_tls_chain"):
        return _tls_chain_fault
    return _secret_fault


def _private_key_fault(value: str) -> str | None:
    try:
        public_key(value, thorough=True)
    except ValueError as error:
        return str(error)
    return None


def _secret_fault(value: str) -> str | None:
    if len(value.strip()) < SHORTEST_SECRET:
        return f"it is shorter than {SHORTEST_SECRET} characters; make one by 'openssl rand -base64 24'"
    return None


def _tls_chain_fault(value: str) -> str | None:
    """A private key followed by the certificate for it and the issuers' certificates, as Postfix reads it."""
    pem = value.encode()
    try:
        key = load_pem_private_key(pem, password=None)
    except (TypeError, ValueError):
        return "it does not begin with an unencrypted private key in PEM"
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return "no certificate in PEM follows the private key"
    if value.index("PRIVATE KEY-----") > value.index("BEGIN CERTIFICATE"):
        return "the private key must come first, then the host's certificate, then its issuers"
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != certificates[0].public_key().public_bytes(*spki):
        return "its first certificate does not belong to its private key"
    return None
