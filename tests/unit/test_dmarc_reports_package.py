"""A report as a mail: names and identifiers, what is in it, how large it may be, and whom a bounce is about."""

from __future__ import annotations

import email
import gzip
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email import policy as mail_policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports import package
from dmarc_reports.aggregate import Published, Report, Row
from dmarc_reports.destinations import Destination, Reason, Refused
from dmarc_reports.report_xml import Form, render

KEY = bytes(range(32))
NOW = datetime(2026, 11, 25, 3, 14, 15, tzinfo=timezone(timedelta(hours=9)))
SENDER = package.Sender("Example Organisation", "example.org", "dmarc-noreply@example.org")
ROW = Row("192.0.2.1", "none", "fail", "fail", (), "example.com", "", "", (), None)
REPORT = Report(
    Published("example.com", "treewalk", "none", "none", "none", "r", "r", "n", "0"),
    1_795_478_400, 1_795_564_799, ((ROW, 3),), "v=DMARC1; p=none",
)  # fmt: skip
TO = Destination("Reports", "example.net")
LONG = ".".join(["x" * 60] * 4)


def built(report: Report = REPORT, to: Destination = TO, max_bytes: int = 10_000_000, **changes):
    sender = replace(SENDER, **changes)
    return package.build(package.freeze(report, sender), sender, to, key=KEY, now=NOW, max_bytes=max_bytes)


def read(mail: package.Mail) -> EmailMessage:
    return email.message_from_bytes(mail.content, policy=mail_policy.default)


def test_mail_carries_the_report():
    mail = built()
    message = read(mail)
    assert message["From"] == "dmarc-noreply@example.org"
    assert message["To"] == mail.envelope_to == "Reports@example.net"
    assert message["Date"].datetime == NOW
    assert message["Auto-Submitted"] == "auto-generated"
    (attachment,) = message.iter_attachments()
    assert attachment.get_content_type() == "application/gzip"
    assert attachment.get_content_disposition() == "attachment"
    number = package.report_id(REPORT, "example.org")
    assert attachment.get_filename() == package.file_name(REPORT, "example.org")
    assert gzip.decompress(attachment.get_content()) == render(REPORT, SENDER.reporter, number)
    text = message.get_body(("plain",)).get_content()
    assert "2026-11-24 00:00:00 to 2026-11-24 23:59:59 UTC" in text
    assert "3 messages in 1 rows" in text


def test_names_follow_the_grammar_of_the_rfc():
    number = package.report_id(REPORT, "example.org")
    assert re.fullmatch(r"[A-Za-z0-9]+", number)
    assert package.file_name(REPORT, "example.org") == (
        f"example.org!example.com!1795478400!1795564799!{number}.xml.gz"
    )
    assert read(built())["Subject"] == f"Report Domain: example.com Submitter: example.org Report-ID: {number}"


def test_envelope_and_author_have_one_domain():
    assert built().envelope_from.rpartition("@")[2] == "example.org"
    assert read(built())["Message-ID"].endswith("@example.org>")


@pytest.mark.parametrize("domain", ["example.com", LONG, "xn--bcher-kva.example"])
def test_lines_are_what_mail_may_carry_and_the_file_name_is_whole(domain):
    mail = built(
        replace(REPORT, published=replace(REPORT.published, domain=domain)), submitter="y" * 60 + ".example.org"
    )
    lines = mail.content.split(b"\r\n")
    assert b"\n" not in mail.content.replace(b"\r\n", b"")
    assert max(map(len, lines)) <= 998
    assert b"filename*" not in mail.content
    encoded = mail.content.split(b"\r\n\r\n")[-1].split(b"\r\n--")[0].split(b"\r\n")
    assert max(map(len, encoded)) <= 76
    assert mail.content.isascii()
    assert next(read(mail).iter_attachments()).get_filename().split("!")[1] == domain
    assert f"Report Domain: {domain} " in read(mail)["Subject"]


@pytest.mark.parametrize("name", ["ü", "ワイド・プロジェクト"])
def test_organisation_of_any_script_gives_a_mail_that_nobody_must_convert(name):
    mail = built(org_name=name)
    assert mail.content.isascii()
    assert f"by {name}, from" in read(mail).get_body(("plain",)).get_content()


def test_same_report_is_the_same_mail():
    assert built() == built()
    assert package.compress(b"x" * 1000) == package.compress(b"x" * 1000)
    assert package.compress(b"x")[4:8] == b"\0\0\0\0", "no time in it"
    assert package.compress(b"x")[3] == 0, "no name in it"


