#!/usr/bin/python
"""Ansible module: what every authoritative name server shows of DKIM and ARC keys, asked directly."""

from __future__ import annotations

import concurrent.futures
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.name
    import dns.query
    import dns.rcode
    import dns.rdatatype
    import dns.resolver
except ImportError as _error:
    _missing: Exception | None = _error
else:
    _missing = None

DOCUMENTATION = r"""
module: dkim_look
short_description: Ask all authoritative name servers for key records
description:
  - Asks each address of each name server of a zone, not a resolver, whether it shows the record that is expected and
    nothing else (RFC 6376 section 3.6.1), and for how long an earlier "no such name" may be cached (RFC 2308 section
    5). Name servers are those that are named and those that the servers themselves name. Changes nothing; needs
    dnspython.
options:
  records:
    type: dict
    required: true
    description: Name of a record to I(zone) and I(expected), its tag p= (empty for a revoked key).
  nameservers:
    type: list
    elements: str
    required: true
    description: Names or addresses of the authoritative servers.
  resolvers:
    type: list
    elements: str
    default: []
    description: Addresses of the resolvers that know the servers' addresses; those of the system when not given.
  port:
    type: int
    default: 53
    description: Port of the name servers.
  timeout:
    type: float
    default: 3
    description: Seconds to wait for an answer, of which there are two attempts.
author: Trustworthy Email estate
"""

EXAMPLES = r"""
- name: See what the name servers show
  dkim_look:
    records:
      20261128a._domainkey.example.org: {zone: example.org, expected: MIIBIj…}
    nameservers: [ns1.example.org, ns2.example.net]
"""

RETURN = r"""
view:
  description: >-
    Record to I(right) (all servers show it), I(absent) (no server shows anything), I(why) (what is not right), I(wait)
    (seconds that its absence may be cached).
  returned: always
  type: dict
servers:
  description: Zone to the servers' addresses that were asked.
  returned: always
  type: dict
"""

ATTEMPTS = 2
#: Together they are asked at most this many questions at a time.
WORKERS = 16
#: Servers that a zone may have; what is named beyond is a mistake.
MOST_SERVERS = 32

Ask = Callable[[str, str, str], Any]  # address, name, type → message or None


def asker(port: int, timeout: float) -> Ask:
    """Returns a function that asks one server one question, by TCP where an answer does not fit."""

    def ask(address: str, name: str, rdtype: str) -> Any:
        query = dns.message.make_query(name, rdtype, use_edns=0, payload=1232)
        query.flags &= ~dns.flags.RD
        for _attempt in range(ATTEMPTS):
            try:
                return dns.query.udp_with_fallback(query, address, timeout=timeout, port=port)[0]
            except (OSError, dns.exception.DNSException):
                continue
        return None

    return ask


def texts(message: Any, name: str) -> list[str]:
    """The TXT records of a name in an answer, the strings of each joined."""
    wanted = dns.name.from_text(name)
    return [
        b"".join(record.strings).decode("ascii", "replace")
        for rrset in message.answer
        if rrset.name == wanted and rrset.rdtype == dns.rdatatype.TXT
        for record in rrset
    ]


def tag(text: str, name: str) -> str | None:
    """The value of a tag of a key record without white space; None when it has no such tag."""
    for part in text.split(";"):
        key, found, value = part.partition("=")
        if found and key.strip() == name:
            return "".join(value.split())
    return None


def verdict(message: Any, name: str, expected: str) -> tuple[str, str]:
    """What one server shows: ``right``, ``absent`` or ``wrong``, and a reason."""
    if message is None:
        return "silent", "does not answer"
    if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return "wrong", f"answers {dns.rcode.to_text(message.rcode())}"
    if not message.flags & dns.flags.AA:
        return "wrong", "is not authoritative for it"
    found = texts(message, name)
    if not found:
        return "absent", "does not show it"
    if len(found) > 1:
        return "wrong", f"shows {len(found)} records of this name"
    if tag(found[0], "p") != "".join(expected.split()):
        return "wrong", "shows another key"
    return "right", ""


def negative_seconds(message: Any) -> int | None:
    """How long the zone's negative answers may be cached: the lesser of the SOA's TTL and its last field."""
    for section in (message.answer, message.authority) if message is not None else ():
        for rrset in section:
            if rrset.rdtype == dns.rdatatype.SOA:
                return min(rrset.ttl, rrset[0].minimum)
    return None


