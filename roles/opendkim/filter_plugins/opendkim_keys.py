"""Filters that check the role's signing keys and turn them into OpenDKIM's tables (RFC 6376, opendkim.conf(5)).

``opendkim_problems``
    Everything that would leave mail unsigned or signed in vain, as a list of sentences. None quotes a private key.
``opendkim_missing``
    What is wrong with the keys that the host is to have made itself.
``opendkim_usable``
    The keys that can sign on this host now.
``opendkim_key_table``
    One ``{name, domain, selector, file}`` for each key.
``opendkim_signing_table``
    ``{pattern, name}`` in the order in which OpenDKIM must try them: the narrowest pattern first.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

MINIMUM_BITS = 2048
FIELDS = {"domain", "selector", "private_key", "public_key", "sign"}
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN = re.compile(rf"({LABEL}\.)+{LABEL}")
SELECTOR = re.compile(rf"{LABEL}(\.{LABEL})*")
# "*" alone, or an address in which "*" stands for any characters.
PATTERN = re.compile(rf"\*|[a-z0-9._+=*-]+@(\*|(\*\.)?({LABEL}\.)+{LABEL})")
FIELD_NAME = re.compile(r"[A-Za-z0-9-]+")


def patterns(key: Mapping[str, Any]) -> list[str]:
    """The author addresses that a key signs for; without a word about it, those of its very domain."""
    given = key.get("sign")
    return [f"*@{key['domain']}"] if given is None else [str(pattern) for pattern in given]


def key_problem(pem: Any, published: Any = None) -> str:
    """What is wrong with a private key, or an empty text.

    :param pem: the key in PEM; RSA, without passphrase.
    :param published: the tag ``p=`` of its DNS record; None: not compared.
    """
    try:
        key = load_pem_private_key(str(pem).strip().encode(), password=None)
    except TypeError:
        return "is protected by a passphrase; store it without one (Ansible Vault)"
    except (ValueError, UnsupportedAlgorithm):
        return "is no complete private key in PEM; 'openssl genrsa 2048' makes one"
    if not isinstance(key, rsa.RSAPrivateKey):
        return "is not RSA, the only kind that all receivers verify; 'openssl genrsa 2048' makes one"
    if key.key_size < MINIMUM_BITS:
        return f"has {key.key_size} bits; at least {MINIMUM_BITS} are required"
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if published is not None and "".join(str(published).split()) != base64.b64encode(der).decode():
        return "does not belong to its public_key: every signature would fail"
    return ""


def made_here(key: Mapping[str, Any]) -> bool:
    """Whether the host has made the key itself, so that its private half is nowhere else."""
    return key.get("private_key") is None


def _there(key: Mapping[str, Any], found: Mapping[str, str]) -> bool:
    return found.get(f"{key['selector']}._domainkey.{key['domain']}") == "".join(str(key.get("public_key")).split())


def opendkim_missing(keys: Iterable[Mapping[str, Any]], found: Mapping[str, str], directory: str) -> list[str]:
    """Keys that should sign and that the host does not have, as sentences.

    :param found: name to public key of those that it has.
    """
    return [
        f"{directory}/{key['selector']}._domainkey.{key['domain']}.pem is missing or another key, and no copy of it"
        " exists: playbooks/dkim_rotate.yml makes another one and brings it into use (docs/dkim-keys.md)."
        for key in keys
        if made_here(key) and patterns(key) and not _there(key, found)
    ]


def opendkim_usable(keys: Iterable[Mapping[str, Any]], found: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The keys without those that the host should have made and does not have."""
    return [key for key in keys if not made_here(key) or _there(key, found)]


