"""The monthly text, word for word."""

from __future__ import annotations

from datetime import date
from email import message_from_bytes, policy

import pytest

from dmarc_reports import survey

FIGURES = survey.Figures(
    month=date(2026, 11, 1), days=30, reports=120, messages=45678, policy_domains=40, recipient_domains=31,
    fates={"taken": 100, "refused": 4, "spam_policy": 3, "nxdomain": 2, "paused": 10, "not_authorised": 6},
    before={"taken": 90, "refused": 10},
    worst=(
        survey.Bad("example.com", 4, "refused", "550 5.0.0 No"),
        survey.Bad("example.net", 2, "nxdomain", "Host or domain name not found. " + "x" * 100),
        survey.Bad("example.edu", 1, "expired", ""),
    ),
    paused=(("example.com", date(2026, 12, 9), 9, "refused"),),
    incomplete=((date(2026, 11, 7), "gateways missing: mail-gw2.example.org"),), late=17,
    returned={"confirmed": 5, "auto_reply": 2},
    for_the_postmaster=("1 answers by people in /var/lib/dmarc_reports/bounces/answers",),
)  # fmt: skip

TEXT = """\
DMARC reports sent about November 2026
========================================

120 reports on 45678 messages of 40 domains, 30 days;
125 addresses in 31 domains were to get them.

what became of them   number    share   before   points
taken                    100   80.0 %   90.0 %    -10.0  the receiver took it
refused                    4    3.2 %   10.0 %     -6.8  refused, for no reason of those below
spam_policy                3    2.4 %    0.0 %     +2.4  refused as spam, by policy or authentication
nxdomain                   2    1.6 %    0.0 %     +1.6  the domain does not exist
paused                    10    8.0 %    0.0 %     +8.0  not sent: the domain never takes reports
not_authorised             6    4.8 %    0.0 %     +4.8  not sent: the outside domain does not want it

Domains that took none (the worst 3), with their last answer
     4  example.com  refused
        550 5.0.0 No
     2  example.net  nxdomain
        Host or domain name not found. xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
     1  example.edu  expired

Paused: nothing is sent there until the day named
2026-12-09  example.com  9 failures, the last one: refused

Days that lack something
2026-11-07  gateways missing: mail-gw2.example.org
17 events came after their day was closed and are in no report

Mails that came back in this month
     2  auto_reply
     5  confirmed

What to do
- Receivers refuse our reports by policy: look at their answers below; are SPF, DKIM and PTR right?
- Domains ask for reports to others that do not want them: nothing to do, unless ours is one.
- A gateway did not hand over its events in time: look at dmarc_events there.
- Events came late: dmarc_reports_wait_hours may be too short.
- 1 answers by people in /var/lib/dmarc_reports/bounces/answers
"""

EMPTY = """\
DMARC reports sent about January 2027
========================================

0 reports on 0 messages of 0 domains, 0 days;
0 addresses in 0 domains were to get them.

what became of them   number    share   before   points
(nothing)

What to do
- Nothing.
"""


def test_text_of_a_month():
    assert survey.render(FIGURES) == TEXT


def test_text_of_a_month_without_anything():
    assert survey.render(survey.Figures(date(2027, 1, 1), 0, 0, 0, 0, 0, {}, {}, (), (), (), 0, {})) == EMPTY


def test_fate_that_has_no_words_is_shown_all_the_same():
    figures = survey.Figures(date(2027, 1, 1), 1, 1, 1, 1, 1, {"novel": 1}, {}, (), (), (), 0, {})
    assert "novel                      1  100.0 %        -        -\n" in survey.render(figures)


def test_months():
    assert survey.parse_month("2026-11") == date(2026, 11, 1)
    assert survey.next_month(date(2026, 12, 1)) == date(2027, 1, 1)
    assert survey.last_month(date(2026, 1, 31)) == date(2025, 12, 1)


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "november", "2026-11-01", "2026-11; DROP"])
def test_no_month(text):
    with pytest.raises(survey.MonthError):
        survey.parse_month(text)


def test_mail_is_plain_and_needs_no_conversion():
    mail = survey.compose(TEXT, date(2026, 11, 1), "dmarc-reports@rua.example.org", "postmaster@example.org")
    assert mail.content.isascii()
    message = message_from_bytes(mail.content, policy=policy.default)
    assert message["Message-ID"] == mail.message_id == "<survey-2026-11@rua.example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content().replace("\r\n", "\n") == TEXT
