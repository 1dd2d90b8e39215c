"""Last of all: after everything the other tests did, the hosts are whole and their logs hold nothing unexplained."""

from __future__ import annotations

import re

import pytest

from estatelib.places import ESTATE_HOSTS, GATEWAYS

# Warnings that the tests themselves provoke, each with its reason. Everything else is a defect.
EXPLAINED = {
    r"postfix/.*warning: connect to Milter service inet:127\.0\.0\.1:\d+": "tests stop the milters",
    r"postfix/.*warning: milter .*(Connection refused|can't read|unreadable|lost connection)": "tests stop the milters",
    r"postfix/.*warning: hostname .* does not resolve to address": "attacker without names",
    r"postfix/.*warning: .*: (Connection|Message|Recipient) .* limit": "flood test",
    r"postfix/.*warning: (Connection|Message|Recipient) (concurrency|rate|delivery request rate) limit": "flood test",
    r"postfix/.*warning: .*non-SMTP command": "the browser attack",
    r"postfix/.*warning: Illegal address syntax": "relay and espoofer cases",
    r"postfix/.*warning: .*tcp lookup.*|postfix/.*warning: table .*tcp:.*": "tests stop postsrsd",
    r"postfix/.*warning: .*tcp:127\.0\.0\.1:1000[12].*": "tests stop postsrsd",
    r"postfix/.*warning: header .* too long|.*exceeds header_size_limit": "header bombs",
}

GATEWAY_PORTS = {
    ("any", 22),
    ("any", 25),
    ("loopback", 53),
    ("loopback", 6379),
    ("loopback", 8895),
    ("loopback", 8896),
    ("loopback", 8897),
    ("loopback", 10001),
    ("loopback", 10002),
    ("loopback", 10027),
    ("loopback", 11332),
    ("loopback", 11334),
}
EXPECTED_PORTS = {
    "mail-gw1": GATEWAY_PORTS,
    "mail-gw2": GATEWAY_PORTS,
    "mail": {("any", 22), ("any", 25), ("any", 143), ("any", 993)},
}


@pytest.mark.parametrize("name", [*ESTATE_HOSTS, "world"])
def test_no_unit_has_failed(estate, name):
    assert estate.host(name).run("systemctl", "--failed", "--plain", "--no-legend") == ""


@pytest.mark.parametrize("name", GATEWAYS)
def test_nothing_is_left_in_the_queue_of_a_gateway(estate, name):
    estate.gateway(name).flush()
    left = [entry for entry in estate.gateway(name).queue() if not _is_for_the_benchmark(entry)]
    assert left == []


@pytest.mark.parametrize("name", ESTATE_HOSTS)
def test_only_the_expected_ports_are_open(estate, name):
    lines = estate.host(name).run("ss", "-H", "-lntu").splitlines()
    found = {_scope_and_port(line.split()[4]) for line in lines}
    assert found == EXPECTED_PORTS[name]


@pytest.mark.parametrize("name", ESTATE_HOSTS)
def test_no_log_holds_an_unexplained_warning(estate, name, session_start):
    log = estate.host(name).journal(session_start, "--priority=warning", lines=5000)
    unexplained = [
        line
        for line in log.splitlines()
        if not line.startswith("-- ") and not any(re.search(pattern, line) for pattern in EXPLAINED)
    ]
    assert unexplained == []


def _is_for_the_benchmark(entry: dict) -> bool:
    return all(recipient["address"].endswith("@load.example.org") for recipient in entry["recipients"])


def _scope_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    loopback = host.startswith(("127.", "[::1]"))
    return ("loopback" if loopback else "any", int(port))