def _one_key(place: str, key: Mapping[str, Any]) -> list[str]:
    found = [f'{place}: "{field}" is unknown; allowed are {", ".join(sorted(FIELDS))}.' for field in set(key) - FIELDS]
    for field, form in (("domain", DOMAIN), ("selector", SELECTOR)):
        value = str(key.get(field) or "")
        if not form.fullmatch(value) or len(value) > 253:
            found.append(f'{place}.{field} is "{value}"; it must be a name in lower case, without a dot at its end.')
    wrong = "" if made_here(key) else key_problem(key.get("private_key") or "", key.get("public_key"))
    if made_here(key) and not key.get("public_key"):
        found.append(
            f"{place} has neither private_key nor public_key; a key that the host made is known by the latter."
        )
    if wrong:
        found.append(f"{place}.private_key ({key.get('selector')}._domainkey.{key.get('domain')}) {wrong}.")
    if key.get("domain"):
        found += [
            f'{place}.sign has "{pattern}"; allowed are *, user@domain, *@domain and *@*.domain, in lower case.'
            for pattern in patterns(key)
            if not PATTERN.fullmatch(pattern)
        ]
    return found


def opendkim_problems(
    keys: Iterable[Mapping[str, Any]],
    internal_hosts: Iterable[str],
    sign_headers: Iterable[str],
    oversign_headers: Iterable[str],
) -> list[str]:
    """All that is wrong with the role's arguments, in plain sentences; an empty list: all is well."""
    keys, sign_headers, oversign_headers = list(keys), list(sign_headers), list(oversign_headers)
    found: list[str] = []
    names: dict[str, str] = {}
    signs: dict[str, str] = {}
    for number, key in enumerate(keys):
        place = f"opendkim_keys[{number}]"
        wrong = _one_key(place, key)
        found += wrong
        if wrong:
            continue
        name = f"{key['selector']}._domainkey.{key['domain']}"
        if name in names:
            found.append(f"{place} and {names[name]} are both {name}; a selector names one key.")
        names.setdefault(name, place)
        for pattern in patterns(key):
            if pattern in signs:
                found.append(f"{place} and {signs[pattern]} both sign {pattern}; a message gets one signature.")
            signs.setdefault(pattern, place)

    for host in internal_hosts:
        try:
            wide = ipaddress.ip_network(str(host)).prefixlen == 0
        except ValueError:
            found.append(f'opendkim_internal_hosts has "{host}", which is not an IPv4 or IPv6 address or network.')
            continue
        if wide:
            found.append(
                f"opendkim_internal_hosts has {host}: mail of the whole internet would be signed. Where Postfix has"
                " asked everyone for a password, say opendkim_every_client: true."
            )

    found += [f'"{name}" is not a header field name.' for name in sign_headers if not FIELD_NAME.fullmatch(str(name))]
    signed = {str(name).lower() for name in sign_headers}
    if "from" not in signed:
        found.append("opendkim_sign_headers lacks From, which RFC 6376 requires.")
    found += [
        f"opendkim_oversign_headers has {name}, which opendkim_sign_headers lacks: such signatures fail."
        for name in oversign_headers
        if str(name).lower() not in signed
    ]
    return found


def opendkim_key_table(keys: Iterable[Mapping[str, Any]], directory: str, made: str) -> list[dict[str, str]]:
    """Name, domain, selector and file of each key, below the directory of given keys or of those made here."""
    return [
        {
            "name": f"{key['selector']}._domainkey.{key['domain']}",
            "domain": key["domain"],
            "selector": key["selector"],
            "file": f"{made if made_here(key) else directory}/{key['selector']}._domainkey.{key['domain']}.pem",
        }
        for key in keys
    ]


def opendkim_signing_table(keys: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Patterns and key names, the narrowest first, since OpenDKIM takes the first that matches."""
    rows = [
        {"pattern": pattern, "name": f"{key['selector']}._domainkey.{key['domain']}"}
        for key in keys
        for pattern in patterns(key)
    ]

    def width(row: Mapping[str, str]) -> tuple[bool, int, int, str]:
        local, _at, domain = row["pattern"].rpartition("@")
        # A domain without "*" beats one with it; the longer domain beats the shorter; then the local part.
        return "*" in domain, -len(domain), local.count("*"), f"{255 - len(local):03}{local}"

    return sorted(rows, key=width)


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by the name under which templates call them."""
        return {
            "opendkim_key_table": opendkim_key_table,
            "opendkim_missing": opendkim_missing,
            "opendkim_problems": opendkim_problems,
            "opendkim_signing_table": opendkim_signing_table,
            "opendkim_usable": opendkim_usable,
        }
