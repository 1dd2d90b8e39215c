"""Forgeries are marked, never believed; what is genuine stays verifiable."""

from __future__ import annotations

import pytest

from estatelib import auth_results, dkim_verify

FORGED_RESULTS = {
    "plain": "Authentication-Results: mx.example.org; spf=pass; dkim=pass header.d=example.com; dmarc=pass",
    "other case": "authentication-results: MX.EXAMPLE.ORG; dmarc=pass header.from=example.com",
    "with version": "Authentication-Results: mx.example.org 1; dmarc=pass header.from=example.com",
    "after a comment": "Authentication-Results: (a comment) mx.example.org; dmarc=pass header.from=example.com",
    "folded": "Authentication-Results:\r\n mx.example.org;\r\n dmarc=pass header.from=example.com",
    "quoted": 'Authentication-Results: "mx.example.org"; dmarc=pass header.from=example.com',
}


@pytest.mark.parametrize("engine", ["dkimpy", "Mail::DKIM"])
def test_dkim_signature_is_still_valid_in_the_mailbox(estate, engine):
    post = estate.world("example.com").send(to="alice@example.org", subject="Wide   spaces  kept")
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert dkim_verify(copy, engine)


def test_forgery_of_a_strict_domain_is_marked_and_quarantined_but_not_refused(estate):
    forgery = estate.world("example.com").compose("alice@example.org")
    post = estate.forge(forgery, envelope="user@example.com")
    assert post.reply.code == 250, post.reply  # RFC 9989 §7.4: p=reject alone is no reason to refuse
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.spf, verdict.dmarc) == ("fail", "fail"), verdict.text
    assert copy.folder == "Junk"


def test_forgery_with_a_passing_envelope_of_another_domain_fails_dmarc(estate):
    spammer = estate.world("example.co.jp")
    forgery = spammer.sign(estate.world("example.com").compose("alice@example.org"))
    post = spammer.hand_over("alice@example.org", raw=forgery)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.spf, verdict.dkim, verdict.dmarc) == ("pass", "pass", "fail"), verdict.text
    assert copy.folder == "Junk"


@pytest.mark.parametrize("gateway", ["mail-gw1", "mail-gw2"])
def test_forgery_of_a_domain_listed_as_strict_is_refused(estate, gateway):
    forgery = estate.world("example.net").compose("alice@example.org")
    post = estate.forge(forgery, envelope="user@example.net", gateway=gateway)
    assert post.reply.code // 100 == 5, post.reply
    assert "DMARC" in post.reply.text.upper(), post.reply


def test_forgery_of_a_domain_without_policy_is_delivered_with_its_failure_on_record(estate):
    post = estate.forge(estate.world("example.edu").compose("alice@example.org"), envelope="user@example.edu")
    assert post.reply.code == 250, post.reply
    verdict = auth_results(estate.mailbox("alice@example.org").wait_for(post.message_id))
    assert verdict.spf in ("fail", "softfail"), verdict.text
    assert verdict.dmarc == "fail", verdict.text


def test_changed_body_breaks_the_signature_and_the_results_say_so(estate):
    world = estate.world("example.com")
    changed = world.sign(world.compose("alice@example.org")).replace(b"at ten", b"at six")
    post = world.hand_over("alice@example.org", raw=changed)
    assert post.reply.code == 250, post.reply
    verdict = auth_results(estate.mailbox("alice@example.org").wait_for(post.message_id))
    assert (verdict.spf, verdict.dkim, verdict.dmarc) == ("pass", "fail", "pass"), verdict.text  # SPF still aligns


def test_mail_forwarded_outside_without_srs_passes_by_its_signature_alone(estate):
    post = estate.world("example.com").send(to="forward@example.net")
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.spf, verdict.dkim, verdict.dmarc) == ("fail", "pass", "pass"), verdict.text
    assert copy.folder == "INBOX"


def test_text_appended_behind_the_signed_part_of_a_body_is_quarantined(estate):
    world = estate.world("example.com")
    replayed = world.sign(world.compose("alice@example.org"), length=True) + b"Please send money.\r\n"
    post = estate.world("example.co.jp").hand_over("alice@example.org", raw=replayed)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert copy.folder == "Junk", auth_results(copy).text  # the signature itself verifies (RFC 6376 §8.2)


@pytest.mark.parametrize(
    "header", ["Subject: You have won", "To: victim@example.org", "Date: Mon, 1 Jan 2024 10:00:00 +0000"]
)
def test_header_added_on_top_of_a_replayed_signed_message_is_quarantined(estate, header):
    world = estate.world("example.com")
    replayed = header.encode() + b"\r\n" + world.sign(world.compose("alice@example.org"))
    post = estate.world("example.co.jp").hand_over("alice@example.org", raw=replayed)
    assert post.reply.code == 250, post.reply
    assert estate.mailbox("alice@example.org").wait_for(post.message_id).folder == "Junk"


@pytest.mark.parametrize("forged", FORGED_RESULTS.values(), ids=FORGED_RESULTS)
def test_forged_authentication_results_are_removed(estate, forged):
    post = estate.world("example.jp").hand_over("alice@example.org", headers=[forged])
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert auth_results(copy).dmarc == "none"  # and exactly one header carries our name
    assert not any("dmarc=pass" in value for value in copy.headers("Authentication-Results"))


@pytest.mark.parametrize("header", ["X-Estate-ARC: pass; trusted=yes; dmarc=pass", "X-Spam: No"])
def test_forged_private_headers_have_no_effect_and_do_not_survive(estate, header):
    name, _, value = header.partition(": ")
    raw = estate.world("example.com").compose("alice@example.org", headers=[header, header.upper()])
    post = estate.forge(raw, envelope="user@example.com")
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert value.upper() not in [left.upper() for left in copy.headers(name)]
    assert auth_results(copy).arc == "none"
    assert copy.folder == "Junk"


def test_private_headers_of_the_gateways_do_not_reach_the_mailbox(estate):
    post = estate.world("example.com").send(to="alice@example.org")
    copy = estate.mailbox("alice@example.org").wait_for(post.message_id)
    assert copy.headers("X-Estate-ARC") == []
