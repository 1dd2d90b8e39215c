"""From events to reports: one a policy domain and configuration, over all gateways, every message counted once."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports.aggregate import DNS_FAILED, Published, aggregate, day_bounds
from dmarc_reports.events import Event, Override, Policy, Signature, Spf
from estate_arc_policy import record_tags

DAY = date(2026, 11, 24)
NOON = int(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp())
REJECT = Policy(
    "example.com", "v=DMARC1; p=reject; rua=mailto:a@example.com", "treewalk",
    "reject", "reject", "reject", "r", "r", "n", "p", "reject",
)  # fmt: skip


def event(**changes) -> Event:
    """A message of example.com that passed by SPF; fields as given."""
    return replace(
        Event(
            id=str(uuid.uuid4()), time=NOON, gateway="mail-gw1", source_ip="192.0.2.1", helo="mx.example.com",
            envelope_from="example.com", envelope_to=("example.org",), header_from="example.com", dns="ok",
            policy=REJECT, spf=Spf("example.com", "mfrom", "pass", True), dkim=(), dmarc="pass", disposition="pass",
            overrides=(),
        ),
        **changes,
    )  # fmt: skip


def only(events: list[Event]):
    (report,) = aggregate(events, DAY).reports
    return report


def test_day_is_a_utc_day():
    begin, end = day_bounds(DAY)
    assert (begin % 86_400, end - begin) == (0, 86_399)
    assert datetime.fromtimestamp(begin, UTC).date() == datetime.fromtimestamp(end, UTC).date() == DAY
    found = aggregate([event(time=moment) for moment in (begin - 1, begin, end, end + 1)], DAY)
    assert (found.reports[0].messages, found.other_days) == (2, 2)


def test_same_kind_of_message_through_both_gateways_is_one_row():
    report = only([event(gateway="mail-gw1"), event(gateway="mail-gw2", helo="other.example.com")])
    assert [count for _, count in report.rows] == [2]


@pytest.mark.parametrize(
    "changes",
    [
        {"source_ip": "192.0.2.2"},
        {"envelope_from": "bounce.example.com"},
        {"envelope_to": ("example.net",)},
        {"header_from": "sub.example.com"},
        {"spf": Spf("example.com", "mfrom", "fail", False), "dmarc": "fail", "disposition": "quarantine"},
        {"spf": Spf("other.example", "mfrom", "pass", True)},
        {"dkim": (Signature("example.com", "s1", "pass", True),)},
        {"dkim": (Signature("example.com", "s1", "fail", False),)},
        {"overrides": (Override("local_policy", ""),)},
    ],
)
def test_messages_that_differ_are_two_rows(changes):
    assert [count for _, count in only([event(), event(), event(**changes)]).rows if count != 2] == [1]


def test_subdomains_under_one_record_are_in_one_report_and_own_records_in_their_own():
    inner = replace(REJECT, domain="bar.example.com")
    found = aggregate(
        [event(), event(header_from="foo.example.com"), event(header_from="bar.example.com", policy=inner)], DAY
    )
    assert [(one.published.domain, one.messages) for one in found.reports] == [
        ("bar.example.com", 1),
        ("example.com", 2),
    ]


def test_messages_without_policy_are_counted_and_not_reported():
    found = aggregate([event(policy=None, dmarc="none", disposition="none")], DAY)
    assert (found.reports, found.without_policy) == ([], 1)


def test_raw_results_stay_what_they_were_where_nothing_is_aligned():
    """rspamd's own reports say "none" here, which is the normal case of a forwarder."""
    (row, _), = only([event(
        spf=Spf("list.example", "mfrom", "pass", False), dkim=(Signature("list.example", "l", "pass", False),),
        dmarc="fail", disposition="quarantine",
    )]).rows  # fmt: skip
    assert (row.spf, row.dkim, row.disposition) == ("fail", "fail", "quarantine")
    assert row.spf_result == ("list.example", "mfrom", "pass")
    assert row.dkim_results == (("list.example", "l", "pass"),)


@pytest.mark.parametrize(
    ("policy", "disposition"),
    [
        (REJECT, "pass"),
        (replace(REJECT, p="none", requested="none"), "none"),
        (replace(REJECT, sp="none", applied="sp", requested="none"), "none"),
        (replace(REJECT, p="none", applied="sp"), "pass"),
        (replace(REJECT, t="y", requested="quarantine"), "pass"),
        (replace(REJECT, p="quarantine", t="y", requested="none"), "pass"),
    ],
)
def test_passing_is_called_pass_only_under_a_policy_that_asks_for_something(policy, disposition):
    (row, _), = only([event(policy=policy)]).rows  # fmt: skip
    assert row.disposition == disposition


def test_unknown_alignment_has_a_reason():
    (row, _), = only([event(
        dns="temperror", dmarc="temperror", disposition="none", spf=Spf("a.example.com", "mfrom", "pass", False),
    )]).rows  # fmt: skip
    assert (row.spf, row.reasons) == ("fail", (DNS_FAILED,))


def test_reasons_are_a_set():
    one, two = Override("local_policy", ""), Override("policy_test_mode", "")
    failed = {"dmarc": "fail", "disposition": "none", "spf": None}
    report = only([event(overrides=(one, two), **failed), event(overrides=(two, one, two), **failed)])
    assert [count for _, count in report.rows] == [2]
    assert report.rows[0][0].reasons == (one, two)


