"""DMARC events as the report generator reads them: what the gateways write is taken, anything else is set aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import estate_arc_chain as chain
import estate_arc_dmarc as writer
from dmarc_reports import events

RESULTS = (
    "mx.example.org; dkim=pass header.d=example.com header.s=s1; dkim=fail header.d=example.net header.s=s2;"
    " spf=pass smtp.mailfrom=bounce@example.com; dmarc=pass header.from=example.com"
)


def written(tmp_path: Path, results: str = RESULTS, record: str = "v=DMARC1; p=reject", **envelope: Any) -> bytes:
    """A line as the milter of the gateways writes it."""
    names = {"_dmarc.example.com": [record.encode()]} if record else {}
    event = writer.build_event(
        writer.Envelope(
            **{
                "gateway": "mail-gw1.example.org", "source_ip": "192.0.2.1", "helo": "mx.example.com",
                "sender": "bounce@example.com", "recipients": ("a@example.org",),
            } | envelope
        ),
        "example.com",
        chain.parse_authentication_results(results.encode()),
        lookup=lambda name: names.get(name, []), exists=lambda name: True, arc="none",
        trust=chain.Trust(trusted=False), quarantined=False, now=1_800_000_000.9,
    )  # fmt: skip
    assert writer.EventSpool(str(tmp_path), "gw.1", 1 << 20, clock=lambda: 1_800_000_000.0).write(event)
    return next(tmp_path.glob("*.jsonl")).read_bytes().splitlines()[-1]


@pytest.fixture
def line(tmp_path: Path) -> bytes:
    return written(tmp_path)


def changed(line: bytes, path: str, value: Any) -> bytes:
    """The line with one field set, or taken away by `...`; the path has dots."""
    content = json.loads(line)
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner = content
    for part in above:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(content).encode()


def test_what_the_gateways_write_is_read_back(line):
    event = events.parse_line(line)
    assert (event.time, event.gateway, event.source_ip) == (1_800_000_000, "mail-gw1.example.org", "192.0.2.1")
    assert (event.header_from, event.envelope_from, event.envelope_to) == (
        "example.com", "example.com", ("example.org",),
    )  # fmt: skip
    assert (event.policy.domain, event.policy.p, event.policy.applied) == ("example.com", "reject", "p")
    assert event.policy.record == "v=DMARC1; p=reject"
    assert event.spf == events.Spf("example.com", "mfrom", "pass", True)
    assert event.dkim == (
        events.Signature("example.com", "s1", "pass", True),
        events.Signature("example.net", "s2", "fail", False),
    )
    assert (event.dmarc, event.disposition, event.overrides) == ("pass", "pass", ())


def test_refused_policy_is_read_with_its_reason(tmp_path):
    event = events.parse_line(written(tmp_path, "mx.example.org; spf=fail smtp.mailfrom=a@example.com"))
    assert (event.dmarc, event.disposition) == ("fail", "none")
    assert event.overrides == (events.Override("local_policy", ""),)


def test_message_without_policy_is_an_event(tmp_path):
    event = events.parse_line(written(tmp_path, record=""))
    assert (event.policy, event.dmarc, event.disposition) == (None, "none", "none")


@pytest.mark.parametrize("text", ["", "abc", "1.2", "\x00<x>"])
def test_junk_in_helo_and_null_sender_is_an_event(tmp_path, text):
    event = events.parse_line(written(tmp_path, "mx.example.org; spf=none", helo=text, sender="", recipients=()))
    assert (event.envelope_from, event.envelope_to) == ("", ())


def test_v4_address_within_v6_is_one_address(line):
    assert events.parse_line(changed(line, "source_ip", "::ffff:192.0.2.7")).source_ip == "192.0.2.7"
    assert events.parse_line(changed(line, "source_ip", "2001:DB8:0:0::1")).source_ip == "2001:db8::1"


def test_field_of_a_later_writer_does_no_harm(line):
    assert events.parse_line(changed(line, "tls", "TLSv1.3")) == events.parse_line(line)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("version", 2, "version 2"),
        ("version", True, "version is not of type int"),
        ("id", ..., "id is missing"),
        ("id", "17", "id is no UUID"),
        ("time", "1800000000", "time is not of type int"),
        ("time", 1.5, "time is not of type int"),
        ("time", -1, "no moment of our age"),
        ("time", 10**15, "no moment of our age"),
        ("source_ip", "unknown", "source_ip is no address"),
        ("source_ip", "fe80::1%eth0", "source_ip has a zone"),
        ("header_from", "", "header_from is no domain name"),
        ("header_from", "Example.com", "header_from is no domain name"),
        ("header_from", "a..b", "header_from is no domain name"),
        ("header_from", "h&<x>", "header_from is no domain name"),
        ("envelope_from", "x\x00y", "envelope_from is no domain name"),
        ("envelope_to", "example.org", "envelope_to is not of type list"),
        ("envelope_to", [5], "envelope_to is no domain name"),
        ("dns", "maybe", "dns is 'maybe'"),
        ("policy", [], "policy is not of type dict"),
        ("policy.domain", "", "domain is no domain name"),
        ("policy.p", "discard", "p is 'discard'"),
        ("policy.adkim", "x", "adkim is 'x'"),
        ("policy", None, "aligned without a policy"),
        ("spf.result", "hardfail", "result is 'hardfail'"),
        ("spf.aligned", 1, "aligned is not of type bool"),
        ("spf.result", "fail", "aligned without having passed"),
        ("dkim", {}, "dkim is not of type list"),
        ("dkim", ["example.com"], "dkim holds something other than objects"),
        ("dkim.0.selector", None, "selector is not of type str"),
        ("dkim.1.aligned", True, "aligned without having passed"),
        ("dmarc", "fail", "contradicts the alignment"),
        ("disposition", "reject", "disposition 'reject' contradicts"),
        ("disposition", "drop", "disposition is 'drop'"),
        ("overrides", [{"type": "sampled_out", "comment": ""}], "type is 'sampled_out'"),
        ("overrides", [{"type": "other"}], "comment is missing"),
    ],
)
def test_wrong_line_is_set_aside_with_its_reason_and_the_rest_goes_on(line, tmp_path, path, value, reason):
    bad = changed(line, path, value)
    other = changed(line, "id", "00000000-0000-4000-8000-000000000001")
    reader = events.Reader()
    assert [event.id for event in reader.events([line, bad, other])][1:] == [json.loads(other)["id"]]
    (aside,) = reader.set_aside
    assert reason in aside.reason
    assert aside.line == bad


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"version": 1, "id": "8', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"version": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * 5 + b"x" * 1_000_001, "longer than"),
    ],
    ids=["cut off", "bytes", "deep", "list", "null", "number", "long"],
)
def test_what_is_no_object_is_set_aside(text, reason):
    reader = events.Reader()
    assert list(reader.events([b"\n", text])) == []
    assert reason in reader.set_aside[0].reason


def test_event_that_comes_again_counts_once(line, tmp_path):
    reader = events.Reader()
    again = json.dumps(dict(reversed(json.loads(line).items())), indent=1).encode().replace(b"\n", b"")
    assert len(list(reader.events([line, line + b"\r\n"]))) == 1
    assert list(reader.events([again])) == []
    assert (reader.duplicates, reader.set_aside) == (2, [])


def test_same_id_in_other_case_is_the_same_and_with_other_content_a_fault(line):
    reader = events.Reader()
    upper = changed(line, "id", json.loads(line)["id"].upper())
    assert len(list(reader.events([line, upper, changed(line, "time", 1_800_000_001)]))) == 1
    assert reader.duplicates == 1
    assert "another content" in reader.set_aside[0].reason


@given(st.binary(max_size=200))
def test_any_octets_are_an_event_or_set_aside(text):
    reader = events.Reader()
    assert list(reader.events([text])) == []
    assert len(reader.set_aside) == bool(text.strip())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_value_in_any_field_is_an_event_or_set_aside(data):
    event = {
        "version": 1, "id": "00000000-0000-4000-8000-000000000001", "time": 1, "gateway": "g", "source_ip": "::1",
        "helo": "", "envelope_from": "", "envelope_to": [], "header_from": "a.example", "dns": "ok", "policy": None,
        "spf": None, "dkim": [], "dmarc": "none", "disposition": "none", "overrides": [],
    }  # fmt: skip
    reader = events.Reader()
    assert len(list(reader.events([json.dumps(event).encode()]))) == 1
    event |= {"id": "00000000-0000-4000-8000-000000000002", data.draw(st.sampled_from(sorted(event))): data.draw(JSON)}
    found = list(reader.events([json.dumps(event).encode()]))
    assert len(found) + len(reader.set_aside) + reader.duplicates == 1
