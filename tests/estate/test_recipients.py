"""Unknown recipients are refused in the session, nobody relays through us, and no bounce of ours hits a stranger."""

from __future__ import annotations

import pytest

from estatelib import message_id_of
from estatelib.places import ATTACKER, GATEWAYS

UNKNOWN = {
    "domain with a recipient list": "nobody-here@sfc.example.org",
    "domain with verified recipients": "nobody-here@example.org",
    "member organisation": "nobody-here@member.example.org",
    "closed domain": "anyone@closed.example.org",
    "undeclared subdomain": "alice@undeclared.example.org",
}


@pytest.mark.parametrize("gateway", GATEWAYS)
@pytest.mark.parametrize("address", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_recipient_is_refused_at_rcpt(estate, gateway, address):
    with estate.smtp_session(gateway, source=estate.world("example.edu").address()) as session:
        session.command("EHLO mx.example.edu")
        session.command("MAIL FROM:<user@example.edu>")
        reply = session.command(f"RCPT TO:<{address}>")
        assert reply.code in (550, 554, 556), reply


def test_unknown_recipient_beside_a_known_one_does_not_hinder_it(estate):
    world = estate.world("example.com")
    message = world.sign(world.compose("alice@example.org"))
    with estate.smtp_session(source=world.address()) as session:
        session.command("EHLO mx.example.com")
        session.command("MAIL FROM:<user@example.com>")
        assert session.command("RCPT TO:<nobody-here@example.org>").code == 550
        assert session.command("RCPT TO:<alice@example.org>").code == 250
        assert session.data(message).code == 250
    estate.mailbox("alice@example.org").wait_for(message_id_of(message))


def test_refused_recipient_leaves_nothing_in_the_queue_and_no_bounce(estate):
    before = {name: len(estate.gateway(name).queue()) for name in GATEWAYS}
    post = estate.world("example.edu").hand_over("nobody-here@example.org")
    assert post.reply.code == 550, post.reply
    assert {name: len(estate.gateway(name).queue()) for name in GATEWAYS} == before


RELAYS = {
    "plain": ("any@example.co.jp", "<user@example.com>"),
    "null sender": ("", "<user@example.com>"),
    "from our own domain": ("alice@example.org", "<user@example.com>"),
    "from our own host": ("root@mail-gw1.example.org", "<user@example.com>"),
    "from our own host without domain": ("root@localhost", "<user@example.com>"),
    "sender without domain": ("root", "<user@example.com>"),
    "from the recipient": ("user@example.com", "<user@example.com>"),
    "percent hack": ("any@example.co.jp", "<user%example.com@example.org>"),
    "percent hack by host name": ("any@example.co.jp", "<user%example.com@mail-gw1.example.org>"),
    "percent hack by address": ("any@example.co.jp", "<user%example.com@[198.18.25.11]>"),
    "bang path": ("any@example.co.jp", "<example.com!user>"),
    "bang path at our domain": ("any@example.co.jp", "<example.com!user@example.org>"),
    "source route": ("any@example.co.jp", "<@example.org:user@example.com>"),
    "source route by host name": ("any@example.co.jp", "<@mail-gw1.example.org:user@example.com>"),
    "quoted": ("any@example.co.jp", '<"user@example.com">'),
    "quoted at our domain": ("any@example.co.jp", '<"user@example.com"@example.org>'),
    "quoted percent": ("any@example.co.jp", '<"user%example.com">'),
    "two at-signs": ("any@example.co.jp", "<user@example.com@example.org>"),
    "two at-signs by address": ("any@example.co.jp", "<user@example.com@[198.18.25.11]>"),
    "address literal of a stranger": ("any@example.co.jp", "<user@[198.18.25.101]>"),
    "host without domain": ("any@example.co.jp", "<user@world>"),
    "SRS address of a stranger": ("any@example.co.jp", "<SRS0=aaaa=AA=example.com=user@example.org>"),
    "a domain that only ends like ours": ("any@example.co.jp", "<user@notexample.org>"),
    "the mailbox host itself": ("any@example.co.jp", "<alice@mail.example.com>"),
}


@pytest.mark.parametrize(("sender", "recipient"), RELAYS.values(), ids=RELAYS)
def test_relaying_is_refused(estate, sender, recipient):
    gateway = GATEWAYS[len(recipient) % 2]  # spread over both, whose configuration is the same
    with estate.smtp_session(gateway, source=ATTACKER) as session:
        assert session.command("EHLO relay.example.com").code == 250
        answers = [session.command(f"MAIL FROM:<{sender}>"), session.command(f"RCPT TO:{recipient}")]
    assert any(reply.code // 100 == 5 for reply in answers), session.transcript


@pytest.mark.parametrize(
    "command", ["AUTH PLAIN AHVzZXIAc2VjcmV0", "XCLIENT ADDR=127.0.0.1", "XFORWARD ADDR=127.0.0.1"]
)
def test_stranger_cannot_claim_to_be_somebody_else(estate, command):
    with estate.smtp_session(source=ATTACKER) as session:
        greeting = session.command("EHLO relay.example.com")
        assert command.split()[0] not in greeting.text
        session.command("HELO relay.example.com")
        session.command(command)
        session.command("MAIL FROM:<any@example.co.jp>")
        assert session.command("RCPT TO:<user@example.com>").code // 100 in (5, 0), session.transcript


@pytest.mark.parametrize("command", ["VRFY alice@example.org", "EXPN alice@example.org"])
def test_addresses_cannot_be_harvested(estate, command):
    with estate.smtp_session(source=ATTACKER) as session:
        session.command("EHLO relay.example.com")
        assert session.command(command).code in (500, 502, 252), session.transcript


@pytest.mark.parametrize(
    "name", ["mail-gw1.example.org", "[198.18.25.11]", "mx.example.org", "not_a_name", "localhost"]
)
def test_client_that_greets_with_our_own_or_a_false_name_is_refused(estate, name):
    with estate.smtp_session(source=ATTACKER) as session:
        answers = [
            session.command(f"EHLO {name}"),
            session.command("MAIL FROM:<user@example.com>"),
            session.command("RCPT TO:<alice@example.org>"),
        ]
    assert any(reply.code // 100 == 5 for reply in answers), session.transcript
