"""Bad input: whatever arrives, the milter's parsers answer, in time and without an exception."""

from __future__ import annotations

import contextlib
import random
import time

import dkim.canonicalization
import pytest
from arc_data.outside import MESSAGE, chain_of, lookup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import estate_arc_chain as chain
import estate_arc_policy as policy

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PIECES = [
    b"i=1;", b"i=2;", b" ",
    b"\r\n\t", b"a=rsa-sha256;", b"cv=none;", b"cv=pass;", b"d=a.example;", b"s=sel;", b"b=AAAA",
    b"bh=AAAA;", b"h=from:to;", b"c=simple/relaxed;", b"l=3;", b"t=1;", b"x=99999999999999999999;", b"mx.example.org",
    b"spf=pass", b"(", b")", b'"', b"\\", b"=", b";", b"\x00", b"\xff", b"\xc3\xbc", b"@", b"reason=", b"header.from=x",
]  # fmt: skip
values = st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=40).map(b"".join)
names = st.sampled_from(
    [b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results", b"From", b"Authentication-Results", b"X"]
)
CHAIN = chain_of("a.example", "b.example")


@FUZZ
@given(st.lists(st.tuples(names, values), max_size=12), st.binary(max_size=200))
def test_any_header_is_judged(headers, body):
    try:
        sets = chain.read_chain(headers)
    except chain.ChainError:
        sets = ()
    if sets:
        hasher = chain.body_hash_for(sets)
        hasher.update(body)
        assert chain.verify_chain(headers, sets, hasher.digest(), lookup).status in ("pass", "fail")
    assert isinstance(chain.author_domain(headers), str)


@FUZZ
@given(values)
def test_any_authentication_results_value_is_read(value):
    chain.names_authserv_id(value, "mx.example.org")
    assert chain.extend_results(value, "arc", "arc=none").endswith("arc=none")
    try:
        results = chain.parse_authentication_results(value)
    except ValueError:
        return
    for result in results.results:
        assert result.method == result.method.lower()


@FUZZ
@given(st.integers(0, len(CHAIN)), st.integers(0, 40), st.binary(max_size=10))
def test_truncated_and_damaged_messages_are_judged(place, length, damage):
    for message in (CHAIN[:place], CHAIN[place:], CHAIN[:place] + damage + CHAIN[place + length :]):
        assert chain.verify_message(message, lookup).status in ("none", "pass", "fail")


@FUZZ
@given(values)
def test_any_key_record_is_read(record):
    assert chain.verify_message(CHAIN, lambda name: record).status == "fail"


@FUZZ
@given(values)
def test_any_dmarc_record_is_read(record):
    policy.parse_record("example.com", b"v=DMARC1;" + record)
    policy.parse_record("example.com", record)


bodies = st.lists(
    st.sampled_from([b"\r\n", b" ", b"\t", b"a", b".", b"\r", b"\n", b"\xe4", b"word "]) | st.binary(max_size=4),
    max_size=60,
).map(b"".join)


@FUZZ
@given(bodies, st.integers(1, 20), st.booleans(), st.none() | st.integers(0, 50))
def test_body_hash_in_pieces_is_dkimpys_of_the_whole(body, size, relaxed, limit):
    ours = chain.BodyHash(relaxed=relaxed, limit=limit)
    for at in range(0, len(body), size):
        ours.update(body[at : at + size])
    policy = dkim.canonicalization.Relaxed if relaxed else dkim.canonicalization.Simple
    assert ours.digest() == chain.hashlib.sha256(policy.canonicalize_body(body)[:limit]).digest()


def seal_field(value: bytes) -> bytes:
    return b"ARC-Seal: i=1; a=rsa-sha256; cv=none; d=a.example; s=s; b=" + value + b"\r\n"


BOMBS = {
    "header fields": b"X: y\r\n" * 100_000,
    "one huge field": b"X: " + b"y" * 5_000_000 + b"\r\n",
    "ARC fields": seal_field(b"AAAA") * 5_000,
    "huge seal": seal_field(b"A" * 400_000),
    "white space in a seal": seal_field(b"A" + b"\r\n " * 100_000 + b"!"),
    "spaces in a seal": seal_field(b"A" + b" A" * 100_000 + b"!"),
    "semicolons in a seal": seal_field(b"A" + b";" * 300_000),
    "digits": b"ARC-Authentication-Results: i=" + b"9" * 300_000 + b"; x\r\n",
    "names in h=": b"ARC-Message-Signature: i=1; a=rsa-sha256; bh=AAAA; d=a.example; s=s; b=AAAA; h="
    + b"from:" * 90_000
    + b"\r\n",
    "fifty sets, all forged": chain_of(*(f"hop{number}.example" for number in range(50)))
    .partition(b"From:")[0]
    .replace(b"bh=", b"bh=AAAA"),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_header_bombs_take_no_time(bomb):
    begun = time.process_time()
    assert chain.verify_message(bomb + MESSAGE, lookup).status in ("none", "fail")
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "value",
    [b'"' * 100_000, b'"\\' * 50_000, b"(" * 100_000, b"(\\" * 50_000, b"a=" * 50_000, b"; " * 50_000, b" " * 100_000],
)
def test_results_bombs_take_no_time(value):
    begun = time.process_time()
    chain.names_authserv_id(value, "mx.example.org")
    with contextlib.suppress(ValueError):
        chain.parse_authentication_results(value)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("body", [b" " * 20_000_000 + b"x", b"\r\n" * 10_000_000 + b"x", b"\t \r" * 5_000_000])
def test_body_bombs_take_no_time(body):
    begun = time.process_time()
    hasher = chain.BodyHash()
    for at in range(0, len(body), 65_535):
        hasher.update(body[at : at + 65_535])
    hasher.digest()
    assert time.process_time() - begun < 5


def test_a_thousand_shuffled_headers_never_pass():
    randomly = random.Random(8617)
    head, _, body = CHAIN.partition(b"\r\n\r\n")
    octets = bytearray(head)
    for _ in range(1000):
        mutated = octets.copy()
        at = randomly.randrange(CHAIN.index(b"From:"))
        mutated[at] = (mutated[at] + randomly.randrange(1, 128)) % 256
        verdict = chain.verify_message(bytes(mutated) + b"\r\n\r\n" + body, lookup)
        if verdict.status == "pass":  # only where the octet is white space, a letter's case in a name, or a comment
            assert harmless(octets, mutated, at), bytes(mutated[max(0, at - 30) : at + 30])


def harmless(before: bytearray, after: bytearray, at: int) -> bool:
    """Is the change one that relaxed canonicalisation undoes?"""
    return bytes(before[: at + 1]).lower() == bytes(after[: at + 1]).lower() or (
        before[at : at + 1].isspace() and after[at : at + 1].isspace()
    )
