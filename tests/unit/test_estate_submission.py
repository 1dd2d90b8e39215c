"""Who may send through the submission host: tables for Postfix, and faults in the data in plain words."""

from __future__ import annotations

from typing import Any

import pytest

import estate_submission

USERS: dict[str, Any] = {
    "alice@example.org": {"addresses": ["alice@example.org", "office@example.org"]},
    "bob@example.org": {"addresses": ["@example.org", "bob@sfc.example.org"], "limit": 5000},
}
RELAYS: dict[str, Any] = {
    "mail": {"networks": ["198.18.25.20", "2001:db8::/48"], "addresses": ["@example.org"]},
    "printer": {"certificates": [":".join(["AB"] * 32)], "addresses": ["printer@example.org"]},
}
MODEL = {
    "domains": {"example.org": {"send": {}}, "sfc.example.org": {"send": {}}, "closed.example.org": {"closed": True}}
}
ALICE = {"addresses": ["a@example.org"]}
PASSWORDS = {login: "hash" for login in USERS}


def test_owner_of_a_whole_domain_is_named_at_its_single_addresses_too():
    assert estate_submission.sender_logins(USERS) == {
        "@example.org": ["bob@example.org"],
        "alice@example.org": ["alice@example.org", "bob@example.org"],
        "bob@sfc.example.org": ["bob@example.org"],
        "office@example.org": ["alice@example.org", "bob@example.org"],
    }


def test_fingerprints_lead_to_the_relay():
    assert estate_submission.relay_certificates(RELAYS) == {":".join(["AB"] * 32): "printer"}


def test_right_data_has_no_problem():
    assert estate_submission.problems(USERS, RELAYS, MODEL, PASSWORDS) == []


@pytest.mark.parametrize(
    ("users", "relays", "passwords", "words"),
    [
        ([], {}, {}, "estate_submission_users is []"),
        ({"Alice": {"addresses": ["alice@example.org"]}}, {}, {"Alice": "h"}, "a login is the user's mail address"),
        ({"a@example.org": {"addresses": ["a@example.org"]}}, {}, {}, "has no hash for this login"),
        ({}, {}, {"a@example.org": "h"}, "who is not in estate_submission_users"),
        ({"a@example.org": ALICE | {"limits": 5}}, {}, {"a@example.org": "h"}, 'did you mean "limit"'),
        ({"a@example.org": {"addresses": ["a@exampl.org"]}}, {}, {"a@example.org": "h"}, 'did you mean "example.org"'),
        ({"a@example.org": {"addresses": ["@closed.example.org"]}}, {}, {"a@example.org": "h"}, "that sends"),
        ({"a@example.org": {"addresses": ["a"]}}, {}, {"a@example.org": "h"}, "local@domain"),
        ({"a@example.org": {"addresses": ["a@example.org"], "limit": 0}}, {}, {"a@example.org": "h"}, "1 or more"),
        ({"a@example.org": "x"}, {}, {"a@example.org": "h"}, "a mapping with"),
        ({}, {"r": {"addresses": ["@example.org"]}}, {}, "names no client"),
        ({}, {"r": {"networks": ["10.0.0.0/8"], "addresses": ["@example.org"]}}, {}, "open relay"),
        ({}, {"r": {"networks": ["::/0"], "addresses": ["@example.org"]}}, {}, "open relay"),
        ({}, {"r": {"networks": ["host"], "addresses": ["@example.org"]}}, {}, "no address and no network"),
        ({}, {"r": {"certificates": ["ab:cd"], "addresses": ["@example.org"]}}, {}, "SHA-256 fingerprint"),
    ],
)  # fmt: skip
def test_each_fault_is_said_in_plain_words(users, relays, passwords, words):
    found = estate_submission.problems(users, relays, MODEL, passwords)
    assert len(found) == 1
    assert words in found[0]
