"""Filter that says in plain words what is wrong with the role's jails, before fail2ban says it in its own words.

``fail2ban_problems``
    Everything that would leave guessing unnoticed or shut out the wrong ones, as a list of sentences.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

FIELDS = {"journal", "failures", "ports", "ban", "unban", "tries", "within", "seconds"}
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
JOURNAL = re.compile(r"[A-Z_]+=\S+(( \+)? [A-Z_]+=\S+)*")


def _failures(place: str, failures: Any) -> list[str]:
    if not isinstance(failures, list) or not failures:
        return [f"{place}.failures is empty: nothing would ever count."]
    found = []
    for pattern in map(str, failures):
        if "\n" in pattern:
            found.append(f"{place}.failures has a line break.")
        if "<HOST>" not in pattern and not re.search("<F-ID>.+</F-ID>", pattern):
            found.append(f"{place}.failures has {pattern!r} without <HOST> or <F-ID>…</F-ID>: who would it be?")
        try:
            re.compile(re.sub(r"<[^<>?]+>", "x", pattern))
        except re.error as error:
            found.append(f"{place}.failures has {pattern!r}, which is no regular expression ({error}).")
    return found


def _jail(place: str, jail: Mapping[str, Any]) -> list[str]:
    found = [f'{place}: "{field}" is unknown; allowed are {", ".join(sorted(FIELDS))}.' for field in set(jail) - FIELDS]
    if not JOURNAL.fullmatch(str(jail.get("journal", ""))):
        found.append(f"{place}.journal must name fields of the journal, such as _SYSTEMD_UNIT=dovecot.service.")
    found += _failures(place, jail.get("failures"))
    ports = jail.get("ports") or []
    wrong = [port for port in ports if isinstance(port, bool) or not str(port).isdigit() or not 0 < int(port) < 65536]
    found += [f'{place}.ports has "{port}"; a number from 1 to 65535 is wanted.' for port in wrong]
    if bool(ports) == bool(jail.get("ban")):
        found.append(f"{place} must have either ports, where an address is shut out, or a command, ban.")
    if bool(jail.get("ban")) != bool(jail.get("unban")):
        found.append(f"{place} must have both ban and unban, or neither: what is begun must end.")
    if ports and not all("<HOST>" in str(pattern) for pattern in jail.get("failures") or []):
        found.append(f"{place}.failures must have <HOST> where ports are shut.")
    for field in ("tries", "within", "seconds"):
        if field in jail and (isinstance(jail[field], bool) or not str(jail[field]).isdigit() or int(jail[field]) < 1):
            found.append(f'{place}.{field} is "{jail[field]}"; a number from 1 is wanted.')
    return found


def fail2ban_problems(jails: Mapping[str, Any], never: Iterable[Any]) -> list[str]:
    """All that is wrong with the role's arguments, in plain sentences; an empty list: all is well.

    :param jails: name → fields (defaults/main.yml).
    :param never: addresses and networks that are never shut out.
    """
    found = [] if jails else ["fail2ban_jails is empty: nothing would be watched."]
    for name, jail in jails.items():
        place = f"fail2ban_jails['{name}']"
        if not NAME.fullmatch(str(name)):
            found.append(f"{place}: a name has at most 20 lower-case letters, digits and hyphens.")
        if isinstance(jail, Mapping):
            found += _jail(place, jail)
        else:
            found.append(f"{place} must have fields: journal, failures, ports.")
    for text in never:
        try:
            wide = ipaddress.ip_network(str(text)).prefixlen == 0
        except ValueError:
            found.append(f'fail2ban_never has "{text}", which is not an IPv4 or IPv6 address or network.')
            continue
        if wide:
            found.append(f"fail2ban_never has {text}: nobody would ever be shut out.")
    return found


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by the name under which templates call them."""
        return {"fail2ban_problems": fail2ban_problems}
