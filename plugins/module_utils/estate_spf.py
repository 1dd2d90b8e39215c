"""From what the DMARC reports say to a change of the data model: the SPF work lists of ``playbooks/spf_senders.yml``.

``lists`` is what ``dmarc-analysis lists`` prints: rows to add, rows of every published network, and the records as DNS
has them.  Only what somebody has decided on is proposed; what the figures merely suggest is listed beside it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from estate_dns import spf_value
from estate_model import Domain, Estate

MAX_LOOKUPS = 10  # RFC 7208 §4.6.4
MAX_RECORD = 450  # octets; RFC 7208 §3.4 wants the whole answer to fit into 512
MAX_ROWS = 50  # of a kind and domain; reports are the word of strangers, and one may name any number of addresses


@dataclass
class Change:
    """What is to be done about one domain, in lines for people; ``send`` is None when nothing changes."""

    domain: str
    add: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    send: dict[str, list[str]] | None = None
    record: str = ""
    lookups: int = 0


def changes(estate: Estate, lists: Mapping[str, Any]) -> list[Change]:
    """The changes for every domain that the model has or the reports name, by name."""
    names = {name for name, domain in estate.domains.items() if domain.sends}
    names |= {row["domain"] for row in [*lists["add"], *lists["remove"]]}
    return [_change(name, estate, lists) for name in sorted(names)]


def _change(name: str, estate: Estate, lists: Mapping[str, Any]) -> Change:
    found = Change(name)
    add = [row for row in lists["add"] if row["domain"] == name]
    networks = [row for row in lists["remove"] if row["domain"] == name]
    published = lists["published"].get(name) or {}
    for row in add:
        if row["verdict"] not in ("add", "envelope"):
            found.undecided.append(_told(row, row["suggested"] or "no suggestion"))
        elif row["verdict"] == "envelope":
            found.notes.append(_told(row, row["suggested"] or row["kind"] or "no suggestion"))
    wanted = [row for row in add if row["verdict"] == "add"]
    found.add = [_told(row, f"{row['kind']}, {row['label']}") for row in wanted]
    domain = estate.domains.get(name)
    if domain is None:
        if wanted:
            found.notes.append(f"{name} is not in the data model: it needs an entry in estate_domains of its own")
        return found
    if domain.closed:
        if wanted:
            found.notes.append(f"{name} is closed in the data model, and yet senders of ours use it")
        return found
    new = _with(domain, [row["ip"] for row in wanted], estate)
    new = _without(new, networks, found, estate)
    costs = {include: int((published.get("includes") or {}).get(include, 1)) for include in new.send_includes}
    new = _flattened(new, costs, networks, found)
    found.lookups = sum(costs[include] for include in new.send_includes)
    found.record = spf_value(new, estate)
    if published.get("problem"):
        found.notes.append(f"DNS now: {published['problem']}")
    record = published.get("record")
    if record and set(record.split()) != set(spf_value(domain, estate).split()):
        found.notes.append(f"DNS has another record than the data model: {record}")
    if len(found.record) > MAX_RECORD:
        found.notes.append(f"the record would have {len(found.record)} octets; above {MAX_RECORD} answers get too long")
    if new != domain:
        found.send = {
            "hosts": list(new.send_hosts),
            "networks": [str(network) for network in new.send_networks],
            "includes": list(new.send_includes),
        }
    return found


def _told(row: Mapping[str, Any], what: str) -> str:
    source = row["source_name"] or row["as_name"] or "unknown network"
    return (
        f"{row['ip']} ({source}): {what}; {row['n']} messages, DKIM {row['dkim_pct']} %, {row['reporters']} reporters,"
        f" {row['days']} days, last {row['last_day']}; {row['reason']}"
    )


def _with(domain: Domain, addresses: Sequence[str], estate: Estate) -> Domain:
    """The domain with further senders: hosts by name where they are ours, else networks."""
    hosts, networks = list(domain.send_hosts), list(domain.send_networks)
    for address in addresses:
        one = ipaddress.ip_address(address)
        owners = [
            host.name for host in estate.hosts.values() if one in [ipaddress.ip_address(a) for a in host.addresses]
        ]
        if owners:
            hosts += [owner for owner in owners[:1] if owner not in hosts]
        elif not any(_holds(network, one) for network in networks):
            networks.append(str(one))
    return replace(domain, sends=True, send_hosts=tuple(sorted(hosts)), send_networks=tuple(networks))


def _holds(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address in ipaddress.ip_network(network)


def _without(domain: Domain, rows: Sequence[Mapping[str, Any]], found: Change, estate: Estate) -> Domain:
    """The domain without hosts, networks and includes of which nothing has come for the whole period."""
    verdicts = {ipaddress.ip_network(row["network"]): row for row in rows}

    def silent(networks: Sequence[Any]) -> bool:
        known = [verdicts[network] for network in networks if network in verdicts]
        return bool(known) and len(known) == len(networks) and all(row["verdict"] == "remove" for row in known)

    explained: set[Any] = set()
    hosts, networks, includes = [], [], []
    for name in domain.send_hosts:
        own = [ipaddress.ip_network(address) for address in estate.hosts[name].addresses]
        if silent(own):
            found.remove.append(f"host {name}: {_last(verdicts, own)}")
        else:
            hosts.append(name)
        explained.update(own)
    for text in domain.send_networks:
        one = ipaddress.ip_network(text)
        if silent([one]):
            found.remove.append(f"network {text}: {_last(verdicts, [one])}")
        else:
            networks.append(text)
        explained.add(one)
    for include in domain.send_includes:
        inside = [network for network, row in verdicts.items() if (row["via"] + " ").startswith(f"include:{include} ")]
        if silent(inside):
            found.remove.append(f"include {include}: {_last(verdicts, inside)}")
        else:
            includes.append(include)
        explained.update(inside)
    found.notes += [
        f"{network} is published ({row['via']}) and silent, but not in the data model"
        for network, row in verdicts.items()
        if row["verdict"] == "remove" and network not in explained
    ]
    return replace(domain, send_hosts=tuple(hosts), send_networks=tuple(networks), send_includes=tuple(includes))


def _last(verdicts: Mapping[Any, Mapping[str, Any]], networks: Sequence[Any]) -> str:
    days = [verdicts[network]["last_day"] for network in networks if verdicts[network]["last_day"]]
    return f"last mail on {max(days)}" if days else "no mail was ever seen"


def _flattened(domain: Domain, costs: Mapping[str, int], rows: Sequence[Mapping[str, Any]], found: Change) -> Domain:
    """The domain with its dearest includes written as networks, until ten look-ups are enough."""
    includes, networks = list(domain.send_includes), list(domain.send_networks)
    while sum(costs[include] for include in includes) > MAX_LOOKUPS:
        for include in sorted(includes, key=lambda one: (-costs[one], one)):
            inside = [row["network"] for row in rows if (row["via"] + " ").startswith(f"include:{include} ")]
            if inside:
                break
        else:
            found.notes.append("more than ten look-ups, and the networks of the includes are not known")
            break
        includes.remove(include)
        networks += [network for network in inside if network not in networks]
        found.notes.append(
            f"include {include} costs {costs[include]} look-ups and is written as {len(inside)} networks: look again"
            " when the provider changes them"
        )
    return replace(domain, send_includes=tuple(includes), send_networks=tuple(networks))


def report(estate: Estate, lists: Mapping[str, Any]) -> list[str]:
    """The work lists and the proposed lines of domains.yml, as lines of text."""
    lines: list[str] = []
    for change in changes(estate, lists):
        lines.append(f"== {change.domain}")
        for title, rows in (
            ("add", change.add),
            ("remove", change.remove),
            ("undecided (decide in dmarc_analysis_senders)", change.undecided),
            ("note", change.notes),
        ):
            lines += [f"  {title}: {row}" for row in rows[:MAX_ROWS]]
            if len(rows) > MAX_ROWS:
                lines.append(f"  {title}: and {len(rows) - MAX_ROWS} more with less mail (dma.spf_to_add)")
        if change.send is None:
            lines.append("  nothing to change")
            continue
        lines.append("  to write into domains.yml:")
        lines += [f"    {change.domain}:", "      send:"]
        lines += [
            f"        {key}: [{', '.join(_yaml(value) for value in values)}]" for key, values in change.send.items()
        ]
        lines.append(f"  the record then ({change.lookups} look-ups of {MAX_LOOKUPS}): {change.record}")
    return lines


def _yaml(value: str) -> str:
    return f'"{value}"' if ":" in value else value
