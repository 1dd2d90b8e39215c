"""A look into reports: what they are known by, and which of them do not belong into the database."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsedmarc_intake.report import Facts, Refused, aggregate, stored_id, tls

NOW = 1_795_500_000
RECORD = "<record><row><source_ip>192.0.2.1</source_ip><count>{}</count></row></record>"


def xml(
    records: str = RECORD.format(3), begin: object = NOW - 86_400, end: object = NOW, before: str = "", **more
) -> str:
    return (
        f"<?xml version='1.0'?>{before}<feedback{more.get('space', '')}><report_metadata><org_name>Org</org_name>"
        f"<report_id>{more.get('id', 'r1')}</report_id><date_range><begin>{begin}</begin><end>{end}</end></date_range>"
        f"</report_metadata><policy_published><domain> example.org\n</domain></policy_published>{records}</feedback>"
    )


def looked(text: str, limit: int = 10) -> Facts:
    return aggregate(text.encode(), limit, NOW)


def kind(text: str, limit: int = 10) -> str:
    with pytest.raises(Refused) as refused:
        looked(text, limit)
    assert len(refused.value.reason) > 10
    return refused.value.kind


def test_a_report_is_known_by_id_domain_and_period():
    facts = looked(xml(id="<r1@host>".replace("<", "&lt;"), space=" xmlns='urn:ietf:params:xml:ns:dmarc-2.0'"))
    assert facts.key == ("r1", "example.org", NOW - 86_400, NOW)
    assert facts.records == 1
    assert facts.org_name == "Org"


def test_domain_is_that_of_the_policy_not_that_of_a_signature():
    record = "<record><auth_results><dkim><domain>evil.example</domain></dkim></auth_results></record>"
    assert looked(xml(record)).domain == "example.org"


def test_fractions_of_seconds_are_cut_off_as_parsedmarc_does():
    assert looked(xml(begin="1795400000.9")).begin == 1_795_400_000


@pytest.mark.parametrize("number", [0, 1, 10**9])
def test_counts_that_can_be_true_are_let_in(number):
    assert looked(xml(RECORD.format(number))).records == 1


@pytest.mark.parametrize("number", [-1, 10**9 + 1, 99_999_999_999, 10**30])
def test_counts_that_cannot_be_true_are_not(number):
    assert kind(xml(RECORD.format(number))) == "implausible"


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (NOW, NOW - 1),
        (NOW - 367 * 86_400, NOW),
        (NOW, NOW + 3 * 86_400),
        (253_370_764_800, 253_370_851_200),
        (-100, 86_400),
        ("yesterday", NOW),
        ("", NOW),
    ],
)
def test_periods_that_cannot_be_true(begin, end):
    assert kind(xml(begin=begin, end=end)) in ("implausible", "not-a-report")


def test_records_are_counted_to_the_limit():
    assert looked(xml(RECORD.format(1) * 10)).records == 10
    assert kind(xml(RECORD.format(1) * 11)) == "too-many-records"
    assert kind(xml("<record>" + "<dkim/>" * 2000 + "</record>")) == "too-many-records"


def test_refused_report_is_known_all_the_same():
    with pytest.raises(Refused) as refused:
        looked(xml(RECORD.format(1) * 11))
    assert refused.value.facts is not None
    assert refused.value.facts.key == ("r1", "example.org", NOW - 86_400, NOW)


@pytest.mark.parametrize("ending", ["", "<unclosed>", "</wrong>"])
@pytest.mark.parametrize("start", ["<!DOCTYPE feedback SYSTEM 'file:///etc/passwd'>", "<!DOCTYPE f [<!ENTITY a 'b'>]>"])
def test_doctype_is_hostile_in_whole_and_in_broken_xml(start, ending):
    assert kind(xml(before=start) + ending) == "hostile"


def test_depth_is_limited():
    assert kind(xml("<a>" * 50 + "</a>" * 50)) == "hostile"


@pytest.mark.parametrize("text", ["", "no xml", "<html/>", "<feedback/>", "<feedback>", "{}"])
def test_what_is_no_report(text):
    assert kind(text) == "not-a-report"


@pytest.mark.parametrize("damage", ["</feedback>", "<end>"])
def test_broken_report_is_left_to_parsedmarc_which_mends_it(damage):
    facts = looked(xml().replace(damage, "", 1))
    assert facts.report_id == "r1"
    assert facts.records == 1


def test_broken_report_has_the_same_limits():
    assert kind(xml(RECORD.format(1) * 11)[:-3]) == "too-many-records"
    assert kind(xml(RECORD.format(-4))[:-3]) == "implausible"


def test_wrong_bytes_do_not_hide_a_doctype():
    text = xml(before="<!DOCTYPE feedback SYSTEM 'x'>").encode()
    with pytest.raises(Refused) as refused:
        aggregate(text.replace(b"Org", b"\xff\xfe\0Org"), 10, NOW)
    assert refused.value.kind == "hostile"


@given(st.text(max_size=300))
def test_any_text_is_either_a_report_or_refused(text):
    for content in (text, xml(text), xml(id=text)):
        with suppress(Refused):
            assert isinstance(aggregate(content.encode("utf-8", "replace"), 10, NOW), Facts)


def test_ids_are_stored_without_brackets_and_host():
    assert stored_id("<abc@example.com>") == "abc"


def tls_report(**changed) -> dict:
    report = {
        "organization-name": "Org",
        "date-range": {"start-datetime": "2026-11-23T00:00:00Z", "end-datetime": "2026-11-23T23:59:59Z"},
        "report-id": "t1",
        "policies": [{"summary": {"total-successful-session-count": 5}, "failure-details": []}],
    }
    return report | changed


def tls_kind(report: object) -> str | None:
    try:
        tls(json.dumps(report).encode(), 10, NOW)
    except Refused as refused:
        return refused.kind
    return None


def test_tls_report_is_let_in_with_or_without_a_name():
    assert tls_kind(tls_report()) is None
    assert tls_kind(tls_report(**{"organization-name": None})) is None


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        ([], "not-a-report"),
        ({}, "not-a-report"),
        (tls_report(policies="x"), "not-a-report"),
        (tls_report(policies=[{}] * 11), "too-many-records"),
        (tls_report(policies=[{"failure-details": [{}] * 11}]), "too-many-records"),
        (tls_report(policies=[{"summary": {"total-successful-session-count": 10**12}}]), "implausible"),
        (tls_report(policies=[{"failure-details": [{"failed-session-count": -1}]}]), "implausible"),
        (tls_report(**{"date-range": {"start-datetime": "soon", "end-datetime": "later"}}), "implausible"),
        (
            tls_report(**{"date-range": {"start-datetime": "9998-01-01T00:00:00Z", "end-datetime": "9998-01-02"}}),
            "implausible",
        ),
    ],
)
def test_tls_reports_that_do_not_belong_into_the_database(report, wanted):
    assert tls_kind(report) == wanted


def test_deep_json_is_refused_and_not_a_crash():
    with pytest.raises(Refused):
        tls(b"[" * 100_000, 10, NOW)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_odd_values_anywhere_in_a_tls_report(value):
    for name in tls_report():
        tls_kind(tls_report(**{name: value}))
    tls_kind(tls_report(policies=[{"summary": value, "failure-details": value}, value]))
