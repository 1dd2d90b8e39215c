"""Look-ups: bounded in time, cached, and honest about failure. A DNS server of the test answers on loopback."""

from __future__ import annotations

import socketserver
import threading
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from estate_arc_chain import TemporaryDnsError
from estate_arc_dns import Resolver

ZONE = {
    ("key.example.", "TXT"): ['"v=DKIM1; " "p=AAAA"', '"second"'],
    ("mail.example.", "MX"): ["10 mx.mail.example."],
    ("host.example.", "AAAA"): ["2001:db8::1"],
}


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        octets, channel = self.request
        query = dns.message.from_wire(octets)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.server.asked.append((name, kind))
        if name.startswith("silent"):
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if name.startswith("broken"):
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif (name, kind) in ZONE:
            answer.answer.append(dns.rrset.from_text(question.name, 300, "IN", kind, *ZONE[name, kind]))
        elif not any(known == name for known, _ in ZONE):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        channel.sendto(answer.to_wire(), self.client_address)


@pytest.fixture(scope="module")
def server():
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as daemon:
        daemon.asked = []
        threading.Thread(target=daemon.serve_forever, args=(0.05,), daemon=True).start()
        yield daemon
        daemon.shutdown()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def resolver(server, clock):
    server.asked.clear()
    made = Resolver(["127.0.0.1"], 0.5, entries=10, clock=clock)
    made._resolver.port = server.server_address[1]
    return made


def test_strings_of_a_record_are_joined(resolver, clock):
    assert sorted(resolver.txt("KEY.example", clock.now + 5)) == [b"second", b"v=DKIM1; p=AAAA"]


@pytest.mark.parametrize("name", ["nothing.example", "host.example", "a..b", "x" * 64 + ".example", "y." * 130 + "z"])
def test_names_without_record_have_none(resolver, clock, name):
    assert resolver.txt(name, clock.now + 5) == ()


def test_answers_are_cached_for_their_time_and_no_longer(resolver, clock, server):
    for _ in range(3):
        resolver.txt("key.example", clock.now + 5)
        resolver.txt("nothing.example", clock.now + 5)
    assert len(server.asked) == 2
    clock.now += 301
    resolver.txt("key.example", clock.now + 5)
    assert len(server.asked) == 3


@pytest.mark.parametrize("name", ["silent.example", "broken.example"])
def test_failure_is_bounded_said_and_remembered_for_seconds(resolver, clock, server, name):
    begun = time.monotonic()
    for _ in range(5):
        with pytest.raises(TemporaryDnsError):
            resolver.txt(name, clock.now + 5)
    assert time.monotonic() - begun < 2.4  # five look-ups of half a second would take longer
    asked = len(server.asked)
    clock.now += 6
    with pytest.raises(TemporaryDnsError):
        resolver.txt(name, clock.now + 5)
    assert len(server.asked) > asked


def test_nothing_is_asked_after_the_deadline(resolver, clock, server):
    with pytest.raises(TemporaryDnsError):
        resolver.txt("key.example", clock.now - 1)
    assert server.asked == []


@pytest.mark.parametrize(("name", "exists"), [("mail.example", True), ("host.example", True), ("gone.example", False)])
def test_existence_is_an_address_or_a_mail_exchanger(resolver, clock, name, exists):
    assert resolver.exists(name, clock.now + 5) == exists


def test_cache_is_bounded(resolver, clock):
    for number in range(50):
        resolver.txt(f"n{number}.example", clock.now + 5)
    assert len(resolver._cache) == 10
