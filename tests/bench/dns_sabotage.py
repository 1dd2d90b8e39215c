#!/usr/bin/env python3
"""Break the lab's DNS in more than 30 ways, one after another; dns_verify.yml must name each, and nothing else.

    dns_sabotage.py [--only WORD] [--beside] [--here]

Each fault is brought into the lab's name server by dynamic update, looked for, and taken out again: also on Ctrl-C, and
by the next run after a kill. A few faults need a model that differs, too; it is given as extra variables. The resolvers
of the hosts are made to forget what they know in between.

--beside  leaves out of account what is wrong anyway
--here    asks the controller and the name servers alone, by the same code without the playbook: faster by far, and
          blind for what only hosts see; ports are connected to only where the fault is about them

Exit status: 0 each named and nothing else, 1 a fault not named or something else named, 2 no lab, or it is not sound.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible.module_utils
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsigkeyring
import dns.update
import yaml
from benchlib import HERE, BenchError, ends_tidily, podman, require_lab

ROOT = HERE.parents[1]
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))
sys.path.append(str(ROOT / "plugins/modules"))

import dns_verify  # noqa: E402

LAB = ROOT / ".lab"
JOURNAL = LAB / "dns-sabotage.json"
SERVER = "198.18.25.100"
KEY = "lab-update"
HOSTS = ("lab-mail-gw1", "lab-mail-gw2", "lab-ml", "lab-smtp", "lab-analytics")
SECOND = "mx.example.net"
SECOND_ADDRESSES = ("198.18.25.102", "2001:db8:25::102")
SECOND_PLACE = "/run/dns-sabotage"
V4, V6 = "25.18.198.in-addr.arpa", "0.0.0.0.5.2.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
LOGO = ("default._bimi.sfc.example.org", "TXT")
ZONES = ("institute.example.org", "example.org", V4, V6, ".")
TTL = 60
RUN_SECONDS = 120

Named = tuple[str, str, str]
#: Name, type → values in presentation format; none takes the set away.
Changes = Mapping[tuple[str, str], list[str]]


@dataclass(frozen=True)
class Fault:
    """A kind of wrong DNS: what is changed, and what must be named. The advice must have ``words`` in it.

    ``variables`` make the model another one, ``second`` is the state of a secondary server.
    """

    what: str
    changes: Changes
    named: frozenset[Named]
    words: str = ""
    variables: dict[str, Any] = field(default_factory=dict)
    second: str = ""
    by_hosts: bool = False  # only hosts see it
    by_connecting: bool = False  # seen at a port, not in DNS


# --- the lab's name server --------------------------------------------------------------------------------------------


def live(name: str, rtype: str) -> tuple[int, list[str]]:
    """TTL and values of a set as it is served, or of a delegation."""
    query = dns.message.make_query(name, rtype, flags=0)
    answer = dns.query.tcp(query, SERVER, timeout=5)
    wanted, kind = dns.name.from_text(name), dns.rdatatype.from_text(rtype)
    for section in (answer.answer, answer.authority):
        for rrset in section:
            if rrset.name == wanted and rrset.rdtype == kind:
                return rrset.ttl, sorted(rdata.to_text() for rdata in rrset)
    return TTL, []


def zone_of(name: str, rtype: str) -> str:
    """The zone in which a set stands: a DS in that above. NS are asked of a server that has both zones."""
    for zone in ZONES:
        if zone == "." or name == zone or name.endswith(f".{zone}"):
            if rtype == "DS" and name == zone:
                continue
            return zone
    return "."


def update(changes: Changes, ttls: Mapping[tuple[str, str], int] | None = None) -> None:
    """Have sets replaced, all of a zone at once.

    :raises BenchError: when the server refuses.
    """
    secret = base64.b64encode((LAB / "secrets/dns-update").read_text().strip().encode()).decode()
    keyring = dns.tsigkeyring.from_text({KEY: secret})
    # A server ignores an alias beside other records, even those that go in the same message.
    steps = 2 if any(rtype == "CNAME" for _, rtype in changes) else 1
    messages: dict[tuple[int, str], dns.update.UpdateMessage] = {}

    def message(step: int, zone: str) -> dns.update.UpdateMessage:
        step = min(step, steps)
        return messages.setdefault((step, zone), dns.update.UpdateMessage(zone, keyring=keyring, keyname=KEY))

    for (name, rtype), values in changes.items():
        zone = zone_of(name, rtype)
        if rtype == "NS" and name == zone:
            # A zone's own servers are taken away one by one only (RFC 2136 §3.4.2.4).
            for value in set(live(name, rtype)[1]) - set(values):
                message(2, zone).delete(dns.name.from_text(name), rtype, value)
        else:
            message(1, zone).delete(dns.name.from_text(name), rtype)
    for (name, rtype), values in changes.items():
        for value in values:
            ttl = (ttls or {}).get((name, rtype), TTL)
            message(2, zone_of(name, rtype)).add(dns.name.from_text(name), ttl, rtype, value)
    for (_, zone), change in sorted(messages.items(), key=lambda one: one[0]):
        answer = dns.query.tcp(change, SERVER, timeout=10)
        if answer.rcode() != dns.rcode.NOERROR:
            raise BenchError(f"{SERVER} refuses to change {zone}: {dns.rcode.to_text(answer.rcode())}")


def restore() -> None:
    """Bring back what the journal says was there; nothing without a journal."""
    if not JOURNAL.exists():
        return
    before = [(tuple(one), ttl, values) for one, ttl, values in json.loads(JOURNAL.read_text())]
    for left in reversed(range(5)):
        try:
            update({one: values for one, _, values in before}, {one: ttl for one, ttl, _ in before})
            break
        except (BenchError, OSError, dns.exception.DNSException):
            if not left:
                raise
            time.sleep(1)
    JOURNAL.unlink()


@contextlib.contextmanager
def broken(changes: Changes) -> Iterator[None]:
    """The changes are in force, and gone afterwards."""
    before = [(one, *live(*one)) for one in changes]
    JOURNAL.write_text(json.dumps(before))
    try:
        update(changes)
        forget()
        yield
    finally:
        restore()
        forget()


def forget() -> None:
    """Have the hosts' resolvers forget all."""
    command = "unbound-control flush_zone . && unbound-control flush_bogus"
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        list(pool.map(lambda host: podman(host, "sh", "-c", command, check=False), HOSTS))


