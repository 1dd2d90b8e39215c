"""Mailing lists from end to end: through the gateways to ``ml``, and from there to members inside and outside."""

from __future__ import annotations

import email
import email.policy
import re
import uuid

import pytest

from estatelib import arc_verify, dkim_verify, lookup
from estatelib.lists import queues, rest
from estatelib.places import ADDRESSES
from estatelib.waiting import wait

DOMAIN = "ml.example.org"
DEV, PLAIN, NEWS, BOARD, STAFF = (f"{name}@{DOMAIN}" for name in ("dev", "plain", "news", "board", "staff"))
INSIDE, OUTSIDE, STRICT = "bob@example.org", "member@example.edu", "strict@example.net"
AUTHOR = "user@example.com"  # p=reject, everything signed


@pytest.fixture(scope="module", autouse=True)
def members(estate):
    """The lists' members while these tests run."""
    for address in (DEV, PLAIN):
        for member in (INSIDE, OUTSIDE, STRICT, AUTHOR):
            estate.list(address).subscribe(member)
    yield
    for address in (DEV, PLAIN):
        for member in (INSIDE, OUTSIDE, STRICT, AUTHOR):
            estate.list(address).remove(member)


@pytest.fixture(scope="module")
def post(estate, members):
    """A post of a strict outside author to a list with prefix and footer."""
    return estate.world("example.com").send(to=DEV, subject="Plans")


@pytest.fixture(scope="module")
def copy(estate, post):
    """The copy of an outside member whose domain is strict."""
    return estate.mailbox(STRICT).wait_for(post.message_id, timeout=60)


def tags(signature: str) -> dict[str, str]:
    """The tags of a DKIM-Signature or ARC header (RFC 6376 §3.2)."""
    pairs = (part.partition("=") for part in signature.split(";") if part.strip())
    return {name.strip(): re.sub(r"\s+", "", value) for name, _, value in pairs}


def list_signature(copy) -> dict[str, str]:
    """The signature that the list's domain put on a message."""
    (found,) = [value for value in map(tags, copy.headers("DKIM-Signature")) if value["d"] == DOMAIN]
    return found


def test_post_of_a_strict_author_reaches_members_inside_and_outside(estate, post):
    for member in (INSIDE, OUTSIDE, STRICT):
        assert estate.mailbox(member).wait_for(post.message_id, timeout=60)


def test_copy_has_prefix_and_footer(copy):
    assert copy.header("Subject") == "[Dev] Plans"
    assert b"the meeting is at ten" in copy.raw
    assert b"_______" in copy.raw


def test_author_of_a_strict_domain_is_rewritten_and_the_copy_passes_dmarc(copy):
    """From belongs to the list, and its signature is aligned with it (RFC 7489 §3.1.1, RFC 9989 §4.4)."""
    assert f"<{DEV}>" in copy.header("From")
    assert "User" in copy.header("From")
    assert AUTHOR in copy.header("Reply-To")
    assert copy.headers("DKIM-Signature")[0].replace(" ", "").find(f"d={DOMAIN};") > 0
    assert dkim_verify(copy)
    assert dkim_verify(copy, "Mail::DKIM")


@pytest.mark.parametrize("engine", ["dkimpy", "Mail::DKIM"])
def test_copy_continues_the_chain_that_the_gateway_began(copy, engine):
    result = arc_verify(copy, engine)
    assert (result.cv, result.instances) == ("pass", 2), result
    seals = [tags(value) for value in copy.headers("ARC-Seal")]
    assert {seal["i"]: (seal["d"], seal["cv"]) for seal in seals} == {
        "1": ("example.org", "none"),
        "2": (DOMAIN, "pass"),
    }


def test_results_of_the_gateway_stand_in_the_lists_seal(copy):
    results = next(value for value in copy.headers("ARC-Authentication-Results") if value.startswith("i=2"))
    assert "dkim=pass" in results
    assert "dmarc=pass" in results


def test_envelope_is_the_lists_and_spf_authorises_its_host(copy):
    sender = copy.header("Return-Path").strip("<>")
    assert re.fullmatch(rf"dev-bounces(\+[^@]+)?@{re.escape(DOMAIN)}", sender), sender
    (policy,) = [text for text in lookup(DOMAIN, "TXT") if text.startswith("v=spf1")]
    assert policy.split() == ["v=spf1", f"ip4:{ADDRESSES['ml'][0]}", f"ip6:{ADDRESSES['ml'][1]}", "-all"]