def test_message_to_several_domains_counts_once_and_names_none():
    report = only([event(envelope_to=("a.example", "b.example"))])
    assert (report.messages, report.rows[0][0].envelope_to) == (1, "")


def test_telling_signatures_come_first_and_a_hundred_are_enough():
    noise = tuple(Signature(f"n{number}.example", "s", "permerror", False) for number in range(120))
    telling = (
        Signature("other.example", "s", "pass", False),
        Signature("a.example.com", "s", "pass", True),
        Signature("example.com", "s", "pass", True),
    )
    results = only([event(dkim=(*noise, *telling))]).rows[0][0].dkim_results
    assert [domain for domain, _, _ in results[:3]] == ["example.com", "a.example.com", "other.example"]
    assert len(results) == 100


def test_order_of_signatures_makes_no_row_and_two_of_one_key_are_both_told():
    a, b = Signature("a.example", "s", "fail", False), Signature("b.example", "s", "temperror", False)
    report = only([event(dkim=(a, b, a)), event(dkim=(b, a, a))])
    assert [count for _, count in report.rows] == [2]
    assert [result for _, _, result in report.rows[0][0].dkim_results] == ["fail", "fail", "temperror"]


def test_what_has_no_domain_is_left_out():
    row = only([event(spf=Spf("", "helo", "none", False), dkim=(
        Signature("", "s", "permerror", False), Signature("example.com", "s", "pass", True),
    ))]).rows[0][0]  # fmt: skip
    assert (row.spf_result, len(row.dkim_results)) == (None, 1)


def test_policy_changed_during_the_day_gives_a_report_for_each():
    before = replace(
        REJECT, record="v=DMARC1; p=none; rua=mailto:old@example.com", p="none", sp="none", np="none", requested="none"
    )
    reports = aggregate([event(time=NOON + 1), event(policy=before), event(policy=before)], DAY).reports
    assert [(one.published.p, one.messages, one.configurations) for one in reports] == [
        ("none", 2, 1),
        ("reject", 1, 1),
    ]
    assert [one.rua for one in reports] == ["mailto:old@example.com", "mailto:a@example.com"]
    assert len({(one.begin, one.end) for one in reports}) == 1


def test_other_rua_is_no_other_policy_and_the_last_counts():
    later = replace(REJECT, record="v=DMARC1; p=reject; rua=mailto:b@example.com")
    events = [event(policy=later, time=NOON + 60), event(), event(time=NOON - 60)]
    assert only(events).rua == only(events[::-1]).rua == "mailto:b@example.com"
    assert only(events).messages == 3


def test_policy_that_changes_all_the_time_gives_one_report_with_all_messages():
    kinds = [
        replace(REJECT, adkim=adkim, aspf=aspf, np=np) for adkim in "rs" for aspf in "rs" for np in ("none", "reject")
    ]
    events = [event(time=NOON + number, policy=policy) for number, policy in enumerate(kinds)]
    assert len(aggregate(events, DAY, max_configurations=8).reports) == 8
    (report,) = aggregate(events, DAY, max_configurations=7).reports
    assert (report.messages, report.configurations) == (8, 8)
    assert report.published == Published.of(kinds[-1])


@pytest.mark.parametrize(
    ("record", "fo"),
    [
        ("v=DMARC1; p=none", "0"),
        ("v=DMARC1; p=none; fo=1:D:s", "1:d:s"),
        ("v=DMARC1; p=none; fo=s:0:0", "0:s"),
        ("v=DMARC1; p=none; fo=<x>&", "0"),
    ],
)
def test_failure_options_are_those_that_exist(record, fo):
    assert Published.of(replace(REJECT, record=record)).fo == fo


def test_tags_of_a_record():
    assert record_tags(" v = DMARC1 ;P=none; rua = mailto:a@b.example!10m , x; rua=second;;junk") == {
        "v": "DMARC1", "p": "none", "rua": "mailto:a@b.example!10m , x",
    }  # fmt: skip


def test_rows_stand_in_the_order_of_addresses():
    addresses = ["2001:db8::1", "192.0.2.10", "192.0.2.9", "10.0.0.1"]
    assert [row.source_ip for row, _ in only([event(source_ip=ip) for ip in addresses]).rows] == addresses[::-1]


@given(
    st.lists(
        st.builds(
            event,
            source_ip=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
            header_from=st.sampled_from(["example.com", "a.example.com", "xn--bcher-kva.example"]),
            policy=st.sampled_from([None, REJECT, replace(REJECT, domain="b.example"), replace(REJECT, np="none")]),
            envelope_to=st.lists(st.sampled_from(["x.example", "y.example"]), unique=True).map(tuple),
            spf=st.sampled_from(
                [None, Spf("a.example", "helo", "fail", False), Spf("a.example", "mfrom", "none", False)]
            ),
            time=st.integers(NOON - 50_000, NOON + 50_000),
        ),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_every_message_is_counted_once_whatever_the_order(events: list[Event], rng: random.Random):
    found = aggregate(events, DAY)
    assert sum(report.messages for report in found.reports) + found.without_policy + found.other_days == len(events)
    truth = Counter(
        one.policy.domain for one in events if one.policy and datetime.fromtimestamp(one.time, UTC).date() == DAY
    )
    counted: Counter[str] = Counter()
    for report in found.reports:
        counted[report.published.domain] += report.messages
        assert len({row for row, _ in report.rows}) == len(report.rows)
    assert counted == truth
    shuffled = events[:]
    rng.shuffle(shuffled)
    assert aggregate(shuffled, DAY) == found
