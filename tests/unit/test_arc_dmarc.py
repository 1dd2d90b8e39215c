"""DMARC events: the record found by tree walk, alignment, what was done, and how it is written down (RFC 9989)."""

from __future__ import annotations

import json
import os
import uuid

import pytest

import estate_arc_chain as chain
import estate_arc_dmarc as dmarc
import estate_arc_policy as policy


class Zone:
    """A small DNS."""

    def __init__(self, records: dict[str, str | list[str]], existing: tuple[str, ...] = ()) -> None:
        self.records, self.existing, self.asked = records, existing, []

    def lookup(self, name: str) -> list[bytes]:
        self.asked.append(name)
        found = self.records.get(name.removeprefix("_dmarc."), [])
        if found == "temperror":
            raise chain.TemporaryDnsError(name)
        return [text.encode() for text in ([found] if isinstance(found, str) else found)]

    def exists(self, name: str) -> bool:
        return name in self.existing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v=DMARC1; p=reject", ("reject", "reject", "reject", "n")),
        ("v=DMARC1; p=none; sp=quarantine", ("none", "quarantine", "quarantine", "n")),
        ("v=DMARC1;p=Quarantine;np=REJECT;t=y", ("quarantine", "quarantine", "reject", "y")),
        ("v=DMARC1; rua=mailto:a@example.com", ("none", "none", "none", "n")),
        ("v=DMARC1; p=nonsense; rua=mailto:a@example.com", ("none", "none", "none", "n")),
        ("v=DMARC1; p=reject; sp=nonsense; rua=mailto:a@example.com", ("none", "none", "none", "n")),
        ("v=DMARC1; p=reject; pct=0; rf=afrf; x=y;;", ("reject", "reject", "reject", "n")),
        ("v=DMARC1; p=reject; p=none", ("reject", "reject", "reject", "n")),
    ],
)
def test_records_are_read_with_their_defaults(text, expected):
    record = policy.parse_record("example.com", text.encode())
    assert (record.p, record.sp, record.np, record.t) == expected
    assert record.usable


@pytest.mark.parametrize("text", ["", "v=DMARC2; p=none", "p=none; v=DMARC1", "v=spf1 -all", "v=DMARC10; p=none"])
def test_other_text_is_no_record(text):
    assert policy.parse_record("example.com", text.encode()) is None


def test_record_without_policy_and_reports_asks_for_nothing():
    assert policy.discover("example.com", Zone({"example.com": "v=DMARC1; adkim=s"}).lookup, lambda name: True) is None


def test_two_records_are_none():
    assert (
        policy.find_record("a.example", Zone({"a.example": ["v=DMARC1; p=none", "v=DMARC1; p=reject"]}).lookup) is None
    )
    kept = policy.find_record("a.example", Zone({"a.example": ["v=spf1", "v=DMARC1; p=reject"]}).lookup)
    assert kept.p == "reject"


def test_walk_asks_at_most_eight_times():
    zone = Zone({})
    policy.walk(".".join("abcdefghijklm"), zone.lookup)
    assert zone.asked == [
        "_dmarc.a.b.c.d.e.f.g.h.i.j.k.l.m",
        "_dmarc.g.h.i.j.k.l.m",
        "_dmarc.h.i.j.k.l.m",
        "_dmarc.i.j.k.l.m",
        "_dmarc.j.k.l.m",
        "_dmarc.k.l.m",
        "_dmarc.l.m",
        "_dmarc.m",
    ]
    zone = Zone({})
    policy.walk("a.b.c.d.e.f.g.h", zone.lookup)
    assert len(zone.asked) == 8