def reachable(address: str) -> bool:
    """Whether this machine has a way to an address at all; one without IPv6 cannot ask there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 53))
    except OSError:
        return False
    return True


def addresses_of(
    servers: Iterable[str], resolvers: list[str], timeout: float
) -> tuple[dict[str, list[str]], list[str]]:
    """The addresses of each server, and the names of those that have none."""
    resolver = dns.resolver.Resolver(configure=not resolvers)
    if resolvers:
        resolver.nameservers = resolvers
    resolver.lifetime = ATTEMPTS * timeout
    found: dict[str, list[str]] = {}
    unknown = []
    for server in list(dict.fromkeys(servers))[:MOST_SERVERS]:
        name = server.rstrip(".")
        try:
            socket.getaddrinfo(name, None, flags=socket.AI_NUMERICHOST)
            found[name] = [name]
            continue
        except OSError:
            pass
        there = []
        for rdtype in ("A", "AAAA"):
            try:
                there += [record.address for record in resolver.resolve(f"{name}.", rdtype, raise_on_no_answer=False)]
            except dns.exception.DNSException:
                continue
        if there:
            found[name] = there
        else:
            unknown.append(name)
    return found, unknown


def look(
    records: Mapping[str, Mapping[str, str]],
    nameservers: list[str],
    resolvers: list[str],
    ask: Ask,
    timeout: float,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Asks all servers for all records; returns the view and the addresses that were asked, by zone."""
    known, unknown = addresses_of(nameservers, resolvers, timeout)
    zones = sorted({record["zone"] for record in records.values()})
    servers: dict[str, dict[str, list[str]]] = {}
    faults: dict[str, list[str]] = {}
    waits: dict[str, int] = {}
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for zone in zones:
            names = set()
            for address in [address for there in known.values() for address in there if reachable(address)]:
                message = ask(address, zone, "NS")
                for rrset in message.answer if message is not None else ():
                    if rrset.rdtype == dns.rdatatype.NS:
                        names |= {record.target.to_text().rstrip(".") for record in rrset}
            more, lost = addresses_of(sorted(names - {*known}), resolvers, timeout)
            everyone = {**known, **more}
            servers[zone] = {
                name: [address for address in there if reachable(address)] for name, there in everyone.items()
            }
            faults[zone] = [f"{name} has no address" for name in dict.fromkeys([*unknown, *lost])]
            faults[zone] += [f"there is no way to {name}" for name, there in servers[zone].items() if not there]
            if not servers[zone]:
                faults[zone].append("no name server is known")
            everywhere = [address for there in servers[zone].values() for address in there]
            answers = pool.map(lambda address, zone=zone: negative_seconds(ask(address, zone, "SOA")), everywhere)
            waits[zone] = max((seconds for seconds in answers if seconds is not None), default=0)

        questions = [
            (record, name, address)
            for record, wanted in sorted(records.items())
            for name, there in servers[wanted["zone"]].items()
            for address in there
        ]
        answers = pool.map(
            lambda question: verdict(
                ask(question[2], question[0], "TXT"), question[0], records[question[0]]["expected"]
            ),
            questions,
        )
        found = list(zip(questions, answers, strict=True))
    view = {}
    for record, wanted in sorted(records.items()):
        zone = wanted["zone"]
        own = [(f"{name} ({address})", *answer) for (of, name, address), answer in found if of == record]
        wrong = [f"{server} {why}" for server, state, why in own if state != "right"] + faults[zone]
        view[record] = {
            "right": bool(own) and not wrong,
            "absent": bool(own) and all(state == "absent" for _server, state, _why in own),
            "why": "; ".join(wrong),
            "wait": waits[zone],
        }
    return view, {zone: [a for there in names.values() for a in there] for zone, names in servers.items()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "records": {"type": "dict", "required": True},
            "nameservers": {"type": "list", "elements": "str", "required": True},
            "resolvers": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int", "default": 53},
            "timeout": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    if _missing is not None:
        module.fail_json(msg=missing_required_lib("dnspython"), exception=str(_missing))
    view, servers = look(
        module.params["records"],
        module.params["nameservers"],
        module.params["resolvers"],
        asker(module.params["port"], module.params["timeout"]),
        module.params["timeout"],
    )
    module.exit_json(changed=False, view=view, servers=servers)


if __name__ == "__main__":
    main()
