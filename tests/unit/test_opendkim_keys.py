"""The role's filters: which keys they refuse, in which words, and in which order patterns are tried."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

SOURCE = Path(__file__).resolve().parents[2] / "roles/opendkim/filter_plugins/opendkim_keys.py"
_spec = importlib.util.spec_from_file_location("opendkim_keys", SOURCE)
opendkim_keys = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(opendkim_keys)


@cache
def pem(bits: int = 2048, passphrase: str = "") -> str:
    key = rsa.generate_private_key(65537, bits) if bits else ed25519.Ed25519PrivateKey.generate()
    protection = serialization.BestAvailableEncryption(b"x") if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection).decode()


def entry(**change):
    return {"domain": "example.org", "selector": "s1", "private_key": pem()} | change


HERE = {"domain": "example.org", "selector": "h1", "public_key": "MIIB"}
HERE_NAME = "h1._domainkey.example.org"


def problems(*keys, hosts=("127.0.0.1", "::1", "192.0.2.0/24"), signed=("From", "To"), oversigned=("from",)) -> str:
    return " ".join(opendkim_keys.opendkim_problems(keys, hosts, signed, oversigned))


def test_what_is_right_is_accepted():
    other = entry(domain="ml.example.org", selector="a.b", sign=["*", "*@*.example.org", "taro@example.net"])
    assert problems(entry(), other, entry(selector="s2", sign=[])) == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"private_key": pem(1024)}, "has 1024 bits; at least 2048"),
        ({"private_key": "nonsense"}, "is no complete private key in PEM"),
        ({"private_key": pem()[:400]}, "is no complete private key in PEM"),
        ({"private_key": ""}, "is no complete private key in PEM"),
        ({"private_key": pem(0)}, "is not RSA"),
        ({"private_key": pem(passphrase="x")}, "is protected by a passphrase"),
        ({"public_key": "MIIB"}, "does not belong to its public_key"),
        ({"domain": "Example.org"}, 'opendkim_keys[0].domain is "Example.org"'),
        ({"domain": "example.org."}, 'opendkim_keys[0].domain is "example.org."'),
        ({"selector": "../x"}, 'opendkim_keys[0].selector is "../x"'),
        ({"selector": "a:b"}, 'opendkim_keys[0].selector is "a:b"'),
        ({"sign": ["example.org"]}, 'opendkim_keys[0].sign has "example.org"'),
        ({"sign": ["*@example.org x"]}, 'opendkim_keys[0].sign has "*@example.org x"'),
        ({"signs": []}, '"signs" is unknown; allowed are domain,'),
    ],
)
def test_what_is_wrong_with_a_key_is_said_without_quoting_it(change, sentence):
    found = problems(entry(**change))
    assert sentence in found
    assert "PRIVATE KEY" not in found


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (lambda: problems(HERE | {"public_key": None}), "neither private_key nor public_key"),
        (lambda: problems(entry(), entry(sign=[])), "are both s1._domainkey.example.org"),
        (lambda: problems(entry(), entry(selector="s2")), "both sign *@example.org"),
        (lambda: problems(entry(), hosts=["mail.example.org"]), '"mail.example.org", which is not'),
        (lambda: problems(entry(), hosts=["0.0.0.0/0"]), "mail of the whole internet would be signed"),
        (lambda: problems(entry(), hosts=["::/0"]), "mail of the whole internet would be signed"),
        (lambda: problems(entry(), signed=["To"], oversigned=[]), "lacks From"),
        (lambda: problems(entry(), oversigned=["Cc"]), "opendkim_oversign_headers has Cc"),
    ],
)
def test_what_contradicts_is_said(found, sentence):
    assert sentence in found()


def test_narrowest_pattern_is_tried_first():
    keys = [
        entry(selector="all", sign=["*"]),
        entry(selector="below", sign=["*@*.example.org", "*@example.org"]),
        entry(selector="sub", sign=["*@*.cs.example.org", "*@cs.example.org", "taro@cs.example.org"]),
    ]
    assert [row["pattern"] for row in opendkim_keys.opendkim_signing_table(keys)] == [
        "taro@cs.example.org",
        "*@cs.example.org",
        "*@example.org",
        "*@*.cs.example.org",
        "*@*.example.org",
        "*",
    ]


def test_key_that_was_made_here_signs_where_its_file_is_there_and_the_right_one():
    keys = [entry(), HERE]
    assert problems(*[entry(sign=["*@*.example.org"]), HERE]) == ""
    for found in ({}, {HERE_NAME: "other"}):
        assert opendkim_keys.opendkim_usable(keys, found) == [keys[0]]
        (sentence,) = opendkim_keys.opendkim_missing(keys, found, "/made")
        assert sentence.startswith(f"/made/{HERE_NAME}.pem is missing")
    assert opendkim_keys.opendkim_usable(keys, {HERE_NAME: "MIIB"}) == keys
    assert opendkim_keys.opendkim_missing(keys, {HERE_NAME: "MIIB"}, "/made") == []
    assert opendkim_keys.opendkim_missing([HERE | {"sign": []}], {}, "/made") == [], "one that waits does not stop mail"


def test_given_keys_and_keys_made_here_lie_apart():
    table = opendkim_keys.opendkim_key_table([entry(), HERE], "/keys", "/made")
    assert [row["file"] for row in table] == ["/keys/s1._domainkey.example.org.pem", f"/made/{HERE_NAME}.pem"]
