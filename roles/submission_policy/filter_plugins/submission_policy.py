"""What is wrong with the senders of the role submission_policy, in plain words, before anything is touched."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

ENTRY = re.compile(r"[a-z0-9!#$%&'*+/=?^_`{|}~.-]*@[a-z0-9-]+(\.[a-z0-9-]+)+", re.IGNORECASE)
FINGERPRINT = re.compile(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}")


def submission_policy_problems(users: Any, clients: Any) -> list[str]:
    """Everything that is wrong with ``users | submission_policy_problems(clients)``."""
    found: list[str] = []
    for variable, senders in (("submission_policy_users", users), ("submission_policy_clients", clients)):
        if not isinstance(senders, Mapping):
            found.append(f"{variable} is no mapping.")
            continue
        for name, sender in senders.items():
            path = f"{variable}[{name!r}]"
            if not isinstance(sender, Mapping) or not isinstance(sender.get("addresses"), (list, tuple)):
                found.append(f'{path} has no addresses: a list of "user@domain" and "@domain" is needed.')
                continue
            found += [
                f'{path}.addresses has {address!r}: write "user@domain", or "@domain" for a whole one.'
                for address in sender["addresses"]
                if not (isinstance(address, str) and ENTRY.fullmatch(address))
            ]
            limit = sender.get("limit")
            if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
                found.append(f"{path}.limit is {limit!r}: recipients in a day, 1 or more.")
            if variable.endswith("clients"):
                found += _client_problems(path, sender)
    return found


def _client_problems(path: str, client: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    networks, certificates = client.get("networks") or [], client.get("certificates") or []
    if not networks and not certificates:
        found.append(f"{path} names no client: give networks, certificates, or both.")
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            found.append(f"{path}.networks has {network!r}: no address and no network.")
    found += [
        f"{path}.certificates has {mark!r}: 32 pairs of capital hex digits with colons are needed."
        for mark in certificates
        if not (isinstance(mark, str) and FINGERPRINT.fullmatch(mark))
    ]
    return found


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by the name under which templates call them."""
        return {"submission_policy_problems": submission_policy_problems}