@pytest.mark.parametrize(
    ("records", "domain", "organization"),
    [
        ({}, "a.mail.example.com", "a.mail.example.com"),
        ({"example.com": "v=DMARC1; p=none"}, "a.mail.example.com", "example.com"),
        ({"b.example.com": "v=DMARC1; p=none", "example.com": "v=DMARC1; p=none"}, "a.b.example.com", "example.com"),
        ({"b.example.com": "v=DMARC1; psd=n", "example.com": "v=DMARC1"}, "a.b.example.com", "b.example.com"),
        ({"com": "v=DMARC1; psd=y; p=none"}, "a.mail.example.com", "example.com"),
        ({"ac.jp": "v=DMARC1; psd=y; p=none", "x.ac.jp": "v=DMARC1; p=none"}, "m.x.ac.jp", "x.ac.jp"),
        ({"ac.jp": "v=DMARC1; psd=y; p=none"}, "ac.jp", "ac.jp"),
    ],
)  # fmt: skip
def test_organizational_domain(records, domain, organization):
    assert policy.organizational_domain(domain, policy.walk(domain, Zone(records).lookup)) == organization


@pytest.mark.parametrize(
    ("records", "domain", "where", "applied", "published"),
    [
        ({"a.example.com": "v=DMARC1; p=reject; sp=none"}, "a.example.com", "a.example.com", "p", "reject"),
        ({"example.com": "v=DMARC1; p=none; sp=quarantine"}, "a.example.com", "example.com", "sp", "quarantine"),
        ({"example.com": "v=DMARC1; p=none; np=reject"}, "gone.example.com", "example.com", "np", "reject"),
        ({"example.com": "v=DMARC1; p=none; np=reject"}, "a.example.com", "example.com", "sp", "none"),
        ({"com": "v=DMARC1; psd=y; p=none; np=reject"}, "a.example.com", "com", "sp", "none"),
    ],
)
def test_policy_that_governs_an_author_domain(records, domain, where, applied, published):
    found = policy.discover(domain, Zone(records).lookup, Zone({}, ("a.example.com",)).exists)
    assert (found.record.domain, found.applied, found.published) == (where, applied, published)


@pytest.mark.parametrize(("p", "asked"), [("reject", "quarantine"), ("quarantine", "none"), ("none", "none")])
def test_test_mode_asks_for_one_level_less(p, asked):
    zone = Zone({"example.com": f"v=DMARC1; p={p}; t=y"})
    assert policy.discover("example.com", zone.lookup, zone.exists).requested == asked


@pytest.mark.parametrize(
    ("identifier", "author", "mode", "expected"),
    [
        ("example.com", "example.com", "s", True),
        ("mail.example.com", "example.com", "s", False),
        ("mail.example.com", "example.com", "r", True),
        ("example.com", "mail.example.com", "r", True),
        ("a.example.com", "b.example.com", "r", True),
        ("own.example.com", "example.com", "r", False),
        ("example.net", "example.com", "r", False),
        ("xexample.com", "example.com", "r", False),
        ("other.com", "example.com", "r", False),
        ("", "example.com", "r", False),
    ],
)
def test_alignment(identifier, author, mode, expected):
    zone = Zone({"example.com": "v=DMARC1; p=reject", "own.example.com": "v=DMARC1; p=none; psd=n"})
    assert policy.aligned(identifier, author, mode, zone.lookup) == expected


ENVELOPE = dmarc.Envelope(
    "mail-gw1.example.org", "192.0.2.1", "OUT.example.com", "<author@bounce.example.com>",
    ("<reader@example.org>", "<other@example.org>", "x@sfc.example.org", "<>"),
)  # fmt: skip
PASS = "mx; dkim=pass header.d=example.com header.s=s1; spf=pass smtp.mailfrom=author@bounce.example.com; dmarc=pass"
FAIL = "mx; dkim=fail header.d=example.com header.s=s1; spf=pass smtp.mailfrom=x@list.example; dmarc=fail"
NO_TRUST = chain.Trust(False)
TRUST = chain.Trust(True, "pass")


