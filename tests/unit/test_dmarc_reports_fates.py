"""Postfix's lines and receivers' answers, and the fate that each gives a report."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports import fates

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
SAID = "host mx.example.com[192.0.2.7] said: "
TO = " (in reply to RCPT TO command)"
DATA = " (in reply to end of DATA command)"

POSTFIX = [
    # what Postfix itself says: 3.7 and 3.10 have the same words
    ("5.1.10", "Domain example.com does not accept mail (nullMX)", "no_mx"),
    (
        "5.4.4",
        "Host or domain name not found. Name service error for name=example.invalid type=AAAA: Host not found",
        "nxdomain",
    ),
    (
        "5.4.4",
        "Host or domain name not found. Name service error for name=example.invalid type=MX: Host not found",
        "nxdomain",
    ),
    (
        "5.4.4",
        "Host or domain name not found. Name service error for name=example.com type=A: Host found but no data record "
        "of requested type",
        "no_mx",
    ),
    (
        "4.4.3",
        "Host or domain name not found. Name service error for name=example.com type=MX: Host not found, try again",
        "unreachable",
    ),
    ("5.4.6", "mail for example.com loops back to myself", "no_mx"),
    ("4.4.1", "connect to mx.example.com[192.0.2.7]:25: Connection refused", "unreachable"),
    ("4.4.1", "connect to mx.example.com[2001:db8::7]:25: Connection timed out", "unreachable"),
    ("4.4.1", "connect to mx.example.com[2001:db8::7]:25: Network is unreachable", "unreachable"),
    ("4.4.1", "connect to mx.example.com[192.0.2.7]:25: No route to host", "unreachable"),
    (
        "4.4.1",
        "delivery temporarily suspended: connect to mx.example.com[192.0.2.7]:25: Connection timed out",
        "unreachable",
    ),
    (
        "4.4.2",
        "lost connection with mx.example.com[192.0.2.7] while receiving the initial server greeting",
        "unreachable",
    ),
    (
        "4.4.2",
        "conversation with mx.example.com[192.0.2.7] timed out while receiving the initial server greeting",
        "unreachable",
    ),
    ("5.3.4", "message size 912345 exceeds size limit 500000 of server mx.example.com[192.0.2.7]", "too_large"),
    ("4.7.4", "TLS is required, but was not offered by host mx.example.com[192.0.2.7]", "tls"),
    ("4.7.5", "Server certificate not trusted", "tls"),
    ("4.7.5", "Server certificate not verified", "tls"),
    ("4.7.5", "Cannot start TLS: handshake failure", "tls"),
    ("4.7.5", "TLSA lookup error for mx.example.com:25", "tls"),
]

RECEIVERS = [
    # Google
    (
        "5.1.1",
        SAID + "550-5.1.1 The email account that you tried to reach does not exist. Please try 550-5.1.1 "
        "double-checking the recipient's email address for typos or 550-5.1.1 unnecessary spaces. For more "
        "information, go to 550 5.1.1 https://support.google.com/mail/?p=NoSuchUser d2e1a72fcca58 - gsmtp" + TO,
        "no_mailbox",
    ),
    ("5.2.1", SAID + "550-5.2.1 The email account that you tried to reach is inactive. - gsmtp" + TO, "no_mailbox"),
    (
        "4.2.2",
        SAID + "452-4.2.2 The recipient's inbox is out of storage space. Please direct the 452 4.2.2 recipient to "
        "https://support.google.com/mail/?p=OverQuotaTemp - gsmtp" + TO,
        "mailbox_full",
    ),
    (
        "5.2.2",
        SAID + "552-5.2.2 The recipient's inbox is out of storage space and inactive. 552 5.2.2 - gsmtp" + TO,
        "mailbox_full",
    ),
    (
        "5.7.26",
        SAID + "550-5.7.26 This mail has been blocked because the sender is unauthenticated. 550-5.7.26 Gmail requires "
        "all senders to authenticate with either SPF or DKIM. - gsmtp" + DATA,
        "spam_policy",
    ),
    (
        "5.7.1",
        SAID + "550-5.7.1 [198.51.100.1] Our system has detected that this message is 550-5.7.1 likely unsolicited "
        "mail. To reduce the amount of spam sent to Gmail, 550 5.7.1 this message has been blocked. - gsmtp" + DATA,
        "spam_policy",
    ),
    (
        "4.7.28",
        SAID + "421-4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address. "
        "421-4.7.28 To protect our users from spam, mail has been temporarily rate limited. - gsmtp" + DATA,
        "expired",
    ),
    ("5.3.4", SAID + "552 5.3.4 Your message exceeded Google's message size limits. - gsmtp" + DATA, "too_large"),
    # Microsoft
    (
        "5.4.1",
        SAID + "550 5.4.1 Recipient address rejected: Access denied. [XX1PEPF0000ABCD.eurprd02.prod.outlook.com "
        "2026-11-25T03:00:00.000Z 08DE]" + TO,
        "no_mailbox",
    ),
    (
        "5.1.10",
        SAID + "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup" + DATA,
        "no_mailbox",
    ),
    (
        "5.5.0",
        SAID + "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302). "
        "[XX1EUR02FT042.eop-EUR02.prod.protection.outlook.com]" + TO,
        "no_mailbox",
    ),
    (
        "5.7.1",
        SAID + "550 5.7.1 Unfortunately, messages from [198.51.100.1] weren't sent. Please contact your Internet "
        "service provider since part of their network is on our block list (S3140)." + TO,
        "spam_policy",
    ),
    ("5.7.64", SAID + "550 5.7.64 TenantAttribution; Relay Access Denied" + TO, "spam_policy"),
    ("5.2.3", SAID + "550 5.2.3 RESOLVER.RST.RecipSizeLimit; message too large for this recipient" + DATA, "too_large"),
    (
        "5.2.2",
        SAID + "554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuota"
        "Exceeded" + DATA,
        "mailbox_full",
    ),
    # Yahoo
    (
        "5.0.0",
        SAID + "554 delivery error: dd This user doesn't have a yahoo.com account (reports@yahoo.com) [0] - "
        "mta4200.mail.bf1.yahoo.com" + DATA,
        "no_mailbox",
    ),
    (
        "5.7.9",
        SAID + "554 5.7.9 Message not accepted for policy reasons. See https://postmaster.yahooinc.com/" + DATA,
        "spam_policy",
    ),
    ("5.0.0", SAID + "552 1 Requested mail action aborted, mailbox not found" + TO, "no_mailbox"),
    # Apple, GMX, Proofpoint, Mimecast and the like
    ("5.1.1", SAID + "550 5.1.1 <reports@icloud.com>: user does not exist" + TO, "no_mailbox"),
    ("5.0.0", SAID + "550 Requested action not taken: mailbox unavailable" + TO, "no_mailbox"),
    ("5.0.0", SAID + "550 Requested action not taken: mailbox unavailable For explanation visit X" + TO, "no_mailbox"),
    ("5.0.0", SAID + "550 Invalid Recipient - https://community.mimecast.com/docs/DOC-1369#550" + TO, "no_mailbox"),
    ("5.0.0", SAID + "554 Email rejected due to security policies - MCSpamSignature.x.x" + DATA, "spam_policy"),
    ("5.7.1", SAID + "554 5.7.1 Blocked - see https://ipcheck.proofpoint.com/?ip=198.51.100.1" + TO, "spam_policy"),
    # Postfix, Exim, Sendmail, qmail, Dovecot at the other end
    (
        "5.1.1",
        SAID + "550 5.1.1 <reports@example.com>: Recipient address rejected: User unknown in local table" + TO,
        "no_mailbox",
    ),
    ("5.7.1", SAID + "554 5.7.1 <reports@example.com>: Relay access denied" + TO, "refused"),
    ("5.0.0", SAID + "550 relay not permitted" + TO, "refused"),
    ("5.0.0", SAID + "550 Unrouteable address" + TO, "no_mailbox"),
    ("5.7.1", SAID + "550 5.7.1 reports@example.com... Relaying denied" + TO, "refused"),
    ("5.0.0", SAID + "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)" + TO, "refused"),
    ("5.2.2", SAID + "552 5.2.2 <r@example.com> Quota exceeded (mailbox for user is full)" + DATA, "mailbox_full"),
    ("5.0.0", SAID + "552 Requested mail action aborted: exceeded storage allocation" + TO, "mailbox_full"),
    ("5.0.0", SAID + "552 Message size exceeds fixed maximum message size" + DATA, "too_large"),
    ("5.0.0", SAID + "552 Error: message too large" + DATA, "too_large"),
    ("5.7.0", SAID + "530 5.7.0 Must issue a STARTTLS command first (in reply to MAIL FROM command)", "tls"),
    ("5.7.10", SAID + "550 5.7.10 Encryption needed (in reply to MAIL FROM command)", "tls"),
    ("5.7.1", SAID + "550 5.7.1 Message rejected" + DATA, "spam_policy"),
    ("5.7.27", SAID + "550 5.7.27 Sender address has null MX (in reply to MAIL FROM command)", "spam_policy"),
    ("5.1.2", SAID + "550 5.1.2 Bad destination system address" + TO, "nxdomain"),
    ("5.1.10", SAID + "556 5.1.10 Recipient address has null MX" + TO, "no_mx"),
    ("5.0.0", SAID + "521 mx.example.com does not accept mail (in reply to EHLO command)", "refused"),
    ("5.5.1", SAID + "503 5.5.1 Bad sequence of commands" + TO, "refused"),
    ("5.0.0", "host mx.example.com[192.0.2.7] refused to talk to me: 554 Your access to this mail system has been "
     "rejected due to the sending MTA's poor reputation.", "spam_policy"),
    # put off until given up
    ("4.7.1", SAID + "450 4.7.1 <r@example.com>: Recipient address rejected: Greylisted" + TO, "expired"),
    ("4.2.0", SAID + "450 4.2.0 <reports@example.com>: Recipient address rejected: Greylisted" + TO, "expired"),
    ("4.3.2", SAID + "451 4.3.2 Please try again later" + TO, "expired"),
    ("4.0.0", "host mx.example.com[192.0.2.7] refused to talk to me: 421 Too many concurrent connections", "expired"),
    ("4.3.0", SAID + "451 4.3.0 Temporary lookup failure" + TO, "expired"),
    ("4.2.2", SAID + "452 4.2.2 Mailbox full" + TO, "mailbox_full"),
    ("4.7.0", SAID + "454 4.7.0 TLS not available due to local problem (in reply to STARTTLS command)", "expired"),
]  # fmt: skip


@pytest.mark.parametrize(("dsn", "text", "fate"), POSTFIX + RECEIVERS)
def test_answer_gives_the_fate(dsn, text, fate):
    assert fates.classify(dsn, text) == fate


@pytest.mark.parametrize(
    ("dsn", "text", "fate"),
    [
        ("5.1.1", "550 5.1.1 <x@example.com>: Recipient address rejected: User unknown", "no_mailbox"),
        ("5.2.2", "552 5.2.2 over quota", "mailbox_full"),
        ("5.4.7", "", "expired"),
        ("4.4.7", "delivery time expired", "expired"),
        (None, "", "refused"),
        (None, "550 5.7.1 blocked by SPF", "spam_policy"),
    ],
)
def test_diagnostic_text_of_a_notification_gives_the_fate(dsn, text, fate):
    assert fates.classify(dsn, text, remote=True) == fate


def test_words_of_a_receiver_are_not_taken_for_our_own_postfix():
    assert fates.classify("5.0.0", SAID + "550 connect to 10.0.0.1: Connection refused" + TO) == "refused"
    assert fates.classify("5.4.4", SAID + "550 5.4.4 Invalid arguments, nobody@example.com" + TO) != "nxdomain"


def test_mail_server_that_does_not_exist_is_not_the_domain():
    text = (
        "Host or domain name not found. Name service error for name=mx.example.com type=A: Host not found"
    )  # fmt: skip
    assert fates.classify("5.4.4", text, domain="example.com") == "no_mx"
    assert fates.classify("5.4.4", text, domain="MX.example.com") == "nxdomain"


@given(st.one_of(st.none(), st.text(), st.from_regex(r"[245]\.\d{1,3}\.\d{1,3}")), st.text())
def test_any_words_have_a_fate(dsn, text):
    fate = fates.classify(dsn, text)
    assert fate in {
        "refused", "no_mx", "nxdomain", "mailbox_full", "no_mailbox", "too_large", "spam_policy", "tls", "unreachable",
        "expired",
    }  # fmt: skip


@given(st.text())
def test_shortened_answer_is_one_harmless_line(text):
    short = fates.short(text)
    assert len(short) <= fates.MAX_REPLY
    assert short.isprintable() or all(char.isprintable() or char.isspace() or ord(char) > 0x9F for char in short)
    assert "\0" not in short
    short.encode("utf-8")


# --- lines


def track(queue_id="4gNvXh2kFwzJmZ", **more) -> fates.Track:
    return fates.Track(1, "reports@example.com", queue_id, "dmarc-reports+x@rua.example.org", None, None, None, **more)


def feed(one: fates.Track, *lines: tuple[str, str]) -> fates.Track:
    for program, text in lines:
        fates.apply(one, fates.Entry("c", NOW, program, text))
    return one


SENT = (
    "smtp",
    "4gNvXh2kFwzJmZ: to=<reports@example.com>, relay=mx.example.com[192.0.2.7]:25, delay=0.5, delays=0.02/0/0.3/0.2, "
    "dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4gNvXj0Q2Nz9rxP)",
)
REMOVED = ("qmgr", "4gNvXh2kFwzJmZ: removed")
PUT_OFF = (
    "smtp",
    "4gNvXh2kFwzJmZ: to=<reports@example.com>, relay=mx.example.com[192.0.2.7]:25, delay=2.1, delays=0/0/1/1.1, "
    "dsn=4.7.1, status=deferred (host mx.example.com[192.0.2.7] said: 450 4.7.1 Greylisted (in reply to RCPT TO))",
)
EXPIRED = ("qmgr", "4gNvXh2kFwzJmZ: from=<dmarc-reports+x@rua.example.org>, status=expired, returned to sender")


def test_taken():
    one = feed(track(), SENT, REMOVED)
    assert (one.fate, one.dsn, one.settled_at) == ("taken", "2.0.0", NOW)
    assert one.reply == "250 2.0.0 Ok: queued as 4gNvXj0Q2Nz9rxP"


def test_deferred_is_still_open_and_then_taken():
    one = feed(track(), PUT_OFF)
    assert (one.fate, one.dsn, one.settled_at) == ("deferred", "4.7.1", None)
    assert feed(one, SENT).fate == "taken"


@pytest.mark.parametrize("end", [EXPIRED, REMOVED, (EXPIRED[0], EXPIRED[1].replace("expired", "force-expired"))])
def test_deferred_until_given_up_ends_by_its_last_answer(end):
    assert feed(track(), PUT_OFF, end).fate == "expired"
    refused_connection = (
        "smtp",
        "4gNvXh2kFwzJmZ: to=<reports@example.com>, relay=none, delay=30, delays=0/0/30/0, dsn=4.4.1, status=deferred "
        "(connect to mx.example.com[192.0.2.7]:25: Connection timed out)",
    )
    one = feed(track(), PUT_OFF, refused_connection, end)
    assert (one.fate, one.settled_at) == ("unreachable", NOW)


def test_suspended_destination_is_a_deferral():
    line = (
        "error",
        "4gNvXh2kFwzJmZ: to=<reports@example.com>, relay=none, delay=1, delays=1/0/0/0, dsn=4.4.1, status=deferred "
        "(delivery temporarily suspended: connect to mx.example.com[192.0.2.7]:25: Connection refused)",
    )
    assert feed(track(), line).fate == "deferred"
    assert feed(track(), line, EXPIRED).fate == "unreachable"


def test_bounced_by_postfix_3_7_with_a_short_queue_identifier():
    line = (
        "smtp",
        "3F2A81C0456: to=<Reports@Example.COM>, orig_to=<reports@example.com>, relay=mx.example.com[2001:db8::7]:25, "
        "conn_use=2, delay=0.7, delays=0.1/0/0/0.2, dsn=5.2.2, status=bounced (host mx.example.com[2001:db8::7] said: "
        "552 5.2.2 Mailbox full (in reply to RCPT TO command))",
    )
    assert feed(track("3F2A81C0456"), line).fate == "mailbox_full"


def test_summary_of_tls_on_the_line_is_no_hindrance():
    line = (SENT[0], SENT[1].replace("dsn=", "tls=may/none:required, dsn="))
    assert feed(track(), line).fate == "taken"


def test_queue_identifier_that_another_mail_has_now():
    other = (SENT[0], SENT[1].replace("<reports@", "<somebody@"))
    assert feed(track(), other).fate is None
    assert feed(track("4gNvXh2kFwzJmZ2"), SENT).fate is None


def test_mail_that_is_queued_anew_here_is_followed():
    local = (
        "smtp",
        "4gNvXh2kFwzJmZ: to=<reports@example.com>, relay=127.0.0.1[127.0.0.1]:10026, delay=0.1, delays=0/0/0/0.1, "
        "dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4gNvXk5bGtzJmQ)",
    )
    one = feed(track(), local, REMOVED)
    assert (one.fate, one.settled_at, one.queue_id) == (None, None, "4gNvXk5bGtzJmQ")
    assert feed(one, (SENT[0], SENT[1].replace("4gNvXh2kFwzJmZ", "4gNvXk5bGtzJmQ", 1))).fate == "taken"


def test_removed_by_hand_without_a_result_is_no_fate_of_the_domain():
    one = feed(track(), ("postsuper", "4gNvXh2kFwzJmZ: removed"))
    assert (one.fate, one.settled_at) == (None, NOW)
    assert "removed" in one.reply


def test_discarded_mail_is_not_taken():
    line = (
        "discard",
        "4gNvXh2kFwzJmZ: to=<reports@example.com>, relay=none, delay=0, delays=0/0/0/0, dsn=2.0.0, status=sent (x)",
    )
    one = feed(track(), line)
    assert (one.fate, one.settled_at) == (None, NOW)


def test_what_is_settled_stays_as_it_is():
    assert feed(track(), SENT, PUT_OFF, EXPIRED).fate == "taken"


@given(st.text(), st.sampled_from(["smtp", "qmgr", "error"]))
def test_any_line_is_survived(text, program):
    feed(track(), (program, text), (program, f"4gNvXh2kFwzJmZ: {text}"))


@given(st.lists(st.one_of(st.binary(max_size=60), st.dictionaries(st.text(max_size=4), st.text(max_size=4)).map(
    lambda item: json.dumps(item).encode()))))  # fmt: skip
def test_any_journal_is_survived(lines):
    assert list(fates.entries(lines, "postfix")) == []


def test_journal_lines():
    def line(message, identifier="postfix/smtp", at="1795575600000000"):
        item = {"__CURSOR": "s=1", "__REALTIME_TIMESTAMP": at, "MESSAGE": message, "SYSLOG_IDENTIFIER": identifier}
        return json.dumps(item).encode()

    found = list(
        fates.entries(
            [
                line("a"),
                line([97, 255]),
                line(None),
                line("b", "postfix-out/smtp"),
                line("c", "postfix/relay/smtp"),
                b"{",
            ],
            "postfix",
        )
    )
    assert [one.text for one in found] == ["a", "a�", "c"]
    assert [one.program for one in found] == ["smtp"] * 3
    assert found[0].at == datetime.fromtimestamp(1795575600, UTC)