@contextlib.contextmanager
def second_server(state: str) -> Iterator[None]:
    """A secondary of example.org in lab-world that never takes a change over; without ``state`` there is none."""
    if state != "old":
        yield
        return
    listen = "\n".join(f"    listen: {address}@53" for address in SECOND_ADDRESSES)
    podman("lab-world", "mkdir", "-p", f"{SECOND_PLACE}/zones")
    copied = podman("lab-world", "knotc", "zone-read", "example.org")
    lines = [line.split(" ", 1)[1] for line in copied.splitlines() if line.startswith("[")]
    podman("lab-world", "tee", f"{SECOND_PLACE}/zones/example.org.zone", stdin="\n".join(lines) + "\n")
    config = (
        f"server:\n    rundir: {SECOND_PLACE}\n{listen}\ndatabase:\n    storage: {SECOND_PLACE}\n"
        f'template:\n  - id: default\n    storage: {SECOND_PLACE}/zones\n    file: "%s.zone"\n'
        "zone:\n  - domain: example.org\n"
    )
    podman("lab-world", "tee", f"{SECOND_PLACE}/knot.conf", stdin=config)
    podman("lab-world", "knotd", "-d", "-c", f"{SECOND_PLACE}/knot.conf")
    try:
        yield
    finally:
        podman("lab-world", "knotc", "-c", f"{SECOND_PLACE}/knot.conf", "stop", check=False)
        # It says that it will stop, and answers until it has, or the next fault would meet it.
        gone = f"for _ in $(seq 100); do [ -e {SECOND_PLACE}/knot.pid ] || exit 0; sleep 0.1; done; exit 1"
        podman("lab-world", "sh", "-c", gone)
        podman("lab-world", "rm", "-rf", SECOND_PLACE)