def event(results, record="v=DMARC1; p=reject", author="example.com", trust=NO_TRUST, quarantined=False, **more):
    zone = Zone({"example.com": record}, ("example.com",))
    return dmarc.build_event(
        more.get("envelope", ENVELOPE),
        author,
        chain.parse_authentication_results(results.encode("utf-8", "surrogateescape")),
        lookup=zone.lookup,
        exists=zone.exists,
        arc="none",
        trust=trust,
        quarantined=quarantined,
        now=1_795_000_000.9,
    )


def test_event_of_a_passing_message():
    found = event(PASS)
    assert uuid.UUID(found.pop("id"))
    assert found == {
        "version": 1,
        "time": 1_795_000_000,
        "gateway": "mail-gw1.example.org",
        "source_ip": "192.0.2.1",
        "helo": "out.example.com",
        "envelope_from": "bounce.example.com",
        "envelope_to": ["example.org", "sfc.example.org"],
        "header_from": "example.com",
        "dns": "ok",
        "policy": {
            "domain": "example.com",
            "record": "v=DMARC1; p=reject",
            "discovery_method": "treewalk",
            "p": "reject",
            "sp": "reject",
            "np": "reject",
            "adkim": "r",
            "aspf": "r",
            "t": "n",
            "psd": "u",
            "applied": "p",
            "requested": "reject",
        },
        "spf": {"domain": "bounce.example.com", "scope": "mfrom", "result": "pass", "aligned": True},
        "dkim": [{"domain": "example.com", "selector": "s1", "result": "pass", "aligned": True}],
        "dmarc": "pass",
        "rspamd_dmarc": "pass",
        "disposition": "pass",
        "overrides": [],
        "arc": {"result": "none", "trusted": False, "dmarc": "none"},
    }


def test_spf_pass_that_is_not_aligned_stays_a_pass():
    found = event(FAIL)
    assert found["spf"] == {"domain": "list.example", "scope": "mfrom", "result": "pass", "aligned": False}
    assert found["dmarc"] == "fail"


@pytest.mark.parametrize(
    ("record", "trust", "quarantined", "disposition", "overrides"),
    [
        ("v=DMARC1; p=none", NO_TRUST, False, "none", []),
        ("v=DMARC1; p=none", NO_TRUST, True, "none", []),
        ("v=DMARC1; p=quarantine", NO_TRUST, True, "quarantine", []),
        ("v=DMARC1; p=quarantine", NO_TRUST, False, "none", ["local_policy"]),
        ("v=DMARC1; p=reject", NO_TRUST, True, "quarantine", ["local_policy"]),
        ("v=DMARC1; p=reject", TRUST, False, "none", ["trusted_forwarder"]),
        ("v=DMARC1; p=reject; t=y", NO_TRUST, True, "quarantine", ["policy_test_mode"]),
        ("v=DMARC1; p=quarantine; t=y", NO_TRUST, True, "none", ["policy_test_mode"]),
        ("v=spf1", NO_TRUST, True, "none", []),
    ],
)
def test_what_was_done_and_why(record, trust, quarantined, disposition, overrides):
    found = event(FAIL, record, trust=trust, quarantined=quarantined)
    assert found["disposition"] == disposition
    assert [override["type"] for override in found["overrides"]] == overrides


def test_null_sender_is_judged_by_helo():
    envelope = dmarc.Envelope("gw", "2001:db8::1", "mail.example.com", "<>", ())
    found = event("mx; spf=pass smtp.helo=mail.example.com", envelope=envelope)
    assert found["spf"] == {"domain": "mail.example.com", "scope": "helo", "result": "pass", "aligned": True}
    assert (found["envelope_from"], found["envelope_to"]) == ("", [])


@pytest.mark.parametrize(
    ("field", "author"),
    [
        (b"A <a@sub.example.com>", "sub.example.com"),
        ("A <a@例え.jp>".encode(), "xn--r8jz45g.jp"),
        (b"no address", "example.com"),
    ],
)
def test_author_is_who_the_from_field_names_and_not_whose_policy_rspamd_found(field, author):
    results = chain.parse_authentication_results(b"mx; dmarc=fail header.from=example.com (policy=quarantine)")
    assert dmarc.author_of([(b"From", field)], results) == author
    silent = chain.parse_authentication_results(b"mx; spf=pass")
    assert dmarc.author_of([(b"From", field)], silent) == (author if b"@" in field else "")