def test_copy_says_which_list_it_is_from_and_how_to_leave(copy):
    """RFC 2919 and RFC 2369; one click (RFC 8058) works from outside, so it is https, and both fields are signed."""
    assert f"<dev.{DOMAIN}>" in copy.header("List-Id")
    assert copy.header("List-Unsubscribe-Post") == "List-Unsubscribe=One-Click"
    assert f"<https://{DOMAIN}/unsubscribe/" in copy.header("List-Unsubscribe")
    assert f"mailto:dev-leave@{DOMAIN}" in copy.header("List-Unsubscribe")
    signed = list_signature(copy)["h"].lower().split(":")
    assert {"from", "list-unsubscribe", "list-unsubscribe-post", "list-id"} <= set(signed)


def test_author_of_a_domain_without_policy_is_not_rewritten(estate):
    with estate.list(DEV).with_members("user@example.edu"):
        post = estate.world("example.edu").send(to=DEV)
        copy = estate.mailbox(STRICT).wait_for(post.message_id, timeout=60)
    assert copy.header("From") == "User <user@example.edu>"


def test_copies_inside_the_organisation_go_straight_to_the_mail_host(estate, post):
    inside = estate.mailbox(INSIDE).wait_for(post.message_id, timeout=60)
    hops = [line.split()[1] for line in inside.headers("Received")]
    assert hops[:2] == ["mail.example.org", "ml.example.org"], hops


def test_transparent_list_leaves_the_authors_signature_whole(estate):
    post = estate.world("example.com").send(to=PLAIN, subject="Untouched")
    copy = estate.mailbox(STRICT).wait_for(post.message_id, timeout=60)
    assert copy.header("From") == "User <user@example.com>"
    assert copy.header("Subject") == "Untouched"
    (author,) = [
        index for index, value in enumerate(copy.headers("DKIM-Signature")) if tags(value)["d"] == "example.com"
    ]
    assert dkim_verify(copy, signature=author)


def test_rows_that_two_runners_made_at_once_stop_no_post(estate):
    """Stock Mailman then fails at every post of the list."""
    table = "listarchiver where mailing_list_id = (select id from mailinglist where list_id = 'dev.ml.example.org')"
    columns = "mailing_list_id, name, _is_enabled"
    sql = f"insert into listarchiver ({columns}) select {columns} from {table}"
    estate.host("ml").run("runuser", "-u", "list", "--", "psql", "-qd", "mailman", "-c", sql)
    post = estate.world("example.com").send(to=DEV)
    assert estate.mailbox(STRICT).wait_for(post.message_id, timeout=60)
    doubled = f"select name from {table} group by name having count(*) > 1"
    wait(
        lambda: not estate.host("ml").run("runuser", "-u", "list", "--", "psql", "-Atd", "mailman", "-c", doubled),
        30,
        "tidy table",
    )


def test_outside_post_to_an_unknown_list_is_refused_at_the_gateway(estate):
    for name in ("nolist", "dev-nothing", "dev-bouncesx"):
        post = estate.world("example.com").hand_over(f"{name}@{DOMAIN}")
        assert post.reply.code == 550, f"{name}: {post.reply}"


def test_lists_sub_addresses_are_known_at_the_gateway(estate):
    for name in ("dev-owner", "dev-request", "dev-bounces+x=example.net", "postmaster"):
        with estate.smtp_session("mail-gw1", source=estate.world("example.com").address()) as session:
            session.command("EHLO mx.example.com")
            session.command("MAIL FROM:<user@example.com>")
            reply = session.command(f"RCPT TO:<{name}@{DOMAIN}>")
            assert reply.code == 250, f"{name}: {reply}"


def test_ml_takes_mail_from_the_gateways_only(estate):
    """Port 25 is closed to others by the firewall."""
    with pytest.raises(ConnectionError), estate.smtp_session("ml", timeout=5):
        pass


def test_post_of_a_stranger_waits_for_the_moderator(estate):
    post = estate.world("example.jp").send(to=DEV)
    held = estate.list(DEV).wait_held(post.message_id, timeout=60)
    estate.list(DEV).moderate(held["request_id"], "discard")


def test_confirmation_is_signed_for_the_lists_domain(estate):
    token = uuid.uuid4().hex[:8]
    address = f"new{token}@example.edu"
    estate.world("example.edu").send(to=f"dev-join@{DOMAIN}", user=f"new{token}", subject="")
    answer = estate.mailbox(address).wait_for_text("confirm", timeout=60)
    assert DOMAIN in answer.header("From")
    assert list_signature(answer)
    assert dkim_verify(answer)
    estate.world("example.edu").send(
        to=re.search(rf"dev-confirm\+\w+@{re.escape(DOMAIN)}", answer.header("From") + answer.raw.decode()).group(0),
        user=f"new{token}",
        subject="Re: confirm",
    )
    wait(lambda: estate.list(DEV).member(address), 60, f"membership of {address}")
    estate.list(DEV).remove(address)


