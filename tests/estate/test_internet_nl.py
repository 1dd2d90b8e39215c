"""The mail test of internet.nl as a checklist, held against the lab's domains over the network, item by item.

docs/receivers-rules.md has its items and what is outside: RPKI, the network operator's, and the number of name
servers, which is the site's. The lists of good and sufficient cryptography are those of the guidelines of NCSC-NL for
TLS (2025), which internet.nl follows.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from estatelib import lookup
from estatelib.places import ADDRESSES, GATEWAYS, NAME_SERVER, STATE
from estatelib.spf import spf_check
from estatelib.tls_scan import Finding, tls_scan

DOMAINS = ("example.org", "sfc.example.org", "ml.example.org", "rua.example.org")
SENDS = {"example.org": "smtp", "sfc.example.org": "smtp", "ml.example.org": "ml", "rua.example.org": "analytics"}
# What a site decides against internet.nl's advice, on purpose.
DECIDED = {"example.org": "p=none: decades of users on mailing lists and with forwards; the reports are read instead"}
HOSTS = {f"{name}.example.org": name for name in GATEWAYS}

GOOD_CIPHERS = {
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
}
SUFFICIENT_CIPHERS = {
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_128_CCM_SHA256",
    *(
        f"TLS_ECDHE_{key}_WITH_{cipher}"
        for key in ("ECDSA", "RSA")
        for cipher in (
            "CHACHA20_POLY1305_SHA256",
            "AES_256_GCM_SHA384",
            "AES_128_GCM_SHA256",
            "AES_256_CCM",
            "AES_128_CCM",
        )
    ),
}
GOOD_CURVES = {"prime256v1", "secp384r1", "secp521r1", "X25519", "X448", "X25519MLKEM768"}
GOOD_CERTIFICATE_SIGNATURES = {f"SHA{size} with RSA" for size in (256, 384, 512)} | {
    f"ECDSA with SHA{size}" for size in (256, 384, 512)
}

# Asks the host's own validating resolver (a query in wire format, hex, on stdin).
_ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.sendto(bytes.fromhex(sys.stdin.read()), ("127.0.0.1", 53))
    print(sock.recv(65535).hex())
"""
_GREETING = """
import socket, sys
with socket.create_connection((sys.argv[1], 25), timeout=30) as connection:
    print(connection.recv(200).decode().strip())
"""


def exchangers(domain: str) -> list[str]:
    """The MX of a domain."""
    return sorted(record.split()[1] for record in lookup(domain, "MX"))


def validated(estate, name: str, kind: str) -> dns.message.Message:
    """What a validating resolver says, SERVFAIL where a chain of DNSSEC is broken."""
    query = dns.message.make_query(name, kind, want_dnssec=True)
    query.flags |= dns.flags.AD
    answer = estate.host("world").run("python3", "-c", _ASK, stdin=query.to_wire().hex())
    return dns.message.from_wire(bytes.fromhex(answer.strip()))


def name_servers(domain: str) -> list[str]:
    """The name servers of the zone that a domain lies in."""
    labels = domain.split(".")
    found = (lookup(".".join(labels[start:]), "NS") for start in range(len(labels) - 1))
    return next(servers for servers in found if servers)


# --- IPv6 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_name_server_has_ipv6_and_answers_by_it(domain):
    for server in name_servers(domain):
        addresses = lookup(server, "AAAA")
        assert addresses, server
        query = dns.message.make_query(domain, "MX")
        for address in addresses:
            for ask in (dns.query.udp, dns.query.tcp):
                answer = ask(query, address, timeout=10)
                assert answer.rcode() == dns.rcode.NOERROR
                assert answer.answer == [] or answer.flags & dns.flags.AA


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_mx_has_ipv6_and_answers_by_it(estate, domain):
    assert exchangers(domain)
    for host in exchangers(domain):
        addresses = lookup(host, "AAAA")
        assert addresses, host
        for address in addresses:
            greeting = estate.host("world").run("python3", "-c", _GREETING, address)
            assert greeting.startswith(f"220 {host}") or greeting.startswith("220-"), greeting


