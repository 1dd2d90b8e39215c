"""Spam, loops and oversized mail are refused in the session, with the reply that the RFC wants."""

from __future__ import annotations

import pytest

from estatelib.places import BYSTANDER, GATEWAYS

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_spam_is_refused_in_the_session(estate, gateway):
    post = estate.world("example.co.jp").hand_over("alice@example.org", gateway=gateway, body=GTUBE)
    assert post.reply.code == 554, post.reply


def test_spam_sent_through_a_real_server_bounces_there_and_nowhere_else(estate):
    post = estate.world("example.co.jp").send(to="alice@example.org", body=GTUBE)
    estate.world("example.co.jp").mailbox("user").wait_for_text(post.message_id)
    assert not estate.mailbox("alice@example.org").find(post.message_id)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_message_that_has_been_through_sixty_hosts_is_refused(estate, gateway):
    hops = [f"Received: from a{n}.example.com by b{n}.example.com; Tue, 24 Nov 2026 10:00:00 +0000" for n in range(60)]
    post = estate.world("example.com").hand_over("alice@example.org", gateway=gateway, headers=hops)
    assert post.reply.code == 554, post.reply
    assert "hops" in post.reply.text


def test_message_that_has_been_through_ten_hosts_is_accepted(estate):
    hops = [f"Received: from a{n}.example.com by b{n}.example.com; Tue, 24 Nov 2026 10:00:00 +0000" for n in range(10)]
    post = estate.world("example.com").hand_over("alice@example.org", headers=hops)
    assert post.reply.code == 250, post.reply


def test_announced_size_beyond_the_limit_is_refused_before_the_data(estate):
    with estate.smtp_session(source=estate.world("example.com").address()) as session:
        greeting = session.command("EHLO mx.example.com")
        (size,) = [line.split()[-1] for line in greeting.text.splitlines() if "SIZE" in line]
        assert int(size) > 0, "no size limit is announced"
        assert session.command(f"MAIL FROM:<user@example.com> SIZE={int(size) + 1}").code == 552


def test_real_size_beyond_the_limit_is_refused_after_the_data(estate):
    with estate.smtp_session(source=estate.world("example.com").address(), timeout=90) as session:
        greeting = session.command("EHLO mx.example.com")
        (size,) = [int(line.split()[-1]) for line in greeting.text.splitlines() if "SIZE" in line]
        session.command("MAIL FROM:<user@example.com>")
        session.command("RCPT TO:<alice@example.org>")
        assert session.command("DATA").code == 354
        session.send(estate.world("example.com").compose("alice@example.org"))
        chunk = (b"x" * 76 + b"\r\n") * 10_000
        session.send(chunk, repeat=size // len(chunk) + 1)
        session.send(b"\r\n.\r\n")
        assert session.reply().code == 552, session.transcript[-1]


def test_client_that_connects_too_often_is_told_to_slow_down_and_others_are_not(estate):
    codes = []
    for _ in range(80):
        with estate.smtp_session("mail-gw2", source=BYSTANDER) as session:
            codes.append(session.greeting.code)
        if codes[-1] != 220:
            break
    assert codes[-1] in (421, 450), f"after {len(codes)} connections: {codes[-1]}"
    post = estate.world("example.com").hand_over("alice@example.org", gateway="mail-gw2")
    assert post.reply.code == 250, post.reply
