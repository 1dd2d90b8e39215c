"""The records that the lab serves are the records to publish; the gateways see them validated."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rdatatype
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
    assert authentic(estate, gateway, name, "A" if name.startswith("mail") else "MX")  # DANE rests on it


@pytest.mark.parametrize(
    ("name", "rtype", "begins"),
    [
        ("_mta-sts.example.org", "TXT", '"v=STSv1; id='),
        ("_mta-sts.member.example.org", "TXT", '"v=STSv1; id='),
        ("mta-sts.example.org", "A", ADDRESSES["ml"][0]),
        ("mta-sts.sfc.example.org", "AAAA", ADDRESSES["ml"][1]),
        ("mta-sts.sfc.example.org", "MX", "0 ."),
        ("mta-sts.sfc.example.org", "TXT", '"v=spf1 -all"'),
        ("_smtp._tls.example.org", "TXT", '"v=TLSRPTv1; rua=mailto:tlsrpt@rua.example.org"'),
        ("_submissions._tcp.example.org", "SRV", "0 1 465 smtp.example.org."),
        ("_submission._tcp.example.org", "SRV", "0 1 587 smtp.example.org."),
        # The delegated member organisation: its own zone, reached from ours by DS.
        ("institute.example.org", "MX", "10 mx.example.net."),
    ],
)
def test_record_about_transport_is_published_and_authentic(estate, name, rtype, begins):
    (found,) = authentic(estate, "mail-gw1", name, rtype)
    assert found.startswith(begins)


def test_only_the_labs_authority_may_issue_certificates(estate):
    assert sorted(authentic(estate, "mail-gw1", "example.org", "CAA")) == [
        '0 iodef "mailto:postmaster@example.org"', '0 issue "acme.example.net"', '0 issuewild ";"'
    ]  # fmt: skip


def authentic(estate, host, name, rtype):
    """The records as a host's own resolver gives them, validated from the root on."""
    query = dns.message.make_query(name, rtype, want_dnssec=True)
    query.flags |= dns.flags.AD
    answer = estate.gateway(host).run("python3", "-c", ASK, stdin=query.to_wire().hex())
    response = dns.message.from_wire(bytes.fromhex(answer.strip()))
    assert response.flags & dns.flags.AD
    rdtype = dns.rdatatype.from_text(rtype)
    return [rdata.to_text() for rrset in response.answer if rrset.rdtype == rdtype for rdata in rrset]