# --- DNSSEC -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_and_its_mx_hosts_are_signed_and_the_chain_holds(estate, domain):
    for name, kind in [(domain, "MX"), (domain, "TXT"), *((host, "A") for host in exchangers(domain))]:
        answer = validated(estate, name, kind)
        assert answer.rcode() == dns.rcode.NOERROR, f"{name} {kind}: {dns.rcode.to_text(answer.rcode())}"
        assert answer.answer, f"{name} {kind}"
        assert answer.flags & dns.flags.AD, f"{name} {kind} is not validated"


# --- authenticity -----------------------------------------------------------------------------------------------------


def dmarc(domain: str) -> dict[str, str]:
    """The tags of a domain's own DMARC record."""
    (record,) = [text for text in lookup(f"_dmarc.{domain}", "TXT") if text.startswith("v=DMARC1")]
    return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in record.split(";"))}


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_has_dmarc_with_reports(domain):
    assert dmarc(domain)["rua"].startswith("mailto:")


@pytest.mark.parametrize("domain", DOMAINS)
def test_dmarc_policy_asks_for_something_unless_the_site_has_decided_otherwise(domain):
    """internet.nl fails p=none, and t=y, too. A decision that no longer stands must leave the table."""
    policy = dmarc(domain)
    enforced = policy["p"] in ("quarantine", "reject") and policy.get("t", "n") == "n"
    assert enforced == (domain not in DECIDED), policy


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_has_dkim_keys(domain):
    """RFC 6376 cannot list selectors; that _domainkey exists (no NXDOMAIN, RFC 8020) is what internet.nl asks."""
    answer = dns.query.tcp(dns.message.make_query(f"_domainkey.{domain}", "TXT"), NAME_SERVER, timeout=10)
    assert answer.rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_has_one_spf_record_which_names_its_sender_and_ends_strictly(domain):
    """Also that it can be evaluated: an include or redirect too many is a permerror (RFC 7208 §4.6.4)."""
    (record,) = [text for text in lookup(domain, "TXT") if text.startswith("v=spf1")]
    assert record.split()[-1] in ("-all", "~all")
    for address in ADDRESSES.get(SENDS[domain], ()):
        assert spf_check(address, domain) == "pass", address
    assert spf_check("192.0.2.1", domain) in ("fail", "softfail")


# --- STARTTLS and DANE ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans(estate) -> dict[str, dict[str, Finding]]:
    """What testssl.sh finds at port 25 of every MX of these domains."""
    hosts = sorted({host for domain in DOMAINS for host in exchangers(domain)})
    authority = (STATE / "pki/ca.pem").read_text() + (STATE / "pki/acme-root.pem").read_text()
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(hosts, pool.map(lambda host: tls_scan(HOSTS[host], host, 25, "smtp", authority), hosts), strict=True)
        )


