"""Whether the live world agrees with the data model: all checks of ``playbooks/dns_verify.yml``.

First every set of records is compared as each place sees it: the controller's resolver, every authoritative server and
the resolver of every host. Then come the checks that need more than one record, or a connection. They are silent about
records that are known to be wrong, so that one fault is told once.

Follows RFC 5321 §5.1 (MX), RFC 7208 (SPF), RFC 6376 (DKIM), RFC 9989 and RFC 9990 (DMARC), RFC 8461 (MTA-STS), RFC 7672
(DANE), RFC 7505 (null MX), RFC 1912 §2.1 (PTR and address agree), RFC 4033 (DNSSEC).
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils import dns_live, dns_reach
from ansible.module_utils.dns_compare import (
    LONG_TTL,
    NOTHING,
    Difference,
    Findings,
    canonical,
    compare,
    expectations,
    key_bits,
    shown,
    tags,
)
from ansible.module_utils.dns_live import Answer
from ansible.module_utils.dns_spf import Cost, cost, is_spf
from ansible.module_utils.estate_bimi import bimi_problems

CONTROLLER = "controller"
SMTP_PORT = 25
CONNECTIONS = 16
#: More names than these are not listed one by one.
FEW = 3
STS_PATH = "/.well-known/mta-sts.txt"
STRONG_BITS = 2048
#: Where more than these, and more than half of all records, differ, the place is what is wrong.
MANY = 10

Set = tuple[str, str]


@dataclass
class Task:
    """What is to be verified.

    :ivar zones: zone → records, as the filter ``estate_zones`` gives them.
    :ivar model: ``estate_model``.
    :ivar policies: domain → text of its MTA-STS policy.
    :ivar resolvers: addresses of the controller's resolvers, asked in turn.
    :ivar views: host → what the module dns_ask brought from it; None for a host that could not be reached.
    :ivar connect: whether ports 25, 465, 587 and 443 are looked at from here.
    :ivar ca_file: certificates (PEM) by which web servers are verified; None for those of the system.
    :ivar earlier: what the last run has found of outside SPF records, domain → record.
    """

    zones: Mapping[str, Sequence[Mapping[str, Any]]]
    model: Mapping[str, Any]
    policies: Mapping[str, str]
    resolvers: Sequence[str]
    views: Mapping[str, Mapping[str, Any] | None]
    connect: bool = True
    ca_file: str | None = None
    timeout: float = 8.0
    earlier: Mapping[str, str] = field(default_factory=dict)
    spf_lists: Mapping[str, Any] | None = None


@dataclass
class Server:
    """An authoritative server of a zone, at one of its addresses."""

    zone: str
    name: str
    address: str
    soa: Answer | None = None

    @property
    def place(self) -> str:
        """How it is called in reports."""
        return f"{self.name} ({self.address})"


class Verification:
    """One run; :meth:`run` fills ``findings``, ``notes``, ``places`` and ``included``."""

    def __init__(self, task: Task, asker: dns_live.Asker) -> None:
        self.task, self.asker = task, asker
        self.findings = Findings()
        self.notes: list[str] = []
        self.places: list[str] = [CONTROLLER]
        self.included: dict[str, str] = {}
        self.costs: dict[str, Cost] = {}
        self.sets = expectations(task.zones, dns_live.parse)
        self._add_what_must_be_gone()
        self.zone_of = {one: zone for zone, sets in self.sets.items() for one in sets}
        self.apex: dict[str, str] = {}
        self.secure: dict[str, bool] = {}
        self._connections = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="reach")

    @property
    def records(self) -> int:
        """How many records were compared."""
        return sum(len(expected) for sets in self.sets.values() for expected in sets.values())

    # --- everything ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All checks."""
        try:
            greetings = self._begin_greetings()
            for one in self.zone_of:
                self._ask(*one)
            self._find_zones()
            servers = self._find_servers()
            self._compare_controller()
            self._compare_servers(servers)
            self._compare_hosts()
            self._mx_targets()
            self._pointers()
            self._helo()
            self._spf()
            self._host_keys()
            self._outside_authorisations()
            self._closed_wildcards()
            self._delegated()
            self._dane_needs_dnssec()
            self._policies()
            self._bimi()
            self._greetings(greetings)
            self._never_sends()
        finally:
            self._connections.shutdown(wait=False, cancel_futures=True)

    def _add_what_must_be_gone(self) -> None:
        """Keys whose life has ended must stand in DNS no longer."""
        for record, key in (self.task.model.get("dkim_keys") or {}).items():
            if key.get("state") != "removed":
                continue
            zone = max((zone for zone in self.sets if f".{record}".endswith(f".{zone}")), key=len, default=None)
            if zone is not None:
                self.sets[zone].setdefault((record, "TXT"), [])

    def _ask(self, name: str, rtype: str) -> Future[Answer] | None:
        servers = self.task.resolvers
        return self.asker.begin(servers[0], name, rtype) if servers else None

    def _here(self, name: str, rtype: str) -> Answer:
        return self.asker.first(self.task.resolvers, name, rtype)

    def _add(self, difference: Difference | None, place: str = CONTROLLER) -> None:
        self.findings.add(difference, place)

    # --- zones and their servers --------------------------------------------------------------------------------------

    def _find_zones(self) -> None:
        """The real apex of each zone: a reverse zone may begin further up than its network."""
        for zone in self.sets:
            labels = zone.split(".")
            for start in range(max(1, len(labels) - 1)):
                apex = ".".join(labels[start:])
                if self._here(apex, "SOA").records:
                    self.apex[zone] = apex
                    break
            else:
                self.apex[zone] = zone
            self.secure[zone] = bool(self._here(self.apex[zone], "DS").records)

    def _find_servers(self) -> list[Server]:
        wanted = {str(name).rstrip(".") for name in (self.task.model.get("dns") or {}).get("nameservers") or []}
        servers: list[Server] = []
        for zone in self.sets:
            answer = self._here(self.apex[zone], "NS")
            names = [record.rstrip(".") for record in answer.records]
            if (
                answer.says
                and wanted
                and self.apex[zone] == zone
                and not zone.endswith(".arpa")
                and set(names) != wanted
            ):
                self._add(
                    Difference(
                        zone,
                        "NS",
                        "servers",
                        " | ".join(sorted(wanted)),
                        shown(names),
                        f"Make the NS records of {zone}, there and in the zone above, those of estate_dns.nameservers,"
                        " or correct the variable.",
                    )
                )
            for name, found in dns_live.addresses(self.asker, self.task.resolvers, names).items():
                if not found:
                    self._add(
                        Difference(
                            name, "A", "lame", "an address", NOTHING,
                            f"Publish an address for {name}, or take it out of the NS records of {zone}.",
                        )
                    )  # fmt: skip
                reachable = [address for address in found if dns_live.has_route(address)]
                servers += [Server(zone, name, address) for address in reachable]
                if found and not reachable:
                    self.notes.append(f"{name} was not asked: the controller has no route to {', '.join(found)}")
        for server in servers:
            self.asker.begin(server.address, self.apex[server.zone], "SOA", False)
        return servers

    def _compare_servers(self, servers: Sequence[Server]) -> None:
        sound: list[Server] = []
        for server in servers:
            server.soa = self.asker.ask(server.address, self.apex[server.zone], "SOA", False)
            if server.place not in self.places:
                self.places.append(server.place)
            if server.soa.authoritative and server.soa.records:
                sound.append(server)
                continue
            told = server.soa.detail or ("no authority over the zone" if server.soa.says else server.soa.state)
            self._add(
                Difference(
                    server.zone,
                    "SOA",
                    "silent" if server.soa.state == "silent" else "lame",
                    f"an answer of {server.name}",
                    told,
                    f"Have {server.name} serve {self.apex[server.zone]}, or take it out of the zone's NS records: part"
                    " of the world asks it.",
                ),
                server.place,
            )
        for zone in {server.zone for server in sound}:
            self._compare_zone(zone, [server for server in sound if server.zone == zone])

    def _compare_zone(self, zone: str, servers: Sequence[Server]) -> None:
        serials = {server.place: int((server.soa or Answer("")).records[0].split()[2]) for server in servers}
        newest = _newest(serials.values())
        current = [server for server in servers if serials[server.place] == newest]
        for server in servers:
            if server not in current:
                self._add(
                    Difference(
                        zone,
                        "SOA",
                        "unsynchronised",
                        f"serial {newest}",
                        f"serial {serials[server.place]}",
                        f"Find out why {server.name} has not taken over the zone (notify, transfer, its log): it"
                        " answers with former records.",
                    ),
                    server.place,
                )
        asked = {
            (server.address, *one): self.asker.begin(server.address, *one, False)
            for server in current
            for one in self.sets[zone]
        }
        for server in current:
            answers = {one: asked[server.address, *one].result() for one in self.sets[zone]}
            self._compare_sets(zone, answers, server.place)

    # --- the same records from each place -----------------------------------------------------------------------------

    def _compare_controller(self) -> None:
        if not self.task.resolvers:
            self._add(
                Difference(
                    CONTROLLER, "-", "silent", "a resolver", NOTHING,
                    "Give the controller a resolver, or name one in dns_verify_resolvers.",
                )
            )  # fmt: skip
            return
        self._compare_view({one: self._here(*one) for one in self.zone_of}, CONTROLLER)

    def _compare_hosts(self) -> None:
        for host, view in sorted(self.task.views.items()):
            if view is None:
                self._add(
                    Difference(
                        host, "-", "unreachable", "a look from the host", "no connection",
                        f"Make {host} reachable by SSH, or leave it out by --limit: what it sees is not known.",
                    ),
                    CONTROLLER,
                )  # fmt: skip
                continue
            self.places.append(host)
            answers = {one: host_answer(view["answers"].get(f"{one[0]} {one[1]}"), *one) for one in self.zone_of}
            self._compare_view(answers, host)
            self._must_validate(host, answers)

    def _compare_view(self, answers: Mapping[Set, Answer], place: str) -> None:
        if not any(answer.says or answer.state == "bogus" for answer in answers.values()):
            detail = next((answer.detail or answer.state for answer in answers.values()), "")
            self._add(
                Difference(
                    place, "-", "silent", "answers", detail,
                    f"Look at the resolver of {place}: it answered none of {len(answers)} questions.",
                ),
                place,
            )  # fmt: skip
            return
        # What validates nowhere is told by its zone.
        told = {one: answer for one, answer in answers.items() if answer.state != "bogus"}
        wrong = [one for one, answer in told.items() if not answer.says or compare(*one, self._wanted(one), answer)]
        if len(wrong) > max(MANY, len(answers) // 2):
            self.findings.broken.update(wrong)
            self._add(
                Difference(
                    place, "-", "other-world", "what the data model has", f"{len(wrong)} of {len(answers)} differ",
                    f"Look at the resolver of {place} ({_few(wrong)}): it sees another DNS, or nothing is there yet.",
                ),
                place,
            )  # fmt: skip
            return
        for zone in self.sets:
            self._compare_sets(zone, {one: answers[one] for one in self.sets[zone]}, place)

    def _wanted(self, one: Set) -> list[str]:
        return self.sets[self.zone_of[one]][one]

    def _compare_sets(self, zone: str, answers: Mapping[Set, Answer], place: str) -> None:
        bogus = [one for one, answer in answers.items() if answer.state == "bogus"]
        dead = [one for one, answer in answers.items() if not answer.says and answer.state != "bogus"]
        if bogus:
            self._add(
                Difference(
                    zone,
                    "DNSSEC",
                    "bogus",
                    "answers that validate",
                    "validation fails",
                    f"Sign {zone} anew, or correct its DS in the zone above ({_few(bogus)}): validating resolvers give"
                    " no answer, so mail waits or is refused.",
                ),
                place,
            )
        if dead:
            self._add(
                Difference(
                    zone,
                    "-",
                    "silent",
                    "answers",
                    answers[dead[0]].detail or answers[dead[0]].state,
                    f"Look at the servers of {zone} and run it again: no answer for {_few(dead)}.",
                ),
                place,
            )
        for one, answer in answers.items():
            if not answer.says:
                self.findings.broken.add(one)
                continue
            self._add(compare(*one, self.sets[zone][one], answer), place)

    def _must_validate(self, host: str, answers: Mapping[Set, Answer]) -> None:
        """A host of ours must see what is signed as authentic: DANE rests on it (RFC 7672 §2.1)."""
        for zone in self.sets:
            unsure = [
                one
                for one in self.sets[zone]
                if self.secure[zone] and answers[one].state == "ok" and not answers[one].authentic and one[1] != "NS"
            ]
            if unsure:
                self._add(
                    Difference(
                        zone,
                        "DNSSEC",
                        "unvalidated",
                        "authentic answers",
                        "answers without the AD flag",
                        f"Have the resolver of the host validate ({_few(unsure)}): DANE does nothing without it.",
                    ),
                    host,
                )

    # --- what follows from several records ----------------------------------------------------------------------------

    def _mx_targets(self) -> None:
        targets = {
            record.split()[1].rstrip("."): name
            for sets in self.sets.values()
            for (name, rtype), records in sets.items()
            if rtype == "MX"
            for record in records
        }
        for target, name in sorted(targets.items()):
            if not target or (target, "A") in self.zone_of or (target, "AAAA") in self.zone_of:
                continue
            found = [self._here(target, rtype) for rtype in ("A", "AAAA")]
            if all(answer.says for answer in found):
                self._add(_target_problem(name, target, found))

    def _pointers(self) -> None:
        """Forward-confirmed reverse names of the hosts whose records are not all ours to publish."""
        for host in self.task.model["hosts"].values():
            fqdn = host["fqdn"]
            for address in (host.get("ipv4"), host.get("ipv6")):
                if not address:
                    continue
                ip = ipaddress.ip_address(address)
                pointer, forward = (ip.reverse_pointer, "PTR"), (fqdn, "A" if ip.version == 4 else "AAAA")
                if pointer in self.zone_of and forward in self.zone_of:
                    continue
                self._pointer(fqdn, str(ip), pointer, forward)

    def _pointer(self, fqdn: str, address: str, pointer: Set, forward: Set) -> None:
        back, there = self._here(*pointer), self._here(*forward)
        if back.says and f"{fqdn}." not in back.records:
            self._add(
                Difference(
                    *pointer, "differs" if back.records else "missing", f"{fqdn}.", shown(back.records),
                    f"Have the owner of the address {address} publish the PTR record {fqdn}.: receivers refuse mail"
                    " from addresses without a name that leads back.",
                )
            )  # fmt: skip
        if there.says and address not in there.records:
            self._add(
                Difference(
                    *forward, "differs" if there.records else "missing", address, shown(there.records),
                    f"Have the owner of {fqdn} publish the address {address}, or correct estate_hosts.",
                )
            )  # fmt: skip

    def _helo(self) -> None:
        for name, view in sorted(self.task.views.items()):
            host = self.task.model["hosts"].get(name)
            if host is None or not view or not view.get("helo") or view["helo"] == host["fqdn"]:
                continue
            self._add(
                Difference(
                    host["fqdn"], "HELO", "helo", host["fqdn"], view["helo"],
                    f"Set smtp_helo_name (or myhostname) of Postfix on {name} to {host['fqdn']}, the name of its"
                    " address.",
                ),
                name,
            )  # fmt: skip

    def _spf(self) -> None:
        def lookup(name: str, rtype: str) -> tuple[str, ...] | None:
            answer = self._here(name, rtype)
            return answer.records if answer.says else None

        for (name, rtype), records in self._expected():
            if rtype != "TXT" or not any(is_spf(record) for record in records):
                continue
            answer = self._here(name, "TXT")
            live = [record for record in answer.records if is_spf(record)]
            if not answer.says or len(live) != 1:
                continue
            found = cost(name, live[0], lookup)
            self.costs[name] = found
            self.included |= found.included
            faults = found.faults()
            void_of_ours = [one for one in found.void if not self.findings.sound((one, "A"), (one, "AAAA"))]
            if faults and not void_of_ours:
                self._spf_fault(name, live[0], "; ".join(faults))
            self.notes += [f"SPF of {name}: {other} gave no answer" for other in found.unknown]
        for name, record in sorted(self.included.items()):
            before = self.task.earlier.get(name)
            if before is not None and before != record:
                self.notes.append(f"the SPF record of {name}, which ours include, has changed: {before} → {record}")

    def _spf_fault(self, name: str, record: str, faults: str) -> None:
        """One line for one record: where it is not the model's anyway, the line about that says it too."""
        known = [one for one in self.findings.all() if (one.name, one.type) == (name, "TXT") and one.kind == "differs"]
        for difference in known:
            difference.todo = f"{difference.todo} As it is, {faults}."
        if not known:
            self._add(
                Difference(
                    name, "TXT", "spf", "a record that receivers can evaluate", record,
                    f"Change send.includes of {name}, or write the networks instead (docs/tighten-spf.md): {faults}.",
                )
            )  # fmt: skip

    def _expected(self) -> list[tuple[Set, list[str]]]:
        return [(one, records) for sets in self.sets.values() for one, records in sets.items()]

    def _host_keys(self) -> None:
        for host, view in sorted(self.task.views.items()):
            for record, public in sorted(((view or {}).get("keys") or {}).items()):
                one = (record, "TXT")
                if one not in self.zone_of or not self.findings.sound(one):
                    continue
                expected = self.sets[self.zone_of[one]][one]
                if not expected:
                    continue
                live = (tags(expected[0]) or {}).get("p", "")
                if "".join(live.split()) != public:
                    self._add(
                        Difference(
                            record, "TXT", "host-key", f"the key that {host} has", "another one in DNS",
                            f"Run site.yml for {host}, or put the key's public half into the model: signatures of"
                            f" {host} do not verify.",
                        ),
                        host,
                    )  # fmt: skip
                bits = key_bits(public)
                if bits.startswith("RSA") and int(bits.split()[1]) < STRONG_BITS:
                    self._add(
                        Difference(
                            record, "TXT", "weak-key", f"RSA, {STRONG_BITS} bits", bits,
                            f"Make a new key for {record} (docs/dkim-keys.md): receivers ignore or refuse short ones.",
                        ),
                        host,
                    )  # fmt: skip
        for (name, rtype), _ in self._expected():
            if (rtype == "TXT" and "._domainkey." in name) or rtype == "TLSA":
                ttl = self._here(name, rtype).ttl
                if ttl > LONG_TTL:
                    self.notes.append(
                        f"{name} {rtype} is kept for {ttl} s (its TTL): keys change slowly so; a day is enough"
                    )

    def _outside_authorisations(self) -> None:
        """A receiver of reports outside must say that it takes them (RFC 9990 §4)."""
        ours = [zone for zone in self.sets if not zone.endswith(".arpa")]
        for (name, rtype), records in self._expected():
            if rtype != "TXT" or not name.startswith("_dmarc.") or not records:
                continue
            domain = name[len("_dmarc.") :]
            for uri in ((tags(records[0]) or {}).get("rua") or "").split(","):
                target = uri.strip().partition("!")[0].rpartition("@")[2].lower()
                if not target or any(target == zone or target.endswith(f".{zone}") for zone in ours):
                    continue
                place = f"{domain}._report._dmarc.{target}"
                answer = self._here(place, "TXT")
                if answer.says and not any(record.lower().startswith("v=dmarc1") for record in answer.records):
                    self._add(
                        Difference(
                            place, "TXT", "authorisation", "v=DMARC1", shown(answer.records),
                            f"Ask the owner of {target} to publish it, or take the address out of dmarc.rua of"
                            f" {domain}: nobody sends reports there without it.",
                        )
                    )  # fmt: skip

    def _closed_wildcards(self) -> None:
        """Whatever selector a forger invents, its key must be revoked."""
        for (name, rtype), records in self._expected():
            if rtype != "TXT" or not name.startswith("*.") or not self.findings.sound((name, rtype)):
                continue
            invented = f"s{secrets.token_hex(4)}.{name[2:]}"
            answer = self._here(invented, "TXT")
            if answer.says and [canonical("dkim", one) for one in answer.records] != [
                canonical("dkim", one) for one in records
            ]:
                self._add(
                    Difference(
                        name, "TXT", "wildcard", shown(records), shown(answer.records),
                        f"Publish {name} so that it covers every name below it; a name beside it may be in the way.",
                    )
                )  # fmt: skip

    def _dane_needs_dnssec(self) -> None:
        for (name, rtype), records in self._expected():
            if rtype == "TLSA" and records and not self.secure[self.zone_of[name, rtype]]:
                zone = self.zone_of[name, rtype]
                self._add(
                    Difference(
                        zone, "DS", "unsigned", "a signed zone", "no DS in the zone above",
                        f"Sign {zone} and publish its DS in the zone above: only TLSA records that validate count.",
                    )
                )  # fmt: skip

    def _delegated(self) -> None:
        """A member organisation's own zone: its servers answer, and it keeps the least rules."""
        for domain, fields in sorted(self.task.model["domains"].items()):
            if not fields.get("delegated") or not self.findings.sound((domain, "NS")):
                continue
            names = [server if isinstance(server, str) else server["name"] for server in fields["delegated"]]
            dead = []
            for name, found in dns_live.addresses(self.asker, self.task.resolvers, names).items():
                reachable = [address for address in found if dns_live.has_route(address)]
                for address in reachable:
                    answer = self.asker.ask(address, domain, "SOA", False)
                    if not (answer.authoritative and answer.records):
                        dead.append(f"{name} ({address})")
                if not found:
                    dead.append(name)
            if dead:
                self._add(
                    Difference(
                        domain, "SOA", "lame", "an answer of each server", f"nothing from {', '.join(dead)}",
                        f"Tell the owner of {domain} that these servers do not have the zone, or correct 'delegated'.",
                    )
                )  # fmt: skip
            for rtype, expected, found_text in self._least(domain):
                self._add(
                    Difference(
                        domain if rtype != "DMARC" else f"_dmarc.{domain}", "TXT" if rtype != "MX" else "MX",
                        "delegated", expected, found_text,
                        f"Ask the owner of {domain} to publish {expected}: forged mail in its name is taken for ours.",
                    )
                )  # fmt: skip

    def _least(self, domain: str) -> Iterable[tuple[str, str, str]]:
        mx, spf, dmarc = self._here(domain, "MX"), self._here(domain, "TXT"), self._here(f"_dmarc.{domain}", "TXT")
        if mx.says and not mx.records:
            yield "MX", "an MX, or a null MX", NOTHING
        records = [record for record in spf.records if is_spf(record)]
        if spf.says and (
            len(records) != 1 or (not records[0].lower().endswith(("-all", "~all")) and "redirect=" not in records[0])
        ):
            yield "SPF", "one SPF record that ends in -all or ~all", shown(records)
        policies = [record for record in dmarc.records if record.lower().startswith("v=dmarc1")]
        policy = tags(policies[0]) if len(policies) == 1 else None
        if dmarc.says and (policy is None or policy.get("p", "").lower() not in ("none", "quarantine", "reject")):
            yield "DMARC", "one DMARC record with p=", shown(policies)

    # --- what hosts show ----------------------------------------------------------------------------------------------

    def _begin_greetings(self) -> dict[tuple[str, str, int], Future[dns_reach.Greeting]]:
        """Connections take the longest, so they begin first."""
        model, wanted = self.task.model, {}
        if not self.task.connect:
            return wanted
        ports = {name: {SMTP_PORT} for name in model["gateways"]}
        names = {host["fqdn"]: name for name, host in model["hosts"].items()}
        for (name, rtype), records in self._expected():
            port, _, fqdn = name.partition("._tcp.")
            if rtype == "TLSA" and records and fqdn in names and port[1:].isdigit():
                ports.setdefault(names[fqdn], set()).add(int(port[1:]))
        for name, served in ports.items():
            for address in (model["hosts"][name].get("ipv4"), model["hosts"][name].get("ipv6")):
                if address and dns_live.has_route(address):
                    for port in served:
                        fqdn, seconds = model["hosts"][name]["fqdn"], self.task.timeout
                        job = self._connections.submit(dns_reach.greeting, fqdn, address, port, seconds)
                        wanted[name, address, port] = job
        return wanted

    def _greetings(self, jobs: Mapping[tuple[str, str, int], Future[dns_reach.Greeting]]) -> None:
        for (host, address, port), job in jobs.items():
            seen, fqdn = job.result(), self.task.model["hosts"][host]["fqdn"]
            service = f"{fqdn}:{port}"
            if seen.problem:
                self._add(
                    Difference(
                        service, "SMTP", "port", "a greeting and STARTTLS", seen.problem,
                        f"See whether Postfix on {host} runs and the firewall lets port {port} through (at {address};"
                        " some networks block outgoing port 25: dns_verify_connect=false).",
                    )
                )  # fmt: skip
            elif port == SMTP_PORT and seen.name != fqdn:
                self._add(
                    Difference(
                        service, "SMTP", "banner", fqdn, seen.name,
                        f"Set myhostname of Postfix on {host} to {fqdn}, or correct estate_hosts: another host answers"
                        f" at {address}.",
                    )
                )  # fmt: skip
            self._compare_key(f"_{port}._tcp.{fqdn}", host, seen)

    def _compare_key(self, name: str, host: str, seen: dns_reach.Greeting) -> None:
        one = (name, "TLSA")
        if not seen.digest or one not in self.zone_of or not self.findings.sound(one):
            return
        records = self._here(*one).records
        usable = [record for record in records if record.startswith("3 1 1 ")]
        if usable and f"3 1 1 {seen.digest}" not in usable:
            self._add(
                Difference(
                    *one, "stale", f"3 1 1 {seen.digest}", shown(records),
                    f"Run playbooks/tlsa_collect.yml and publish the records: {host} shows a key that none of them"
                    " names, so senders that know DANE keep their mail back.",
                )
            )  # fmt: skip

    def _policies(self) -> None:
        if not self.task.connect:
            return
        jobs = {}
        for domain in sorted(self.task.policies):
            host = f"mta-sts.{domain}"
            if self.findings.sound((host, "A"), (host, "AAAA")):
                found = dns_live.addresses(self.asker, self.task.resolvers, [host])[host]
                found = [address for address in found if dns_live.has_route(address)]
                if found:
                    jobs[domain] = self._fetch(host, found[0], STS_PATH)
        for domain, job in jobs.items():
            page, expected = job.result(), self.task.policies[domain]
            fault = page.problem
            if not fault and _lines(page.text) != _lines(expected):
                fault = " / ".join(_lines(page.text))[:200] or "an empty page"
            elif not fault and page.media_type != "text/plain":
                fault = f"media type {page.media_type or 'missing'}"
            if fault:
                self._add(
                    Difference(
                        f"mta-sts.{domain}", "HTTPS", "policy", " / ".join(_lines(expected)), fault,
                        f"Have the web server of {self.task.model['mta_sts']['host']} give out the policy at"
                        f" https://mta-sts.{domain}{STS_PATH} (site.yml does it): senders trust nothing else.",
                    )
                )  # fmt: skip

    def _fetch(self, host: str, address: str, path: str) -> Future[dns_reach.Page]:
        return self._connections.submit(dns_reach.fetch, host, address, path, self.task.timeout, self.task.ca_file)

    def _bimi(self) -> None:
        for domain, fields in sorted(self.task.model["domains"].items()):
            logo = (fields.get("bimi") or {}).get("logo")
            if not logo or not self.task.connect:
                continue
            url = urlsplit(logo)
            host = url.hostname or ""
            found = dns_live.addresses(self.asker, self.task.resolvers, [host])[host]
            found = [address for address in found if dns_live.has_route(address)]
            if not found:
                faults = [f"{host} has no address"]
            else:
                page = self._fetch(host, found[0], url.path + (f"?{url.query}" if url.query else "")).result()
                faults = [page.problem] if page.problem else bimi_problems(page.text)
            if faults:
                self._add(
                    Difference(
                        f"default._bimi.{domain}", "HTTPS", "logo", logo, "; ".join(faults),
                        f"Put a logo that receivers take at {logo}, or drop bimi of {domain}.",
                    )
                )  # fmt: skip

    def _never_sends(self) -> None:
        for row in (self.task.spf_lists or {}).get("remove") or []:
            if row.get("verdict") == "remove":
                last = f"last mail on {row['last_day']}" if row.get("last_day") else "no mail was ever seen"
                self.notes.append(
                    f"SPF of {row['domain']} allows {row['network']} ({row['via']}), which sends nothing: {last}"
                    " (playbooks/spf_senders.yml)"
                )


def host_answer(brought: Mapping[str, Any] | None, name: str, rtype: str) -> Answer:
    """An answer that the module dns_ask has brought from a host."""
    if brought is None:
        return Answer("silent", detail="was not asked")
    if "wire" not in brought:
        return Answer("silent", detail=str(brought.get("error", "")))
    answer = dns_live.read(bytes.fromhex(brought["wire"]), name, rtype)
    if brought.get("unchecked"):
        return Answer("bogus", detail="SERVFAIL, and an answer without validation")
    return answer


def _target_problem(name: str, target: str, found: Sequence[Answer]) -> Difference | None:
    alias = next((answer.alias for answer in found if answer.alias), None)
    if alias:
        return Difference(
            target, "CNAME", "alias", "no alias", f"CNAME {alias}",
            f"Have the owner of {target} publish addresses instead of an alias: it is in the MX of {name}"
            " (RFC 5321 §5.1).",
        )  # fmt: skip
    if not any(answer.records for answer in found):
        return Difference(
            target, "A", "missing", "an address", NOTHING,
            f"Have the owner of {target} publish an address, or correct the MX of {name}: mail goes nowhere.",
        )  # fmt: skip
    return None


def _newest(serials: Iterable[int]) -> int:
    """The newest of some serials, which wrap around (RFC 1982 §3.2)."""
    newest: int | None = None
    for serial in serials:
        if newest is None or 0 < (serial - newest) % 2**32 < 2**31:
            newest = serial
    return newest or 0


def _few(sets: Sequence[Set]) -> str:
    names = [f"{name} {rtype}" for name, rtype in sets[:FEW]]
    return ", ".join(names) + (f" and {len(sets) - FEW} more" if len(sets) > FEW else "")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
