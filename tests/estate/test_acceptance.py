"""Mail from outside reaches a mailbox, by every path, with the right results on top."""

from __future__ import annotations

import imaplib
import ssl

import pytest

from estatelib import auth_results, lookup
from estatelib.places import ADDRESSES, GATEWAYS

# What each outside system publishes and does decides what the gateways find.
POLICIES = {
    # domain: (spf, dkim, dmarc)
    "example.com": ("pass", "pass", "pass"),  # p=reject, signs
    "example.net": ("pass", None, "pass"),  # p=reject, SPF only
    "example.edu": ("pass", None, "pass"),  # p=none, SPF only
    "example.jp": ("none", None, "none"),  # publishes nothing
    "example.ac.jp": ("pass", None, "pass"),  # p=none, SPF only
}


@pytest.mark.parametrize("gateway", GATEWAYS)
@pytest.mark.parametrize("domain", POLICIES)
def test_mail_of_each_outside_policy_arrives_with_the_right_results(estate, domain, gateway):
    post = estate.world(domain).send(to="alice@example.org", gateway=gateway)
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    verdict = auth_results(copy)
    spf, dkim, dmarc = POLICIES[domain]
    assert verdict.spf == spf, verdict.text
    assert verdict.dkim in ({dkim} if dkim else {None, "none"}), verdict.text
    assert verdict.dmarc == dmarc, verdict.text
    assert verdict.arc == "none", verdict.text
    assert copy.folder == "INBOX"


@pytest.mark.parametrize("gateway", GATEWAYS)
@pytest.mark.parametrize("family", [4, 6])
def test_mail_arrives_through_each_gateway_over_ipv4_and_ipv6(estate, gateway, family):
    post = estate.world("example.com").hand_over("bob@example.org", gateway=gateway, family=family)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox("bob@example.org").wait_for(post.message_id)
    received = " ".join(copy.headers("Received"))
    assert f"by {gateway}.example.org" in received
    assert estate.world("example.com").address(family) in received
    verdict = auth_results(copy)
    assert (verdict.spf, verdict.dkim, verdict.dmarc) == ("pass", "pass", "pass"), verdict.text


@pytest.mark.parametrize(("stopped", "other"), [("mail-gw1", "mail-gw2"), ("mail-gw2", "mail-gw1")])
def test_mail_arrives_by_the_other_gateway_while_one_is_stopped(estate, stopped, other):
    with estate.gateway(stopped).service("postfix").stopped():
        post = estate.world("example.edu").send(to="alice@example.org")
        copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert any(f"by {other}.example.org" in hop for hop in copy.headers("Received"))


def test_mail_comes_in_and_goes_on_over_tls(estate):
    post = estate.world("example.com").send(to="alice@example.org")
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    by_mailbox_host, by_gateway = [hop for hop in copy.headers("Received") if "with ESMTP" in hop][:2]
    assert "by mail.example.org" in by_mailbox_host
    assert "ESMTPS" in by_mailbox_host
    assert "by mail-gw" in by_gateway
    assert "ESMTPS" in by_gateway


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_gateway_offers_modern_tls_only_with_a_certificate_in_its_name(estate, gateway):
    script = (
        "import smtplib, ssl, sys\n"
        "context = ssl.create_default_context(cadata=sys.stdin.read())\n"
        f"with smtplib.SMTP('{gateway}.example.org', timeout=20, local_hostname='ns.example.com') as smtp:\n"
        "    smtp.starttls(context=context)\n"
        "    print(smtp.sock.version())\n"
    )
    authority = (estate.state / "pki/acme-root.pem").read_text()
    version = estate.host("mail").run("python3", "-c", script, stdin=authority).strip()
    assert version == "TLSv1.3"


def test_mail_for_a_domain_with_a_recipient_list_arrives(estate):
    post = estate.world("example.com").send(to="hanako@sfc.example.org")
    assert estate.mailbox("hanako@sfc.example.org").wait_for(post.message_id).folder == "INBOX"


