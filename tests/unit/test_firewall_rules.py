"""The role's filters: what they refuse, in which words, and how they sort addresses."""

import pytest

import firewall_rules as rules

US = ["198.51.100.0/24", "2001:db8::/48"]
MAIL = {"port": 25, "reason": "Mail from everyone"}


def problems(allow=(MAIL,), management=US, ssh_ports=(22,), connection="198.51.100.7 40000 192.0.2.1 22"):
    return rules.firewall_problems(list(allow), management, list(ssh_ports), connection)


@pytest.mark.parametrize(
    "connection",
    [
        "",
        "198.51.100.7 40000 192.0.2.1 22",
        "2001:db8::7 40000 2001:db8:1::1 22",
        "::ffff:198.51.100.7 40000 ::ffff:192.0.2.1 22",
    ],
)
def test_what_is_right_is_accepted(connection):
    assert problems(connection=connection) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"management": []}, "SSH would be shut for everyone"),
        ({"management": ["203.0.113.0/24"]}, "Ansible is connected from 198.51.100.7"),
        ({"ssh_ports": [2222]}, "Ansible is connected to port 22"),
        ({"management": ["198.51.100.7/24"]}, '"198.51.100.7/24" is not an IPv4 or IPv6 address or network'),
        ({"management": ["mail.example.org"]}, '"mail.example.org" is not an IPv4 or IPv6 address or network'),
        ({"allow": [{**MAIL, "port": 0}]}, 'firewall_allow[0].port: "0" is not a port'),
        ({"allow": [MAIL, {**MAIL, "port": [25, "smtp"]}]}, 'firewall_allow[1].port: "smtp" is not a port'),
        ({"allow": [{**MAIL, "port": 65536}]}, '"65536" is not a port'),
        ({"allow": [{**MAIL, "port": []}]}, "firewall_allow[0].port is an empty list"),
        ({"allow": [{**MAIL, "from": ["10.0.0.0/33"]}]}, 'firewall_allow[0].from: "10.0.0.0/33" is not'),
        ({"allow": [{**MAIL, "from": []}]}, "firewall_allow[0].from is an empty list"),
        ({"allow": [{"port": 25}]}, "firewall_allow[0].reason is empty"),
        ({"allow": [{**MAIL, "form": ["10.0.0.1"]}]}, 'firewall_allow[0]: "form" is unknown; allowed are from,'),
        ({"allow": [{**MAIL, "limit": {"rate": 0}}]}, 'firewall_allow[0].limit.rate is "0"'),
    ],
)
def test_what_is_wrong_is_said(arguments, sentence):
    assert sentence in " ".join(problems(**arguments))


def test_addresses_are_sorted_by_family_and_merged():
    mixed = ["2001:db8::1", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.7", "2001:db8::/64", "198.51.100.1/32"]
    assert rules.firewall_family(mixed, 4) == ["192.0.2.0/24", "198.51.100.1"]
    assert rules.firewall_family(mixed, 6) == ["2001:db8::/64"]