# --- the verification -------------------------------------------------------------------------------------------------


def data(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What the playbook gives to the module, with the model as the variables make it."""
    known = _data.get(json.dumps(variables, sort_keys=True))
    if known:
        return known
    wanted = "{{ {'zones': estate_model | estate_zones, 'model': estate_model, 'ca_file': dns_verify_ca_file,"
    wanted += " 'policies': estate_model | estate_mta_sts_policies, 'resolvers': dns_verify_resolvers} | to_json }}"
    local = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "data.json"
        done = subprocess.run(
            [ROOT / ".venv/bin/ansible", "mail-gw1", "-m", "ansible.builtin.copy",
             "-e", json.dumps({**variables, **local}),
             "-a", json.dumps({"dest": str(output), "content": wanted, "mode": "0600"})],
            cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS,
        )  # fmt: skip
        if done.returncode or not output.exists():
            raise BenchError(f"no data model: {(done.stdout + done.stderr)[-2000:]}")
        _data[json.dumps(variables, sort_keys=True)] = json.loads(output.read_text())
    return data(variables)


_data: dict[str, dict[str, Any]] = {}


def verify_here(variables: Mapping[str, Any], connect: bool = False) -> dict[str, Any]:
    """The document of the same checks, without hosts."""
    given = {
        **data(variables),
        "views": {},
        "connect": connect,
        "timeout": 2.0,
        "connect_timeout": 8.0,
        "spf_lists": None,
    }
    return dns_verify.verify(given, Path("/nonexistent/verify.json"))[0]


def verify(variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run the playbook as an operator does, and give its document.

    :raises BenchError: when it does not come to an end.
    """
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "verify.json"
        extra = {**(variables or {}), "dns_verify_output": str(output), "dns_verify_report_only": True}
        done = subprocess.run(
            [ROOT / ".venv/bin/ansible-playbook", "playbooks/dns_verify.yml", "-e", json.dumps(extra)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        if done.returncode or not output.exists():
            raise BenchError(f"dns_verify.yml failed: {(done.stdout + done.stderr)[-2000:]}")
        return json.loads(output.read_text())


def named(document: Mapping[str, Any]) -> dict[Named, dict[str, Any]]:
    """Differences by name, type and kind."""
    return {(one["name"], one["type"], one["kind"]): one for one in document["differences"]}


# --- the faults -------------------------------------------------------------------------------------------------------


def fault(what: str, changes: Changes, *expected: Named, **more: Any) -> Fault:
    return Fault(what, changes, frozenset(expected), **more)


def with_logo() -> tuple[dict[str, Any], Changes]:
    """A model in which sfc.example.org has a logo (BIMI), and what DNS must say then. No file is there."""
    domains = yaml.safe_load((ROOT / "inventory/lab/group_vars/all/domains.yml").read_text())["estate_domains"]
    domains["example.org"]["dmarc"]["p"] = "quarantine"  # without it no receiver shows a logo
    domains["sfc.example.org"]["bimi"] = {"logo": "https://ml.example.org/static/logo.svg"}
    (policy,) = live("_dmarc.example.org", "TXT")[1]
    return {"estate_domains": domains}, {
        ("_dmarc.example.org", "TXT"): [policy.replace(" p=none;", " p=quarantine;")],
        LOGO: ['"v=BIMI1; l=https://ml.example.org/static/logo.svg"'],
    }


def faults() -> list[Fault]:
    """All kinds; what is there now is asked of the name server."""

    def now(name: str, rtype: str) -> list[str]:
        values = live(name, rtype)[1]
        if not values:
            raise BenchError(f"{name} {rtype} is not there: publish the records first (playbooks/dns.yml)")
        return values

    def text(name: str, *pair: str) -> dict[tuple[str, str], list[str]]:
        """A TXT record with one thing in it replaced."""
        (value,) = now(name, "TXT")
        if pair[0] not in value:
            raise BenchError(f"{name} TXT does not have {pair[0]!r}: {value}")
        return {(name, "TXT"): [value.replace(*pair)]}

    sfc, ml, org, closed = "sfc.example.org", "ml.example.org", "example.org", "closed.example.org"
    key, sts, gateway, backup = f"2026a._domainkey.{ml}", f"_mta-sts.{org}", f"mail-gw2.{org}", f"backup.{org}"
    tlsa, wildcard, institute = f"_25._tcp.mail-gw1.{org}", f"*._domainkey.{closed}", f"institute.{org}"
    pointer4, pointer6 = f"12.{V4}", f"2.1.{'0.' * 14}{V6}"
    mx, spf, dmarc = now(sfc, "MX"), now(sfc, "TXT"), now(f"_dmarc.{sfc}", "TXT")
    other_key = [one.replace("AQ8AMIIBCgKCAQEA", "AQ8AMIIBCgKCAQEB") for one in now(key, "TXT")]
    plain_key = "".join(other_key[0].replace('" "', "").strip('"').partition("p=")[2].split())
    lookups = " ".join(f"a:ml.{org}" for _ in range(11))  # each costs one, the same name or not
    domains = yaml.safe_load((ROOT / "inventory/lab/group_vars/all/domains.yml").read_text())["estate_domains"]
    outside = json.loads(json.dumps(domains))
    outside[sfc]["dmarc"]["rua"] = ["dmarc@example.edu"]
    dns_variables = yaml.safe_load((ROOT / "inventory/lab/group_vars/all/dns.yml").read_text())["estate_dns"]
    two = {"estate_dns": {**dns_variables, "nameservers": ["ns.example.com", SECOND]}}
    both = {(org, "NS"): ["ns.example.com.", f"{SECOND}."]}
    wrong_digest = "a" * 64
    branded, logo = with_logo()

    def spf_is(record: str) -> dict[tuple[str, str], list[str]]:
        return {(sfc, "TXT"): [f'"{record}"']}

    return [
        fault("MX missing", {(sfc, "MX"): []}, (sfc, "MX", "missing")),
        fault("MX lacks a gateway", {(sfc, "MX"): mx[:1]}, (sfc, "MX", "missing"), words="mail-gw2"),
        fault("MX of a stranger", {(sfc, "MX"): [*mx, "20 mx.example.net."]}, (sfc, "MX", "extra"), words=SECOND),
        fault("MX preference", {(sfc, "MX"): [mx[0], mx[1].replace("10 ", "20 ")]}, (sfc, "MX", "differs"),
              words="20 → 10"),
        fault("alias at an MX target",
              {**{(gateway, kind): [] for kind in ("A", "AAAA", "TXT")}, (gateway, "CNAME"): [f"mail-gw1.{org}."]},
              (gateway, "CNAME", "alias")),
        fault("null MX of a closed domain lost", {(closed, "MX"): []}, (closed, "MX", "missing")),
        fault("MX instead of the null MX", {(closed, "MX"): mx}, (closed, "MX", "differs"), words="0 ."),
        fault("address wrong", {(backup, "A"): ["198.18.25.99"]}, (backup, "A", "differs")),
        fault("IPv6 address missing", {(backup, "AAAA"): []}, (backup, "AAAA", "missing")),
        fault("PTR missing", {(pointer4, "PTR"): []}, (pointer4, "PTR", "missing")),
        fault("PTR to another name", {(pointer6, "PTR"): ["host.example.net."]}, (pointer6, "PTR", "differs")),
        fault("SPF missing", {(sfc, "TXT"): []}, (sfc, "TXT", "missing")),
        fault("SPF doubled", {(sfc, "TXT"): [*spf, '"v=spf1 include:example.net -all"']}, (sfc, "TXT", "doubled")),
        fault("SPF with 11 look-ups", spf_is(f"v=spf1 {lookups} -all"), (sfc, "TXT", "differs"), words="11 look-ups"),
        fault("SPF with three void look-ups", spf_is(f"v=spf1 a:x.{org} a:y.{org} a:z.{org} -all"),
              (sfc, "TXT", "differs"), words="do not exist"),
        fault("SPF that includes itself", spf_is(f"v=spf1 include:{sfc} -all"), (sfc, "TXT", "differs"),
              words="itself"),
        fault("SPF with a typo", spf_is("v=spf1 ipv4:198.18.25.13 -all"), (sfc, "TXT", "differs"), words="no SPF term"),
        fault("SPF for the whole world", spf_is("v=spf1 +all"), (sfc, "TXT", "differs"), words="whole world"),
        fault("DKIM key missing", {(key, "TXT"): []}, (key, "TXT", "missing")),
        fault("DKIM key wrong", {(key, "TXT"): other_key}, (key, "TXT", "differs"), words="another key"),
        fault("DKIM key doubled", {(key, "TXT"): [*now(key, "TXT"), *other_key]}, (key, "TXT", "doubled")),
        fault("DKIM key revoked", {(key, "TXT"): ['"v=DKIM1; p="']}, (key, "TXT", "differs"), words="revoked"),
        fault("DKIM key of the host is another", {(key, "TXT"): other_key}, (key, "TXT", "host-key"),
              variables={"estate_dkim_public_keys": {key: plain_key}}, by_hosts=True),
        fault("closed domain's revoked keys lost", {(wildcard, "TXT"): []}, (wildcard, "TXT", "missing")),
        fault("DMARC missing", {(f"_dmarc.{sfc}", "TXT"): []}, (f"_dmarc.{sfc}", "TXT", "missing")),
        fault("DMARC doubled", {(f"_dmarc.{sfc}", "TXT"): [*dmarc, '"v=DMARC1; p=none"']},
              (f"_dmarc.{sfc}", "TXT", "doubled")),
        fault("DMARC without np", text(f"_dmarc.{sfc}", " np=reject;", ""), (f"_dmarc.{sfc}", "TXT", "differs"),
              words="np is missing"),
        fault("DMARC weakened", text(f"_dmarc.{sfc}", " p=quarantine", " p=none"), (f"_dmarc.{sfc}", "TXT", "differs"),
              words="p is 'none' instead of 'quarantine'"),
        fault("reports to a receiver outside who never agreed",
              text(f"_dmarc.{sfc}", "dmarc@rua.example.org", "dmarc@example.edu"),
              (f"{sfc}._report._dmarc.example.edu", "TXT", "authorisation"), variables={"estate_domains": outside}),
        fault("our agreement to take reports lost", {}, (f"example.net._report._dmarc.{org}", "TXT", "missing"),
              variables={"estate_report_authorisations": [{"domain": "example.net", "at": org}]}),
        fault("MTA-STS id does not follow", {(sts, "TXT"): ['"v=STSv1; id=20260101;"']}, (sts, "TXT", "differs"),
              words="id is"),
        fault("MTA-STS record lost", {(sts, "TXT"): []}, (sts, "TXT", "missing")),
        fault("TLS-RPT lost", {(f"_smtp._tls.{org}", "TXT"): []}, (f"_smtp._tls.{org}", "TXT", "missing")),
        fault("BIMI record and logo lost", {**logo, LOGO: []}, (*LOGO, "missing"), (LOGO[0], "HTTPS", "logo"),
              variables=branded, by_connecting=True),
        fault("BIMI logo not there", logo, (LOGO[0], "HTTPS", "logo"), variables=branded, by_connecting=True),
        fault("CAA lost", {(org, "CAA"): []}, (org, "CAA", "missing")),
        fault("CAA for another CA", {(org, "CAA"): [*now(org, "CAA"), '0 issue "ca.example.net"']},
              (org, "CAA", "extra")),
        fault("TLSA stale", {(tlsa, "TLSA"): [f"3 1 1 {wrong_digest}"]}, (tlsa, "TLSA", "stale"),
              variables={"estate_tlsa": {"mail-gw1": [wrong_digest]}}, by_connecting=True),
        fault("SRV with another port", {(f"_submissions._tcp.{org}", "SRV"): [f"0 1 8465 smtp.{org}."]},
              (f"_submissions._tcp.{org}", "SRV", "differs")),
        fault("delegated to one more server", {(institute, "NS"): ["ns.example.com.", f"{SECOND}."]},
              (institute, "NS", "extra")),
        fault("delegated domain without DMARC", {(f"_dmarc.{institute}", "TXT"): []},
              (f"_dmarc.{institute}", "TXT", "delegated")),
        fault("DNSSEC bogus", {(V6, "DS"): [f"4711 13 2 {wrong_digest}"]}, (V6, "DNSSEC", "bogus"), by_hosts=True),
        fault("a secondary that does not follow", both, (org, "SOA", "unsynchronised"), variables=two, second="old"),
        fault("a name server that is silent", both, (org, "SOA", "silent"), variables=two),
    ]  # fmt: skip


def try_one(one: Fault, beside: frozenset[Named], here: bool = False) -> tuple[bool, str]:
    """Whether a fault is named and nothing else; and what was named wrongly."""
    with second_server(one.second), broken(one.changes):
        if one.second:
            update({("sabotage.example.org", "TXT"): ['"the serial moves on"']})
            update({("sabotage.example.org", "TXT"): []})
        found = named(verify_here(one.variables, one.by_connecting) if here else verify(one.variables))
    rest = set(found) - beside
    lacking, surplus = one.named - set(found), rest - one.named
    advice = " ".join(found[key]["todo"] for key in one.named if key in found)
    told = [f"not named: {' '.join(key)}" for key in sorted(lacking)]
    told += [f"named besides: {' '.join(key)} ({found[key]['found'][:60]})" for key in sorted(surplus)]
    if one.words and not lacking and one.words not in advice:
        told.append(f"the advice does not say {one.words!r}: {advice}")
    return not told, "; ".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose description has this in it")
    parser.add_argument("--beside", action="store_true", help="leave out of account what is wrong anyway")
    parser.add_argument("--from", default="", dest="first", help="begin at the first that has this in its description")
    parser.add_argument("--here", action="store_true", help="ask the controller and the name servers alone")
    options = parser.parse_args()
    failed = done = 0
    try:
        with ends_tidily():
            require_lab()
            restore()
            forget()
            look = functools.partial(verify_here, {}, connect=True) if options.here else verify
            before = look()
            beside = frozenset(named(before))
            if beside and not options.beside:
                print("the lab's DNS is not sound: playbooks/dns_verify.yml says what is wrong", file=sys.stderr)
                return 2
            print(
                f"{before['records']} records, {len(before['places'])} places; wrong anyway: {len(beside)}", flush=True
            )
            kinds = faults()
            begin = next((i for i, one in enumerate(kinds) if options.first in one.what), 0)
            for one in kinds[begin:]:
                if options.only not in one.what or (options.here and one.by_hosts):
                    continue
                started = time.monotonic()
                good, told = try_one(one, beside, options.here)
                done, failed = done + 1, failed + (not good)
                print(
                    f"{'named' if good else 'WRONG':<6} {time.monotonic() - started:5.1f} s  {one.what}  {told}",
                    flush=True,
                )
            left = set(named(look())) - beside
            if left:
                print(f"left behind: {sorted(left)}")
                failed += 1
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{done - failed} of {done} kinds named, and nothing else")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