def test_signature_without_a_key_is_a_signature_that_failed_for_good():
    found = event('mx; dkim=none ("no key") header.d=example.com header.s=nokey')
    assert [one["result"] for one in found["dkim"]] == ["permerror"]
    assert event("mx; dkim=none")["dkim"] == []


def test_failing_dns_is_recorded_and_raises_nothing():
    found = event(PASS, "temperror")
    assert (found["dns"], found["policy"], found["dmarc"]) == ("temperror", None, "temperror")


def test_no_local_part_and_no_odd_character_gets_into_the_line():
    envelope = dmarc.Envelope(
        "gw", "192.0.2.1", 'h&<x>,y"\n', "<secret&<x>@b\xfccher.example>", ("secret@ex ample.org", "secret")
    )
    results = "mx; spf=pass smtp.mailfrom=secret@example.net; dkim=pass header.i=secret@example.com header.s=\udcff"
    line = json.dumps(event(results, envelope=envelope))
    assert "secret" not in line
    assert "\n" not in line
    found = json.loads(line)
    assert (found["helo"], found["envelope_from"], found["envelope_to"]) == ("", "xn--bcher-kva.example", [])
    assert found["dkim"][0]["domain"] == "example.com"


# ---------------------------------------------------------------------------------------------------------------- spool


class Clock:
    now = 1_795_003_000.0

    def __call__(self) -> float:
        return self.now


def lines(directory) -> list[str]:
    return [line for path in sorted(directory.iterdir()) for line in path.read_text().splitlines()]


def test_events_go_into_a_file_for_each_hour_and_worker(tmp_path):
    clock = Clock()
    spool = dmarc.EventSpool(str(tmp_path), "gw.1", 10_000, clock)
    assert spool.write({"a": 1})
    clock.now += 3600
    assert spool.write({"a": "ü\udcff"})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["20261118T11.gw.1.jsonl", "20261118T12.gw.1.jsonl"]
    assert json.loads(lines(tmp_path)[0]) == {"a": 1}
    assert all(line.isascii() for line in lines(tmp_path))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} <= {0o640}


def test_directory_never_outgrows_its_size_whoever_fills_it(tmp_path):
    clock = Clock()
    spool = dmarc.EventSpool(str(tmp_path), "1", 100, clock)
    written = [spool.write({"n": number}) for number in range(20)]
    assert written == [True] * 12 + [False] * 8 or sum(written) < 20
    assert dmarc.directory_bytes(str(tmp_path)) <= 100
    for path in tmp_path.iterdir():
        path.unlink()
    clock.now += dmarc.EventSpool.CHECK_SECONDS + 1
    assert spool.write({"n": 21})
    (tmp_path / "other").write_bytes(b"x" * 100)
    clock.now += dmarc.EventSpool.CHECK_SECONDS + 1
    assert not spool.write({"n": 22})


def test_file_taken_away_by_the_reader_is_begun_anew(tmp_path):
    spool = dmarc.EventSpool(str(tmp_path), "1", 10_000, Clock())
    spool.write({"n": 1})
    next(tmp_path.iterdir()).unlink()
    assert spool.write({"n": 2})
    assert lines(tmp_path) == ['{"n":2}']


def test_broken_directory_is_no_exception(tmp_path):
    spool = dmarc.EventSpool(str(tmp_path / "missing"), "1", 10_000, Clock())
    assert not spool.write({"n": 1})
    (tmp_path / "missing").mkdir()
    assert spool.write({"n": 2})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_no_exception(tmp_path):
    (tmp_path / "20261118T11.1.jsonl").symlink_to("/dev/full")
    assert not dmarc.EventSpool(str(tmp_path), "1", 10_000, Clock()).write({"n": 1})
