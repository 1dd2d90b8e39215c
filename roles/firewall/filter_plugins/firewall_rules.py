"""Filters that turn the role's arguments into what nftables wants, and say in plain words what is wrong with them.

``firewall_problems``
    Everything that would make the ruleset wrong or shut Ansible out, as a list of sentences.
``firewall_family``
    The addresses and networks of one IP version in a mixed list, without overlaps (nft refuses those).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
KEYS = {"port", "protocol", "from", "reason", "limit"}


def _network(text: Any) -> Network:
    """Parse an address or network; ValueError names what is wrong with it."""
    try:
        return ipaddress.ip_network(str(text))
    except ValueError as error:
        raise ValueError(f'"{text}" is not an IPv4 or IPv6 address or network ({error})') from None


def _ports(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _port_problems(name: str, ports: list[Any]) -> list[str]:
    wrong = [port for port in ports if isinstance(port, bool) or not str(port).isdigit() or not 1 <= int(port) <= 65535]
    found = [f'{name}: "{port}" is not a port; a number from 1 to 65535 is wanted.' for port in wrong]
    return found if ports else [f"{name} is an empty list; name at least one port."]


def _network_problems(name: str, networks: Iterable[Any]) -> list[str]:
    found = []
    for text in networks:
        try:
            _network(text)
        except ValueError as error:
            found.append(f"{name}: {error}.")
    return found


def firewall_problems(
    allow: list[Mapping[str, Any]], management: list[str], ssh_ports: list[int], connection: str = ""
) -> list[str]:
    """Return plain sentences about wrong arguments; an empty list when all is well.

    ``connection`` is SSH_CONNECTION as the host sees it ("client port server port"), or empty when Ansible does not
    come by SSH: whoever runs the role must be able to come back after it.
    """
    found = _network_problems("firewall_management_networks", management)
    found += _port_problems("firewall_ssh_ports", ssh_ports)
    if not management:
        found.append("firewall_management_networks is empty: SSH would be shut for everyone. Name who may reach it.")
    for number, rule in enumerate(allow):
        name = f"firewall_allow[{number}]"
        for key in sorted(set(rule) - KEYS):
            found.append(f'{name}: "{key}" is unknown; allowed are {", ".join(sorted(KEYS))}.')
        found += _port_problems(f"{name}.port", _ports(rule.get("port", [])))
        found += _network_problems(f"{name}.from", rule.get("from") or [])
        if rule.get("from") == []:
            found.append(f"{name}.from is an empty list: nobody could come. Leave it out to let everyone in.")
        if not str(rule.get("reason", "")).strip():
            found.append(f"{name}.reason is empty; say in a sentence why this port is open.")
        limit = rule.get("limit") or {}
        for key in ("rate", "burst"):
            if key in limit and int(limit[key]) < 1:
                found.append(f'{name}.limit.{key} is "{limit[key]}"; a number from 1 is wanted.')
    if found or not connection.strip():
        return found
    client, _, _, port = connection.split()
    source = ipaddress.ip_address(client.split("%")[0])
    if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped:
        source = source.ipv4_mapped
    if int(port) not in [int(each) for each in ssh_ports]:
        found.append(
            f"Ansible is connected to port {port}, which is not in firewall_ssh_ports: it would lock itself out."
        )
    if not any(source in _network(text) for text in management):
        found.append(
            f"Ansible is connected from {source}, which is in none of firewall_management_networks "
            f"({', '.join(management)}): it would lock itself out."
        )
    return found


def firewall_family(networks: Iterable[Any], version: int) -> list[str]:
    """Return the networks of IP ``version`` (4 or 6), sorted and merged; a single address without its prefix length."""
    chosen = [each for each in map(_network, networks) if each.version == version]
    merged = ipaddress.collapse_addresses(chosen)
    return [str(each.network_address) if each.num_addresses == 1 else str(each) for each in merged]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        return {"firewall_problems": firewall_problems, "firewall_family": firewall_family}
