"""Mail that leaves again: SRS in the envelope, everything else intact, and bounces find their way back."""

from __future__ import annotations

import re

import pytest

from estatelib import arc_verify, auth_results, dkim_verify, lookup
from estatelib.places import ADDRESSES, GATEWAYS

SRS = re.compile(r"<?SRS0[=+-][^@]+@srs\.example\.org>?")


@pytest.fixture(scope="module")
def forwarded(estate):
    """A message to our forwarding address, as the outside receiver gets it."""
    post = estate.world("example.com").send(to="forwarded-edu@example.org")
    return estate.mailbox("admin@example.edu").wait_for(post.message_id)


def test_forward_leaves_with_an_srs_envelope(estate, forwarded):
    assert SRS.fullmatch(forwarded.header("Return-Path")), forwarded.header("Return-Path")
    assert "example.com" in forwarded.header("Return-Path")


def test_srs_domain_authorises_the_gateways_and_takes_bounces(estate):
    (policy,) = [text for text in lookup("srs.example.org", "TXT") if text.startswith("v=spf1")]
    for gateway in GATEWAYS:
        for address in ADDRESSES[gateway]:
            assert address in policy
    assert len(lookup("srs.example.org", "MX")) == len(GATEWAYS)


@pytest.mark.parametrize("engine", ["dkimpy", "Mail::DKIM"])
def test_forward_keeps_the_authors_signature_and_carries_our_seal(estate, forwarded, engine):
    assert dkim_verify(forwarded, engine)
    result = arc_verify(forwarded, engine)
    assert (result.cv, result.instances) == ("pass", 1), result


def test_forward_keeps_the_headers_as_the_author_wrote_them(estate, forwarded):
    assert forwarded.header("From") == "User <user@example.com>"
    assert forwarded.header("To") == "forwarded-edu@example.org"
    assert auth_results(forwarded).dmarc == "pass"


def test_forward_of_mail_with_a_null_sender_keeps_the_null_sender(estate):
    post = estate.world("example.com").send(to="forwarded-edu@example.org", envelope="")
    copy = estate.mailbox("admin@example.edu").wait_for(post.message_id)
    assert copy.header("Return-Path") == "<>"


def test_bounce_of_a_forward_comes_back_to_the_original_sender(estate):
    post = estate.world("example.com").send(to="forwarded-bad@example.org")
    bounce = estate.world("example.com").mailbox("user").wait_for_text(post.message_id)
    assert "nobody@example.net" in bounce.raw.decode()
    assert bounce.header("Return-Path") == "<>"


def test_mail_to_a_genuine_srs_address_reaches_the_original_sender(estate, forwarded):
    address = forwarded.header("Return-Path").strip("<>")
    for gateway in GATEWAYS:  # both know the secret, whichever wrote the address
        post = estate.world("example.edu").hand_over(address, gateway=gateway, envelope="")
        assert post.reply.code == 250, post.reply
        assert estate.mailbox("user@example.com").wait_for(post.message_id)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_srs_address_with_a_false_hash_is_refused(estate, forwarded, gateway):
    genuine = forwarded.header("Return-Path").strip("<>")
    prefix, tag, rest = re.fullmatch(r"(SRS0[=+-])([^=]+)(=.*)", genuine).groups()
    other = ("A" if tag[0] not in "aA" else "B") + tag[1:]  # in another letter: case may be lost on the way
    forged = [f"{prefix}{other}{rest}", f"{prefix}{rest[1:]}", f"{prefix}{tag}{rest.replace('=user@', '=admin@')}"]
    for address in forged:
        post = estate.world("example.edu").hand_over(address, gateway=gateway, envelope="")
        assert post.reply.code == 550, f"{address}: {post.reply}"


def test_mail_for_our_own_mailboxes_keeps_its_envelope_sender(estate):
    post = estate.world("example.com").send(to="alice@example.org")
    assert estate.mailbox("alice@example.org").wait_for(post.message_id).header("Return-Path") == "<user@example.com>"
