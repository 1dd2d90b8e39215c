"""Last of all: after everything the other tests did, the hosts are whole and their logs hold nothing unexplained."""

from __future__ import annotations

import re

import pytest

from estatelib.places import ESTATE_HOSTS, GATEWAYS

# Warnings that containers and the tests themselves provoke, each with its reason. Everything else is a defect.
EXPLAINED = {
    r"\.service: ProtectHostname=yes is configured, but UTS namespace setup is prohibited": "containers",
    r"PrivateNetwork=yes is configured, but network namespace setup not permitted": "containers",
    r"pam_env\(sshd:session\): Unable to open env file: /etc/default/locale": "a container has no locale",
    r"smtpd\[\d+\]: warning: connect to Milter service inet:127\.0\.0\.1:\d+: Connection refused": "filters stopped",
    r"milter inet:127\.0\.0\.1:11332: (can't read SMFIC_OPTNEG|read error in initial handshake)": "filters stopped",
    r"reinject/cleanup\[\d+\]: warning: (connect to|read) TCP map .*127\.0\.0\.1:10001": "tests stop the SRS daemon",
    r"postfix/cleanup\[\d+\]: warning: (connect to|read) TCP map .*127\.0\.0\.1:10002": "tests stop the SRS daemon",
    r"rspamd\[\d+\]: .*Connection refused": "tests stop the key-value store",
    r"warning: Connection rate limit exceeded: \d+ from unknown\[198\.18\.25\.108\]": "a test connects too often",
    r"warning: Recipient address rate limit exceeded: \d+ from unknown\[198\.18\.25\.109\]": "a test harvests",
    r"warning: unknown\[198\.18\.25\.107\]: request longer than 2048": "the overlong command line",
    r"warning: disabling input from smtpd socket": "the overlong command line",
    r"warning: non-SMTP command from unknown\[198\.18\.25\.107\]: POST": "the tricked web browser",
    r"warning: Illegal address syntax from mx\.example\.co\.jp": "espoofer's envelopes",
    r"warning: Illegal address syntax from unknown\[198\.18\.25\.107\]": "relay attempts",
    r"TLS library problem: error:\w+:SSL routines::(no shared|no suitable) ": "testssl.sh offers what must be refused",
    r"TLS library problem: error:\w+:SSL routines::(wrong version number|record layer failure):": "testssl.sh",
    r"TLS library problem: error:\w+:SSL routines::(unsupported|unknown) protocol:": "testssl.sh",
    r"TLS library problem: error:\w+:SSL routines::(version too low|ssl/tls alert handshake failure):": "testssl.sh",
    r"smtpd\[\d+\]: warning: .*\[198\.18\.25\.\d+\]: SASL PLAIN authentication failed": "a test has no password",
    r"login=\S+ client=198\.18\.25\.\d+ refused: ": "tests write as somebody else",
    r"warning: \w+: message rejected: hopcount exceeded": "the loop",
    r"warning: (\w+: queue file size limit exceeded|mail_stream_cleanup: close error)": "the oversized message",
    # Since Linux 6.13 a file's time is exact, while time(2) may lie some milliseconds behind: a second, at its turn.
    r"cleanup\[\d+\]: warning: file system clock is 1 seconds ahead of local clock": "the turn of a second",
    r"cleanup\[\d+\]: warning: resetting file time stamps - this hurts performance": "the turn of a second",
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
    "mail": {("any", 22), ("any", 25), ("any", 143), ("any", 993), ("loopback", 25), ("loopback", 53)},
    "ml": {
        ("any", 22),
        ("any", 25),
        ("any", 80),
        ("any", 443),
        ("loopback", 53),
        ("loopback", 5432),
        ("loopback", 8000),
        ("loopback", 8001),
        ("loopback", 8024),
        ("loopback", 9180),
        ("loopback", 10025),
    },
    "smtp": {
        ("any", 22),
        ("any", 25),
        ("any", 465),
        ("any", 587),
        ("loopback", 53),
        ("loopback", 8898),
        ("loopback", 9166),
    },
    "analytics": {
        ("any", 22),
        ("any", 25),
        ("any", 80),
        ("any", 443),
        ("any", 5432),
        ("loopback", 53),
        ("loopback", 5432),
        ("loopback", 9180),
        ("loopback", 10025),
    },
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
