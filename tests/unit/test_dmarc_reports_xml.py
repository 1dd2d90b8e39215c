"""Reports as XML: the structure of RFC 9990 and of RFC 7489, whatever strangers wrote into their mail.

The rules below are the two schemas (RFC 9990 and RFC 7489, appendices) written as tables and checked by this file's own
code: a schema validator is none of the repository's requirements.
"""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports.aggregate import Published, Report, Row
from dmarc_reports.events import DISPOSITIONS, DKIM_RESULTS, OVERRIDES, SPF_RESULTS, Override
from dmarc_reports.report_xml import NAMESPACE, Form, Reporter, render

POLICY, PASS_FAIL, ALIGNMENT = "none|quarantine|reject", "pass|fail", "r|s"
DKIM = "none|pass|fail|policy|neutral|temperror|permerror"
TEXT, NUMBER = r"(?s).*", r"[0-9]+"
IPV4 = r"((1?[0-9]?[0-9]|2[0-4][0-9]|25[0-5])\.){3}(1?[0-9]?[0-9]|2[0-4][0-9]|25[0-5])"

# element → its children in order: name, least and greatest number, and what it holds (another table or a pattern)
RANGE = [("begin", 1, 1, NUMBER), ("end", 1, 1, NUMBER)]
NEW = [
    ("version", 0, 1, r"1\.0"),
    ("report_metadata", 1, 1, [
        ("org_name", 1, 1, TEXT), ("email", 1, 1, TEXT), ("extra_contact_info", 0, 1, TEXT), ("report_id", 1, 1, TEXT),
        ("date_range", 1, 1, RANGE), ("error", 0, 1, TEXT), ("generator", 0, 1, TEXT),
    ]),
    ("policy_published", 1, 1, [
        ("domain", 1, 1, TEXT), ("discovery_method", 0, 1, "psl|treewalk"), ("p", 1, 1, POLICY), ("sp", 0, 1, POLICY),
        ("np", 0, 1, POLICY), ("fo", 0, 1, TEXT), ("adkim", 0, 1, ALIGNMENT), ("aspf", 0, 1, ALIGNMENT),
        ("testing", 0, 1, "n|y"),
    ]),
    ("record", 1, None, [
        ("row", 1, 1, [
            ("source_ip", 1, 1, r"[0-9a-f.:]+"), ("count", 1, 1, NUMBER),
            ("policy_evaluated", 1, 1, [
                ("disposition", 1, 1, "none|pass|quarantine|reject"), ("dkim", 1, 1, PASS_FAIL),
                ("spf", 1, 1, PASS_FAIL),
                ("reason", 0, None, [
                    ("type", 1, 1, "local_policy|mailing_list|other|policy_test_mode|trusted_forwarder"),
                    ("comment", 0, 1, TEXT),
                ]),
            ]),
        ]),
        ("identifiers", 1, 1, [
            ("envelope_to", 0, 1, TEXT), ("envelope_from", 0, 1, TEXT), ("header_from", 1, 1, TEXT),
        ]),
        ("auth_results", 1, 1, [
            ("dkim", 0, None, [("domain", 1, 1, TEXT), ("selector", 1, 1, TEXT), ("result", 1, 1, DKIM)]),
            ("spf", 0, 1, [
                ("domain", 1, 1, TEXT), ("scope", 0, 1, "mfrom"),
                ("result", 1, 1, "none|pass|fail|softfail|policy|neutral|temperror|permerror"),
            ]),
        ]),
    ]),
]  # fmt: skip
OLD = [
    ("version", 1, 1, r"1\.0"),
    ("report_metadata", 1, 1, [
        ("org_name", 1, 1, TEXT), ("email", 1, 1, TEXT), ("extra_contact_info", 0, 1, TEXT), ("report_id", 1, 1, TEXT),
        ("date_range", 1, 1, RANGE), ("error", 0, None, TEXT),
    ]),
    ("policy_published", 1, 1, [
        ("domain", 1, 1, TEXT), ("p", 1, 1, POLICY), ("sp", 0, 1, POLICY), ("fo", 0, 1, TEXT),
        ("adkim", 0, 1, ALIGNMENT), ("aspf", 0, 1, ALIGNMENT), ("pct", 1, 1, r"[0-9]{1,2}|100"),
    ]),
    ("record", 1, None, [
        ("row", 1, 1, [
            ("source_ip", 1, 1, rf"{IPV4}|([A-Fa-f0-9]{{1,4}}:){{7}}[A-Fa-f0-9]{{1,4}}"), ("count", 1, 1, NUMBER),
            ("policy_evaluated", 1, 1, [
                ("disposition", 1, 1, POLICY), ("dkim", 1, 1, PASS_FAIL), ("spf", 1, 1, PASS_FAIL),
                ("reason", 0, None, [
                    ("type", 1, 1, "forwarded|sampled_out|trusted_forwarder|mailing_list|local_policy|other"),
                    ("comment", 0, 1, TEXT),
                ]),
            ]),
        ]),
        ("identifiers", 1, 1, [
            ("envelope_to", 0, 1, TEXT), ("envelope_from", 1, 1, TEXT), ("header_from", 1, 1, TEXT),
        ]),
        ("auth_results", 1, 1, [
            ("dkim", 0, None, [("domain", 1, 1, TEXT), ("selector", 0, 1, TEXT), ("result", 1, 1, DKIM)]),
            ("spf", 1, None, [
                ("domain", 1, 1, TEXT), ("scope", 1, 1, "helo|mfrom"),
                ("result", 1, 1, "none|neutral|pass|fail|softfail|temperror|permerror"),
            ]),
        ]),
    ]),
]  # fmt: skip