def test_mail_that_a_user_forwards_inside_the_organisation_arrives(estate):
    post = estate.world("example.com").send(to="t.yamada@example.org")
    assert auth_results(estate.mailbox("taro@example.org").wait_for(post.message_id)).dmarc == "pass"


def test_mail_for_a_member_organisation_reaches_its_own_host(estate):
    post = estate.world("example.com").send(to="user@member.example.org")
    copy = estate.mailbox("user@member.example.org").wait_for(post.message_id)
    assert auth_results(copy).dmarc == "pass"
    assert any("by mx.member.example.org" in hop for hop in copy.headers("Received"))


@pytest.mark.parametrize("address", ["postmaster@example.org", "abuse@example.org", "postmaster@sfc.example.org"])
def test_mail_for_the_role_addresses_arrives(estate, address):
    post = estate.world("example.edu").send(to=address)
    assert estate.mailbox(address).wait_for(post.message_id)


def test_postmaster_without_a_domain_is_accepted(estate):
    with estate.smtp_session(source=estate.world("example.com").address()) as session:
        assert session.command("EHLO mx.example.com").code == 250
        assert session.command("MAIL FROM:<user@example.com>").code == 250
        assert session.command("RCPT TO:<postmaster>").code == 250  # RFC 5321 §4.5.1


def test_a_bounce_from_outside_is_accepted_with_its_null_sender(estate):
    post = estate.world("example.com").send(to="alice@example.org", envelope="")
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert copy.header("Return-Path") == "<>"


def test_a_delivered_message_can_be_read_by_imap_over_tls(estate):
    post = estate.world("example.com").send(to="bob@example.org")
    estate.mailbox("bob@example.org").wait_for(post.message_id)
    context = ssl.create_default_context(cafile=estate.state / "pki/ca.pem")
    context.check_hostname = False  # this machine's resolver does not know the lab's names
    password = (estate.state / "secrets/mailboxes").read_text().split()[0]
    with imaplib.IMAP4_SSL(ADDRESSES["mail"][0], ssl_context=context, timeout=20) as imap:
        imap.login("bob@example.org", password)
        imap.select("INBOX", readonly=True)
        _, found = imap.search(None, f'HEADER Message-ID "{post.message_id}"')
    assert len(found[0].split()) == 1


def test_a_message_for_two_recipients_arrives_once_in_each_mailbox(estate):
    post = estate.world("example.com").hand_over(["alice@example.org", "bob@example.org"])
    assert post.reply.code == 250, post.reply
    for address in ("alice@example.org", "bob@example.org"):
        estate.mailbox(address).wait_for(post.message_id)


def test_a_message_passes_unchanged_byte_for_byte(estate):
    body = "Zeilen: ärgerlich, 日本語\r\n.\r\n..two dots\r\ntrailing space \r\n\tTab\r\n" + "x" * 900 + "\r\n"
    post = estate.world("example.com").hand_over(
        "alice@example.org", body=body, headers=["X-Odd:   spaces   kept", "Content-Transfer-Encoding: 8bit"]
    )
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    header, _, text = post.raw.partition(b"\r\n\r\n")
    assert header in copy.raw  # ours stand above it and below it
    assert copy.raw.partition(b"\r\n\r\n")[2] == text


def test_the_closed_domain_says_in_dns_that_it_takes_and_sends_no_mail(estate):
    assert lookup("closed.example.org", "MX") == ["0 "] or lookup("closed.example.org", "MX") == ["0 ."]
    assert lookup("closed.example.org", "TXT") == ["v=spf1 -all"]
    assert "p=reject" in lookup("_dmarc.closed.example.org", "TXT")[0]


def test_mail_for_the_closed_domain_is_refused_at_the_gateway_and_bounced_by_its_sender(estate):
    refused = estate.world("example.com").hand_over("anyone@closed.example.org")
    assert refused.reply.code // 100 == 5, refused.reply
    post = estate.world("example.com").send(to="anyone@closed.example.org")
    bounce = estate.world("example.com").mailbox("user").wait_for_text(post.message_id)
    assert "closed.example.org" in bounce.raw.decode()