@pytest.mark.parametrize(
    "other",
    [
        replace(REPORT, published=replace(REPORT.published, domain="example.net")),
        replace(REPORT, published=replace(REPORT.published, p="reject")),
        replace(REPORT, begin=REPORT.begin + 86_400, end=REPORT.end + 86_400),
        replace(REPORT, configurations=9),
    ],
    ids=["domain", "policy", "day", "mixed"],
)
def test_other_reports_have_other_names(other):
    assert package.report_id(other, "example.org") != package.report_id(REPORT, "example.org")
    assert package.file_name(other, "example.org") != package.file_name(REPORT, "example.org")


def test_same_report_sent_again_with_more_rows_has_the_same_name():
    again = replace(REPORT, rows=((ROW, 4),))
    assert package.file_name(again, "example.org") == package.file_name(REPORT, "example.org")


def test_too_large_for_the_receiver_is_no_mail():
    size = len(built().content)
    fitting = built(to=replace(TO, max_bytes=size))
    assert isinstance(fitting, package.Mail)
    refused = built(to=replace(TO, max_bytes=size - 1))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.TOO_LARGE
    assert f"{size} octets, the limit is {size - 1}" in refused.detail
    assert built(to=replace(TO, max_bytes=0)).reason is Reason.TOO_LARGE


def test_too_large_for_us_is_no_mail_either():
    size = len(built().content)
    assert isinstance(built(max_bytes=size), package.Mail)
    assert built(max_bytes=size - 1).reason is Reason.TOO_LARGE
    assert built(max_bytes=size - 1, to=replace(TO, max_bytes=size)).reason is Reason.TOO_LARGE


def test_old_form_is_named_in_the_text():
    old = package.freeze(REPORT, SENDER, Form.RFC7489)
    mail = package.build(old, SENDER, TO, key=KEY, now=NOW, max_bytes=10**6)
    assert "RFC 7489" in read(mail).get_body(("plain",)).get_content()


RECIPIENTS = ["a@example.net", "Reports@example.net", "reports@example.net"]


@pytest.mark.parametrize("spelling", [str, str.upper, str.lower, "<{}>".format])
def test_bounce_names_report_and_recipient(spelling):
    address = spelling(built().envelope_from)
    assert package.bounced_report(SENDER, address) == package.report_id(REPORT, "example.org")
    assert package.bounced_recipient(SENDER, KEY, address, RECIPIENTS) == "Reports@example.net"


def test_made_up_bounce_counts_for_nobody():
    address = built().envelope_from
    number = package.report_id(REPORT, "example.org")
    assert package.bounced_recipient(SENDER, bytes(32), address, RECIPIENTS) is None
    assert package.bounced_recipient(SENDER, KEY, address, ["a@example.net"]) is None
    assert package.bounced_recipient(SENDER, KEY, address, []) is None
    other = address.replace(number, "0" * 24)
    assert package.bounced_report(SENDER, other) == "0" * 24
    assert package.bounced_recipient(SENDER, KEY, other, RECIPIENTS) is None


@pytest.mark.parametrize(
    "address",
    [
        "", "@", "dmarc-reports@example.org", "dmarc-reports+@example.org", "dmarc-reports+x@example.org",
        "other+{}@example.org", "dmarc-reports+{}@example.net", "dmarc-reports+{}x@example.org",
        "dmarc-reports+{}\u00e9@example.org", "dmarc-reports+\u017f{}@example.org",
    ],
)  # fmt: skip
def test_other_addresses_are_no_return_paths(address):
    address = address.format(package.token(KEY, package.report_id(REPORT, "example.org"), TO.address))
    assert package.bounced_report(SENDER, address) is None
    assert package.bounced_recipient(SENDER, KEY, address, RECIPIENTS) is None


@given(st.text(max_size=80))
def test_any_address_of_a_bounce_is_judged(address):
    assert package.bounced_recipient(SENDER, KEY, address, RECIPIENTS) is None


def test_return_path_fits_into_an_address():
    assert len(built(bounce_mailbox="x" * 22).envelope_from.partition("@")[0]) == 64
    with pytest.raises(ValueError, match="no room"):
        replace(SENDER, bounce_mailbox="x" * 23)


@pytest.mark.parametrize("address", ["example.org", "a@Example.org", "a b@example.org", "a@example.org\r\nBcc: x@y.z"])
def test_sender_that_could_not_be_used_is_refused(address):
    with pytest.raises(ValueError, match="is no address"):
        replace(SENDER, email=address)


def test_short_key_is_refused():
    with pytest.raises(ValueError, match="less than 32"):
        package.token(b"short", "0" * 24, "a@example.net")


def test_date_is_utc():
    assert b"Date: Tue, 24 Nov 2026 18:14:15 +0000" in built().content
    assert NOW.astimezone(UTC).day == 24
