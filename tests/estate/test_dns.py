"""The records that the lab serves are the records to publish; the gateways see them validated."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.reversename
import pytest

from estatelib import lookup
from estatelib.places import ADDRESSES, GATEWAYS, OUTSIDE_ADDRESSES, OUTSIDE_MAIL_HOSTS

RECEIVING = ["example.org", "sfc.example.org", "member.example.org", "srs.example.org", "load.example.org"]
HOSTS = {f"{name}.example.org": ADDRESSES[name] for name in (*GATEWAYS, "mail")}
HOSTS |= {OUTSIDE_MAIL_HOSTS[domain]: addresses for domain, addresses in OUTSIDE_ADDRESSES.items()}

# Sends one query in wire format (hex on stdin) to the host's own resolver and prints the answer.
ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.sendto(bytes.fromhex(sys.stdin.read()), ("127.0.0.1", 53))
    print(sock.recv(65535).hex())
"""


@pytest.mark.parametrize("domain", RECEIVING)
def test_every_receiving_domain_names_both_gateways_with_the_same_preference(domain):
    preferences, names = zip(*(record.split() for record in lookup(domain, "MX")), strict=True)
    assert {name.rstrip(".") for name in names} == {f"{name}.example.org" for name in GATEWAYS}
    assert len(set(preferences)) == 1


@pytest.mark.parametrize("host", HOSTS)
def test_every_mail_host_has_forward_confirmed_reverse_names(host):
    ipv4, ipv6 = HOSTS[host]
    assert lookup(host, "A") == [ipv4]
    assert lookup(host, "AAAA") == [ipv6]
    for address in HOSTS[host]:
        assert lookup(dns.reversename.from_address(address).to_text(), "PTR") == [host]


@pytest.mark.parametrize(
    ("domain", "policy"),
    [("example.org", "p=none"), ("sfc.example.org", "p=quarantine"), ("closed.example.org", "p=reject")],
)
def test_every_domain_publishes_its_dmarc_policy_also_for_names_that_do_not_exist(domain, policy):
    (record,) = lookup(f"_dmarc.{domain}", "TXT")
    tags = [tag.strip() for tag in record.split(";")]
    assert tags[0] == "v=DMARC1"
    assert policy in tags
    assert "np=reject" in tags  # RFC 9989


@pytest.mark.parametrize("gateway", GATEWAYS)
@pytest.mark.parametrize("name", ["example.com", "example.org", "mail.example.org"])
def test_gateway_sees_outside_and_own_records_as_authentic(estate, gateway, name):
    query = dns.message.make_query(name, "A" if name.startswith("mail") else "MX", want_dnssec=True)
    query.flags |= dns.flags.AD
    answer = estate.gateway(gateway).run("python3", "-c", ASK, stdin=query.to_wire().hex())
    response = dns.message.from_wire(bytes.fromhex(answer.strip()))
    assert response.answer
    assert response.flags & dns.flags.AD  # DANE rests on it
