"""ARC (RFC 8617): every message is sealed, valid chains are continued, broken ones never, trust is a short list."""

from __future__ import annotations

import re

import pytest

from estatelib import arc_verify, auth_results, dkim_verify

ENGINES = ["dkimpy", "Mail::DKIM"]
ALICE = "alice@example.org"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("domain", ["example.com", "example.jp"])
def test_fresh_message_gets_the_first_arc_set(estate, domain, engine):
    post = estate.world(domain).send(to=ALICE)
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    result = arc_verify(copy, engine)
    assert (result.cv, result.instances) == ("pass", 1), result
    assert re.search(r"\bd=example\.org\b", copy.header("ARC-Seal"))
    assert re.search(r"\bcv=none\b", copy.header("ARC-Seal"))
    assert "arc=none" in copy.header("ARC-Authentication-Results")


def test_arc_results_are_what_the_gateway_found_itself(estate):
    post = estate.world("example.com").send(to=ALICE)
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    sealed = copy.header("ARC-Authentication-Results")
    assert sealed.startswith("i=1; mx.example.org;")
    for result in ("spf=pass", "dkim=pass", "dmarc=pass"):
        assert result in sealed
        assert result in auth_results(copy).text


@pytest.mark.parametrize("engine", ENGINES)
def test_list_mail_with_a_valid_chain_gets_the_second_set(estate, list_copy, engine):
    result = arc_verify(list_copy, engine)
    assert (result.cv, result.instances) == ("pass", 2), result
    assert auth_results(list_copy).arc == "pass"


def test_trusted_sealer_saves_list_mail_of_a_strict_domain_from_quarantine(estate, list_copy):
    assert not dkim_verify(list_copy)  # the list changed subject and body
    assert "header.from=example.com" in auth_results(list_copy).text
    assert list_copy.folder == "INBOX"


def test_list_with_an_untrusted_seal_is_sealed_on_but_quarantined(estate):
    post = estate.world("example.com").send(to="list@example.edu")
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.arc, verdict.dmarc) == ("pass", "fail"), verdict.text
    assert arc_verify(copy).instances == 2
    assert copy.folder == "Junk"


def test_list_with_a_broken_seal_is_not_sealed_on_and_quarantined(estate):
    post = estate.world("example.com").send(to="list-badseal@example.ac.jp")
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.arc, verdict.dmarc) == ("fail", "fail"), verdict.text
    assert len(copy.headers("ARC-Seal")) == 1
    assert copy.folder == "Junk"


def test_list_without_seals_is_quarantined_for_its_strict_author(estate):
    post = estate.world("example.com").send(to="list-noarc@example.ac.jp")
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.arc, verdict.dmarc) == ("none", "fail"), verdict.text
    assert arc_verify(copy).instances == 1
    assert copy.folder == "Junk"


def test_untrusted_sealer_gives_no_override(estate):
    spammer = estate.world("example.co.jp")
    forgery = spammer.seal(
        estate.world("example.com").compose(ALICE), "spf=pass; dkim=pass header.d=example.com; dmarc=pass; arc=none"
    )
    post = spammer.hand_over(ALICE, raw=forgery)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    verdict = auth_results(copy)
    assert (verdict.arc, verdict.dmarc) == ("pass", "fail"), verdict.text
    assert copy.folder == "Junk"
    assert arc_verify(copy).instances == 2  # sealed on, since the chain itself is valid


def test_trusted_seal_replayed_below_an_untrusted_one_gives_no_override(estate):
    spammer, trusted = estate.world("example.co.jp"), estate.world("example.ac.jp")
    results = "spf=pass; dkim=pass header.d=example.com; dmarc=pass; arc=none"
    genuine = trusted.seal(estate.world("example.com").compose(ALICE), results)
    replayed = spammer.seal(genuine.replace(b"at ten", b"at six"), results.replace("arc=none", "arc=pass"))
    post = spammer.hand_over(ALICE, raw=replayed)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    assert auth_results(copy).dmarc == "fail"
    assert copy.folder == "Junk"


def test_trusted_sealer_that_reports_dmarc_failure_gives_no_override(estate):
    trusted = estate.world("example.ac.jp")
    forgery = trusted.seal(estate.world("example.com").compose(ALICE), "spf=fail; dmarc=fail; arc=none")
    post = trusted.hand_over(ALICE, raw=forgery)
    assert post.reply.code == 250, post.reply
    assert estate.mailbox(ALICE).wait_for(post.message_id).folder == "Junk"


def test_second_arc_results_of_the_same_instance_give_no_override(estate):
    trusted = estate.world("example.ac.jp")
    forgery = trusted.seal(estate.world("example.com").compose(ALICE), "spf=fail; dmarc=fail; arc=none")
    doubled = b"ARC-Authentication-Results: i=1; mx.example.ac.jp; dmarc=pass; arc=none\r\n" + forgery
    post = trusted.hand_over(ALICE, raw=doubled)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    assert auth_results(copy).arc == "fail"
    assert copy.folder == "Junk"


BROKEN = {
    "changed body": lambda sealed: sealed.replace(b"at ten", b"at six"),
    "changed seal": lambda sealed: sealed.replace(b"cv=none", b"cv=pass"),
    "seal missing": lambda sealed: re.sub(rb"ARC-Seal:.*?\r\n(?=\S)", b"", sealed, flags=re.S),
    "results missing": lambda sealed: re.sub(rb"ARC-Authentication-Results:.*?\r\n(?=\S)", b"", sealed, flags=re.S),
    "gap in the instances": lambda sealed: re.sub(rb"\bi=1;", b"i=2;", sealed),
}


@pytest.mark.parametrize("breakage", BROKEN.values(), ids=BROKEN)
def test_failed_chain_is_recorded_and_not_continued(estate, breakage):
    outside = estate.world("example.ac.jp")
    sealed = outside.seal(outside.compose(ALICE), "spf=pass; dmarc=pass; arc=none")
    broken = breakage(sealed)
    assert broken != sealed
    post = outside.hand_over(ALICE, raw=broken)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    assert auth_results(copy).arc == "fail"
    for name in ("ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"):
        assert len(copy.headers(name)) == broken.count(name.encode() + b":"), f"{name} was added"


def test_chain_that_its_last_sealer_called_failed_stays_failed(estate):
    outside = estate.world("example.ac.jp")
    first = outside.seal(outside.compose(ALICE), "spf=pass; arc=none")
    failed = outside.seal(first.replace(b"at ten", b"at six"), "spf=pass; arc=fail")
    assert b"cv=fail" in failed
    post = outside.hand_over(ALICE, raw=failed)
    assert post.reply.code == 250, post.reply
    copy = estate.mailbox(ALICE).wait_for(post.message_id)
    assert auth_results(copy).arc == "fail"
    assert len(copy.headers("ARC-Seal")) == 2


@pytest.fixture(scope="module")
def list_copy(estate):
    """A post of a member of a strict domain to the outside mailing list, as alice gets it."""
    post = estate.world("example.com").send(to="list@example.ac.jp", subject="To the list")
    return estate.mailbox(ALICE).wait_for(post.message_id)
