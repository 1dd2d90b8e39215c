"""Our people's mail: who may send as whom, what leaves with it, and what the world makes of it."""

from __future__ import annotations

import pytest

from estatelib import arc_verify, auth_results, dkim_verify
from estatelib.mail_program import HELO, SUBMISSION, SUBMISSIONS
from estatelib.messages import compose, new_message_id
from estatelib.places import ADDRESSES, BYSTANDER

OUTSIDE = {"example.com": "user@example.com", "example.edu": "admin@example.edu"}


@pytest.fixture(scope="module")
def alice(estate):
    """A user of the organisation's domain."""
    return estate.user("alice@example.org")


@pytest.fixture(scope="module")
def abroad(estate, alice):
    """Alice's message as an outside receiver gets it."""
    post = alice.send("admin@example.edu")
    assert post.reply.code == 250, post.reply
    return estate.mailbox("admin@example.edu").wait_for(post.message_id)


@pytest.mark.parametrize("engine", ["dkimpy", "Mail::DKIM"])
def test_message_is_signed_for_the_authors_domain(abroad, engine):
    assert dkim_verify(abroad, engine)
    tags = dict(tag.strip().partition("=")[::2] for tag in abroad.header("DKIM-Signature").split(";"))
    assert tags["d"] == "example.org"
    assert "l" not in tags, "a body length lets anyone add to the message"
    assert "x" in tags, "a signature without end can be replayed for ever"
    assert [field.strip().lower() for field in tags["h"].split(":")].count("from") == 2, "From is not oversigned"


def test_user_of_the_campus_is_signed_by_the_campus(estate):
    post = estate.user("hanako@sfc.example.org").send("admin@example.edu")
    copy = estate.mailbox("admin@example.edu").wait_for(post.message_id)
    assert "d=sfc.example.org" in copy.header("DKIM-Signature")
    assert dkim_verify(copy)


def test_nothing_in_the_message_says_where_its_author_sat(abroad):
    text = abroad.raw.decode()
    assert BYSTANDER not in text
    assert HELO not in text
    (ours,) = [line for line in abroad.headers("Received") if "by smtp.example.org" in line and "from" not in line]
    assert "ESMTPSA id" in ours, "a complaint must lead to the queue id"


def test_message_leaves_over_tls_from_the_address_that_spf_names(abroad):
    (hop,) = [line for line in abroad.headers("Received") if line.startswith("from smtp.example.org")]
    assert any(address in hop for address in ADDRESSES["smtp"])
    assert "ESMTPS" in hop


@pytest.mark.parametrize("port", [SUBMISSION, SUBMISSIONS])
@pytest.mark.parametrize("source", [BYSTANDER, "2001:db8:25::108"], ids=["IPv4", "IPv6"])
def test_both_ports_take_mail_over_both_protocols(alice, port, source):
    assert alice.send("admin@example.edu", port=port, source=source).reply.code == 250


def test_mail_inside_the_organisation_passes_the_gateways_authenticated(estate, alice):
    post = alice.send("bob@example.org")
    copy = estate.mailbox("bob@example.org").wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.spf, verdict.dkim, verdict.dmarc) == ("pass", "pass", "pass")
    assert arc_verify(copy).cv == "pass"


def test_nobody_signs_in_without_tls(alice, estate):
    with estate.smtp_session("smtp", source=BYSTANDER, port=SUBMISSION) as session:
        answer = session.command(f"EHLO {HELO}")
        assert "AUTH" not in answer.text
        assert alice.sign_in(session).code // 100 == 5
        assert session.command("MAIL FROM:<alice@example.org>").code == 530


def test_nobody_sends_without_signing_in(alice):
    with alice.session(sign_in=False) as session:
        session.command("MAIL FROM:<alice@example.org>")
        assert session.command("RCPT TO:<admin@example.edu>").code // 100 == 5


def test_wrong_password_is_refused(alice):
    with alice.session(sign_in=False) as session:
        assert alice.sign_in(session, "not the password").code == 535


def test_strangers_do_not_even_reach_port_25(estate):
    with pytest.raises(ConnectionError):
        estate.smtp_session("smtp", source=BYSTANDER, timeout=2)


@pytest.mark.parametrize(
    ("author", "envelope", "headers", "why"),
    [
        ("alice@example.org", "bob@example.org", (), "the envelope of a colleague"),
        ("alice@example.org", "alice@example.com", (), "an envelope from outside"),
        ("alice@example.org", "alice@example.org", ("From: bob@example.org",), "espoofer c1: two From headers"),
        ("alice@example.org, bob@example.org", "alice@example.org", (), "espoofer c2: two addresses"),
        ("bob@example.org", "alice@example.org", (), "espoofer c3: a colleague"),
        ("alice@example.com", "alice@example.org", (), "an author outside"),
        ("alice@example.org", "alice@example.org", ("Sender: bob@example.org",), "a colleague as Sender"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_no_user_writes_as_somebody_else(alice, author, envelope, headers, why):
    raw = compose(author, "admin@example.edu", message_id=new_message_id("example.org"), headers=headers)
    reply = alice.send("admin@example.edu", envelope=envelope, raw=raw).reply
    assert reply.code // 100 == 5, f"{why}: {reply}"


@pytest.mark.parametrize("address", ["taro@example.org", "t.yamada@example.org"])
def test_user_sends_from_every_address_that_is_his(estate, address):
    assert estate.user("taro@example.org").send("admin@example.edu", author=address, envelope=address).reply.code == 250


def test_host_inside_sends_for_its_domain_without_signing_in(estate):
    raw = compose("robot@example.org", "admin@example.edu", message_id=new_message_id("example.org"))
    script = (
        "import smtplib,sys\n"
        "with smtplib.SMTP('smtp.example.org', 25, timeout=20) as s:\n"
        "    s.starttls(); s.sendmail('robot@example.org', ['admin@example.edu'], sys.stdin.buffer.read())\n"
    )
    estate.host("mail").run("python3", "-c", script, stdin=raw.decode())
    message_id = next(line for line in raw.decode().splitlines() if line.startswith("Message-ID")).split()[1]
    copy = estate.mailbox("admin@example.edu").wait_for(message_id)
    assert dkim_verify(copy)
