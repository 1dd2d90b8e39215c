"""Which days are closed when, what a day's lines become, and what can be said of an address without the DNS."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports import day
from dmarc_reports.day import Due, Known, Outcome
from dmarc_reports.destinations import Reason, Rules
from dmarc_reports.package import Sender
from dmarc_reports.report_xml import Form
from dmarc_reports.settings import Settings

TODAY = date(2026, 11, 25)
NOW = datetime(2026, 11, 25, 3, tzinfo=UTC)
WAIT = timedelta(hours=24)
GATEWAYS = ("gw1", "gw2")
LONG_UP = NOW - timedelta(days=100)
SETTINGS = Settings(
    enabled=True, database="", sender=Sender("Example", "example.org", "dmarc-reports@example.org"), key=b"k" * 32,
    rules=Rules(), rfc7489_receivers=("old.example.com",), gateways=GATEWAYS, wait=WAIT, catch_up_days=14,
    spread=timedelta(hours=4), per_minute=60, max_bytes=10**7, smtp_host="127.0.0.1", smtp_port=10025,
    syslog_name="postfix", unsure=timedelta(minutes=10), dns_servers=("127.0.0.1",), bounces=Path("/nowhere"),
    pause_failures=5, pause_days=5, keep_content_days=30, keep_events_days=60, keep_reports_days=400,
)  # fmt: skip


def ago(number: int) -> date:
    return TODAY - timedelta(days=number)


def begin(number: int) -> datetime:
    """The first moment of a day that many days ago."""
    return day.end_of(ago(number + 1))


def due(closed=(), with_events=(), marks=None, now=NOW, up_since=LONG_UP, wait=WAIT, catch_up=14) -> list[Due]:
    marks = {name: begin(0) for name in GATEWAYS} if marks is None else marks
    known = Known(frozenset(map(ago, closed)), frozenset(map(ago, with_events)), marks, up_since)
    return day.due(known, now, GATEWAYS, wait, catch_up)


def test_nothing_is_due_where_nothing_is_known():
    assert due(marks={}) == []


def test_day_that_every_gateway_has_handed_over_is_complete():
    assert due(with_events=[1]) == [Due(ago(1), "complete")]


def test_today_is_never_closed():
    assert due(with_events=[0], marks={name: begin(-5) for name in GATEWAYS}) == []


def test_watermark_must_reach_the_end_of_the_day():
    marks = {"gw1": begin(0), "gw2": begin(0) - timedelta(seconds=1)}
    assert due(with_events=[1], marks=marks) == []
    assert due(with_events=[1], marks=marks, now=begin(0) + WAIT) == [Due(ago(1), "gateways missing: gw2")]


def test_gateway_that_was_never_heard_of_is_waited_for_as_long():
    assert due(with_events=[1], marks={"gw1": begin(0)}, now=begin(0) + WAIT - timedelta(seconds=1)) == []
    assert due(with_events=[1], marks={}, now=begin(0) + WAIT) == [Due(ago(1), "gateways missing: gw1, gw2")]


def test_days_between_are_closed_oldest_first_whether_something_happened_or_not():
    assert [one.day for one in due(closed=[5], with_events=[3])] == [ago(4), ago(3), ago(2), ago(1)]


def test_first_day_is_that_of_the_first_sign_of_a_gateway():
    marks = {"gw1": begin(2) + timedelta(hours=5), "gw2": begin(0)}
    assert due(marks=marks, now=begin(0) + WAIT) == [
        Due(ago(2), "gateways missing: gw1"), Due(ago(1), "gateways missing: gw1")
    ]  # fmt: skip


def test_day_is_not_closed_before_an_older_one():
    marks = {"gw1": begin(0), "gw2": begin(1)}
    assert due(with_events=[2, 1], marks=marks) == [Due(ago(2), "complete")]


def test_gateways_get_time_to_hand_over_what_they_kept_while_the_database_was_away():
    marks = {name: begin(3) for name in GATEWAYS}
    just_up = NOW - timedelta(minutes=5)
    assert due(closed=[4], marks=marks, up_since=just_up) == []
    later = due(closed=[4], marks=marks, up_since=just_up, now=just_up + day.RETURN)
    assert [one.day for one in later] == [ago(3), ago(2)], "yesterday still has its whole day"
    assert {one.reason for one in later} == {"gateways missing: gw1, gw2"}


def test_days_too_old_are_closed_without_reports_and_the_rest_is_caught_up():
    found = due(closed=[20], with_events=[18, 15, 14, 1])
    assert [one.day for one in found] == [ago(number) for number in range(19, 0, -1)]
    assert {one.day for one in found if one.reports} == {ago(number) for number in range(1, 15)}
    assert found[0].reason == "older than 14 days: no reports"


def test_event_with_a_wrong_clock_does_not_close_all_days_since():
    found = due(with_events=[20_000, 1])
    assert [one.day for one in found] == [ago(20_000), ago(1)]
    assert [one.day for one in due(closed=[20_000, 2], with_events=[])] == [ago(1)]


@given(
    closed=st.sets(st.integers(1, 40)),
    with_events=st.sets(st.integers(-3, 40)),
    marks=st.dictionaries(st.sampled_from(GATEWAYS), st.integers(-2, 40).map(begin)),
    hours=st.integers(0, 23),
)
def test_each_day_is_due_once_in_order_and_only_if_it_is_over(closed, with_events, marks, hours):
    found = [one.day for one in due(closed, with_events - closed, marks, now=begin(0) + timedelta(hours=hours))]
    assert found == sorted(set(found))
    assert not {ago(number) for number in closed} & set(found)
    assert all(one < TODAY for one in found)


def line(domain: str | None, tags: str = "p=none; rua=mailto:r@{0}", **fields) -> str:
    passed = domain is not None
    policy = None if domain is None else {
        "domain": domain, "record": "v=DMARC1; " + tags.format(domain), "discovery_method": "treewalk", "p": "none",
        "sp": "none", "np": "none", "adkim": "r", "aspf": "r", "t": "n", "applied": "p", "requested": "none",
    }  # fmt: skip
    content = {
        "version": 1, "id": str(uuid.uuid4()), "time": int(begin(1).timestamp()) + 100, "gateway": "gw1",
        "source_ip": "192.0.2.1", "helo": "", "envelope_from": "", "envelope_to": ["example.org"],
        "header_from": domain or "nobody.example", "dns": "ok", "policy": policy,
        "spf": {"domain": "example.com", "scope": "mfrom", "result": "pass", "aligned": True} if passed else None,
        "dkim": [], "dmarc": "pass" if passed else "none", "disposition": "pass" if passed else "none", "overrides": [],
    }  # fmt: skip
    return json.dumps(content | fields)


def made(lines, outcome: Outcome | None = None):
    outcome = outcome or Outcome()
    return {report.policy_domain: (report, rua, planned) for report, rua, planned in day.reports(
        lines, ago(1), SETTINGS, outcome)}  # fmt: skip


def test_each_domain_gets_its_report_with_all_its_messages():
    outcome = Outcome()
    lines = [
        (None, "gw1", line(None)),
        *((name, "gw2", line(name)) for name in ("a.example", "a.example", "b.example")),
    ]
    found = made(lines, outcome)
    assert {name: report.messages for name, (report, _, _) in found.items()} == {"a.example": 2, "b.example": 1}
    assert (outcome.events, outcome.without_policy, outcome.unreadable) == (4, 1, 0)


def test_line_that_only_we_can_read_counts_in_its_domain():
    odd = line("a.example", dkim=[{"domain": "a.example", "selector": "\udc80", "result": "fail", "aligned": False}])
    alone = line("c.example")
    found = made([(None, "gw1", odd), (None, "gw1", alone), ("a.example", "gw1", line("a.example"))])
    assert {name: report.messages for name, (report, _, _) in found.items()} == {"a.example": 2, "c.example": 1}


def test_what_is_no_event_of_the_day_is_set_aside_with_its_reason():
    outcome = Outcome()
    other_day = line("a.example", time=int(begin(1).timestamp()) - 1)
    next_day = line("a.example", time=int(begin(0).timestamp()))
    other_domain = line("b.example")
    lines = [(None, "gw1", "no JSON"), *(("a.example", "gw1", text) for text in (other_day, next_day, other_domain))]
    assert made(lines, outcome) == {}
    assert [(text, reason.partition(":")[0]) for _, text, reason in outcome.set_aside] == [
        ("no JSON", "not JSON"),
        (other_day, "its time is not on 2026-11-24"),
        (next_day, "its time is not on 2026-11-24"),
        (other_domain, "its policy domain was read as 'a.example' before"),
    ]
    assert (outcome.events, outcome.unreadable) == (0, 4)


def test_first_and_last_second_belong_to_the_day():
    lines = [("a.example", "gw1", line("a.example", time=int(begin(number).timestamp()) - number_back))
             for number, number_back in ((1, 0), (0, 1))]  # fmt: skip
    assert made(lines)["a.example"][0].messages == 2


def test_domain_that_publishes_no_address_gets_no_report():
    outcome = Outcome()
    assert made([("a.example", "gw1", line("a.example", tags="p=none"))], outcome) == {}
    assert (outcome.events, outcome.unwanted) == (1, 1)


@pytest.mark.parametrize("domain", ["old.example.com", "policy.example.com"])
def test_old_form_for_policy_domains_and_recipients_that_need_it(domain):
    tags = "p=none; rua=mailto:r@old.example.com"
    report, _, _ = made([(domain, "gw1", line(domain, tags=tags))])[domain]
    assert report.form is Form.RFC7489
    report, _, _ = made([("b.example.com", "gw1", line("b.example.com"))])["b.example.com"]
    assert report.form is Form.RFC9990


def test_only_an_address_in_the_domain_itself_needs_no_word_from_the_dns():
    rua = "mailto:in@example.com!2k,mailto:below@sub.example.com,mailto:out@example.net,mailto:in@example.com,ftp:x"
    found = {(one.recipient, one.fate): one for one in day.plan("example.com", rua, Rules())}
    assert {key: one.checked for key, one in found.items()} == {
        ("in@example.com", None): True,
        ("below@sub.example.com", None): False,
        ("out@example.net", None): False,
        ("mailto:in@example.com", Reason.DUPLICATE): False,
        ("ftp:x", Reason.NOT_MAILTO): False,
    }
    assert found["in@example.com", None].max_bytes == 2048


def test_what_the_site_rules_out_is_settled_at_once():
    rules = Rules(own=(".example.org",), excluded=("no.example.net",))
    assert [one.fate for one in day.plan("sub.example.org", "mailto:r@rua.example.org", rules)] == [Reason.OWN]
    assert [one.fate for one in day.plan("example.com", "mailto:r@no.example.net", rules)] == [Reason.EXCLUDED]


def test_long_addresses_are_told_apart():
    names = [f"{'x' * 64}@{'.'.join(['y' * 60] * 3)}.{letter}.example" for letter in "ab"]
    found = day.plan("example.com", ",".join(f"mailto:{name}" for name in names), Rules())
    assert [(one.recipient, one.fate) for one in found] == [(name, None) for name in names]


def test_deliveries_are_spread_evenly_and_always_alike():
    over = timedelta(hours=4)
    hours = Counter(
        int(day.spread(f"{number:024x}", "r@example.com", over).total_seconds() // 3600) for number in range(400)
    )
    assert set(hours) == {0, 1, 2, 3}
    assert min(hours.values()) > 60
    assert (
        day.spread("1", "a@b.example", over)
        == day.spread("1", "a@b.example", over)
        != day.spread("1", "c@b.example", over)
    )
    assert day.spread("1", "a@b.example", timedelta(0)) == timedelta(0)