@pytest.mark.parametrize("host", HOSTS)
class TestStarttls:
    """One of the MX, which are those of all domains."""

    def test_protocols_are_tls_1_2_and_1_3(self, scans, host):
        offered = {name for name in ("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3")
                   if not scans[host][name].text.startswith("not offered")}  # fmt: skip
        assert offered == {"TLS1_2", "TLS1_3"}

    def test_ciphers_are_good_or_sufficient(self, scans, host):
        found = {one.text.split()[-1] for name, one in scans[host].items() if name.startswith("cipher-tls1_")}
        assert found
        assert found <= GOOD_CIPHERS | SUFFICIENT_CIPHERS, found - GOOD_CIPHERS - SUFFICIENT_CIPHERS

    def test_the_servers_order_of_ciphers_holds_and_has_the_good_ones_first(self, scans, host):
        assert scans[host]["cipher_order"].text == "server"
        order = [cipher in GOOD_CIPHERS for cipher in scans[host]["cipherorder_TLSv1_3"].text.split()]
        assert order == sorted(order, reverse=True)

    def test_keys_are_exchanged_on_good_curves_only(self, scans, host):
        assert set(scans[host]["FS_ECDHE_curves"].text.split()) <= GOOD_CURVES
        assert "DH_groups" not in scans[host], scans[host].get("DH_groups")

    def test_the_exchange_is_signed_with_a_hash_that_holds(self, scans, host):
        algorithms = scans[host]["FS_TLS12_sig_algs"].text.split() + scans[host]["FS_TLS13_sig_algs"].text.split()
        assert algorithms
        assert not [name for name in algorithms if "SHA1" in name or "SHA224" in name or "MD5" in name], algorithms

    def test_there_is_no_compression(self, scans, host):
        assert scans[host]["CRIME_TLS"].severity == "OK", scans[host]["CRIME_TLS"]

    def test_renegotiation_is_secure_and_not_for_clients(self, scans, host):
        assert scans[host]["secure_renego"].severity == "OK", scans[host]["secure_renego"]
        assert scans[host]["secure_client_renego"].severity == "OK", scans[host]["secure_client_renego"]

    def test_there_is_no_early_data(self, estate, host):
        """0-RTT can be replayed (RFC 8446 §8)."""
        shown = s_client(estate, host)
        assert "Max Early Data: 0" in shown, shown[-1500:]

    def test_certificate_is_trusted_and_in_the_hosts_name(self, scans, host):
        assert scans[host]["cert_chain_of_trust"].severity == "OK", scans[host]["cert_chain_of_trust"]
        assert scans[host]["cert_trust"].severity == "OK", scans[host]["cert_trust"]

    def test_certificates_have_a_good_key_and_a_good_signature(self, scans, host):
        """The graver of two is told; RSA below 3072 bits is to be phased out."""
        found = re.match(r"(EC|RSA) (\d+) bits", scans[host]["cert_keySize"].text)
        assert int(found[2]) >= {"EC": 256, "RSA": 3072}[found[1]], found[0]
        assert scans[host]["cert_keySize"].severity in ("OK", "INFO"), scans[host]["cert_keySize"]
        assert scans[host]["cert_signatureAlgorithm"].text in GOOD_CERTIFICATE_SIGNATURES

    def test_starttls_cannot_be_injected_into(self, scans, host):
        assert scans[host].get("starttls_injection", Finding("", "OK", "")).severity == "OK"

    def test_tlsa_records_exist_validated_and_for_the_next_key_as_well(self, estate, host):
        """DANE exists, and rollover: 3 1 1 for the key in use and for the one that follows (RFC 7671 §8.1)."""
        answer = validated(estate, f"_25._tcp.{host}", "TLSA")
        assert answer.flags & dns.flags.AD
        records = [rr.to_text().split()[:3] for rrset in answer.answer
                   if rrset.rdtype == dns.rdatatype.TLSA for rr in rrset]  # fmt: skip
        assert records == [["3", "1", "1"]] * len(records)
        assert len(records) >= 2

    def test_certificate_matches_a_tlsa_record(self, estate, host):
        """DANE valid, as Postfix sees it: the client that refuses to deliver otherwise."""
        command = ["posttls-finger", "-c", "-t", "30", "-T", "30", "-l", "dane-only", "-L", "summary", f"[{host}]:25"]
        said = estate.host("world").run(*command, check=False)
        assert "Verified TLS connection established" in said, said


def s_client(estate, host: str) -> str:
    """What openssl says of a session at port 25, after some bytes over TLS 1.3 have brought the session tickets."""
    return estate.host("world").run(
        "sh", "-c",
        f"(sleep 8; printf 'QUIT\\r\\n'; sleep 2) | timeout 60 openssl s_client -starttls smtp -connect {host}:25"
        f" -servername {host} -tls1_3 -crlf -ign_eof 2>&1",
        check=False,
    )  # fmt: skip
