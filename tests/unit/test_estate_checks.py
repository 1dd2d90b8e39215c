"""The data model's validation: every mistake is found and told in words that name the variable and its value."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PUBLIC_KEY
from hypothesis import given, settings
from hypothesis import strategies as st

import estate_checks

REPOSITORY = Path(__file__).resolve().parents[2]
REMOVE = object()
DOMAIN = ("domains", "example.org")
SFC = ("domains", "sfc.example.org")
INSTITUTE = ("domains", "institute.example.org")
CLOSED = ("domains", "closed.example.org")
SELECTORS = {"signer": "smtp", "selectors": ["2026a"]}


def change(model: dict[str, Any], *path: Any, to: Any) -> None:
    """Set (or REMOVE) the value at a path of keys in the model."""
    *above, last = path
    place = model
    for key in above:
        place = place[key]
    if to is REMOVE:
        del place[last]
    else:
        place[last] = to


MADE = "20261128a._domainkey.example.org"
MADE_KEY = {
    "use": "dkim", "hosts": ["smtp"], "state": "signing", "dates": {"made": "2026-11-28T06:00:00+00:00"},
    "public_key": PUBLIC_KEY,
}  # fmt: skip


def mistake(name: str, *path: Any, to: Any, variable: str, value: str, says: str) -> Any:
    """One row of the table: a change of the valid model, and what the message must hold."""
    return pytest.param(path, to, variable, value, says, id=name)


# fmt: off
MISTAKES = [
    # who we are
    mistake("no name", "name", to=" ", variable="estate_name", value='" "', says="organisation's name"),
    mistake("unknown main domain", "domain", to="example.com", variable="estate_domain", value='"example.com"',
            says="must be one of estate_domains: closed.example.org, example.org"),
    mistake("authserv-id is no domain name", "authserv_id", to="mx example", variable="estate_authserv_id",
            value='"mx example"', says="no spaces"),
    mistake("postmaster without domain", "postmaster", to="postmaster", variable="estate_postmaster",
            value='"postmaster"', says="local@domain"),
    mistake("postmaster outside", "postmaster", to="postmaster@example.com", variable="estate_postmaster",
            value='"postmaster@example.com"', says="domain of ours"),
    mistake("postmaster in a closed domain", "postmaster", to="postmaster@closed.example.org",
            variable="estate_postmaster", value='"postmaster@closed.example.org"', says="receives no mail"),
    mistake("unknown part of the model", "forward", to={}, variable="estate_model.forward", value="{}",
            says='did you mean "forwards"?'),
    # hosts
    mistake("no hosts", "hosts", to={}, variable="estate_hosts", value="{}", says="must be a mapping"),
    mistake("host without fqdn", "hosts", "mail", "fqdn", to=REMOVE, variable="estate_hosts['mail'].fqdn",
            value="null", says="needs its full name"),
    mistake("two hosts with one name", "hosts", "ml", "fqdn", to="smtp.example.org",
            variable="estate_hosts['smtp'].fqdn", value='"smtp.example.org"', says="ml has the same name"),
    mistake("two hosts with one address", "hosts", "ml", "ipv4", to="198.18.25.14",
            variable="estate_hosts['smtp'].ipv4", value='"198.18.25.14"', says="ml has the same address"),
    mistake("one address in two spellings", "hosts", "ml", "ipv6", to="2001:0db8:25::0014",
            variable="estate_hosts['smtp'].ipv6", value='"2001:db8:25::14"', says="ml has the same address"),
    mistake("no IP address", "hosts", "ml", "ipv4", to="198.18.25.256", variable="estate_hosts['ml'].ipv4",
            value='"198.18.25.256"', says="must be an IPv4 address"),
    mistake("IPv4 in the field for IPv6", "hosts", "ml", "ipv6", to="198.18.25.99",
            variable="estate_hosts['ml'].ipv6", value='"198.18.25.99"', says="belongs into the field ipv4"),
    mistake("loopback address", "hosts", "ml", "ipv6", to="::1", variable="estate_hosts['ml'].ipv6", value='"::1"',
            says="cannot reach"),
    mistake("host without address", "hosts", "ml", to={"fqdn": "ml.example.org"}, variable="estate_hosts['ml']",
            value='"fqdn": "ml.example.org"', says="needs an ipv4 or an ipv6 address"),
    mistake("unknown field of a host", "hosts", "ml", "ip4", to="198.18.25.13", variable="estate_hosts['ml'].ip4",
            value='"198.18.25.13"', says='did you mean "ipv4"?'),
    mistake("host with a closed domain's name", "hosts", "ml", "fqdn", to="closed.example.org",
            variable="estate_hosts['ml'].fqdn", value='"closed.example.org"', says="closed domain"),
    mistake("host with a domain's name that may not send", "hosts", "backup", "fqdn", to="sfc.example.org",
            variable="estate_hosts['backup'].fqdn", value='"sfc.example.org"', says="HELO fails SPF"),
    mistake("host with the SRS domain's name", "hosts", "ml", "fqdn", to="srs.example.org",
            variable="estate_hosts['ml'].fqdn", value='"srs.example.org"', says="estate_srs_domain"),
    # gateways
    mistake("unknown gateway", "gateways", to=["mail-gw1", "mail-gw9"], variable="estate_gateways",
            value='"mail-gw9"', says="no such host"),
    mistake("no gateway", "gateways", to=[], variable="estate_gateways", value="[]", says="at least one host"),
    mistake("gateway named twice", "gateways", to=["mail-gw1", "mail-gw1"], variable="estate_gateways",
            value='["mail-gw1", "mail-gw1"]', says="twice"),
    mistake("gateway without IPv4", "hosts", "mail-gw1", "ipv4", to=REMOVE,
            variable="estate_hosts['mail-gw1'].ipv4", value="null", says="a gateway needs IPv4"),
    # domains: names and fields
    mistake("domain in upper case", "domains", "Example.ORG", to={"closed": True}, variable="estate_domains",
            value='"Example.ORG"', says="lower case: example.org"),
    mistake("domain with the last dot", "domains", "a.example.org.", to={"closed": True}, variable="estate_domains",
            value='"a.example.org."', says="without the last dot"),
    mistake("domain in Japanese", "domains", "日本.example.org", to={"closed": True}, variable="estate_domains",
            value='"日本.example.org"', says="A-labels"),
    mistake("domain of one label", "domains", "localhost", to={"closed": True}, variable="estate_domains",
            value='"localhost"', says="at least two labels"),
    mistake("domain with an underscore", "domains", "my_org.example.org", to={"closed": True},
            variable="estate_domains", value='"my_org.example.org"', says="letters, digits and hyphens"),
    mistake("IP address as domain", "domains", "192.0.2.1", to={"closed": True}, variable="estate_domains",
            value='"192.0.2.1"', says="no number"),
    mistake("unknown field of a domain", *DOMAIN, "recieve", to={"next_hop": "mail"},
            variable="estate_domains['example.org'].recieve", value='{"next_hop": "mail"}',
            says='did you mean "receive"?'),
    mistake("domain with neither receive nor send", *DOMAIN, to={}, variable="estate_domains['example.org']",
            value="{}", says="needs receive (with a next_hop) or send"),
    mistake("switch that is no switch", *CLOSED, "closed", to="yes",
            variable="estate_domains['closed.example.org'].closed", value='"yes"', says="true or false"),
    # receiving
    mistake("domain without next hop", *DOMAIN, "receive", "next_hop", to=REMOVE,
            variable="estate_domains['example.org'].receive.next_hop", value="null", says="nowhere to go"),
    mistake("unknown next hop", *DOMAIN, "receive", "next_hop", to="mial",
            variable="estate_domains['example.org'].receive.next_hop", value='"mial"', says='did you mean "mail"?'),
    mistake("next hop is a gateway", *DOMAIN, "receive", "next_hop", to="mail-gw2",
            variable="estate_domains['example.org'].receive.next_hop", value='"mail-gw2"', says="loop"),
    mistake("next hop is a gateway's name", *DOMAIN, "receive", "next_hop", to={"host": "mail-gw2.example.org"},
            variable="estate_domains['example.org'].receive.next_hop.host", value='"mail-gw2.example.org"',
            says="our gateway mail-gw2"),
    mistake("next hop is a gateway's address", *DOMAIN, "receive", "next_hop", to={"host": "2001:db8:25:0::11"},
            variable="estate_domains['example.org'].receive.next_hop.host", value='"2001:db8:25:0::11"',
            says="our gateway mail-gw1"),
    mistake("next hop with a wrong port", *DOMAIN, "receive", "next_hop", to={"host": "x.example.com", "port": 0},
            variable="estate_domains['example.org'].receive.next_hop.port", value="0", says="1 to 65535"),
    mistake("unknown kind of recipients", *DOMAIN, "receive", "recipients", to="verfy",
            variable="estate_domains['example.org'].receive.recipients", value='"verfy"',
            says='did you mean "verify"?'),
    mistake("recipient with domain", *SFC, "receive", "recipients", to=["a@sfc.example.org", "postmaster"],
            variable="estate_domains['sfc.example.org'].receive.recipients", value='"a@sfc.example.org"',
            says="only the part before @"),
    mistake("no postmaster among the recipients", *SFC, "receive", "recipients", to=["hanako"],
            variable="estate_domains['sfc.example.org'].receive.recipients", value='["hanako"]',
            says="must accept postmaster"),
    # sending
    mistake("unknown SPF host", *DOMAIN, "send", "hosts", to=["smpt"],
            variable="estate_domains['example.org'].send.hosts", value='"smpt"', says='did you mean "smtp"?'),
    mistake("SPF network with host bits", *DOMAIN, "send", "networks", to=["192.0.2.1/24"],
            variable="estate_domains['example.org'].send.networks", value='"192.0.2.1/24"', says="host bits set"),
    mistake("SPF for everyone", *DOMAIN, "send", "networks", to=["0.0.0.0/0"],
            variable="estate_domains['example.org'].send.networks", value='"0.0.0.0/0"', says="/16 is the widest"),
    mistake("too many SPF look-ups", *DOMAIN, "send", "includes", to=[f"spf{n}.example.com" for n in range(11)],
            variable="estate_domains['example.org'].send.includes", value='"spf0.example.com"',
            says="11 look-ups; SPF allows 10"),
    mistake("unknown SPF ending", *DOMAIN, "send", "spf_all", to="-all",
            variable="estate_domains['example.org'].send.spf_all", value='"-all"',
            says="allowed: fail, softfail, neutral"),
    mistake("sending by nobody", *DOMAIN, "send", to={"spf_all": "fail"}, variable="estate_domains['example.org'].send",
            value='{"spf_all": "fail"}', says="names nobody"),
    # signing
    mistake("unknown signer", *DOMAIN, "sign", to={"signer": "signer9", "selectors": ["arc2026"]},
            variable="estate_domains['example.org'].sign.signer", value='"signer9"', says="no such host"),
    mistake("rotation that is no switch", *DOMAIN, "sign", to={"signer": "smtp", "rotate": "yes"},
            variable="estate_domains['example.org'].sign.rotate", value='"yes"', says="true or false"),
    mistake("selectors without signer", *DOMAIN, "sign", to={"selectors": ["arc2026"]},
            variable="estate_domains['example.org'].sign.signer", value="null", says="unknown signer"),
    mistake("malformed selector", *DOMAIN, "sign", to={"signer": "smtp", "selectors": ["2026_A"]},
            variable="estate_domains['example.org'].sign.selectors", value='"2026_A"', says="lower-case letters"),
    mistake("selector that is a number", *DOMAIN, "sign", to={"signer": "smtp", "selectors": [2026]},
            variable="estate_domains['example.org'].sign.selectors", value="2026", says="put it in quotes"),
    mistake("selector without a published key", *DOMAIN, "sign", to=SELECTORS,
            variable="estate_domains['example.org'].sign.selectors", value='"2026a"',
            says="estate_dkim_public_keys has no '2026a._domainkey.example.org'"),
    # DMARC
    mistake("sender without DMARC", *DOMAIN, "dmarc", to=REMOVE, variable="estate_domains['example.org'].dmarc",
            value="null", says="needs a policy"),
    mistake("unknown policy", *DOMAIN, "dmarc", "p", to="quarantaine",
            variable="estate_domains['example.org'].dmarc.p", value='"quarantaine"', says='did you mean "quarantine"?'),
    mistake("no policy", *DOMAIN, "dmarc", "p", to=REMOVE, variable="estate_domains['example.org'].dmarc.p",
            value="null", says="allowed: none, quarantine, reject"),
    mistake("weaker policy for subdomains", *SFC, "dmarc", "sp", to="none",
            variable="estate_domains['sfc.example.org'].dmarc.sp", value='"none"', says="weaker than p=quarantine"),
    mistake("no np", *DOMAIN, "dmarc", "np", to=REMOVE, variable="estate_domains['example.org'].dmarc.np",
            value="null", says="do not exist"),
    mistake("unknown np", *DOMAIN, "dmarc", "np", to="deny", variable="estate_domains['example.org'].dmarc.np",
            value='"deny"', says="allowed: none, quarantine, reject"),
    mistake("np weaker than sp", *SFC, "dmarc", "np", to="none",
            variable="estate_domains['sfc.example.org'].dmarc.np", value='"none"', says="weaker than the quarantine"),
    mistake("removed tag pct", *DOMAIN, "dmarc", "pct", to=100, variable="estate_domains['example.org'].dmarc.pct",
            value="100", says="no such field"),
    mistake("p=reject on SPF alone", "domains", "member.example.org", "dmarc", to={"p": "reject", "np": "reject"},
            variable="estate_domains['member.example.org'].dmarc.p", value='"reject"', says="must DKIM-sign"),
    mistake("rua is no address", *DOMAIN, "dmarc", "rua", to=["https://example.org/r"],
            variable="estate_domains['example.org'].dmarc.rua", value='"https://example.org/r"',
            says="an address or mailto:address"),
    mistake("rua is one string", *DOMAIN, "dmarc", "rua", to="dmarc-reports@example.org",
            variable="estate_domains['example.org'].dmarc.rua", value='"dmarc-reports@example.org"',
            says="must be a list"),
    mistake("rua outside without authorisation", *DOMAIN, "dmarc", "rua", to=["mailto:d@example.net"],
            variable="estate_domains['example.org'].dmarc.rua", value='"mailto:d@example.net"',
            says="must publish 'example.org._report._dmarc.example.net TXT \"v=DMARC1\"'"),
    mistake("rua that nobody receives", *DOMAIN, "dmarc", "rua", to=["dmarc@sfc.example.org"],
            variable="estate_domains['example.org'].dmarc.rua", value='"dmarc@sfc.example.org"',
            says="no such recipient"),
    mistake("test mode that is no switch", *DOMAIN, "dmarc", "testing", to="y",
            variable="estate_domains['example.org'].dmarc.testing", value='"y"', says="true or false"),
    # contradictions within a domain
    mistake("closed domain with next hop", *CLOSED, "receive", to={"next_hop": "mail"},
            variable="estate_domains['closed.example.org'].receive", value='{"next_hop": "mail"}',
            says="not allowed beside closed"),
    mistake("closed domain with senders", *CLOSED, "send", to={"hosts": ["smtp"]},
            variable="estate_domains['closed.example.org'].send", value='{"hosts": ["smtp"]}',
            says="not allowed beside closed"),
    mistake("strict without p=reject", *DOMAIN, "strict", to=True, variable="estate_domains['example.org'].strict",
            value="true", says='dmarc.p is "none"'),
    mistake("lists without next hop", *DOMAIN, to={
        "lists": True, "send": {"hosts": ["ml"]}, "dmarc": {"p": "none", "np": "reject"}},
            variable="estate_domains['example.org'].lists", value="true", says="receive.next_hop"),
    mistake("unknown MTA-STS mode", *DOMAIN, "mta_sts", to="report", variable="estate_domains['example.org'].mta_sts",
            value='"report"', says="allowed: none, testing, enforce"),
    mistake("TLS reports to nowhere", *DOMAIN, "tls_rpt", to=["http://x"],
            variable="estate_domains['example.org'].tls_rpt", value='"http://x"', says="https URL"),
    mistake("TLS reports to a recipient that does not exist", *DOMAIN, "tls_rpt", to=["tlsrpt@sfc.example.org"],
            variable="estate_domains['example.org'].tls_rpt", value='"tlsrpt@sfc.example.org"',
            says="no such recipient"),
    mistake("MTA-STS of a domain without receive", "domains", "news.example.org",
            to={"send": {"hosts": ["smtp"]}, "mta_sts": "testing", "dmarc": {"p": "none", "np": "reject"}},
            variable="estate_domains['news.example.org'].mta_sts", value='"testing"', says="receives no mail"),
    mistake("MTA-STS without a host that serves it", "mta_sts", to=None,
            variable="estate_domains['example.org'].mta_sts", value='"enforce"', says="estate_mta_sts must name"),
    mistake("host with the name of the policy's server", "hosts", "backup", "fqdn", to="mta-sts.example.org",
            variable="estate_domains['example.org'].mta_sts", value='"enforce"', says="cannot be anything else"),
    mistake("MTA-STS at an unknown host", "mta_sts", "host", to="mll", variable="estate_mta_sts.host", value='"mll"',
            says='did you mean "ml"?'),
    mistake("MTA-STS kept for too short a time", "mta_sts", "max_age", to=60, variable="estate_mta_sts.max_age",
            value="60", says="86400 to 31557600"),
    mistake("MTA-STS with an unknown field", "mta_sts", "mode", to="enforce", variable="estate_mta_sts.mode",
            value='"enforce"', says="no such field"),
    mistake("BIMI below a domain that nobody protects", *SFC, "bimi", to={"logo": "https://example.org/l.svg"},
            variable="estate_domains['sfc.example.org'].bimi", value="https://example.org/l.svg",
            says="quarantine or reject in example.org, too"),
    mistake("BIMI logo without https", *SFC, "bimi", to={"logo": "http://example.org/l.svg"},
            variable="estate_domains['sfc.example.org'].bimi.logo", value='"http://example.org/l.svg"',
            says="must be an https URL"),
    mistake("BIMI evidence that is no URL", *SFC, "bimi", to={"logo": "https://example.org/l.svg", "evidence": "x"},
            variable="estate_domains['sfc.example.org'].bimi.evidence", value='"x"', says="an https URL or null"),
    # zones of others
    mistake("delegated zone with mail of ours", *INSTITUTE, "send", to={"hosts": ["smtp"]},
            variable="estate_domains['institute.example.org'].send", value='{"hosts": ["smtp"]}',
            says="not allowed beside delegated"),
    mistake("delegated zone without servers", *INSTITUTE, "delegated", to=[],
            variable="estate_domains['institute.example.org'].delegated", value="[]", says="name the zone's servers"),
    mistake("delegated zone with an address for a name", *INSTITUTE, "delegated", to=["192.0.2.53"],
            variable="estate_domains['institute.example.org'].delegated", value='"192.0.2.53"', says="no number"),
    mistake("server within its zone without address", *INSTITUTE, "delegated", to=["ns.institute.example.org"],
            variable="estate_domains['institute.example.org'].delegated", value='"ns.institute.example.org"',
            says="give its address"),
    mistake("server outside its zone with address", *INSTITUTE, "delegated",
            to=[{"name": "ns.example.com", "ipv4": "192.0.2.53"}],
            variable="estate_domains['institute.example.org'].delegated", value='"ns.example.com"',
            says="needs no address"),
    mistake("delegated topmost domain", "domains", "example.info", to={"delegated": ["ns.example.com"]},
            variable="estate_domains['example.info'].delegated", value='["ns.example.com"]',
            says="no domain of ours lies above"),
    mistake("domain of ours in another's zone", "domains", "a.institute.example.org", to={"closed": True},
            variable="estate_domains", value='"a.institute.example.org"', says="whose owner publishes it"),
    mistake("key of ours in another's zone", "dkim_public_keys", "s1._domainkey.institute.example.org", to="x",
            variable="estate_dkim_public_keys", value='"s1._domainkey.institute.example.org"',
            says="whose owner publishes its keys"),
    mistake("DS record with a digest cut short", *INSTITUTE, "ds", to=["12345 13 2 ABCDEF"],
            variable="estate_domains['institute.example.org'].ds", value='"12345 13 2 ABCDEF"', says="key tag"),
    mistake("DS record of a domain in our zone", *SFC, "ds", to=["12345 13 2 ABCDEF"],
            variable="estate_domains['sfc.example.org'].ds", value='["12345 13 2 ABCDEF"]',
            says="only a delegated zone"),
    # DNS and TLS
    mistake("authority for certificates by its address", "caa", to=["https://acme.example.net"],
            variable="estate_caa", value='"https://acme.example.net"', says="such as letsencrypt.org"),
    mistake("authority with a malformed parameter", "caa", to=["example.net; accounturi"], variable="estate_caa",
            value='"example.net; accounturi"', says="RFC 8657"),
    mistake("name server by address", "dns", "nameservers", to=["192.0.2.53"], variable="estate_dns.nameservers",
            value='"192.0.2.53"', says="no number"),
    mistake("TTL that nobody can wait for", "dns", "ttl", to=604800, variable="estate_dns.ttl", value="604800",
            says="30 to 86400"),
    mistake("weak update key", "dns", "update", "algorithm", to="hmac-md5", variable="estate_dns.update.algorithm",
            value='"hmac-md5"', says="allowed: hmac-sha256"),
    mistake("updates without a key", "dns", "update", "key", to=REMOVE, variable="estate_dns.update.key",
            value="null", says="name of the TSIG key"),
    mistake("updates to an impossible port", "dns", "update", "port", to=0, variable="estate_dns.update.port",
            value="0", says="1 to 65535"),
    mistake("updates to no server", "dns", "update", "server", to="ns", variable="estate_dns.update.server",
            value='"ns"', says="at least two labels"),
    mistake("updates of a zone that is none", "dns", "update", "zones", to=["sfc.example.org"],
            variable="estate_dns.update.zones", value='"sfc.example.org"',
            says="is no zone of ours; known: example.org"),
    mistake("TLS key of an unknown host", "tlsa", to={"mail-gw9": ["ab" * 32]}, variable="estate_tlsa",
            value='"mail-gw9"', says="no such host"),
    mistake("TLS key that is no digest", "tlsa", to={"mail-gw1": ["AB" * 32]}, variable="estate_tlsa['mail-gw1']",
            value="ABAB", says="64 hexadecimal digits"),
    mistake("TLS keys that are no mapping", "tlsa", to=["ab" * 32], variable="estate_tlsa", value="abab",
            says="must be a mapping"),
    mistake("unknown submission host", "submission_host", to="smpt", variable="estate_submission_host",
            value='"smpt"', says='did you mean "smtp"?'),
    mistake("BIMI with p=none", *DOMAIN, "bimi", to={"logo": "x"}, variable="estate_domains['example.org'].bimi",
            value='{"logo": "x"}', says="quarantine or reject"),
    # forwards
    mistake("forward from a foreign domain", "forwards", "a@example.com", to="b@example.net",
            variable="estate_forwards", value='"a@example.com"', says="example.com is no domain that we receive"),
    mistake("forward from no address", "forwards", "forwarded", to="b@example.net", variable="estate_forwards",
            value='"forwarded"', says="malformed"),
    mistake("forward to no address", "forwards", "a@example.org", to="somewhere",
            variable="estate_forwards['a@example.org']", value='"somewhere"', says="malformed"),
    mistake("forward to nothing", "forwards", "a@example.org", to=None, variable="estate_forwards['a@example.org']",
            value="null", says="needs an address"),
    mistake("forward to itself", "forwards", "a@example.org", to="a@example.org",
            variable="estate_forwards['a@example.org']", value='"a@example.org"', says="come back to a@example.org"),
    mistake("forwards in a circle", "forwards", to={"a@example.org": "b@example.org", "b@example.org": "A@example.org"},
            variable="estate_forwards['a@example.org']", value='"b@example.org"', says="come back to a@example.org"),
    mistake("forward to an unknown recipient of ours", "forwards", "a@example.org", to="taro@sfc.example.org",
            variable="estate_forwards['a@example.org']", value='"taro@sfc.example.org"', says="no such recipient"),
    mistake("forward into a closed domain", "forwards", "a@example.org", to="b@closed.example.org",
            variable="estate_forwards['a@example.org']", value='"b@closed.example.org"', says="receives no mail"),
    mistake("forward into the SRS domain", "forwards", "a@example.org", to="b@srs.example.org",
            variable="estate_forwards['a@example.org']", value='"b@srs.example.org"', says="SRS domain"),
    mistake("forwards without SRS domain", "srs_domain", to=None, variable="estate_srs_domain", value="null",
            says="forwards need an SRS domain"),
    mistake("SRS domain that is a mail domain", "srs_domain", to="sfc.example.org", variable="estate_srs_domain",
            value='"sfc.example.org"', says="must not be in estate_domains"),
    # ARC and keys
    mistake("malformed trusted sealer", "arc", "trusted_sealers", to=["*.example.com"],
            variable="estate_arc.trusted_sealers", value='"*.example.com"', says="letters, digits and hyphens"),
    mistake("ARC switch that is no switch", "arc", "enabled", to="on", variable="estate_arc.enabled", value='"on"',
            says="true or false"),
    mistake("ARC key in a foreign domain", "arc", "domain", to="example.com", variable="estate_arc.domain",
            value='"example.com"', says="only in our own domains"),
    mistake("ARC selector without key", "arc", "selector", to="arc2027", variable="estate_arc.selector",
            value='"arc2027"', says="has no 'arc2027._domainkey.example.org'"),
    mistake("malformed ARC selector", "arc", "selector", to="arc 2026", variable="estate_arc.selector",
            value='"arc 2026"', says="lower-case letters"),
    mistake("key under a wrong name", "dkim_public_keys", "arc2026.example.org", to="x",
            variable="estate_dkim_public_keys", value='"arc2026.example.org"', says="<selector>._domainkey.<domain>"),
    mistake("key for a foreign domain", "dkim_public_keys", "a._domainkey.example.com", to="x",
            variable="estate_dkim_public_keys", value='"a._domainkey.example.com"', says="none of our domains"),
    mistake("key that is no key", "dkim_public_keys", "arc2026._domainkey.example.org", to="c2hvcnQ=",
            variable="estate_dkim_public_keys['arc2026._domainkey.example.org']", value='"c2hvcnQ="',
            says="neither an RSA key of at least 2048 bits nor an Ed25519 key"),
    # policy
    mistake("strict domain of our own", "strict_domains", to=["sfc.example.org"], variable="estate_strict_domains",
            value='"sfc.example.org"', says="estate_domains['sfc.example.org'].strict: true"),
    mistake("malformed strict domain", "strict_domains", to=["@example.com"], variable="estate_strict_domains",
            value='"@example.com"', says="letters, digits and hyphens"),
    mistake("spam thresholds out of order", "spam", "add_header", to=16, variable="estate_spam.add_header",
            value="16", says="must be below reject, which is 15"),
    mistake("spam threshold that is no number", "spam", "reject", to="15", variable="estate_spam.reject",
            value='"15"', says="must be a score"),
    mistake("unknown spam threshold", "spam", "discard", to=20, variable="estate_spam.discard", value="20",
            says="allowed: greylist, add_header, reject, outside_lists"),
    mistake("limit exception by name", "limit_exceptions", to=["load.example.net"],
            variable="estate_limit_exceptions", value='"load.example.net"', says="IP address or a network"),
    mistake("management network by name", "management_networks", to=["noc.example.org"],
            variable="estate_management_networks", value='"noc.example.org"', says="IP address or a network"),
    mistake("management from nowhere", "management_networks", to=[], variable="estate_management_networks",
            value="[]", says="shuts you out"),
    mistake("switch for block lists that is no switch", "spam", "outside_lists", to="no",
            variable="estate_spam.outside_lists", value='"no"', says="true or false"),
    # keys that hosts made
    mistake("keys shorter in DNS than mail in queues", "dkim", "keep_days", to=4,
            variable="estate_dkim.keep_days", value="4", says="a number of days, 5 to 60"),
    mistake("key life without a word about rotation", "dkim", to={"keep_days": 8, "revoked_days": 0},
            variable="estate_dkim.rotate_days", value="null", says="a number of days"),
    mistake("made keys that are no mapping", "dkim_keys", to=[],
            variable="estate_dkim_keys", value="[]", says="dkim_rotate.yml writes"),
    mistake("made key of no selector", "dkim_keys", to={"example.org": MADE_KEY},
            variable="estate_dkim_keys", value='"example.org"', says="<selector>._domainkey.<domain>"),
    mistake("made key with the name of another", "dkim_keys", to={"arc2026._domainkey.example.org": MADE_KEY},
            variable="estate_dkim_keys", value='"arc2026._domainkey.example.org"', says="a selector names one key"),
    mistake("made key in an unknown state", "dkim_keys", to={MADE: MADE_KEY | {"state": "singing"}},
            variable=f"estate_dkim_keys['{MADE}'].state", value='"singing"', says="allowed: published, signing"),
    mistake("made key that is none", "dkim_keys", to={MADE: MADE_KEY | {"public_key": ""}},
            variable=f"estate_dkim_keys['{MADE}'].public_key", value='""', says="neither an RSA key"),
    mistake("two keys that sign for one domain", "dkim_keys", to={f"x{MADE}": MADE_KEY, MADE: MADE_KEY},
            variable=f"estate_dkim_keys['{MADE}']", value="signing", says="signs for the same domain on the same host"),
    # reports
    mistake("authorisation for a domain of ours", "report_authorisations", to=[{"domain": "sfc.example.org"}],
            variable="estate_report_authorisations[0].domain", value='"sfc.example.org"', says="is ours"),
    mistake("authorisation at a foreign domain", "report_authorisations",
            to=[{"domain": "example.net", "at": "example.com"}], variable="estate_report_authorisations[0].at",
            value='"example.com"', says="domain that we receive mail for"),
    mistake("authorisation without domain", "report_authorisations", to=[{"at": "example.org"}],
            variable="estate_report_authorisations[0].domain", value="null", says="a domain name is needed"),
    mistake("report receiver of our own", "report_receivers", to=["example.org"], variable="estate_report_receivers",
            value='"example.org"', says="only outside domains"),
]
# fmt: on


@pytest.mark.parametrize(("path", "to", "variable", "value", "says"), MISTAKES)
def test_mistake_is_told_with_variable_value_and_remedy(model, path, to, variable, value, says):
    change(model, *path, to=to)
    found = estate_checks.problems(model)
    matching = [sentence for sentence in found if sentence.startswith(f"{variable} is ") and says in sentence]
    assert matching, found
    assert any(value in sentence for sentence in matching), matching


def test_lab_model_is_valid(model):
    assert estate_checks.problems(model) == []


def test_production_example_is_valid(wide_model):
    assert estate_checks.problems(wide_model) == []


def test_rua_outside_is_allowed_when_its_owner_publishes_the_authorisation(model):
    model["domains"]["example.org"]["dmarc"]["rua"].append("d@example.net")
    model["report_receivers"] = ["example.net"]
    assert estate_checks.problems(model) == []


def test_arc_switched_off_needs_no_key(model):
    model["arc"] = {"enabled": False, "trusted_sealers": []}
    del model["dkim_public_keys"]["arc2026._domainkey.example.org"]
    assert estate_checks.problems(model) == []


def test_forward_to_a_list_of_addresses_and_through_another_forward_is_valid(model):
    model["forwards"] |= {
        "all@example.org": ["one@example.com", "Two@Example.Net"],
        "chain@sfc.example.org": "all@example.org",
    }
    assert estate_checks.problems(model) == []


def test_every_problem_comes_at_once_and_once(model):
    model["gateways"] = ["nowhere"]
    model["spam"]["reject"] = 1
    model["domains"]["example.org"]["receive"]["next_hop"] = "nowhere"
    found = estate_checks.problems(model)
    assert len(found) == len(set(found)) == 3


def test_defined_variables_may_only_be_those_of_the_model():
    names = [*estate_checks.MANDATORY_VARIABLES, "estate_model", "postfix_main", "ansible_host"]
    assert estate_checks.variable_problems(names) == []


def test_renamed_variable_is_told_with_its_new_name():
    found = estate_checks.variable_problems([*estate_checks.MANDATORY_VARIABLES, "estate_mx_hosts"])
    assert found == ["estate_mx_hosts has been renamed: write estate_gateways instead (docs/data-model.md)."]


def test_mistyped_variable_is_told_with_the_likely_name():
    found = estate_checks.variable_problems([*estate_checks.MANDATORY_VARIABLES, "estate_gateway"])
    assert found == [
        'estate_gateway is no variable of the data model; did you mean "estate_gateways"?; see docs/data-model.md.'
    ]


@pytest.mark.parametrize("missing", estate_checks.MANDATORY_VARIABLES)
def test_missing_variable_is_named(missing):
    names = [name for name in estate_checks.MANDATORY_VARIABLES if name != missing]
    found = estate_checks.variable_problems(names)
    assert len(found) == 1
    assert found[0].startswith(f"{missing} is not set")


@pytest.mark.parametrize("site", ["lab", "wide"])
def test_all_sites_put_the_same_variables_into_the_model(site):
    link = REPOSITORY / "inventory" / site / "group_vars/all/model.yml"
    assert link.resolve() == REPOSITORY / "inventory/model.yml"
    model = yaml.safe_load(link.read_text(encoding="utf-8"))["estate_model"]
    assert model == {field: "{{ estate_" + field + " }}" for field in estate_checks.MODEL_FIELDS}


def test_every_variable_and_field_is_documented():
    text = (REPOSITORY / "docs/data-model.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", text))))
    fields = [
        name
        for table, names in vars(estate_checks).items()
        if table.endswith("_FIELDS") and table != "MODEL_FIELDS"
        for name in names
    ]
    assert sorted({*fields, *estate_checks.MANDATORY_VARIABLES} - words) == []


def test_new_names_of_renamed_variables_exist():
    for old, new in estate_checks.RENAMED_VARIABLES.items():
        assert old not in estate_checks.MANDATORY_VARIABLES
        assert new.partition(".")[0] in estate_checks.MANDATORY_VARIABLES


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["example.org", "mail", "mail-gw1", "verify", "a@example.org", "192.0.2.1", "none", "reject"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.text(max_size=10) | st.none() | st.booleans() | st.integers()
        | st.sampled_from(["receive", "next_hop", "host", "fqdn", "ipv4", "send", "hosts", "dmarc", "rua", "p"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path of keys and indices in a model."""
    found = [above] if above else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        found += places(inner, (*above, key))
    return found


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_anything_in_place_of_any_part_gives_sentences_and_never_an_exception(models, data):
    broken = copy.deepcopy(models["lab"])
    change(broken, *data.draw(st.sampled_from(places(broken))), to=data.draw(ANYTHING))
    found = estate_checks.problems(broken)
    assert all(isinstance(sentence, str) and sentence for sentence in found)


@given(anything=ANYTHING)
def test_anything_in_place_of_the_model_gives_sentences(anything):
    assert all(isinstance(sentence, str) for sentence in estate_checks.problems(anything))


@given(names=st.lists(ANYTHING, max_size=5))
def test_any_names_of_variables_give_sentences(names):
    assert all(isinstance(sentence, str) for sentence in estate_checks.variable_problems(names))
