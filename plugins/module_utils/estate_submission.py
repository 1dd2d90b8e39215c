"""Who may send through the submission host: what Postfix, Dovecot and the sender policy are told, and the checks.

``estate_submission_users`` maps a login to its ``addresses`` (``"@domain"`` is a whole domain) and, where it differs
from the role's, its ``limit`` of recipients in a day; ``estate_submission_relays`` maps a name to the ``networks`` and
``certificates`` (SHA-256 fingerprints of client certificates) of hosts that send without signing in, and to their
``addresses``.  The hashes of the passwords, by login, are in ``vault_submission_passwords``.

Terms are those of RFC 6409 (submission) and RFC 5598 (envelope sender, author).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from estate_checks import _names, _plain, _show, _suggestion
from estate_names import address_fault, domain_name_fault, is_network

USER_FIELDS = ("addresses", "limit")
RELAY_FIELDS = ("networks", "certificates", "addresses")
_FINGERPRINT = re.compile(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}")
WIDEST = {4: 16, 6: 32}


def sender_logins(users: Mapping[str, Any]) -> dict[str, list[str]]:
    """Address or ``@domain`` → the logins that may use it: entries of Postfix's ``smtpd_sender_login_maps``.

    Postfix asks for the address first and for its domain only when that gave nothing, so whoever owns a whole domain is
    named at each single address below it, too.
    """
    owners: dict[str, set[str]] = {}
    for login, user in users.items():
        for address in user["addresses"]:
            owners.setdefault(address, set()).add(login)
    return {
        address: sorted(logins | owners.get("@" + address.rpartition("@")[2], set()))
        for address, logins in sorted(owners.items())
    }


def relay_certificates(relays: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprint → name of the relay: entries of Postfix's ``relay_clientcerts``."""
    return {print_: name for name, relay in sorted(relays.items()) for print_ in relay.get("certificates") or []}


def problems(users: Any, relays: Any, model: Any, passwords: Any) -> list[str]:
    """Everything that is wrong with the data of submission, in plain sentences.

    :param users: ``estate_submission_users``.
    :param relays: ``estate_submission_relays``.
    :param model: ``estate_model``, for the domains.
    :param passwords: ``vault_submission_passwords``; values are never shown.
    """
    users, relays, model = _plain(users), _plain(relays), _plain(model)
    domains = model.get("domains") if isinstance(model, Mapping) else None
    sending = {
        name
        for name, fields in (domains or {}).items()
        if isinstance(fields, Mapping) and fields.get("send") is not None
    }
    found: list[str] = []
    logins = _mapping("estate_submission_users", users, found)
    for login, user in logins.items():
        path = f"estate_submission_users[{_show(login)}]"
        if address_fault(login):
            found.append(f"{path}: {address_fault(login)}; a login is the user's mail address.")
        if login not in (passwords if isinstance(passwords, Mapping) else {}):
            found.append(f"{path} has no password: vault_submission_passwords has no hash for this login.")
        _fields(path, user, USER_FIELDS, found)
        _addresses(path, user, sending, found)
        limit = user.get("limit", 1) if isinstance(user, Mapping) else 1
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            found.append(f"{path}.limit is {_show(limit)}: how many recipients in a day, 1 or more.")
    for login in passwords if isinstance(passwords, Mapping) else ():
        if login not in logins:
            found.append(f"vault_submission_passwords has a hash for {login}, who is not in estate_submission_users.")
    for name, relay in _mapping("estate_submission_relays", relays, found).items():
        path = f"estate_submission_relays[{_show(name)}]"
        _fields(path, relay, RELAY_FIELDS, found)
        _addresses(path, relay, sending, found)
        if isinstance(relay, Mapping):
            _clients(path, relay, found)
    return found


def _mapping(path: str, value: Any, found: list[str]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    found.append(f"{path} is {_show(value)}: a mapping is needed, {{}} when there is nothing to say.")
    return {}


def _fields(path: str, value: Any, known: Iterable[str], found: list[str]) -> None:
    if not isinstance(value, Mapping):
        found.append(f"{path} is {_show(value)}: a mapping with {_names(known)} is needed.")
        return
    found += [
        f"{path} has no field {_show(name)}{_suggestion(name, known)}; known: {_names(known)}."
        for name in value
        if name not in known
    ]


def _addresses(path: str, value: Any, sending: set[str], found: list[str]) -> None:
    addresses = value.get("addresses") if isinstance(value, Mapping) else []
    if isinstance(value, Mapping) and (not isinstance(addresses, list) or not addresses):
        found.append(f'{path}.addresses is {_show(addresses)}: a list of addresses, or "@domain" for a whole domain.')
        return
    for address in addresses or []:
        whole = isinstance(address, str) and address.startswith("@")
        fault = domain_name_fault(address[1:]) if whole else address_fault(address)
        if fault:
            found.append(f"{path}.addresses has {_show(address)}: {fault}.")
        elif address.rpartition("@")[2] not in sending:
            found.append(
                f"{path}.addresses has {_show(address)}: no domain of estate_domains that sends"
                f"{_suggestion(address.rpartition('@')[2], sending)}; those are: {_names(sending)}."
            )


def _clients(path: str, relay: Mapping[str, Any], found: list[str]) -> None:
    if not relay.get("networks") and not relay.get("certificates"):
        found.append(f"{path} names no client: give networks, certificates, or both.")
    for network in relay.get("networks") or []:
        if not is_network(network):
            found.append(f"{path}.networks has {_show(network)}: no address and no network.")
        elif int(network.partition("/")[2] or "128") < WIDEST[6 if ":" in network else 4]:
            found.append(f"{path}.networks has {_show(network)}: so large a network is an open relay.")
    found += [
        f"{path}.certificates has {_show(print_)}: write a SHA-256 fingerprint as 32 pairs of capital hex digits with"
        " colons, as 'openssl x509 -noout -fingerprint -sha256' prints it."
        for print_ in relay.get("certificates") or []
        if not (isinstance(print_, str) and _FINGERPRINT.fullmatch(print_))
    ]
