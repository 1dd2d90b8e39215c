"""Mails that came back: what each is, and that none of them can do harm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports import bounces, package

KEY = bytes(range(32))
SENDER = package.Sender("Example Organisation", "example.org", "dmarc-reports@rua.example.org")
NUMBER = "0123456789abcdef01234567"
RECIPIENT = "Reports@example.com"
RETURN_PATH = package.envelope_from(SENDER, KEY, NUMBER, RECIPIENT)


@dataclass(frozen=True)
class Site:
    """What of the settings the reader of bounces needs."""

    sender: package.Sender = SENDER
    key: bytes = KEY
    bounces: Path = Path("/nonexistent")


def judge(text: str | bytes, known: bool = True) -> bounces.Verdict:
    octets = text if isinstance(text, bytes) else text.replace("\n", "\r\n").encode()
    return bounces.judge(octets, Site(), lambda number: {"other@example.net", RECIPIENT} if known else set())


def notification(action="failed", status="5.1.1", diagnostic="smtp; 550 5.1.1 User unknown", to=RETURN_PATH, more=""):
    return f"""Return-Path: <>
Delivered-To: {to}
From: MAILER-DAEMON@mx.example.com (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
To: {to}
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="bound"

--bound
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail system at host mx.example.com.

--bound
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.com
{more}Arrival-Date: Wed, 25 Nov 2026 03:00:00 +0000 (UTC)

Final-Recipient: rfc822; {RECIPIENT}
Action: {action}
Status: {status}
Diagnostic-Code: {diagnostic}

--bound
Content-Description: Undelivered Message Headers
Content-Type: text/rfc822-headers

From: dmarc-reports@rua.example.org

--bound--
"""


def test_failure_is_proven_by_its_return_path():
    verdict = judge(notification())
    assert (verdict.kind, verdict.report_id, verdict.recipient) == ("bounced_later", NUMBER, RECIPIENT)
    assert (verdict.fate, verdict.dsn, verdict.reply) == ("no_mailbox", "5.1.1", "550 5.1.1 User unknown")
    assert verdict.folder is None


@pytest.mark.parametrize(
    ("status", "diagnostic", "fate"),
    [
        ("5.2.2", "smtp; 552 5.2.2 over quota", "mailbox_full"),
        ("5.0.0", "smtp; 550 Message contains spam", "spam_policy"),
        ("4.4.7", "smtp; 451 delivery time expired", "expired"),
        ("5.4.4", "X-Postfix; Host or domain name not found. Name service error for name=x type=A: Host not found",
         "nxdomain"),
        ("5.1.10", "X-Postfix; Domain example.com does not accept mail (nullMX)", "no_mx"),
        ("5.3.4", "X-Postfix; message size 912345 exceeds size limit 500000 of server mx.example.com[192.0.2.7]",
         "too_large"),
    ],
)  # fmt: skip
def test_reason_is_classified(status, diagnostic, fate):
    assert judge(notification(status=status, diagnostic=diagnostic)).fate == fate


def test_queue_identifier_tells_our_own_bounce():
    verdict = judge(notification(more="X-Postfix-Queue-ID: 4gNvXh2kFwzJmZ\n"))
    assert verdict.queue_id == "4gNvXh2kFwzJmZ"


def test_delay_and_success_are_no_failures():
    assert judge(notification(action="delayed", status="4.4.1")).kind == "delayed"
    assert judge(notification(action="relayed", status="2.0.0")).kind == "delivered"


def test_failure_counts_though_another_recipient_was_served():
    text = notification().replace(
        "Final-Recipient:",
        "Final-Recipient: rfc822; x@example.com\nAction: delivered\nStatus: 2.0.0\n\nFinal-Recipient:",
    )
    assert judge(text).kind == "bounced_later"


def test_return_path_is_believed_in_any_case():
    assert judge(notification(to=RETURN_PATH.upper())).recipient == RECIPIENT


def test_forged_return_path_is_set_aside():
    last = RETURN_PATH.partition("@")[0][-1]
    forged = RETURN_PATH.replace(f"{last}@", f"{'a' if last != 'a' else 'b'}@")
    verdict = judge(notification(to=forged))
    assert (verdict.kind, verdict.folder) == ("set_aside", "set-aside")
    assert "forged" in verdict.reason


def test_return_path_of_a_report_that_is_not_known():
    verdict = judge(notification(), known=False)
    assert verdict.kind == "set_aside"
    assert "not known" in verdict.reason


def test_bounce_to_the_plain_address_is_set_aside():
    assert judge(notification(to="dmarc-reports@rua.example.org")).kind == "set_aside"


def test_notification_without_recipients_is_set_aside():
    text = notification()
    start, end = text.index("Final-Recipient"), text.index("--bound\nContent-Description: Undelivered")
    verdict = judge(text[:start] + text[end:])
    assert verdict.kind == "set_aside"


@pytest.mark.parametrize(
    "header",
    ["Auto-Submitted: auto-replied", "Precedence: auto_reply", "X-Autoreply: yes", "Subject: Out of Office: DMARC"],
)
def test_automatic_reply_is_dropped(header):
    text = f"From: someone@example.com\nTo: {RETURN_PATH}\n{header}\n\nI am away.\n"
    assert judge(text).kind == "auto_reply"


def test_bounce_in_words_counts_with_a_proven_return_path():
    body = "\nHi. This is the qmail-send program at example.com.\n<x@example.com>:\n550 5.1.1 no such user here\n"
    verdict = judge(f"Return-Path: <>\nFrom: MAILER-DAEMON@example.com\nDelivered-To: {RETURN_PATH}\n{body}")
    assert (verdict.kind, verdict.fate, verdict.recipient) == ("bounced_later", "no_mailbox", RECIPIENT)
    assert judge(
        f"Return-Path: <>\nFrom: MAILER-DAEMON@example.com\nTo: dmarc-reports@rua.example.org\n{body}"
    ).kind == ("set_aside")


def test_what_a_person_wrote_is_kept_for_the_postmaster():
    text = "Return-Path: <a@example.com>\nFrom: a@example.com\nTo: dmarc-reports@rua.example.org\n\nPlease stop.\n"
    verdict = judge(text)
    assert (verdict.kind, verdict.folder) == ("answer", "answers")


def test_complaint_and_receipt():
    for kind, expected in (("feedback-report", "set_aside"), ("disposition-notification", "auto_reply")):
        head = f'From: a@example.com\nContent-Type: multipart/report; report-type={kind}; boundary="b"'
        text = f"{head}\n\n--b\n\nx\n--b--\n"
        assert judge(text).kind == expected


def test_empty_file_is_set_aside():
    assert judge(b"").kind == "set_aside"


def test_control_characters_and_length_of_an_answer_are_bounded():
    verdict = judge(notification(diagnostic="smtp; 550 5.1.1 \x07\x1b[31m" + "x" * 5000))
    assert "\x1b" not in verdict.reply
    assert len(verdict.reply) <= 400


def test_damaged_notification_is_survived():
    for octets in (
        notification().encode()[:400],
        notification().replace("us-ascii", "\0\xff").encode("latin-1"),
        notification().replace('boundary="bound"', 'boundary="' + "b" * 3000).encode(),
        notification().replace("multipart/report", "multipart/report; report-type*0*=x''%ff").encode(),
        b"Content-Type: multipart/report; report-type=delivery-status\r\n\r\n",
        b"Content-Type: message/delivery-status\r\n\r\n\xff\xfe\r\n\r\nAction\xe9: failed\r\n",
    ):
        assert judge(octets).kind in ("set_aside", "auto_reply", "answer", "bounced_later")


def test_deeply_nested_mail_is_survived():
    octets = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (number, number) for number in range(3000)
    )
    judge(octets)


HEADS = st.sampled_from(
    [
        b"", b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n",
        b"Content-Type: message/delivery-status\r\n\r\n", b"Return-Path: <>\r\n", b"Auto-Submitted: ",
        f"To: {RETURN_PATH}\r\n".encode(), b"Content-Transfer-Encoding: base64\r\n\r\n",
        b"Content-Type: text/plain; charset=", b"Subject: =?utf-8?q?",
        b"--b\r\nContent-Type: message/delivery-status\r\n\r\n",
        b"\r\nAction: failed\r\nStatus: 5.1.1\r\n", b"\r\n--b--\r\n",
    ]
)  # fmt: skip


@given(st.lists(st.one_of(HEADS, st.binary(max_size=200))).map(b"".join))
def test_any_octets_give_a_verdict(octets):
    verdict = judge(octets)
    assert verdict.kind in {
        "bounced_later", "delayed", "delivered", "auto_reply", "answer", "set_aside",
    }  # fmt: skip
    assert verdict.reason


def test_folder_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(bounces, "KEEP_FILES", 3)
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(b"x" * 10)
        os.utime(path, (1_000_000 + number, 1_000_000 + number))
    assert bounces.prune(tmp_path, now=1_000_100) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]
    monkeypatch.setattr(bounces, "KEEP_BYTES", 20)
    assert bounces.prune(tmp_path, now=1_000_100) == 1
    assert bounces.prune(tmp_path, now=1_000_003 + bounces.KEEP_DAYS * 86400 + 0.5) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
    assert bounces.prune(tmp_path / "missing") == 0


def test_maildir_is_read_oldest_first_and_links_are_left_alone(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "cur").mkdir()
    for number, name in enumerate(("cur/b:2,S", "new/a")):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (100 + number, 100 + number))
    (tmp_path / "new/link").symlink_to("/etc/passwd")
    assert [path.name for path in bounces.waiting(tmp_path)] == ["b:2,S", "a"]
    assert bounces.waiting(tmp_path / "missing") == []
