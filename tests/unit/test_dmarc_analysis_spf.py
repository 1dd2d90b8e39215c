"""SPF records are expanded as a receiver would read them (RFC 7208)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmarc_analysis.spf import MAX_QUERIES, TemporaryError, expand


class Zone:
    """DNS of a test: name → (type → answers); a type of "temporary" gives no answer at all."""

    def __init__(self, **names: object) -> None:
        self.names: dict[str, object] = names
        self.questions = 0

    def _ask(self, name: str, kind: str) -> list[str]:
        self.questions += 1
        found = self.names.get(name.rstrip("."), {})
        if found == "temporary":
            raise TemporaryError(name)
        assert isinstance(found, dict)
        return found.get(kind, [])

    def txt(self, name: str) -> list[str]:
        return self._ask(name, "txt")

    def addresses(self, name: str) -> list[str]:
        return self._ask(name, "a")

    def mx(self, name: str) -> list[str]:
        return self._ask(name, "mx")


def spf(record: str, **more: list[str]) -> dict[str, list[str]]:
    return {"txt": ["some other text", record], **more}


def ways(zone: dict[str, object], domain: str = "example.org") -> dict[str, str]:
    found = expand(domain, Zone(**zone))
    assert found.problem is None
    return {str(network): via for network, via in found.networks.items()}


def test_networks_are_found_through_every_mechanism_with_the_way_to_them() -> None:
    zone = {
        "example.org": spf(
            "v=spf1 ip4:192.0.2.0/24 IP6:2001:db8::/32 ip4:192.0.2.77 a a:www.example.net/28//64 mx"
            " include:spf.example.com ~all ip4:10.0.0.0/8",
            a=["198.51.100.1"],
            mx=["mx1.example.org", "mx2.example.org"],
        ),
        "www.example.net": {"a": ["203.0.113.17", "2001:db8:1:2::5"]},
        "mx1.example.org": {"a": ["198.51.100.2"]},
        "mx2.example.org": {"a": ["198.51.100.3"]},
        "spf.example.com": spf("v=spf1 redirect=_r.example.com"),
        "_r.example.com": spf("v=spf1 ip4:100.64.0.0/10 ?ip4:100.0.0.0/8 -all"),
    }
    assert ways(zone) == {
        "192.0.2.0/24": "ip4",
        "2001:db8::/32": "ip6",
        "192.0.2.77/32": "ip4",
        "198.51.100.1/32": "a",
        "203.0.113.16/28": "a:www.example.net",
        "2001:db8:1:2::/64": "a:www.example.net",
        "198.51.100.2/32": "mx",
        "198.51.100.3/32": "mx",
        "100.64.0.0/10": "include:spf.example.com redirect:_r.example.com ip4",
    }
    found = expand("Example.ORG.", Zone(**zone))
    assert (found.lookups, found.void_lookups) == (5, 0)
    assert found.includes == {"spf.example.com": 2}


def test_only_what_passes_may_send() -> None:
    zone = {
        "example.org": spf("v=spf1 -ip4:192.0.2.1 ~ip4:192.0.2.2 ?include:soft.example.com ip4:192.0.2.3 -all"),
        "soft.example.com": spf("v=spf1 ip4:192.0.2.4 -all"),
    }
    assert ways(zone) == {"192.0.2.3/32": "ip4"}


def test_ten_lookups_are_allowed_and_eleven_are_told() -> None:
    zone: dict[str, object] = {f"s{number}.example.com": spf("v=spf1 -all") for number in range(11)}
    ten = " ".join(f"include:s{number}.example.com" for number in range(10))
    assert expand("example.org", Zone(**zone, **{"example.org": spf(f"v=spf1 {ten} -all")})).problem is None
    found = expand("example.org", Zone(**zone, **{"example.org": spf(f"v=spf1 {ten} include:s10.example.com -all")}))
    assert found.lookups == 11
    assert found.problem == "11 look-ups, and receivers stop at 10 (RFC 7208 §4.6.4)"


def test_lookups_without_an_answer_are_counted() -> None:
    found = expand("example.org", Zone(**{"example.org": spf("v=spf1 a:x.example.com a:y.example.com mx -all")}))
    assert found.void_lookups == 3
    assert "3 look-ups without an answer" in str(found.problem)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([], "example.org has no SPF record"),
        (["v=spf1 -all", "v=spf1 ~all"], "example.org has 2 SPF records"),
        (["v=spf10 -all"], "example.org has no SPF record"),
        (["v=spf1 include:example.org -all"], "example.org → example.org goes round in a circle"),
        (["v=spf1 exists:%{i}.example.com -all"], "example.org: exists:%{i}.example.com depends on the message"),
        (["v=spf1 ptr -all"], "example.org: ptr depends on the message"),
        (["v=spf1 include:%{d}.example.com -all"], "include of %{d}.example.com has macros"),
        (["v=spf1 a:%{d}.example.com -all"], "example.org: a:%{d}.example.com has macros"),
        (["v=spf1 ip4:192.0.2.0/33 -all"], "'ip4:192.0.2.0/33' is no network"),
        (["v=spf1 ip4:2001:db8::/32 -all"], "'ip4:2001:db8::/32' is no network"),
        (["v=spf1 a/33 -all"], "'a/33' is no SPF term"),
        (["v=spf1 ipv4:192.0.2.1 -all"], "'ipv4:192.0.2.1' is no SPF term"),
        (["v=spf1 include: -all"], "include of '' is no domain"),
        (["v=spf1 include:nowhere.example.com -all"], "nowhere.example.com has no SPF record (include in example.org)"),
        (["v=spf1 +all"], "+all lets everybody send"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words(records: list[str], problem: str) -> None:
    found = expand("example.org", Zone(**{"example.org": {"txt": records}}))
    assert problem in str(found.problem)


def test_a_circle_of_several_records_ends() -> None:
    zone = {
        "example.org": spf("v=spf1 include:a.example.com -all"),
        "a.example.com": spf("v=spf1 include:b.example.com ip4:192.0.2.1 -all"),
        "b.example.com": spf("v=spf1 include:a.example.com -all"),
    }
    found = expand("example.org", Zone(**zone))
    assert "a.example.com → b.example.com → a.example.com goes round" in str(found.problem)
    assert [str(network) for network in found.networks] == ["192.0.2.1/32"]


def test_a_chain_without_end_costs_a_bounded_number_of_questions() -> None:
    class Endless(Zone):
        def txt(self, name: str) -> list[str]:
            self.questions += 1
            return [f"v=spf1 include:x{self.questions}.example.com -all"]

    zone = Endless()
    assert "the rest was not read" in str(expand("example.org", zone).problem)
    assert zone.questions <= MAX_QUERIES


def test_no_answer_anywhere_in_the_chain_is_an_error_and_no_half_result() -> None:
    zone = {"example.org": spf("v=spf1 ip4:192.0.2.1 include:a.example.com -all"), "a.example.com": "temporary"}
    with pytest.raises(TemporaryError):
        expand("example.org", Zone(**zone))


def test_redirect_counts_only_without_all() -> None:
    zone = {
        "example.org": spf("v=spf1 redirect=other.example.com ip4:192.0.2.1"),
        "other.example.com": spf("v=spf1 ip4:192.0.2.2 -all"),
        "example.net": spf("v=spf1 -all redirect=other.example.com"),
    }
    assert ways(zone) == {"192.0.2.1/32": "ip4", "192.0.2.2/32": "redirect:other.example.com ip4"}
    assert expand("example.net", Zone(**zone)).lookups == 0


TERMS = st.sampled_from(
    ["ip4:192.0.2.1", "ip6:::/0", "a", "mx", "a:%{i}", "mx//129", "include:a.b", "include:", "exists:x", "ptr", "all",
     "-all", "redirect=a.b", "exp=x", "a/", "ip4:", "ip4", "?", "mx:a.b/99", "include:../x", "\x00", "ü:1"]
)  # fmt: skip


@given(st.lists(TERMS | st.text(max_size=12), max_size=15), st.lists(TERMS, max_size=8))
def test_no_record_whatever_is_in_it_stops_the_program(first: list[str], second: list[str]) -> None:
    zone = {"example.org": spf("v=spf1 " + " ".join(first)), "a.b": spf("v=spf1 " + " ".join(second))}
    found = expand("example.org", Zone(**zone))
    assert found.queries <= MAX_QUERIES + 20
