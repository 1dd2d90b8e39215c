"""Where reports go: `rua` as people publish it, who agreed to get reports, and who must not get any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_reports.destinations import (
    Destination,
    Reason,
    Refused,
    Rules,
    covered,
    parse_rua,
    parse_uri,
    resolve,
)  # fmt: skip
from estate_arc_policy import TemporaryDnsError


class Zone:
    """A small DNS: names and their TXT records; `None` stands for a server that does not answer."""

    def __init__(self, records: dict[str, str | list[str] | None] | None = None) -> None:
        self.records, self.asked = records or {}, []

    def __call__(self, name: str) -> list[bytes]:
        self.asked.append(name)
        found = self.records.get(name, [])
        if found is None:
            raise TemporaryDnsError(name)
        return [text.encode() for text in ([found] if isinstance(found, str) else found)]


def addresses(found) -> list[str]:
    return [one.address for one in found.taken]


def reasons(found) -> list[Reason]:
    return [one.reason for one in found.refused]


@pytest.mark.parametrize(
    ("uri", "address", "size"),
    [
        ("mailto:a@example.com", "a@example.com", None),
        (" MAILTO:Dmarc.Reports@Example.COM. ", "Dmarc.Reports@example.com", None),
        ("mailto:a@example.com!10m", "a@example.com", 10 * 1024 * 1024),
        ("mailto:a@example.com!500", "a@example.com", 500),
        ("mailto:a@example.com!2K", "a@example.com", 2048),
        ("mailto:a@example.com!1g", "a@example.com", 1 << 30),
        ("mailto:a@example.com!0", "a@example.com", 0),
        ("mailto:a%21b@example.com!1t", "a!b@example.com", 1 << 40),
        ("mailto:a!b@example.com", "a!b@example.com", None),
        ("mailto:a%2Bb%25@example.com", "a+b%@example.com", None),
        ("mailto:a+b@example.com", "a+b@example.com", None),
        ("mailto:a%40example.com", "a@example.com", None),
        ("mailto:a@example.com?subject=x&bcc=victim@example.net", "a@example.com", None),
        ("mailto:a@b%C3%BCcher.example", "a@xn--bcher-kva.example", None),
        ("mailto:a@bücher.example", "a@xn--bcher-kva.example", None),
        ("mailto:a@XN--bcher-kva.example", "a@xn--bcher-kva.example", None),
    ],
)
def test_address_is_read(uri, address, size):
    found = parse_uri(uri)
    assert isinstance(found, Destination)
    assert (found.address, found.max_bytes) == (address, size)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", Reason.WRONG_SYNTAX),
        ("a@example.com", Reason.WRONG_SYNTAX),
        ("mailto:", Reason.WRONG_SYNTAX),
        ("mailto:example.com", Reason.WRONG_SYNTAX),
        ("mailto:@example.com", Reason.WRONG_SYNTAX),
        ("mailto:a@", Reason.WRONG_SYNTAX),
        ("mailto:a@localhost", Reason.WRONG_SYNTAX),
        ("mailto:a@192.0.2.1 x", Reason.WRONG_SYNTAX),
        ("mailto:a@[192.0.2.1]", Reason.WRONG_SYNTAX),
        ("mailto:a@exa mple.com", Reason.WRONG_SYNTAX),
        ("mailto: a@example.com", Reason.WRONG_SYNTAX),
        ("mailto:a@example..com", Reason.WRONG_SYNTAX),
        ("mailto:a@%20example.com", Reason.WRONG_SYNTAX),
        ("mailto:a@" + "x" * 64 + ".com", Reason.WRONG_SYNTAX),
        ("mailto:" + "x" * 65 + "@example.com", Reason.WRONG_SYNTAX),
        ("mailto:a@example.com!10mb", Reason.WRONG_SYNTAX),
        ("mailto:a@example.com!", Reason.WRONG_SYNTAX),
        ("mailto:a%0D%0ABcc:x@example.com", Reason.WRONG_SYNTAX),
        ("mailto:a@example.com%0D%0A.example", Reason.WRONG_SYNTAX),
        ("mailto:a%2Cb%40example.net@example.com", Reason.WRONG_SYNTAX),
        ("mailto:a%zz@example.com", Reason.WRONG_SYNTAX),
        ("mailto:a%FF@example.com", Reason.WRONG_SYNTAX),
        ("mailto:%C3%BC@example.com", Reason.WRONG_SYNTAX),
        ("mailto:<a@example.com>", Reason.WRONG_SYNTAX),
        ('mailto:"a b"@example.com', Reason.WRONG_SYNTAX),
        ("mailto:a;b@example.com", Reason.WRONG_SYNTAX),
        ("https://example.com/dmarc", Reason.NOT_MAILTO),
        ("mailto//a@example.com", Reason.WRONG_SYNTAX),
    ],
)
def test_what_is_no_address_is_set_aside(uri, reason):
    found = parse_uri(uri)
    assert isinstance(found, Refused)
    assert found.reason is reason
    assert found.detail


def test_one_wrong_address_does_not_stop_the_others():
    found = parse_rua("mailto:a@example.com!10m, dmarc@example.com,,https://x.example/ ,mailto:b@example.com")
    assert addresses(found) == ["a@example.com", "b@example.com"]
    assert reasons(found) == [Reason.WRONG_SYNTAX, Reason.WRONG_SYNTAX, Reason.NOT_MAILTO]


def test_address_named_twice_gets_one_report():
    found = parse_rua("mailto:a@example.com,mailto:a@EXAMPLE.com,mailto:A@example.com")
    assert (addresses(found), reasons(found)) == (["a@example.com", "A@example.com"], [Reason.DUPLICATE])


def test_too_many_addresses_are_cut_off_in_their_order():
    found = parse_rua(",".join(f"mailto:a{number}@example.com" for number in range(7)))
    assert addresses(found) == [f"a{number}@example.com" for number in range(5)]
    assert reasons(found) == [Reason.TOO_MANY] * 2


@pytest.mark.parametrize("rua", ["", "  "])
def test_no_rua_is_no_fault(rua):
    found = parse_rua(rua)
    assert (found.taken, found.refused) == ((), ())


@given(st.text(max_size=60) | st.text("mailto:@.,!%0Dae ?", max_size=40).map("mailto:".__add__))
def test_any_text_gives_addresses_that_cannot_break_a_header(text):
    for one in parse_rua(text).taken:
        assert one.address.isascii()
        assert one.address.isprintable()
        assert not set(one.address) & set(' ,;<>"()[]\\')
        assert 1 <= len(one.local) <= 64
        assert "." in one.domain


@pytest.mark.parametrize(
    ("policy_domain", "destination"),
    [("example.com", "example.com"), ("example.com", "rua.example.com"), ("a.example.com", "b.c.example.com")],
)
def test_address_in_the_same_organization_needs_no_permission(policy_domain, destination):
    zone = Zone({"_dmarc.example.com": "v=DMARC1; p=none", "_dmarc.a.example.com": "v=DMARC1; p=none"})
    assert addresses(resolve(policy_domain, f"mailto:x@{destination}", zone)) == [f"x@{destination}"]
    assert not [name for name in zone.asked if "_report" in name]


@pytest.mark.parametrize(
    ("records", "policy_domain", "destination"),
    [
        ({}, "example.com", "example.net"),
        # a name below a public suffix is another organization, though its last labels are the same
        ({"_dmarc.ac.jp": "v=DMARC1; psd=y; p=none"}, "x.ac.jp", "y.ac.jp"),
        # psd=n pins the organization
        ({"_dmarc.a.example.com": "v=DMARC1; psd=n; p=none", "_dmarc.example.com": "v=DMARC1; p=none"},
         "a.example.com", "example.com"),
    ],
)  # fmt: skip
def test_address_outside_is_used_only_with_permission(records, policy_domain, destination):
    zone = Zone(dict(records))
    found = resolve(policy_domain, f"mailto:x@{destination}", zone)
    assert (addresses(found), reasons(found)) == ([], [Reason.NOT_AUTHORISED])
    name = f"{policy_domain}._report._dmarc.{destination}"
    assert zone.asked[-1] == name
    zone.records[name] = "v=DMARC1"
    assert addresses(resolve(policy_domain, f"mailto:x@{destination}", zone)) == [f"x@{destination}"]


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        ("v=DMARC1;", True),
        (" v = DMARC1 ; x=y", True),
        (["junk", "v=DMARC1"], True),
        ("v=DMARC2", False),
        ("v=DMARC10", False),
        ("p=none; v=DMARC1", False),
        ("", False),
        ("v=spf1 -all", False),
    ],
)
def test_permission_must_be_a_dmarc_record(answer, taken):
    zone = Zone({"example.com._report._dmarc.example.net": answer})
    assert bool(resolve("example.com", "mailto:x@example.net", zone).taken) is taken


@pytest.mark.parametrize(
    ("override", "expected", "reason"),
    [
        ("mailto:other@example.net", ["other@example.net"], None),
        ("mailto:other@example.net!5k, mailto:b@EXAMPLE.net", ["other@example.net", "b@example.net"], None),
        ("mailto:victim@example.edu", [], Reason.OVERRIDDEN_WRONGLY),
        ("mailto:other@example.net,mailto:victim@example.edu", [], Reason.OVERRIDDEN_WRONGLY),
        ("mailto:x@sub.example.net", [], Reason.OVERRIDDEN_WRONGLY),
        ("nonsense", [], Reason.OVERRIDDEN_WRONGLY),
    ],
)
def test_destination_may_name_another_of_its_own_addresses(override, expected, reason):
    zone = Zone({"example.com._report._dmarc.example.net": f"v=DMARC1; rua={override}"})
    found = resolve("example.com", "mailto:x@example.net!10m", zone)
    assert addresses(found) == expected
    assert reasons(found) == ([reason] if reason else [])
    if "!5k" in override:
        assert [one.max_bytes for one in found.taken] == [5120, None]


def test_two_addresses_sent_to_one_get_one_report():
    zone = Zone({"example.com._report._dmarc.example.net": "v=DMARC1; rua=mailto:z@example.net"})
    found = resolve("example.com", "mailto:x@example.net,mailto:y@example.net", zone)
    assert (addresses(found), reasons(found)) == (["z@example.net"], [Reason.DUPLICATE])


def test_dns_that_does_not_answer_is_worth_another_try_and_stops_nobody_else():
    zone = Zone({"example.com._report._dmarc.example.net": None})
    found = resolve("example.com", "mailto:x@example.net,mailto:y@example.com", zone)
    assert (addresses(found), reasons(found)) == (["y@example.com"], [Reason.DNS_TEMPERROR])
    assert [reason for reason in Reason if reason.temporary] == [Reason.DNS_TEMPERROR]


def test_tree_walk_that_does_not_answer_refuses_nobody_for_good():
    found = resolve("a.example.com", "mailto:x@b.example.com", Zone({"_dmarc.example.com": None}))
    assert reasons(found) == [Reason.DNS_TEMPERROR]


def test_name_too_long_to_ask_for_is_no_permission():
    domain = ".".join(["x" * 60] * 3) + ".com"
    zone = Zone()
    found = resolve(domain, "mailto:x@" + "y" * 60 + ".net", zone)
    assert reasons(found) == [Reason.NOT_AUTHORISED]
    assert not [name for name in zone.asked if "_report" in name]


def test_report_about_us_does_not_go_to_us_but_others_do():
    rules = Rules(own=("example.org", ".example.org"))
    zone = Zone({
        "example.org._report._dmarc.example.net": "v=DMARC1", "example.com._report._dmarc.rua.example.org": "v=DMARC1",
    })  # fmt: skip
    found = resolve("example.org", "mailto:x@rua.example.org,mailto:x@example.net", zone, rules)
    assert (addresses(found), reasons(found)) == (["x@example.net"], [Reason.OWN])
    assert addresses(resolve("example.com", "mailto:x@rua.example.org", zone, rules)) == ["x@rua.example.org"]


@pytest.mark.parametrize("excluded", ["example.com", "example.net"])
def test_excluded_domains_get_nothing_and_nobody_is_asked(excluded):
    zone = Zone({"example.com._report._dmarc.example.net": "v=DMARC1"})
    found = resolve("example.com", "mailto:x@example.net", zone, Rules(excluded=(excluded,)))
    assert (addresses(found), reasons(found), zone.asked) == ([], [Reason.EXCLUDED], [])


@pytest.mark.parametrize(
    ("domain", "pattern", "expected"),
    [
        ("example.org", "example.org", True),
        ("a.example.org", "example.org", False),
        ("a.b.example.org", ".example.org", True),
        ("example.org", ".example.org", False),
        ("notexample.org", ".example.org", False),
        ("example.org", "EXAMPLE.org.", True),
        ("xn--bcher-kva.example", "bücher.example", True),
        ("example.org", "", False),
        ("example.org", ".", False),
    ],
)
def test_patterns_of_domains(domain, pattern, expected):
    assert covered(domain, [pattern]) is expected
