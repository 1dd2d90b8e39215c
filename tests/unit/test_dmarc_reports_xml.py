"""Reports as XML: the structure of RFC 9990 and of RFC 7489, whatever strangers wrote into their mail."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from dmarc_report_schema import faults, read
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports.aggregate import Published, Report, Row
from dmarc_reports.events import DISPOSITIONS, DKIM_RESULTS, OVERRIDES, SPF_RESULTS, Override
from dmarc_reports.report_xml import NAMESPACE, Form, Reporter, render


def checked(report: Report, form: Form = Form.RFC9990, reporter: Reporter | None = None) -> ElementTree.Element:
    """The parsed document, after its structure was checked."""
    reporter = reporter or Reporter("Example", "dmarc@example.org")
    text = render(report, reporter, "0123abcd", form)
    assert (NAMESPACE.encode() in text) == (form is Form.RFC9990)
    return read(text)


ROW = Row(
    "192.0.2.1", "pass", "pass", "fail", (), "example.com", "bounce.example.com", "example.org",
    (("example.com", "s1", "pass"),), ("bounce.example.com", "mfrom", "fail"),
)  # fmt: skip
REPORT = Report(
    Published("example.com", "treewalk", "quarantine", "none", "reject", "r", "s", "n", "1:d"),
    1_795_478_400, 1_795_564_799, ((ROW, 3),), "v=DMARC1; p=quarantine",
)  # fmt: skip
FORMS = pytest.mark.parametrize("form", list(Form))


def with_row(**changes) -> Report:
    return replace(REPORT, rows=((replace(ROW, **changes), 1),))


def test_everything_that_a_report_says_is_in_the_document():
    root = checked(REPORT, reporter=Reporter("Example <&> Org", "dmarc@example.org", "https://example.org/?a&b"))
    texts = {
        "report_metadata/org_name": "Example <&> Org", "report_metadata/email": "dmarc@example.org",
        "report_metadata/extra_contact_info": "https://example.org/?a&b", "report_metadata/report_id": "0123abcd",
        "report_metadata/date_range/begin": "1795478400", "report_metadata/date_range/end": "1795564799",
        "policy_published/domain": "example.com", "policy_published/discovery_method": "treewalk",
        "policy_published/p": "quarantine", "policy_published/sp": "none", "policy_published/np": "reject",
        "policy_published/fo": "1:d", "policy_published/adkim": "r", "policy_published/aspf": "s",
        "policy_published/testing": "n", "record/row/source_ip": "192.0.2.1", "record/row/count": "3",
        "record/row/policy_evaluated/disposition": "pass", "record/row/policy_evaluated/dkim": "pass",
        "record/row/policy_evaluated/spf": "fail", "record/identifiers/header_from": "example.com",
        "record/identifiers/envelope_from": "bounce.example.com", "record/identifiers/envelope_to": "example.org",
        "record/auth_results/dkim/domain": "example.com", "record/auth_results/dkim/selector": "s1",
        "record/auth_results/dkim/result": "pass", "record/auth_results/spf/domain": "bounce.example.com",
        "record/auth_results/spf/scope": "mfrom", "record/auth_results/spf/result": "fail",
    }  # fmt: skip
    assert {path: root.findtext(path) for path in texts} == texts


def test_old_form_says_the_same_in_the_words_it_has():
    report = replace(
        with_row(
            source_ip="2001:db8::1", reasons=(Override("policy_test_mode", ""), Override("trusted_forwarder", "ARC")),
            spf_result=("mx.example.com", "helo", "policy"),
        ),
        record="v=DMARC1; p=quarantine; pct=25",
    )  # fmt: skip
    root = checked(report, Form.RFC7489)
    texts = {
        "record/row/source_ip": "2001:db8:0:0:0:0:0:1", "record/row/policy_evaluated/disposition": "none",
        "policy_published/pct": "25", "record/auth_results/spf/scope": "helo",
        "record/auth_results/spf/result": "neutral",
    }  # fmt: skip
    assert {path: root.findtext(path) for path in texts} == texts
    reasons = [(one.findtext("type"), one.findtext("comment")) for one in root.iter("reason")]
    assert reasons == [("other", "policy_test_mode"), ("trusted_forwarder", "ARC")]


@pytest.mark.parametrize("record", ["v=DMARC1; p=none", "v=DMARC1; pct=101", "v=DMARC1; pct=<x>", "v=DMARC1; pct=-1"])
def test_old_form_has_a_percentage_in_any_case(record):
    assert checked(replace(REPORT, record=record), Form.RFC7489).findtext("policy_published/pct") == "100"


def test_new_form_knows_no_helo_scope_and_the_old_one_must_have_an_spf_result():
    null_sender = with_row(envelope_from="", spf_result=("mx.example.com", "helo", "pass"))
    assert checked(null_sender).findtext("record/auth_results/spf/scope") == "mfrom"
    assert checked(null_sender).findtext("record/identifiers/envelope_from") == ""
    unchecked = with_row(spf_result=None)
    assert checked(unchecked).find("record/auth_results/spf") is None
    assert checked(unchecked, Form.RFC7489).findtext("record/auth_results/spf/result") == "none"


def test_signature_without_selector():
    report = with_row(dkim_results=(("example.com", "", "permerror"),))
    assert checked(report).findtext("record/auth_results/dkim/selector") == ""
    assert checked(report, Form.RFC7489).find("record/auth_results/dkim/selector") is None


@FORMS
def test_mixed_configurations_are_confessed(form):
    assert checked(REPORT, form).find("report_metadata/error") is None
    assert "9 different policies" in checked(replace(REPORT, configurations=9), form).findtext("report_metadata/error")


@FORMS
def test_idn_domains_stand_as_a_labels(form):
    domain = "xn--bcher-kva.example"
    report = replace(with_row(header_from=f"a.{domain}"), published=replace(REPORT.published, domain=domain))
    root = checked(report, form)
    assert root.findtext("policy_published/domain") == domain
    assert root.findtext("record/identifiers/header_from") == f"a.{domain}"


@pytest.mark.parametrize(
    ("selector", "shown"),
    [
        ("a\x00b\x1b", "a\ufffdb\ufffd"),
        ("\ud800", "\ufffd"),
        ("\ufffe\uffff", "\ufffd\ufffd"),
        ("]]></selector>", "]]></selector>"),
        ("<!--&amp;\"'", "<!--&amp;\"'"),
        ("a\r\nb\tc", "a\r\nb\tc"),
        ("セレクタ\U0001f4e7", "セレクタ\U0001f4e7"),
    ],
)
@FORMS
def test_what_xml_forbids_cannot_spoil_a_report(selector, shown, form):
    report = with_row(dkim_results=(("example.com", selector, "fail"),))
    assert checked(report, form).findtext("record/auth_results/dkim/selector") == shown


def test_same_report_gives_the_same_octets():
    reporter = Reporter("Example", "dmarc@example.org")
    assert render(REPORT, reporter, "1") == render(replace(REPORT), reporter, "1")
    assert render(REPORT, reporter, "1") != render(REPORT, reporter, "2")


def test_report_without_rows_is_none():
    with pytest.raises(ValueError, match=r"example\.com has no rows"):
        render(replace(REPORT, rows=()), Reporter("Example", "dmarc@example.org"), "1")


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
ROWS = st.builds(
    Row,
    source_ip=st.ip_addresses().map(str),
    disposition=st.sampled_from(DISPOSITIONS), dkim=st.sampled_from(["pass", "fail"]),
    spf=st.sampled_from(["pass", "fail"]),
    reasons=st.lists(st.builds(Override, st.sampled_from(OVERRIDES), ANY_TEXT), max_size=3).map(tuple),
    header_from=ANY_TEXT, envelope_from=ANY_TEXT, envelope_to=ANY_TEXT,
    dkim_results=st.lists(st.tuples(ANY_TEXT, ANY_TEXT, st.sampled_from(DKIM_RESULTS)), max_size=3).map(tuple),
    spf_result=st.none() | st.tuples(ANY_TEXT, st.sampled_from(["mfrom", "helo"]), st.sampled_from(SPF_RESULTS)),
)  # fmt: skip


@given(
    st.lists(st.tuples(ROWS, st.integers(1, 10**9)), min_size=1, max_size=4), ANY_TEXT, ANY_TEXT, st.sampled_from(Form)
)
def test_any_content_gives_a_report_of_the_right_structure(rows, org_name, record, form):
    root = checked(replace(REPORT, rows=tuple(rows), record=record), form, Reporter(org_name, "a@b.example", org_name))
    assert [int(one.text) for one in root.iter("count")] == [count for _, count in rows]
    for (row, _), record_element in zip(rows, root.iter("record"), strict=True):
        assert len(record_element.findall("auth_results/dkim")) == len(row.dkim_results)


@FORMS
def test_the_checker_of_this_file_finds_faults(form):
    """A check that finds nothing proves nothing."""
    text = render(with_row(), Reporter("Example", "dmarc@example.org"), "1", form).decode()
    for old, new in [
        ("<count>1</count>", ""),
        ("<count>1</count>", "<count>1</count><count>1</count>"),
        ("<count>1</count>", "<count>x</count>"),
        ("<dkim>pass</dkim>", "<dkim>neutral</dkim>"),
        ("<policy_published>", "<policy_published><ri>86400</ri>"),
        ("<feedback", '<feedback lang="en"'),
        ("<auth_results>", "<auth_results>x"),
    ]:
        assert old in text
        assert faults(text.replace(old, new).encode()), (old, new)
