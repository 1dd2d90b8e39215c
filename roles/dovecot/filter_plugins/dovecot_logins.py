"""Filters that judge who may sign in before Dovecot does, and write it in Dovecot's words (passwd-file(5)).

``dovecot_problems``
    Everything that would let somebody in who should stay out, or keep out who should come in, as a list of sentences.
    None quotes a hash, a password or a key.
``dovecot_hash``
    A password hash with the name of its scheme in front, as Dovecot wants it.
``dovecot_key_files``
    Where the keys lie that verify tokens.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# The characters that Dovecot lets a login have (auth_username_chars), in lower case.
LOGIN = re.compile(r"[a-z0-9._@-]+")
CRYPT = r"[./A-Za-z0-9]"
WANTED = "ARGON2ID, BLF-CRYPT, PBKDF2, SHA512-CRYPT or SSHA512 ('doveadm pw -s ARGON2ID' makes one)"
#: Those of the modular crypt format say themselves what they are.
SELF_DESCRIBING = {"$6$": "SHA512-CRYPT", "$2y$": "BLF-CRYPT", "$2b$": "BLF-CRYPT", "$argon2id$": "ARGON2ID"}
#: Work that a hash must cost at least, so that a stolen table is no list of passwords.
MEMORY_KIB, BCRYPT_COST, PBKDF2_ROUNDS, SHA512_ROUNDS = 16384, 10, 5000, 5000
ALGORITHMS = ("ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")


def _split(password: str) -> tuple[str, str]:
    """Scheme in upper case, and what follows it; the scheme is empty where nothing names it."""
    named = re.fullmatch(r"\{([A-Za-z0-9.-]+)\}(.*)", password, re.DOTALL)
    if named:
        return named[1].upper(), named[2]
    for start, scheme in SELF_DESCRIBING.items():
        if password.startswith(start):
            return scheme, password
    return "", password


def dovecot_hash(password: Any) -> str:
    """The hash with its scheme in front, whichever way it was written."""
    scheme, value = _split(str(password).strip())
    return f"{{{scheme}}}{value}"


def _argon2id(value: str) -> str:
    form = re.fullmatch(r"\$argon2id\$v=19\$m=(\d+),t=\d+,p=\d+\$[A-Za-z0-9+/]{11,}\$[A-Za-z0-9+/]{22,}", value)
    if not form:
        return "is no complete ARGON2ID hash"
    return f"uses {form[1]} KiB of memory; at least {MEMORY_KIB} are required" if int(form[1]) < MEMORY_KIB else ""


def _bcrypt(value: str) -> str:
    form = re.fullmatch(rf"\$2[aby]\$(\d\d)\${CRYPT}{{53}}", value)
    if not form:
        return "is no complete BLF-CRYPT hash"
    if int(form[1]) < BCRYPT_COST:
        return f"has a cost of {int(form[1])}; at least {BCRYPT_COST} is required (doveadm pw -s BLF-CRYPT -r 12)"
    return ""


def _sha512_crypt(value: str) -> str:
    form = re.fullmatch(rf"\$6\$(?:rounds=(\d+)\$)?{CRYPT}{{8,16}}\${CRYPT}{{86}}", value)
    if not form:
        return "is no complete SHA512-CRYPT hash with a salt of 8 characters or more"
    rounds = int(form[1] or SHA512_ROUNDS)
    return f"has {rounds} rounds; at least {SHA512_ROUNDS} are required" if rounds < SHA512_ROUNDS else ""


def _pbkdf2(value: str) -> str:
    form = re.fullmatch(r"\$1\$[^$:]{8,}\$(\d+)\$[0-9a-f]{40}", value)
    if not form:
        return "is no complete PBKDF2 hash with a salt of 8 characters or more"
    return f"has {form[1]} rounds; at least {PBKDF2_ROUNDS} are required" if int(form[1]) < PBKDF2_ROUNDS else ""


def _ssha512(value: str) -> str:
    try:
        salt = len(base64.b64decode(value, validate=True)) - 64
    except (binascii.Error, ValueError):
        return "is no complete SSHA512 hash"
    return "" if salt >= 4 else "is no complete SSHA512 hash with a salt of 4 bytes or more"


JUDGES: dict[str, Callable[[str], str]] = {
    "ARGON2ID": _argon2id,
    "BLF-CRYPT": _bcrypt,
    "PBKDF2": _pbkdf2,
    "SHA512-CRYPT": _sha512_crypt,
    "SSHA512": _ssha512,
}


def hash_problem(password: Any) -> str:
    """What is wrong with a password hash, or an empty text; never the hash itself."""
    if not isinstance(password, str) or not password.strip():
        return "is missing"
    scheme, value = _split(password.strip())
    if not scheme:
        return f"is not hashed, or does not say how; wanted is {WANTED}"
    if scheme not in JUDGES:
        return f"is {scheme}, which is weak, unsalted or no hash at all; wanted is {WANTED}"
    return JUDGES[scheme](value)


def _users(users: Mapping[str, Any]) -> list[str]:
    found = []
    for login, entry in users.items():
        place = f"dovecot_users['{login}']"
        if not LOGIN.fullmatch(str(login)):
            found.append(f"{place}: a login has lower-case letters, digits and . _ @ - only; people may type capitals.")
        if not isinstance(entry, Mapping) or set(entry) != {"password"}:
            found.append(f"{place} must have the one field password.")
            continue
        wrong = hash_problem(entry["password"])
        if wrong:
            found.append(f"{place}.password {wrong}.")
    return found


def _unknown(name: str, given: Mapping[str, Any], fields: Iterable[str]) -> list[str]:
    allowed = sorted(fields)
    return [f"{name}.{field} is unknown; allowed are {', '.join(allowed)}." for field in given if field not in allowed]


def _pem(name: str, text: Any, kind: str) -> list[str]:
    return [] if f"BEGIN {kind}" in str(text) else [f"{name} must be a {kind.lower()} in PEM."]


def _quoted(name: str, values: Iterable[Any]) -> list[str]:
    """Values that end up between quotation marks, on one line, and are no reference to a file or variable."""
    if any(re.search(r'["\\\r\n]|^[$<]', str(value)) for value in values):
        return [f"{name} has a value with a quotation mark, backslash or line break, or one that begins with $ or <."]
    return []


def _ldap(ldap: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    name = "dovecot_ldap"
    found = _unknown(name, ldap, defaults)
    full = {**defaults, **ldap}
    if not full["uris"]:
        found.append(f"{name}.uris is empty; name the directory, for example ldaps://ldap.example.org.")
    found += [
        f'{name}.uris has "{uri}"; it must begin with ldaps:// or, for STARTTLS, with ldap://.'
        for uri in full["uris"]
        if not re.fullmatch(r"ldaps?://[A-Za-z0-9.:\[\]-]+/?", str(uri))
    ]
    if len({str(uri).split(":")[0] for uri in full["uris"]}) > 1:
        found.append(f"{name}.uris mixes ldaps:// and ldap://; STARTTLS is for all of them or for none.")
    if not full["base"]:
        found.append(f"{name}.base is empty; it is where the people's entries are, for example ou=people,dc=example.")
    if "%{user}" not in str(full["filter"]):
        found.append(f"{name}.filter does not have %{{user}}: everybody would be the same entry.")
    if full["bind_dn"] and not full["bind_password"]:
        found.append(f"{name}.bind_password is empty; with bind_dn alone the directory takes us for anonymous.")
    if full["ca"]:
        found += _pem(f"{name}.ca", full["ca"], "CERTIFICATE")
    plain = [full[field] for field in ("base", "bind_dn", "bind_password", "filter", "login", "password", "scope")]
    return found + _quoted(name, plain)


def _oauth2_keys(name: str, keys: Iterable[Mapping[str, Any]]) -> list[str]:
    found = []
    for number, key in enumerate(keys):
        place = f"{name}.keys[{number}]"
        found += _unknown(place, key, ("client", "algorithm", "id", "public_key"))
        if key.get("algorithm") not in ALGORITHMS:
            found.append(f"{place}.algorithm must be one of {', '.join(ALGORITHMS)}; with HS256 we could make tokens.")
        found += [
            f"{place}.{field} has / or % or begins with a dot, which cannot be a file's name here."
            for field in ("client", "id")
            if not re.fullmatch(r"[A-Za-z0-9_=+~@:-][A-Za-z0-9_.=+~@:-]*", str(key.get(field, "default")))
        ]
        found += _pem(f"{place}.public_key", key.get("public_key"), "PUBLIC KEY")
    return found


def _oauth2(oauth2: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    name = "dovecot_oauth2"
    found = _unknown(name, oauth2, defaults)
    full = {**defaults, **oauth2}
    if full["mode"] not in ("local", "auth", "get", "post"):
        found.append(f'{name}.mode is "{full["mode"]}"; allowed are local, auth, get and post.')
    for field in ("introspection_url", "configuration_url"):
        if full[field] and not re.fullmatch(r"https://[^\s\"\\]+", str(full[field])):
            found.append(f"{name}.{field} must begin with https://.")
    if full["mode"] == "local":
        if not full["keys"]:
            found.append(f"{name}.keys is empty: no token could be verified.")
        for field, why in (("issuers", "a token of any issuer"), ("audience", "a token for any other service")):
            if not full[field]:
                found.append(f"{name}.{field} is empty: {why} would sign in here.")
    elif not full["introspection_url"]:
        found.append(f"{name}.introspection_url is empty; it is where the provider says whose a token is.")
    found += _oauth2_keys(name, full["keys"])
    if full["ca"]:
        found += _pem(f"{name}.ca", full["ca"], "CERTIFICATE")
    listed = [value for field in ("issuers", "scope") for value in full[field]]
    found += [f'{name} has "{value}"; a blank separates values.' for value in listed if re.search(r"\s", str(value))]
    return found + _quoted(name, [*listed, full["audience"], full["username_attribute"], *full["active"].values()])


def dovecot_key_files(keys: Iterable[Mapping[str, str]], directory: str) -> list[dict[str, str]]:
    """The file of each key, where Dovecot looks for it: DIRECTORY/CLIENT/ALGORITHM/ID."""
    files = []
    for key in keys:
        folder = f"{directory}/{key.get('client', 'default')}/{key['algorithm']}"
        path = f"{folder}/{key.get('id', 'default')}"
        files.append({"path": path, "folder": folder, "pem": key["public_key"].strip() + "\n"})
    return files


def dovecot_problems(
    users: Mapping[str, Any],
    ldap: Mapping[str, Any],
    ldap_defaults: Mapping[str, Any],
    oauth2: Mapping[str, Any],
    oauth2_defaults: Mapping[str, Any],
) -> list[str]:
    """All that is wrong with the role's arguments, in plain sentences; an empty list: all is well.

    :param users: login → {password: hash}.
    :param ldap: fields of dovecot_ldap; empty: no directory is asked.
    :param oauth2: fields of dovecot_oauth2; empty: no tokens.
    """
    found = _users(users)
    if ldap:
        found += _ldap(ldap, ldap_defaults)
    if oauth2:
        found += _oauth2(oauth2, oauth2_defaults)
    if not (users or ldap or oauth2):
        found.append("dovecot_users, dovecot_ldap and dovecot_oauth2 are all empty: nobody could sign in.")
    return found


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by the name under which templates call them."""
        return {
            "dovecot_hash": dovecot_hash,
            "dovecot_key_files": dovecot_key_files,
            "dovecot_problems": dovecot_problems,
        }