def test_organisation_rule_refuses_outside_addresses_by_mail_with_a_reason(estate):
    token = uuid.uuid4().hex[:8]
    estate.world("example.edu").send(to=f"staff-join@{DOMAIN}", user=f"out{token}", subject="")
    answer = estate.mailbox(f"out{token}@example.edu").wait_for_text("staff", timeout=60)
    text = email.message_from_bytes(answer.raw, policy=email.policy.default).get_body().get_content()
    assert "sfc.example.org" in text
    assert estate.list(STAFF).member(f"out{token}@example.edu") is None


def test_bounces_disable_a_member_after_the_threshold(estate):
    address = f"gone{uuid.uuid4().hex[:8]}@example.edu"
    lst = estate.list(DEV)
    lst.subscribe(address)
    with lst.set(bounce_score_threshold=1):
        mangled = address.replace("@", "=")
        raw = (
            f"From: MAILER-DAEMON@mx.example.edu\r\nTo: dev-bounces+{mangled}@{DOMAIN}\r\nSubject: failed\r\n"
            f"Message-ID: <{uuid.uuid4().hex}@mx.example.edu>\r\nMIME-Version: 1.0\r\n"
            'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
            "--b\r\nContent-Type: text/plain\r\n\r\nno such user\r\n"
            "--b\r\nContent-Type: message/delivery-status\r\n\r\n"
            f"Reporting-MTA: dns; mx.example.edu\r\n\r\nFinal-Recipient: rfc822; {address}\r\n"
            "Action: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n\r\n--b--\r\n"
        ).encode()
        estate.world("example.edu").hand_over(f"dev-bounces+{mangled}@{DOMAIN}", envelope="", raw=raw)

        def disabled() -> bool:
            link = lst.member(address)["self_link"].rpartition("/3.1/")[2]
            return rest("GET", f"{link}/preferences").get("delivery_status") == "by_bounces"

        wait(disabled, 60, f"disabled delivery to {address}")
    lst.remove(address)


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/plain\r\n\r\nno end",
        b'Content-Type: text/plain; charset="iso-2022-jp"\r\n\r\n\x1b$B$3$s\x1b\x1b(B stray \x1b$ \x1b(J end',
        b"Content-Type: text/plain; charset=no-such\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=FF=zz",
        b"Content-Type: message/rfc822\r\n\r\nnot a message",
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!not base64????",
    ],
    ids=["broken-mime", "stray-escapes", "unknown-charset", "no-inner-message", "broken-base64"],
)
def test_a_malformed_post_is_delivered_held_or_returned_and_the_queue_goes_on(estate, raw):
    identity = f"<{uuid.uuid4().hex}@example.com>"
    world = estate.world("example.com")
    header = f"From: User <{AUTHOR}>\r\nTo: {DEV}\r\nSubject: odd\r\nMessage-ID: {identity}\r\nMIME-Version: 1.0\r\n"
    message = header.encode() + raw + b"\r\n"
    assert world.hand_over(DEV, raw=world.sign(message)).reply.code == 250

    def seen() -> bool:
        wanted = identity.strip("<>")
        held = any(entry["message_id"].strip("<>") == wanted for entry in estate.list(DEV).held())
        returned = [bounce for bounce in estate.mailbox(AUTHOR).search(identity) if b"has defects" in bounce.raw]
        return held or bool(returned) or bool(estate.mailbox(INSIDE).find(identity))

    wait(seen, 60, f"trace of {identity}")
    assert queues()["shunt"] == 0


def test_a_post_of_25_mb_is_held_with_its_reason(estate):
    identity = f"<{uuid.uuid4().hex}@example.com>"
    body = ("x" * 70 + "\r\n") * (25 * 1024 * 1024 // 72)
    world = estate.world("example.com")
    raw = world.sign(world.compose(DEV, message_id=identity, body=body))
    assert world.hand_over(DEV, raw=raw).reply.code == 250
    held = estate.list(DEV).wait_held(identity, timeout=90)
    assert "big" in str(held["reason"]).lower() or "size" in str(held["reason"]).lower() or "KB" in str(held["reason"])
    estate.list(DEV).moderate(held["request_id"], "discard")


def test_nothing_was_shunted():
    counts = queues()
    assert (counts["shunt"], counts["bad"]) == (0, 0)
