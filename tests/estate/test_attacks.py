"""What strangers try: smuggled messages, injected commands, ambiguous authors, bombs. None of it gets through."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from estatelib import auth_results, keys, message_id_of
from estatelib.places import ATTACKER, GATEWAYS, HARVESTER

ALICE = "alice@example.org"
VICTIM = "example.com"

# --- SMTP smuggling (SEC Consult 2023): ends of data that only one of two servers takes for one -----------------------

ENDS_OF_DATA = {
    "LF dot LF": b"\n.\n",
    "LF dot CRLF": b"\n.\r\n",
    "CRLF dot LF": b"\r\n.\n",
    "CR dot CR": b"\r.\r",
    "CRLF dot CR": b"\r\n.\r",
    "CR dot CRLF": b"\r.\r\n",
    "LF dot CR": b"\n.\r",
    "CR dot LF": b"\r.\n",
    "CRLF dot CR CRLF": b"\r\n.\r\r\n",
    "CRLF NUL dot CRLF": b"\r\n\0.\r\n",
    "CRLF dot NUL CRLF": b"\r\n.\0\r\n",
}


@pytest.mark.parametrize("end", ENDS_OF_DATA.values(), ids=ENDS_OF_DATA)
def test_no_message_is_smuggled_inside_another(estate, end):
    world = estate.world("example.co.jp")
    outer, inner = world.compose(ALICE), estate.world(VICTIM).compose(ALICE, subject="Smuggled")
    smuggled = f"MAIL FROM:<admin@{VICTIM}>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\n".encode() + inner
    with estate.smtp_session(source=world.address()) as session:
        for line in ("EHLO mx.example.co.jp", "MAIL FROM:<any@example.co.jp>", f"RCPT TO:<{ALICE}>", "DATA"):
            session.command(line)
        session.send(outer.rstrip(b"\r\n") + end + smuggled + b"\r\n.\r\n")
        verdict = session.reply()
        session.send(b"QUIT\r\n")
        farewell = session.reply()
    assert farewell.code in (221, 0), session.transcript  # nothing was answered in between
    if verdict.code == 250:
        estate.mailbox(ALICE).wait_for(message_id_of(outer))
        time.sleep(1)
    assert not estate.mailbox(ALICE).find(message_id_of(inner))


# --- protocol abuse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("injected", [b"NOOP\r\n", b"EHLO relay.example.com\r\n", b"RSET\r\nVRFY alice\r\n"])
def test_command_sent_in_clear_behind_starttls_is_not_obeyed_inside_tls(estate, injected):
    with estate.smtp_session(source=ATTACKER) as session:
        session.command("EHLO relay.example.com")
        session.send(b"STARTTLS\r\n" + injected)  # CVE-2011-0411
        if session.reply().code != 220:
            return  # refused outright
        try:
            session.handshake()
        except ConnectionError:
            return  # the server hung up
        assert session.reply(timeout=2).code in (-1, 0), session.transcript


def test_client_that_talks_before_the_greeting_cannot_send(estate):
    with (
        estate.stranger() as address,
        estate.smtp_session(source=address, wait=False) as session,
    ):
        session.send(f"EHLO relay.example.com\r\nMAIL FROM:<any@example.co.jp>\r\nRCPT TO:<{ALICE}>\r\n".encode())
        replies = [session.reply(timeout=15) for _ in range(3)]
    assert replies[-1].code // 100 == 5, session.transcript


def test_pipelined_commands_without_greeting_are_refused(estate):
    with estate.smtp_session(source=ATTACKER) as session:
        session.send(f"MAIL FROM:<any@example.co.jp>\r\nRCPT TO:<{ALICE}>\r\nDATA\r\n".encode())
        replies = [session.reply() for _ in range(3)]
    assert not any(reply.code in (250, 354) for reply in replies), session.transcript


def test_overlong_command_lines_end_the_patience_not_the_server(estate):
    with estate.smtp_session(source=ATTACKER) as session:
        session.command("EHLO relay.example.com")
        reply = session.command("MAIL FROM:<" + "a" * 100_000 + "@example.co.jp>")
        assert reply.code // 100 in (5, 0), reply
    assert estate.world("example.com").hand_over(ALICE).reply.code == 250


def test_web_browser_that_is_tricked_into_posting_to_us_is_hung_up_on(estate):
    with estate.smtp_session(source=ATTACKER) as session:
        session.send(b"POST / HTTP/1.1\r\nHost: mail-gw1.example.org\r\n\r\nEHLO x\r\n")
        assert session.reply().code == 221, session.transcript
        assert session.reply(timeout=3).code == 0, session.transcript


@pytest.mark.parametrize("place", ["header", "body", "header name", "From"])
def test_nul_octet_is_refused(estate, place):
    message = estate.world("example.com").compose(ALICE, headers=["X-Note: here"])
    spot = {"header": b"here", "body": b"the meeting", "header name": b"X-Note", "From": b"user@example.com>"}[place]
    post = estate.forge(message.replace(spot, spot[:2] + b"\0" + spot[2:]), envelope="any@example.co.jp")
    assert post.reply.code // 100 == 5, post.reply


@pytest.mark.parametrize("line_end", [b"\r", b"\n"], ids=["bare CR", "bare LF"])
def test_bare_line_end_in_a_header_does_not_hide_a_second_author(estate, line_end):
    world = estate.world("example.co.jp")
    message = world.compose(ALICE, headers=["X-Note: split"]).replace(
        b"X-Note: split", b"X-Note: split" + line_end + b"From: admin@example.com"
    )
    post = world.hand_over(ALICE, raw=message)
    assert post.reply.code // 100 in (2, 5), post.reply
    if post.reply.code == 250:  # then everybody must see the same single author
        copy = estate.mailbox(ALICE).wait_for(post.message_id)
        assert len(copy.headers("From")) == 1
        assert "co.jp" in copy.header("From")
        assert "header.from=example.com" not in auth_results(copy).text


# --- bombs ------------------------------------------------------------------------------------------------------------

HEADER_BOMBS = {
    "one header of 300 kB": ["X-Long: " + "\r\n ".join(["x" * 70] * 4200)],
    "5,000 header lines": [f"X-Line-{number}: something not so short" for number in range(5000)],
    "2,000 Received-SPF lines": [f"Received-SPF: pass ({number})" for number in range(2000)],
    "2,000 forged results": ["Authentication-Results: mx.example.org; dmarc=pass"] * 2000,
    "1,000 DKIM signatures": [
        f"DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=s{n}; h=from; bh=AA==; b=AA==" for n in range(1000)
    ],
    "120 ARC sets": [
        line
        for n in range(120, 0, -1)
        for line in (
            f"ARC-Seal: i={n}; a=rsa-sha256; cv=pass; d=example.com; s=s; b=AA==",
            f"ARC-Message-Signature: i={n}; a=rsa-sha256; d=example.com; s=s; h=from; bh=AA==; b=AA==",
            f"ARC-Authentication-Results: i={n}; mx.example.com; dmarc=pass",
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("headers", HEADER_BOMBS.values(), ids=HEADER_BOMBS)
def test_header_bomb_is_refused_or_bounded_and_quickly(estate, headers):
    started = time.monotonic()
    post = estate.world("example.com").hand_over(ALICE, headers=headers)
    assert time.monotonic() - started < 20
    assert post.reply.code // 100 in (2, 5), post.reply
    if post.reply.code == 250:
        copy = estate.mailbox(ALICE).wait_for(post.message_id)
        header = copy.raw.partition(b"\r\n\r\n")[0]
        assert len(header) < 200_000
        auth_results(copy)  # one header of ours, whatever came in


@pytest.mark.parametrize("depth", [60, 2000])
def test_nested_mime_bomb_does_not_stop_the_gateway(estate, depth):
    kind, body = "text/plain", "innermost"
    for level in range(depth):
        body = f"--b{level}\r\nContent-Type: {kind}\r\n\r\n{body}\r\n--b{level}--\r\n"
        kind = f'multipart/mixed; boundary="b{level}"'
    message = estate.world("example.com").compose(ALICE, body=body)
    message = message.replace(b"Content-Type: text/plain; charset=utf-8", f"Content-Type: {kind}".encode(), 1)
    started = time.monotonic()
    post = estate.world("example.com").hand_over(ALICE, raw=message)
    assert time.monotonic() - started < 20
    assert post.reply.code // 100 in (2, 5), post.reply
    if post.reply.code == 250:
        estate.mailbox(ALICE).wait_for(post.message_id)


def test_too_many_recipients_are_put_off_and_the_rest_can_go_on(estate):
    with estate.smtp_session(source=HARVESTER, timeout=60) as session:
        session.command("EHLO relay.example.com")
        session.command("MAIL FROM:<user@example.com>")
        session.send(b"".join(f"RCPT TO:<user{n}@load.example.org>\r\n".encode() for n in range(1100)))
        codes = []
        for _ in range(1100):
            reply = session.reply()
            codes.append(reply.code)
            if reply.code in (0, -1, 421):
                break
    accepted = codes.count(250)
    assert 0 < accepted <= 1000, f"{accepted} accepted"
    assert {code // 100 for code in codes[accepted:]} <= {4, 0}, set(codes)  # RFC 5321 §4.5.3.1.10: 452


# --- ambiguous authors ------------------------------------------------------------------------------------------------

ENCODED = b"=?utf-8?B?" + base64.b64encode(b"<admin@example.com>") + b"?="
AMBIGUOUS = {
    "no From": b"",
    "empty From": b"From:\r\n",
    "no address": b"From: The Management\r\n",
    "empty address": b"From: The Management <>\r\n",
    "address without domain": b"From: <admin>\r\n",
    "two headers": b"From: any@example.co.jp\r\nFrom: admin@example.com\r\n",
    "the same header twice": b"From: any@example.co.jp\r\nFrom: any@example.co.jp\r\n",
    "two headers in other case": b"From: any@example.co.jp\r\nFROM: admin@example.com\r\n",
    "two addresses": b"From: any@example.co.jp, admin@example.com\r\n",
    "two addresses in brackets": b"From: A <any@example.co.jp>, B <admin@example.com>\r\n",
    "two bracketed addresses without comma": b"From: <any@example.co.jp> <admin@example.com>\r\n",
    "address behind the brackets": b"From: <any@example.co.jp> admin@example.com\r\n",
    "group": b"From: Team: any@example.co.jp, admin@example.com;\r\n",
    "empty group": b"From: Undisclosed:;\r\n",
    "space before the colon": b"From : admin@example.com\r\n",
    "only Sender": b"Sender: admin@example.com\r\n",
    "only Resent-From": b"Resent-From: admin@example.com\r\n",
    "encoded word as address": b"From: " + ENCODED + b", <any@example.co.jp>\r\n",
    "only an encoded word": b"From: " + ENCODED + b"\r\n",
    "semicolon for a comma": b"From: any@example.co.jp; admin@example.com\r\n",
}  # fmt: skip


@pytest.mark.parametrize("author", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_message_without_exactly_one_author_address_is_refused(estate, author):
    world = estate.world("example.co.jp")
    message = world.compose(ALICE).replace(b"From: User <user@example.co.jp>\r\n", author)
    gateway = GATEWAYS[len(author) % 2]
    post = world.hand_over(ALICE, gateway=gateway, raw=message)
    assert post.reply.code // 100 == 5, post.reply


UNUSUAL = {
    "bare address": "user@example.com",
    "comment": "user@example.com (A User)",
    "comma in quotes": '"User, Some" <user@example.com>',
    "address in the display name": '"admin@example.net" <user@example.com>',
    "encoded name": "=?utf-8?B?5ZGG?= <user@example.com>",
    "folded": "Some\r\n User\r\n <user@example.com>",
    "upper case": "<USER@EXAMPLE.COM>",
    "quoted local part": '"user"@example.com',
    "plus address": "<user+tag@example.com>",
}


@pytest.mark.parametrize("author", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_but_right_author_is_accepted_and_verified(estate, author):
    world = estate.world("example.com")
    message = world.compose(ALICE).replace(b"User <user@example.com>", author.encode(), 1)
    post = world.hand_over(ALICE, raw=world.sign(message))
    assert post.reply.code == 250, post.reply
    verdict = auth_results(estate.mailbox(ALICE).wait_for(post.message_id))
    assert (verdict.dkim, verdict.dmarc) == ("pass", "pass"), verdict.text


# --- espoofer: the published attacks on sender authentication (Chen, Paxson, Jiang 2020) -----------------------------

MALFORMED_AUTHOR = {f"server_a{number}" for number in range(8, 20)}


@pytest.fixture(scope="module")
def espoofer_cases(estate, tmp_path_factory) -> dict[str, dict]:
    """The server cases, with example.co.jp as the attacker's own domain and example.com as the victim's."""
    selector, key = keys.signing_key("example.co.jp")
    folder = tmp_path_factory.mktemp("espoofer")
    (folder / "dkimkey").write_bytes(_traditional(key))
    package = importlib.util.find_spec("espoofer")
    assert package
    assert package.submodule_search_locations
    script = Path(__file__).with_name("espoofer_cases.py")
    done = subprocess.run(
        [sys.executable, script, "example.co.jp", f"admin@{VICTIM}", ALICE, selector],
        env=os.environ | {"PYTHONPATH": next(iter(package.submodule_search_locations))},
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cases = {case["name"]: case for case in json.loads(done.stdout)}
    assert len(cases) == 19
    return cases


def _traditional(pem: bytes) -> bytes:
    """Return an RSA key in the older of its two PEM forms, the only one that espoofer's copy of dkimpy reads."""
    key = serialization.load_pem_private_key(pem, None)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@pytest.mark.parametrize("number", range(1, 20))
def test_espoofer_case_never_passes_for_the_victim(estate, espoofer_cases, number):
    case = espoofer_cases[f"server_a{number}"]
    message = base64.b64decode(case["message"])
    with estate.smtp_session(GATEWAYS[number % 2], source=estate.world("example.co.jp").address()) as session:
        envelope = f"EHLO {case['helo']}", f"MAIL FROM:{case['sender']}", f"RCPT TO:{case['recipient']}"
        replies = [session.command(line) for line in envelope]
        reply = next((reply for reply in replies if reply.code // 100 != 2), None) or session.data(message)
    if case["name"] in MALFORMED_AUTHOR:
        assert reply.code // 100 == 5, f"{case['description']}: {reply}"
    if reply.code != 250:
        return
    copy = estate.mailbox(ALICE).wait_for(message_id_of(message))
    verdict = auth_results(copy)
    assert not (verdict.dmarc == "pass" and VICTIM in verdict.text), f"{case['description']}: {verdict.text}"
    assert f"header.d={VICTIM}" not in verdict.text or verdict.dkim != "pass", verdict.text