def faults(element: ElementTree.Element, rules: list | str, namespace: str, path: str = "") -> list[str]:
    """What is wrong with an element and all below it."""
    path = f"{path}/{element.tag.removeprefix(namespace)}"
    if element.attrib:
        return [f"{path}: attributes"]
    if isinstance(rules, str):
        wrong = len(element) or not re.fullmatch(rules, element.text or "")
        return [f"{path}: {element.text!r}"] if wrong else []
    found = [] if not (element.text or "").strip() else [f"{path}: text"]
    names = [child.tag for child in element]
    order = [namespace + name for name, *_ in rules]
    if names != sorted(names, key=lambda name: order.index(name) if name in order else -1):
        found.append(f"{path}: order {names}")
    found += [f"{path}: {name} does not belong here" for name in names if name not in order]
    for name, least, most, inner in rules:
        children = [child for child in element if child.tag == namespace + name]
        if not least <= len(children) <= (len(children) if most is None else most):
            found.append(f"{path}: {len(children)} × {name}")
        for child in children:
            found += faults(child, inner, namespace, path)
    return found


def checked(report: Report, form: Form = Form.RFC9990, reporter: Reporter | None = None) -> ElementTree.Element:
    """The parsed document, after its structure was checked."""
    reporter = reporter or Reporter("Example", "dmarc@example.org")
    text = render(report, reporter, "0123abcd", form)
    root = ElementTree.fromstring(text)
    namespace = f"{{{NAMESPACE}}}" if form is Form.RFC9990 else ""
    assert root.tag == f"{namespace}feedback"
    assert faults(root, NEW if form is Form.RFC9990 else OLD, namespace) == []
    for element in root.iter():
        element.tag = element.tag.removeprefix(namespace)
    return root


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
    namespace = f"{{{NAMESPACE}}}" if form is Form.RFC9990 else ""
    rules = NEW if form is Form.RFC9990 else OLD
    for old, new in [
        ("<count>1</count>", ""),
        ("<count>1</count>", "<count>1</count><count>1</count>"),
        ("<count>1</count>", "<count>x</count>"),
        ("<dkim>pass</dkim>", "<dkim>neutral</dkim>"),
        ("<policy_published>", "<policy_published><ri>86400</ri>"),
        ("<feedback", '<feedback lang="en"'),
        ("<auth_results>", "<auth_results>x"),
    ]:
        assert faults(ElementTree.fromstring(text.replace(old, new)), rules, namespace), (old, new)
