"""DMARC in both directions: what the gateways saw is reported to the senders, and what others report is read."""

from __future__ import annotations

import gzip
import time
import uuid
from datetime import UTC, datetime
from email import message_from_bytes
from xml.etree.ElementTree import Element

import pytest
from dmarc_report_schema import read

from dmarc_reports.aggregate import Published, Report, Row
from dmarc_reports.destinations import Destination
from dmarc_reports.package import Mail, Sender, build, freeze
from estatelib import dkim_verify, new_message_id
from estatelib.hosts import CommandFailedError
from estatelib.places import ADDRESSES, ATTACKER, GATEWAYS
from estatelib.reports import a_closed_day, events_of, report_day, report_sql
from estatelib.waiting import wait

ALICE = "alice@example.org"
INTAKE = "dmarc@rua.example.org"
DAY = a_closed_day()

BOUNCE = """\
Message-ID: {message_id}
From: MAILER-DAEMON@mx.example.edu
To: {to}
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

The mailbox is full.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.edu

Final-Recipient: rfc822; dmarc@example.edu
Action: failed
Status: 5.2.2
Diagnostic-Code: smtp; 552 5.2.2 mailbox full
--b--
"""


@pytest.fixture
def reported(estate):
    """Have the gateways' events of this test reported as if they were of DAY; gives what the store then knows."""

    def report(events: list[dict], domain: str = "", rua: str = "") -> list[list[str]]:
        return report_day(estate, events, DAY, domain, rua)

    return report


def wait_for_fate(estate, report_id: str, fate: str) -> None:
    """Wait until the survey knows what became of a report's only mail."""

    def known() -> bool:
        estate.host("analytics").run("dmarc-reports", "settle")
        rows = report_sql(estate, f"SELECT fate FROM dmarc_reports.delivery WHERE report_id = '{report_id}'")
        return rows == [[fate]]

    wait(known, 60, f"fate {fate} of report {report_id}", pause=2)


def report_of(mail: bytes) -> Element:
    """The report in a mail, checked against its schema."""
    message = message_from_bytes(mail)
    (attached,) = [part for part in message.walk() if part.get_content_type() == "application/gzip"]
    return read(gzip.decompress(attached.get_payload(decode=True)))


def test_two_gateways_make_one_report_which_the_domain_gets_signed(estate, reported):
    started = time.time()
    ((report_id, domain, messages),) = reported(events_of(estate, "example.edu", GATEWAYS))
    assert (domain, messages) == ("example.edu", "2")
    copy = estate.mailbox("dmarc@example.edu").wait_for_text(f"Report-ID: {report_id}", timeout=150, since=started)
    assert copy.header("From") == "dmarc-reports@rua.example.org"
    assert "d=rua.example.org" in copy.header("DKIM-Signature")
    assert dkim_verify(copy)
    root = report_of(copy.raw)
    assert root.findtext("report_metadata/org_name") == "Example Organisation"
    assert root.findtext("policy_published/domain") == "example.edu"
    assert [row.findtext("source_ip") for row in root.iter("row")] == [estate.world("example.edu").address()]
    assert [row.findtext("count") for row in root.iter("row")] == ["2"]
    wait_for_fate(estate, report_id, "taken")

    # The domain's mail system had taken it, and finds out later that the mailbox is full.
    ((return_path,),) = report_sql(
        estate, f"SELECT envelope_from FROM dmarc_reports.delivery WHERE report_id = '{report_id}'"
    )
    bounce = BOUNCE.format(to=return_path, message_id=new_message_id("example.edu")).replace("\n", "\r\n").encode()
    assert estate.world("example.edu").hand_over(return_path, envelope="", raw=bounce).reply.code == 250
    wait_for_fate(estate, report_id, "bounced_later")


def test_report_that_nobody_takes_is_known_as_refused(estate, reported):
    events = events_of(estate, "example.ac.jp", GATEWAYS[:1])
    ((report_id, *_),) = reported(events, rua="mailto:nobody-home@example.ac.jp")
    wait_for_fate(estate, report_id, "no_mailbox")


def test_our_own_domains_are_never_reported_to_ourselves(estate, reported):
    events = events_of(estate, "example.ac.jp", GATEWAYS[:1])
    ((report_id, *_),) = reported(events, domain="example.org", rua=f"mailto:{INTAKE}")
    assert report_sql(estate, f"SELECT fate FROM dmarc_reports.delivery WHERE report_id = '{report_id}'") == [["own"]]


def a_report_about_us(reporter: str) -> tuple[bytes, str]:
    """The mail that another organisation with our own generator would send, and the report's identifier."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = int(today.timestamp()) - 86400
    source = f"192.0.2.{uuid.uuid4().int % 250 + 1}"
    row = Row(
        source, "pass", "pass", "fail", (), "example.org", "bounce.example.net", "example.com",
        (("example.org", "2026a", "pass"),), ("bounce.example.net", "mfrom", "pass"),
    )  # fmt: skip
    published = Published("example.org", "treewalk", "none", "none", "reject", "r", "r", "n", "")
    report = Report(published, begin, begin + 86399, ((row, 7),), "v=DMARC1; p=none")
    unique = f"{reporter} {uuid.uuid4().hex[:8]}"
    sender = Sender(unique, reporter, f"dmarc@{reporter}")
    destination = Destination(*INTAKE.split("@"))
    mail = build(freeze(report, sender), sender, destination, key=b"k" * 32, now=datetime.now(UTC), max_bytes=10**7)
    assert isinstance(mail, Mail)
    return mail.content, unique


def test_report_about_us_goes_the_whole_way_to_the_figures(estate):
    world = estate.world("example.com")
    mail, reporter = a_report_about_us("example.com")
    assert world.hand_over(INTAKE, user="dmarc", raw=world.sign(mail), signed=False).reply.code == 250
    stored = (
        "SELECT record.header_from, record.message_count, record.dkim_aligned, record.spf_aligned"
        " FROM dmarc_aggregate_record AS record JOIN dmarc_aggregate_report AS report ON report.id = record.report_id"
        f" WHERE report.org_name = '{reporter}'"
    )
    wait(
        lambda: report_sql(estate, stored) == [["example.org", "7", "t", "f"]],
        90,
        "the report in the database",
        pause=2,
    )


def test_report_that_fails_dmarc_itself_is_set_aside_with_the_reason(estate):
    started = time.time()
    mail, reporter = a_report_about_us("example.com")
    post = estate.forge(mail, envelope="dmarc@example.com", to=INTAKE, source=ATTACKER)
    assert post.reply.code == 250
    aside = f"SELECT kind FROM intake.set_aside WHERE message_id = '{post.message_id}' AND at > to_timestamp({started})"
    wait(lambda: report_sql(estate, aside) == [["unauthenticated"]], 60, "the forged report among those set aside")
    assert report_sql(estate, f"SELECT 1 FROM dmarc_aggregate_report WHERE org_name = '{reporter}'") == []


def test_nobody_but_the_gateways_speaks_smtp_or_sql_to_the_analytics_host(estate):
    probe = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
    for port in ("25", "5432"):
        connect = ("python3", "-c", probe, ADDRESSES["analytics"][0], port)
        estate.gateway("mail-gw1").run(*connect)
        with pytest.raises(CommandFailedError, match=r"timed out|refused"):
            estate.host("world").run(*connect)
